//! A copy of the whole database as it was at one instant, made beside the relay that serves from it,
//! and what is to be known of such a copy.
//!
//! The copy is made by `VACUUM INTO` (docs/adr/0006): one read transaction, which no writer waits
//! for. While it lasts the log cannot be begun anew, so it grows by what is written meanwhile; who
//! calls watches [`log_bytes`] and gives up in time.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use super::columns::to_u64;
use super::errors::{code, is_damage, primary_code, words};
use super::guard::{SOUND_COLUMNS, sound};
use super::open::{
    DATABASE_FILE, describe, known_schema, look_at_log, reader_options, secret_matches,
};
use crate::clock::Timestamp;
use crate::secrets::Secret;

pub use super::open::OpenError;

/// Rows between two calls of who watches a check.
const WATCH_ROWS: u64 = 1_000;

/// Why a copy was not made, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing to back up.
    #[error("{}: is missing; RELAY_DATA_DIR must name the folder of a relay that has run before", .0.display())]
    NoDatabase(PathBuf),
    /// The database could not be opened or read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy could not be written.
    #[error("{}: {words}", path.display())]
    Write {
        /// The copy.
        path: PathBuf,
        /// What SQLite says.
        words: String,
    },
}

/// What a database holds, from its own books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The version of its schema.
    pub schema: i64,
    /// Blobs in mailboxes, messages between devices included.
    pub blobs: u64,
    /// Recovery proofs.
    pub recovery_proofs: u64,
    /// Mailboxes that only a proof opens.
    pub pins: u64,
}

/// The database of a relay that may be serving from it.
#[derive(Debug)]
pub struct Serving {
    path: PathBuf,
    connection: SqliteConnection,
}

impl Serving {
    /// Opens the database for reading; it must belong to `secret`. Takes no lock of the folder.
    pub async fn open(data_dir: &Path, secret: &Secret) -> Result<Self, BackupError> {
        let path = data_dir.join(DATABASE_FILE);
        if !path.exists() {
            return Err(BackupError::NoDatabase(path));
        }
        look_at_log(&path)?;
        let mut connection = open(&path).await?;
        if !is_of(&path, &mut connection, secret).await? {
            let secret = data_dir.join(crate::secrets::SECRET_FILE);
            return Err(OpenError::SecretMismatch { path, secret }.into());
        }
        Ok(Self { path, connection })
    }

    /// As many bytes as a copy takes at the most.
    pub async fn bytes(&mut self) -> Result<u64, BackupError> {
        let bytes = sqlx::query(
            "SELECT (page_count - freelist_count) * page_size \
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
        .fetch_one(&mut self.connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| describe(&self.path, &error))?;
        Ok(to_u64(bytes))
    }

    /// Writes the copy to `path`, a file that is empty or not there. Everything that was confirmed
    /// before the call is in it.
    pub async fn copy_to(mut self, path: &Path) -> Result<(), BackupError> {
        let write = |words| BackupError::Write {
            path: path.to_owned(),
            words,
        };
        let Some(name) = path.to_str() else {
            return Err(write("SQLite accepts only UTF-8 paths".to_owned()));
        };
        let copied = sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&mut self.connection)
            .await;
        match copied {
            Ok(_) => {
                self.connection.close().await.ok();
                Ok(())
            }
            // Reading gives these, too, but a disk that cannot be read has more to say elsewhere.
            Err(error) if matches!(primary_code(&error), Some(code::FULL | code::CANTOPEN)) => {
                Err(write(words(&error)))
            }
            Err(error) => Err(describe(&self.path, &error).into()),
        }
    }
}

/// Bytes of the log of the relay's database.
pub fn log_bytes(data_dir: &Path) -> u64 {
    let log = data_dir.join(format!("{DATABASE_FILE}-wal"));
    log.metadata().map_or(0, |metadata| metadata.len())
}

/// A database that nobody writes to, open for looking at it.
#[derive(Debug)]
pub struct Copy {
    path: PathBuf,
    connection: SqliteConnection,
}

/// What the checksums of blobs say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Blobs that were read.
    pub blobs: u64,
    /// Those of them that are not what they were.
    pub damaged: u64,
}

impl Copy {
    /// Opens it.
    pub async fn open(path: &Path) -> Result<Self, BackupError> {
        let connection = open(path).await?;
        let path = path.to_owned();
        Ok(Self { path, connection })
    }

    /// What it says that it holds.
    pub async fn contents(&mut self) -> Result<Contents, BackupError> {
        let row = sqlx::query(
            "SELECT blobs + device_sync, recovery_proofs, pins, \
             (SELECT max(version) FROM _sqlx_migrations) FROM usage WHERE one = 1",
        )
        .fetch_one(&mut self.connection)
        .await;
        let read = row.and_then(|row| {
            Ok(Contents {
                blobs: to_u64(row.try_get(0)?),
                recovery_proofs: to_u64(row.try_get(1)?),
                pins: to_u64(row.try_get(2)?),
                schema: row.try_get(3)?,
            })
        });
        Ok(read.map_err(|error| describe(&self.path, &error))?)
    }

    /// Whether it was written under this secret.
    pub async fn is_of(&mut self, secret: &Secret) -> Result<bool, BackupError> {
        Ok(is_of(&self.path, &mut self.connection, secret).await?)
    }

    /// What SQLite finds wrong with the file, the first ten; nothing, if it is whole.
    pub async fn faults(&mut self) -> Result<Vec<String>, BackupError> {
        let found = sqlx::query("PRAGMA integrity_check(10)")
            .fetch_all(&mut self.connection)
            .await;
        let rows = match found {
            Ok(rows) => rows,
            Err(error) if is_damage(&error) => return Ok(vec![words(&error)]),
            Err(error) => return Err(describe(&self.path, &error).into()),
        };
        let mut faults: Vec<String> = rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<sqlx::Result<_>>()
            .map_err(|error| describe(&self.path, &error))?;
        faults.retain(|fault| fault != "ok");
        Ok(faults)
    }

    /// Reads every blob and compares it with its checksum. `watch` hears now and then how many were
    /// read.
    pub async fn check_blobs(
        &mut self,
        secret: &Secret,
        mut watch: impl FnMut(u64),
    ) -> Result<Checked, BackupError> {
        let fault = |error| describe(&self.path, &error);
        let select = format!("SELECT {SOUND_COLUMNS} FROM blob ORDER BY seq");
        let mut rows = sqlx::query(AssertSqlSafe(select)).fetch(&mut self.connection);
        let mut checked = Checked::default();
        while let Some(row) = rows.try_next().await.map_err(fault)? {
            checked.blobs += 1;
            if sound(&row, secret).map_err(fault)?.is_none() {
                checked.damaged += 1;
            }
            if checked.blobs.is_multiple_of(WATCH_ROWS) {
                watch(checked.blobs);
            }
        }
        Ok(checked)
    }

    /// `2026-11-21T05:25:19Z`, as SQLite writes a moment.
    pub async fn in_words(&mut self, moment: Timestamp) -> Result<String, BackupError> {
        let words = sqlx::query("SELECT strftime('%Y-%m-%dT%H:%M:%SZ', ?, 'unixepoch')")
            .bind(moment.secs() as i64)
            .fetch_one(&mut self.connection)
            .await
            .and_then(|row| row.try_get(0));
        Ok(words.map_err(|error| describe(&self.path, &error))?)
    }

    /// Gives the file back.
    pub async fn close(self) {
        // It was only read.
        self.connection.close().await.ok();
    }
}

/// The newest schema that this relay knows.
pub fn newest_schema() -> i64 {
    known_schema()
}

async fn open(path: &Path) -> Result<SqliteConnection, OpenError> {
    let connected = reader_options(path).connect().await;
    connected.map_err(|error| describe(path, &error))
}

async fn is_of(
    path: &Path,
    connection: &mut SqliteConnection,
    secret: &Secret,
) -> Result<bool, OpenError> {
    let matches = secret_matches(connection, secret).await;
    matches.map_err(|error| describe(path, &error))
}
