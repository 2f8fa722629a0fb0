//! How much room there is for new blobs.
//!
//! Deletions need room too (for the log, and again when that is moved into the database), so new blobs
//! are refused while there is still some left. Free pages of the database are room: what was deleted
//! makes way for what comes. Looked at between commits, not per blob.
//!
//! Whatever ends first (bytes, inodes, a quota, a limit on the size of files), a write that finds no
//! room gives up the `reserve`, which carries deletions; until there is a reserve again, nothing comes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;
use tracing::{info, warn};

use super::columns::to_u64;
use super::errors::{classify, words};
use super::log::{Log, log_path};
use super::open::DATABASE_FILE;
use super::reserve::{RESERVE_BYTES, Reserve};
use super::rows::run_through;
use crate::filesystem;
use crate::store::engine::CommitError;

/// Between two looks, if little is written. A second of the fastest senders is far less than
/// `RELAY_MIN_FREE_BYTES`.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of new blobs between two looks: 4 MiB, half of what a file of the reserve has.
const LOOK_BYTES: u64 = 4 << 20;

/// How far below the limit on the size of files the database stays, so that deletions find pages.
const GROWTH_KEPT: u64 = 2 << 20;

/// Slices of free pages that one look gives back to a full disk: 16 × 256 pages = 32 MiB, twice the
/// reserve.
const SLICES_MAX: usize = 16;

/// Whether there is room for new blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    /// Less is free than the settings want.
    Low,
    /// There is no reserve: a write found no room, or there was never room for one.
    Spent,
}

/// Watches the room of the disk that a directory is on.
pub(super) struct DiskWatch {
    data_dir: PathBuf,
    free_bytes_min: u64,
    read: fn(&Path) -> io::Result<u64>,
    looked_at: Option<Instant>,
    /// Bytes of new blobs since the last look.
    came: u64,
    reserve: Reserve,
    room: Room,
    /// Why the database's handle is finished.
    failure: Option<String>,
}

/// What a look sees.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Free on the disk.
    free: u64,
    /// How much larger a limit lets the database become; `None` is without one.
    grows_max: Option<u64>,
    /// Free pages inside the database.
    inside: u64,
    /// What is in the log and has no place in the database's file yet.
    pending: u64,
}

impl Seen {
    /// Bytes that new blobs may take.
    fn room(&self) -> u64 {
        let outside = self.free.saturating_sub(self.pending);
        let outside = outside.min(self.grows_max.unwrap_or(u64::MAX));
        outside.saturating_add(self.inside)
    }

    /// Whether a reserve can be taken that is not needed at once.
    fn can_reserve(&self) -> bool {
        let grows = self.grows_max.unwrap_or(u64::MAX);
        self.free >= RESERVE_BYTES + self.pending
            && grows.saturating_add(self.inside) >= 2 * GROWTH_KEPT
    }
}

impl DiskWatch {
    pub(super) fn new(data_dir: &Path, free_bytes_min: u64) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            free_bytes_min,
            read: filesystem::free_bytes,
            looked_at: None,
            came: 0,
            reserve: Reserve::of(data_dir),
            room: Room::Enough,
            failure: None,
        }
    }

    /// As of the last look.
    pub(super) fn has_room(&self) -> bool {
        self.room == Room::Enough
    }

    /// Why the handle is finished, if that was found out on the way to more room.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Blobs of so many bytes came.
    pub(super) fn came(&mut self, bytes: u64) {
        self.came += bytes;
    }

    /// Takes the reserve at a start.
    pub(super) fn begin(&mut self, connection: &Connection, log: &Log) {
        if let Err(error) = self.reserve.take() {
            self.room = Room::Spent;
            warn!(
                "store: {}: cannot take the reserve of {} MiB: {error}. New blobs are refused until there is room for it; delivery continues.",
                self.data_dir.display(),
                RESERVE_BYTES >> 20
            );
        }
        self.bound_growth(connection);
        self.look(connection, log);
    }

    /// Looks, if the last look is a while ago.
    pub(super) fn look(&mut self, connection: &Connection, log: &Log) {
        let is_fresh = self.looked_at.is_some_and(|at| at.elapsed() < LOOK_PAUSE);
        if is_fresh && self.came < LOOK_BYTES {
            return;
        }
        (self.looked_at, self.came) = (Some(Instant::now()), 0);
        // A disk or a database that cannot even be asked says so at the next write.
        let Some(mut seen) = self.see(connection) else {
            return;
        };
        if self.room == Room::Spent {
            match self.reserve_again(connection, log, seen) {
                Some(now) => seen = now,
                None => return,
            }
        }
        let room = match seen.room() >= self.free_bytes_min && seen.free >= seen.pending {
            true => Room::Enough,
            false => Room::Low,
        };
        if self.room == Room::Enough && room == Room::Low {
            let (free, min) = (seen.room(), self.free_bytes_min);
            warn!(
                "store: {}: {free} bytes are free, less than RELAY_MIN_FREE_BYTES ({min}). New blobs are refused until space is free; delivery continues.",
                self.data_dir.display()
            );
        } else if self.room != Room::Enough && room == Room::Enough {
            info!("store: the disk has free space again; new blobs are accepted.");
        }
        self.room = room;
    }

    /// A write found no room: gives up the reserve, and moves the log into the database, so that the
    /// log begins anew. Tells whether another try makes sense.
    pub(super) fn spend(&mut self, connection: &Connection, log: &Log, cause: &str) -> bool {
        let was_there = self.reserve.give_up();
        if self.room != Room::Spent {
            warn!(
                "store: {}: {cause}. The relay gave up its reserve of {} MiB and deletes with it. New blobs are refused until space is free; delivery continues.",
                self.data_dir.display(),
                RESERVE_BYTES >> 20
            );
        }
        self.room = Room::Spent;
        self.bound_growth(connection);
        self.checkpoint(connection, log);
        was_there
    }

    /// Why a file cannot grow, if that is so, although SQLite calls it an I/O error.
    pub(super) fn why_nothing_grows(&self) -> Option<io::Error> {
        let log = log_path(&self.data_dir.join(DATABASE_FILE));
        let log_bytes = std::fs::metadata(log).map_or(0, |log| log.len());
        let is_at_limit = |max: u64| log_bytes + GROWTH_KEPT > max;
        if filesystem::file_bytes_max().is_some_and(is_at_limit) {
            return Some(io::ErrorKind::FileTooLarge.into());
        }
        self.reserve.why_nothing_grows()
    }

    /// Has SQLite keep the database below the limit on the size of files, by as much as deletions may
    /// need while there is a reserve, and up to the limit afterwards.
    pub(super) fn bound_growth(&self, connection: &Connection) {
        let Some(max) = filesystem::file_bytes_max() else {
            return;
        };
        let max = match self.room {
            Room::Spent => max,
            Room::Enough | Room::Low => max.saturating_sub(GROWTH_KEPT),
        };
        let page_bytes = connection.query_row("PRAGMA page_size", (), |row| row.get::<_, i64>(0));
        let bounded = page_bytes.and_then(|page_bytes| {
            let pages = max / u64::try_from(page_bytes).unwrap_or(1).max(1);
            // The number is ours; a PRAGMA takes no parameters.
            let sql = format!("PRAGMA max_page_count = {}", pages.max(1));
            run_through(connection, &sql)
        });
        if let Err(error) = bounded {
            warn!(
                "store: cannot bound the size of the database: {}",
                words(&error)
            );
        }
    }

    /// Nothing uses the database any more: what its log took is free, and the next start may need it.
    pub(super) fn leave(&self) {
        self.reserve.take_what_fits();
    }

    /// Gives free pages of the database back to the disk until there is room for a reserve, and takes
    /// it. `None` while there is none.
    fn reserve_again(
        &mut self,
        connection: &Connection,
        log: &Log,
        mut seen: Seen,
    ) -> Option<Seen> {
        for _ in 0..SLICES_MAX {
            if seen.can_reserve() || seen.inside == 0 {
                break;
            }
            // A slice of 256 pages: 2 MiB.
            run_through(connection, "PRAGMA incremental_vacuum(256)").ok()?;
            self.checkpoint(connection, log);
            seen = self.see(connection)?;
        }
        if !seen.can_reserve() {
            return None;
        }
        self.reserve.take().ok()?;
        self.room = Room::Low;
        self.bound_growth(connection);
        self.see(connection)
    }

    /// Moves the log into the database, if the database's file has room for all of it: half of it
    /// would take the room and empty no log.
    fn checkpoint(&mut self, connection: &Connection, log: &Log) {
        let Some(seen) = self.see(connection) else {
            return;
        };
        if seen.free < seen.pending {
            return;
        }
        if let Err(error) = log.move_it(connection) {
            // Without room the next write finds out.
            let has_no_room = matches!(classify(&error), CommitError::DiskFull(_));
            if !has_no_room && self.why_nothing_grows().is_none() {
                self.failure = Some(words(&error));
            }
        }
    }

    fn see(&self, connection: &Connection) -> Option<Seen> {
        let file = std::fs::metadata(self.data_dir.join(DATABASE_FILE)).ok()?;
        let free = (self.read)(&self.data_dir).ok()?;
        let sql = "SELECT page_size * page_count, page_size * freelist_count \
             FROM pragma_page_size, pragma_page_count, pragma_freelist_count";
        let mut select = connection.prepare_cached(sql).ok()?;
        let bytes = select.query_row((), |row| Ok((row.get(0)?, row.get(1)?)));
        let (of_pages, inside): (i64, i64) = bytes.ok()?;
        let (of_pages, inside) = (to_u64(of_pages), to_u64(inside));
        Some(Seen {
            free,
            grows_max: filesystem::file_bytes_max().map(|max| max.saturating_sub(of_pages)),
            inside,
            pending: of_pages.saturating_sub(file.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    static FREE: AtomicU64 = AtomicU64::new(100);

    #[tokio::test]
    async fn room_goes_and_comes_back_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        std::fs::write(&path, "").unwrap();
        let connection = &Connection::open_in_memory().unwrap();
        let log = Log::of(&path, Arc::new(File::open(&path).unwrap()));
        let mut watch = DiskWatch::new(folder.path(), 100);
        watch.read = |_| Ok(FREE.load(Ordering::SeqCst));
        tokio::time::pause();
        watch.look(connection, &log);
        assert!(watch.has_room());
        FREE.store(99, Ordering::SeqCst);
        watch.look(connection, &log);
        assert!(watch.has_room(), "at most one look a second");
        watch.came(LOOK_BYTES);
        watch.look(connection, &log);
        assert!(!watch.has_room(), "or after a number of bytes");
        FREE.store(100, Ordering::SeqCst);
        tokio::time::advance(LOOK_PAUSE).await;
        watch.look(connection, &log);
        assert!(watch.has_room());
    }

    #[test]
    fn free_pages_are_room_and_what_is_pending_is_none() {
        let seen = Seen {
            free: 10,
            grows_max: None,
            inside: 7,
            pending: 4,
        };
        assert_eq!(seen.room(), 10 - 4 + 7);
        let bounded = Seen {
            grows_max: Some(2),
            ..seen
        };
        assert_eq!(bounded.room(), 2 + 7);
    }
}
