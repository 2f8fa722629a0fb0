//! The default engine: one SQLite file in the data directory.
//!
//! The committer has two `connections`, one that writes and one that reads (`writer`, which answers questions
//! from `known`, keeps house in `upkeep`, and opens them again in `reopening`); pages come from a few read-only
//! ones (`reads`, with the SQL in `pages`). Beside them: `open` (files, lock, schema), `doubts` (whether what cannot be read is damaged), `scrub` (whether indexes find what
//! is there), `tail`, `runs`, `building` and `settle` (the index of mailboxes), `log` (when it is moved, and what a
//! failed fsync asks for), `caches` with `working_set`, `owners` and `nonces` (what is remembered), `rows`,
//! `blobs`, `departed`, `recovery`, `pins` and `time` (the statements), `columns` and `guard` (what is read of a row),
//! `errors` (what failed), `files` (whether the paths still lead to what is open), `disk` (room for new blobs)
//! with its `reserve`, `backup` (a copy of the whole, beside a running relay).

pub mod backup;
mod blobs;
mod building;
mod caches;
mod columns;
mod connections;
mod departed;
mod disk;
mod doubts;
mod errors;
mod files;
mod guard;
mod known;
mod log;
mod mover;
mod nonces;
mod open;
mod owners;
mod pages;
mod pins;
mod reads;
mod recovery;
mod reopening;
mod reserve;
mod rows;
mod runs;
mod scrub;
mod settle;
mod step;
mod tail;
mod time;
mod upkeep;
mod working_set;
mod writer;

use std::path::Path;
use std::sync::Arc;

use sqlx::Connection as _;
use tracing::warn;

use super::engine::Opened;
use connections::Connections;
use doubts::Doubts;
use files::{Files, look_at_memory};
use log::Log;
use open::{describe, look_at_log, open_maker, take_data_dir};
use pages::Readers;
use reads::SqliteReads;
use reserve::Reserve;
use tail::Tail;
use writer::SqliteWriter;

pub use open::{DATABASE_FILE, DataDirLock, LOCK_FILE, LOG_FILE, OpenError, SqliteOptions};
pub use settle::Pace;

/// Opens the database in the data directory, or makes it there.
pub async fn open(options: SqliteOptions) -> Result<Opened, OpenError> {
    let lock = take_data_dir(&options.data_dir, options.allow_network_fs)?;
    let path = options.data_dir.join(DATABASE_FILE);
    let fault = |source| OpenError::DataDir {
        path: path.clone(),
        source,
    };
    let log = Log::of(&path, lock.database().map_err(fault)?);
    // It may take as long as the disk takes; nothing is served yet that waits for it.
    log.forget_cached().map_err(fault)?;
    look_at_log(&path)?;
    look_at_memory(&path);
    let tail = Arc::new(Tail::default());
    let opened = open_files(&options, &path, &tail, &lock).await;
    let (connections, readers, files) = match opened {
        // It may be that the disk is full: then the reserve is what a start takes.
        Err(error @ OpenError::Database { .. }) => {
            if !Reserve::of(&options.data_dir).give_up() {
                return Err(error);
            }
            warn!("store: {error}. Trying again with the room of the reserve.");
            open_files(&options, &path, &tail, &lock).await?
        }
        opened => opened?,
    };
    let doubts = Doubts::new(&path, Arc::clone(&files), Arc::clone(&options.metrics));
    let reads = SqliteReads::new(readers, doubts, options.secret.clone());
    let writer = SqliteWriter::new(&options, path, connections, tail, (files, log, lock)).await?;
    Ok(Opened {
        held: writer.held(),
        engine: Box::new(writer),
        reads: Arc::new(reads),
        others: None,
    })
}

/// Opens the committer's connections and the readers, and remembers which files they have open.
async fn open_files(
    options: &SqliteOptions,
    path: &Path,
    tail: &Arc<Tail>,
    lock: &DataDirLock,
) -> Result<(Connections, Readers, Arc<Files>), OpenError> {
    let migrated = open_maker(path, &options.secret).await?;
    let connections = Connections::open(path).await;
    let connections = connections.map_err(|error| describe(path, &error))?;
    let closed = migrated.close().await;
    closed.map_err(|error| describe(path, &error))?;
    let files = Files::of(&options.data_dir, lock).map_err(|source| {
        let path = path.to_owned();
        OpenError::DataDir { path, source }
    })?;
    let files = Arc::new(files);
    let readers = Readers::new(path, Arc::clone(&files), Arc::clone(tail));
    // The readers are open from here on. They keep SQLite's index of the log alive while the writer
    // is reopened after a failed fsync: that index ends at the last commit that succeeded.
    // Without it the log would be read anew, and what the fsync has not brought to the disk may
    // be in the system's cache at that moment and gone at the next.
    let opened = readers.open().await;
    opened.map_err(|error| describe(path, &error))?;
    let probed = readers.probe().await;
    probed.map_err(|error| describe(path, &error))?;
    Ok((connections, readers, files))
}
