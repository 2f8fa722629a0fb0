//! The default engine: one SQLite file in the data directory.
//!
//! The committer has the one writing connection (`writer`, which answers questions from `known`);
//! pages come from a few read-only ones (`reads`, with the SQL in `pages`). Beside them: `open` (files,
//! lock, schema), `doubts` (whether what cannot be read is damaged), `caches` with
//! `working_set`, `owners` and `nonces` (what is remembered), `rows`, `blobs`, `recovery` and `pins` (the statements), `columns`
//! (how values stand in them), `time` (the time that the database knows), `errors` (what failed), `files` (whether the paths still lead to what is open), `disk` (free space), `backup` (a copy of the
//! whole, beside a running relay).

pub mod backup;
mod blobs;
mod caches;
mod columns;
mod disk;
mod doubts;
mod errors;
mod files;
mod known;
mod nonces;
mod open;
mod owners;
mod pages;
mod pins;
mod reads;
mod recovery;
mod rows;
mod time;
mod working_set;
mod writer;

use std::sync::Arc;

use super::engine::Opened;
use doubts::Doubts;
use files::{Files, look_at_memory};
use open::{describe, look_at_log, open_writer, take_data_dir};
use pages::Readers;
use reads::SqliteReads;
use writer::SqliteWriter;

pub use open::{DATABASE_FILE, DataDirLock, LOCK_FILE, OpenError, SqliteOptions};

/// Opens the database in the data directory, or makes it there.
pub async fn open(options: SqliteOptions) -> Result<Opened, OpenError> {
    let lock = take_data_dir(&options.data_dir, options.allow_network_fs)?;
    let path = options.data_dir.join(DATABASE_FILE);
    look_at_log(&path)?;
    look_at_memory(&path);
    let connection = open_writer(&path, &options.secret).await?;
    let files = Files::of(&options.data_dir, &lock).map_err(|source| {
        let path = path.clone();
        OpenError::DataDir { path, source }
    })?;
    let files = Arc::new(files);
    let readers = Readers::new(&path, Arc::clone(&files));
    // One reader is open from here on. It keeps SQLite's index of the log alive while the writer
    // is reopened after a failed fsync: that index ends at the last commit that succeeded.
    // Without it the log would be read anew, and what the fsync has not brought to the disk may
    // be in the system's cache at that moment and gone at the next.
    let opened = readers.probe().await;
    opened.map_err(|error| describe(&path, &error))?;
    let doubts = Doubts::new(&path, Arc::clone(&files));
    let reads = SqliteReads::new(readers, doubts, options.secret.clone());
    let writer = SqliteWriter::new(&options, path, connection, (files, lock)).await?;
    Ok(Opened {
        held: writer.held(),
        engine: Box::new(writer),
        reads: Arc::new(reads),
    })
}
