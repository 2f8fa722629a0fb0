//! Opens what the relay keeps: its secret and its store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DataDirMissing, StartError};
use crate::clock::Clock;
use crate::commons::Commons;
use crate::config::{Config, StorageBackend};
use crate::metrics::Metrics;
use crate::secrets::{SECRET_FILE, Secret};
use crate::store::engine::Opened;
use crate::store::memory::{self, MemoryOptions};
use crate::store::postgres::{self, PostgresOptions};
use crate::store::quota::Quota;
use crate::store::sqlite::{self, DATABASE_FILE, SqliteOptions};
use crate::store::{Store, StoreOptions};

/// The relay's secret: made at the first start, and never beside a database that needs another.
pub(super) fn load_secret(config: &Config) -> Result<Secret, StartError> {
    match (&config.secret_file, config.storage) {
        (Some(path), _) => Secret::load(path).map_err(StartError::SecretFile),
        (None, StorageBackend::Memory) => Ok(Secret::random()),
        (None, StorageBackend::Sqlite | StorageBackend::Postgres) => {
            if config.data_dir_is_fallback {
                std::fs::create_dir_all(&config.data_dir).map_err(|source| {
                    StartError::DataDir {
                        path: config.data_dir.display().to_string(),
                        source,
                    }
                })?;
            }
            look_at_data_dir(config)?;
            let path = config.data_dir.join(SECRET_FILE);
            if config.storage.keeps_files() && is_secret_gone(&config.data_dir) {
                let path = path.display().to_string();
                return Err(StartError::SecretGone { path });
            }
            Secret::load_or_create(&path).map_err(StartError::Secret)
        }
    }
}

/// Where the secret is, or would be made.
pub fn secret_file(config: &Config) -> PathBuf {
    let beside = || config.data_dir.join(SECRET_FILE);
    config.secret_file.clone().unwrap_or_else(beside)
}

/// Whether a data directory has a database and not the secret that was made before it.
pub fn is_secret_gone(data_dir: &Path) -> bool {
    let is_there = |file| data_dir.join(file).exists();
    is_there(DATABASE_FILE) && !is_there(SECRET_FILE)
}

/// Says what is wrong with the folder itself before a file in it is missed.
fn look_at_data_dir(config: &Config) -> Result<(), StartError> {
    let looked = std::fs::read_dir(&config.data_dir).map(drop);
    looked.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            StartError::DataDirMissing(DataDirMissing::of_this_user(&config.data_dir))
        }
        _ => StartError::DataDir {
            path: config.data_dir.display().to_string(),
            source,
        },
    })
}

/// The database that the settings ask for.
pub(super) async fn open_database(
    config: &Config,
    clock: &Clock,
    secret: &Secret,
    metrics: &Arc<Metrics>,
) -> Result<Opened, StartError> {
    metrics
        .storage_limit_bytes
        .set(config.storage_bytes_max as f64);
    metrics
        .connections_limit
        .set(f64::from(config.connections_max));
    Ok(match config.storage {
        StorageBackend::Memory => memory::open(MemoryOptions {
            dedup: config.dedup,
            dedup_max: config.dedup_max,
            metrics: Arc::clone(metrics),
        }),
        StorageBackend::Postgres => {
            let database = config.database.clone();
            let options = PostgresOptions {
                database: database.ok_or(StartError::NoDatabase)?,
                secret: secret.clone(),
                secret_file: secret_file(config),
                dedup: config.dedup,
                dedup_max: config.dedup_max,
                metrics: Arc::clone(metrics),
                clock: clock.clone(),
            };
            postgres::open(options).await.map_err(Box::new)?
        }
        StorageBackend::Sqlite => {
            sqlite::open(SqliteOptions {
                data_dir: config.data_dir.clone(),
                secret: secret.clone(),
                free_bytes_min: config.free_bytes_min,
                dedup: config.dedup,
                dedup_max: config.dedup_max,
                metrics: Arc::clone(metrics),
                clock: clock.clone(),
                allow_network_fs: config.allow_network_fs,
                pace: Default::default(),
            })
            .await?
        }
    })
}

/// The store over this database; wakes sessions for what it has stored.
pub(super) fn start_store(
    config: &Config,
    opened: Opened,
    (clock, secret): (&Clock, &Secret),
    (commons, metrics): (&Arc<dyn Commons>, &Arc<Metrics>),
) -> Store {
    let commons = Arc::clone(commons);
    let options = StoreOptions {
        secret: secret.clone(),
        quota: quota(config),
        dedup: config.dedup,
        receipt_ttl: config.blob_ttl,
        news: Arc::new(move |rows| commons.woke(rows)),
        clock: clock.clone(),
        metrics: Arc::clone(metrics),
    };
    Store::start(opened, options)
}

fn quota(config: &Config) -> Quota {
    Quota {
        mailbox_blobs_max: config.mailbox_blobs_max,
        mailbox_bytes_max: config.mailbox_bytes_max,
        relay_bytes_max: config.storage_bytes_max,
        device_sync_blobs_max: Quota::DEVICE_SYNC_BLOBS,
        device_sync_bytes_max: Quota::DEVICE_SYNC_BYTES,
        pins_max: config.pins_max,
    }
}
