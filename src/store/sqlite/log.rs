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
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::errors::Fault;
use super::rows::Sql;
use crate::filesystem;
use crate::filesystem::place::beside;

/// Pages from which on the log is moved into the database: 700 × 8 KiB = 5.5 MiB. Commits write it again and
/// again, so a short log stays in the processor's cache.
const PAGES_MAX: i64 = 700;

/// Bytes that are written, at the least, before the log is asked again how long it is: 1 MiB.
const ASK_BYTES: u64 = 1 << 20;

/// What a changed row writes to the log, beside its body: a page.
const ROW_BYTES: u64 = 8 << 10;

/// Rows of totals that every transaction changes.
const TOTALS: usize = 2;

/// The log of one database.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// Never closed before SQLite is done with the file: closing any handle drops its locks.
    database: Arc<File>,
    path: PathBuf,
    /// Bytes that were written since the log was asked how long it is, about.
    came: u64,
    /// Its first frames that were moved into the database without that having become durable. Shared by
    /// clones, of which one may hang in the disk.
    moved: Arc<AtomicU64>,
    /// Whoever moves the log, or has the system forget it, does so alone.
    turn: Arc<Mutex<()>>,
    /// How often the database was opened anew, and how often before this clone was made. A connection from
    /// before moves nothing more.
    openings: Arc<AtomicU64>,
    opening: u64,
}

impl Log {
    /// Of the database at this path, which is open by this handle.
    pub(super) fn of(path: &Path, database: Arc<File>) -> Self {
        Self {
            database,
            path: log_path(path),
            came: 0,
            moved: Arc::default(),
            turn: Arc::default(),
            openings: Arc::default(),
            opening: 0,
        }
    }

    /// A transaction changed so many rows, with so many bytes in their bodies, and the totals as each does.
    pub(super) fn came(&mut self, rows: usize, bytes: u64) {
        self.came += bytes + (rows + TOTALS) as u64 * ROW_BYTES;
    }

    /// Whether it is time to move the log.
    pub(super) fn is_long(&mut self, connection: &Connection) -> Result<bool, Fault> {
        if self.came < ASK_BYTES {
            return Ok(false);
        }
        self.came = 0;
        let (pages, _) = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        Ok(pages >= PAGES_MAX)
    }

    /// Pages of the log that are not moved.
    pub(super) fn rest(&self, connection: &Connection) -> Result<i64, Fault> {
        let (pages, moved) = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        Ok(pages - moved)
    }

    /// Moves as much of the log into the database as readers of older states allow. Waits for whoever moves
    /// it already.
    ///
    /// SQLite makes the database durable only when it has moved all that the log has by then; but from then on
    /// it reads what it has moved from the database. So what it leaves undone is done here.
    pub(super) fn move_it(&self, connection: &Connection) -> Result<(), Fault> {
        let _turn = self.turn();
        if self.openings.load(Ordering::SeqCst) != self.opening {
            return Err(Fault::said("the database was opened anew meanwhile"));
        }
        let (_, moved) = checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
        if moved > 0 {
            let moved = u64::try_from(moved).unwrap_or(0);
            self.moved.store(moved, Ordering::SeqCst);
            self.database.sync_data()?;
        }
        self.moved.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The database is opened anew from here on: connections from before move nothing more, once whoever does
    /// so right now is done.
    pub(super) fn open_anew(&mut self) {
        self.opening = self.openings.fetch_add(1, Ordering::SeqCst) + 1;
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves again what was moved and may not be durable, from the log, which is.
    pub(super) fn move_again(&self) -> io::Result<()> {
        let _turn = self.turn();
        let moved = self.moved.load(Ordering::SeqCst);
        if moved > 0 {
            move_frames(&self.path, &self.database, moved)?;
            filesystem::forget_cached(&self.database)?;
            self.moved.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Has the system write what it can of both files, and forget what it holds of them. Waits for whoever
    /// moves the log; nothing else may be in the middle of writing them. At a start, too: the relay before may have ended with a failed fsync, or in
    /// the middle of one, and has then left a commit that can be read and is not durable. Its sender repeats it,
    /// and must not hear `Stored` before it is.
    pub(super) fn forget_cached(&self) -> io::Result<()> {
        let _turn = self.turn();
        forget(&self.database, &self.path)
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

/// Runs a checkpoint; tells how many pages are in the log, and how many of them are moved.
fn checkpoint(connection: &Connection, pragma: &str) -> Sql<(i64, i64)> {
    connection.query_row(pragma, (), |row| Ok((row.get(1)?, row.get(2)?)))
}

/// Writes the first frames of a log into its database, and makes that durable
/// (<https://sqlite.org/fileformat2.html#the_write_ahead_log>). It is what SQLite has done before with the
/// same frames: each page once more for each of its frames, the last one last.
fn move_frames(log: &Path, database: &File, frames: u64) -> io::Result<()> {
    // SQLite has no lock on the log, so closing it gives none up.
    let mut log = BufReader::with_capacity(1 << 20, File::open(log)?);
    let mut header = [0; LOG_HEADER_BYTES];
    log.read_exact(&mut header)?;
    let page_bytes = number(&header[8..]);
    let salts = header[16..24].to_vec();
    let mut page = vec![0; page_bytes as usize];
    for _ in 0..frames {
        let mut frame = [0; FRAME_HEADER_BYTES];
        log.read_exact(&mut frame)?;
        log.read_exact(&mut page)?;
        if frame[8..16] != salts {
            return Err(io::Error::other("the log has begun anew meanwhile"));
        }
        let place = u64::from(number(&frame)).saturating_sub(1);
        database.write_all_at(&page, place * u64::from(page_bytes))?;
    }
    database.sync_all()
}

/// What a log begins with.
pub(super) const LOG_HEADER_BYTES: usize = 32;

/// What a frame begins with.
const FRAME_HEADER_BYTES: usize = 24;

/// The number that these bytes begin with.
fn number(bytes: &[u8]) -> u32 {
    let first = bytes.first_chunk::<4>().copied();
    u32::from_be_bytes(first.unwrap_or_default())
}

/// The log beside a database.
pub(super) fn log_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}
