//! The log of the database: when it is moved, and what an fsync that failed asks for.
//!
//! After a failed fsync the system may hold pages in memory that it takes for written and that are not on
//! the disk. Writing them again does not help: ext4 leaves a block that it could not write marked as
//! unwritten, so that it reads as zeros after a power cut, although the next fsync of it succeeds. So the
//! system is made to forget what it holds of both files; from then on what can be read is on the disk,
//! and what is written finds its blocks anew. No reader (a backup, a shell) has to end for it.
//!
//! For the same reason SQLite does not move the log by itself: it would keep a failed fsync of the
//! database to itself, try again, and take the log for moved.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use tokio::task::spawn_blocking;

use crate::filesystem;
use crate::filesystem::place::beside;

/// Pages from which on the log is moved into the database: 2,000 × 8 KiB = 16 MiB.
const PAGES_MAX: i64 = 2_000;

/// Bytes that are written, at the least, before the log is asked again how long it is: 1 MiB.
const ASK_BYTES: u64 = 1 << 20;

/// What a changed row writes to the log, beside its body: a page.
const ROW_BYTES: u64 = 8 << 10;

/// Rows of totals that every transaction changes.
const TOTALS: usize = 2;

/// The log of one database.
#[derive(Debug)]
pub(super) struct Log {
    /// Never closed before SQLite is done with the file: closing any handle drops its locks.
    database: Arc<File>,
    path: PathBuf,
    /// Bytes that were written since the log was asked how long it is, about.
    came: u64,
}

impl Log {
    /// Of the database at this path, which is open by this handle.
    pub(super) fn of(path: &Path, database: Arc<File>) -> Self {
        Self {
            database,
            path: log_path(path),
            came: 0,
        }
    }

    /// A transaction changed so many rows, with so many bytes in their bodies, and the totals as each does.
    pub(super) fn came(&mut self, rows: usize, bytes: u64) {
        self.came += bytes + (rows + TOTALS) as u64 * ROW_BYTES;
    }

    /// Moves the log into the database when it is long.
    pub(super) async fn move_if_long(
        &mut self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<()> {
        if self.came < ASK_BYTES {
            return Ok(());
        }
        self.came = 0;
        let asked = sqlx::query("PRAGMA wal_checkpoint(NOOP)");
        let asked = asked.fetch_one(&mut *connection).await?;
        match asked.try_get::<i64, _>(1)? >= PAGES_MAX {
            true => move_log(connection).await,
            false => Ok(()),
        }
    }

    /// Has the system write what it can of both files, and forget what it holds of them. Nothing may be
    /// in the middle of writing them. At a start, too: the relay before may have ended with a failed fsync.
    pub(super) async fn forget_cached(&self) -> io::Result<()> {
        let (database, path) = (Arc::clone(&self.database), self.path.clone());
        let forgotten = spawn_blocking(move || forget(&database, &path)).await;
        forgotten.map_err(io::Error::other)?
    }
}

/// An error that a failed write before has left is told once, and says nothing about the second time.
fn forget(database: &File, log: &Path) -> io::Result<()> {
    write_and_forget(database, log).or_else(|_| write_and_forget(database, log))
}

fn write_and_forget(database: &File, log: &Path) -> io::Result<()> {
    // SQLite has no lock on the log, so closing it gives none up.
    let log = match File::open(log) {
        Ok(log) => Some(log),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    for file in log.iter().chain([database]) {
        // Only what is clean can be forgotten. What fails to be written is clean afterwards, and gone.
        let written = file.sync_all();
        filesystem::forget_cached(file)?;
        written?;
    }
    Ok(())
}

/// Moves as much of the log into the database as readers of older states allow.
pub(super) async fn move_log(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let moved = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)");
    moved.execute(connection).await.map(drop)
}

/// The log beside a database.
pub(super) fn log_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}
