//! Whether the paths still lead to the files that are open.
//!
//! A process goes on writing to a file that was moved or deleted, and SQLite does so without a word. What
//! it then confirms is not where the next start looks for it. So the device and the inode of the
//! folder, the database, its log, its shared memory and the lock are compared with what the paths lead
//! to: after each commit, before its writes are answered, and every second.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{error, warn};

use super::open::{DATABASE_FILE, DataDirLock, LOCK_FILE};
use crate::filesystem;
use crate::filesystem::identity::{Found, find};
use crate::filesystem::place::beside;

/// A path leads elsewhere, or nowhere. The text is one line for the operator, and names no folder:
/// everybody may ask for `/ready`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Moved {
    #[error(
        "{0} was moved, deleted or replaced while the relay has it open. Move the same file back, or stop the relay, put database, log and secret of one relay into the folder, and start it"
    )]
    Elsewhere(&'static str),
    #[error(
        "{name} cannot be looked at: {source}. Check the disk and the permissions of the folder"
    )]
    Unreadable {
        name: &'static str,
        source: io::Error,
    },
}

/// What a path led to when it was opened.
#[derive(Debug)]
struct Known {
    name: &'static str,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Known {
    fn new(name: &'static str, path: PathBuf, found: Found) -> Self {
        Self {
            name,
            path,
            device: found.device,
            inode: found.inode,
        }
    }

    fn look(&self) -> Result<Found, Moved> {
        let name = self.name;
        match find(&self.path) {
            Ok(found) if (found.device, found.inode) == (self.device, self.inode) => Ok(found),
            Ok(_) => Err(Moved::Elsewhere(name)),
            Err(error) if is_gone(&error) => Err(Moved::Elsewhere(name)),
            Err(source) => Err(Moved::Unreadable { name, source }),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// The files of an open database.
#[derive(Debug)]
pub(super) struct Files {
    /// The folder first: when it was moved, the others were, too.
    known: [Known; 4],
    memory: Memory,
    database: Arc<File>,
}

impl Files {
    /// Remembers what the paths lead to, right after the database was opened.
    pub(super) fn of(data_dir: &Path, lock: &DataDirLock) -> io::Result<Self> {
        let database = data_dir.join(DATABASE_FILE);
        let by_path = |name, path: PathBuf| {
            let found = find(&path)?;
            io::Result::Ok(Known::new(name, path, found))
        };
        let by_handle = |name, path, handle: io::Result<Metadata>| {
            let found = Found::from(&handle?);
            io::Result::Ok(Known::new(name, path, found))
        };
        let open = lock.database()?;
        Ok(Self {
            known: [
                by_path("the data directory", data_dir.to_owned())?,
                by_path("relay.db-wal", beside(&database, "-wal"))?,
                by_handle(LOCK_FILE, data_dir.join(LOCK_FILE), lock.metadata())?,
                by_handle(DATABASE_FILE, database.clone(), open.metadata())?,
            ],
            memory: Memory {
                known: by_path("relay.db-shm", beside(&database, "-shm"))?,
                bytes: AtomicU64::new(0),
            },
            database: open,
        })
    }

    /// Whether all paths lead to what is open. Blocks for as long as a few calls of statx take.
    pub(super) fn look(&self) -> Result<(), Moved> {
        for known in &self.known {
            known.look()?;
        }
        self.memory.look()
    }

    /// The same off the async threads; the error is what [`Moved`] says.
    pub(super) async fn look_beside(self: &Arc<Self>) -> Result<(), String> {
        let files = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || files.look()).await;
        looked
            .map_err(|error| error.to_string())?
            .map_err(|moved| moved.to_string())
    }

    /// Reads the whole database, by the handle that stays open: closing any other one would drop
    /// SQLite's locks.
    pub(super) fn read_database(&self) -> io::Result<()> {
        let database = &self.database;
        // What the system remembers may be what is damaged. It may decline.
        filesystem::forget_cached(database).ok();
        let (mut buffer, mut at) = (vec![0; READ_BYTES], 0);
        loop {
            match database.read_at(&mut buffer, at)? {
                0 => return Ok(()),
                read => at += read as u64,
            }
        }
    }
}

/// Bytes that are read of a file at once.
const READ_BYTES: usize = 1 << 20;

/// The file that SQLite maps its index of the log from. Whoever truncates it kills the process at its
/// next look at a page that is not there any more, by SIGBUS. It cannot be filled up: what reads or
/// writes at that moment would find an empty index and miss what the log holds. Nothing is lost by
/// ending, because the next start makes the index anew from the log.
#[derive(Debug)]
struct Memory {
    known: Known,
    /// It never becomes smaller while it is open.
    bytes: AtomicU64,
}

impl Memory {
    /// Ends the process with a line, before SIGBUS ends it without.
    fn look(&self) -> Result<(), Moved> {
        let bytes = self.known.look()?.bytes;
        if self.bytes.fetch_max(bytes, Ordering::SeqCst) <= bytes {
            return Ok(());
        }
        error!(
            "store: {} was truncated while the relay has it open; stopping, because the system would kill the relay. No confirmed blob is lost; start it again",
            self.known.path.display()
        );
        std::process::exit(1);
    }
}

/// SQLite makes its index of the log at least so large.
/// <https://sqlite.org/walformat.html#the_wal_index_file_format>
const MEMORY_BYTES_MIN: u64 = 32 << 10;

/// Says at a start that the last relay was killed by a truncated index of the log.
pub(super) fn look_at_memory(database: &Path) {
    let path = beside(database, "-shm");
    if fs::metadata(&path).is_ok_and(|found| found.len() < MEMORY_BYTES_MIN) {
        warn!(
            "store: {} was truncated while a relay had it open, which may have killed it (SIGBUS). It is made anew; no confirmed blob is lost",
            path.display()
        );
    }
}
