//! Opening the database: the directory, the lock, the connection, the schema, the secret.
//!
//! Whatever is wrong ends the start with one line that says what, in the system's own words, and
//! what to do about it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{ConnectOptions as _, Row as _};
use tracing::info;

use super::errors::{Tells, code, primary_code, words};
use super::log::{LOG_HEADER_BYTES, log_path};
use super::settle::Pace;
use crate::clock::Clock;
use crate::filesystem::place::beside;
use crate::filesystem::{self, Kind};
use crate::metrics::Metrics;
use crate::secrets::{SECRET_FILE, Secret};

/// The database in the data directory.
pub const DATABASE_FILE: &str = "relay.db";

/// Its log, while a relay runs.
pub const LOG_FILE: &str = "relay.db-wal";

/// Locked as long as a relay uses the data directory.
pub const LOCK_FILE: &str = "relay.lock";

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// How long a statement waits for a lock that another process holds.
pub(super) const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a [`super::open`] opens.
#[derive(Clone)]
pub struct SqliteOptions {
    /// `RELAY_DATA_DIR`; must exist.
    pub data_dir: PathBuf,
    /// What mailboxes and checksums at rest hang on.
    pub secret: Secret,
    /// New blobs are refused while the disk has less free; zero never refuses.
    pub free_bytes_min: u64,
    /// How long a departed blob is remembered; zero remembers none.
    pub dedup: Duration,
    /// How many departed blobs are remembered; zero for no bound.
    pub dedup_max: u64,
    /// Whether to open on a network file system all the same.
    pub allow_network_fs: bool,
    /// When what mailboxes hold is written to their index.
    pub pace: Pace,
    /// What the store counts into.
    pub metrics: std::sync::Arc<Metrics>,
    /// Goes on from the time that the database knows.
    pub clock: Clock,
}

impl std::fmt::Debug for SqliteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteOptions")
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

/// Why the database could not be opened. Each text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory is missing or cannot be written to.
    #[error("{}: {source}; RELAY_DATA_DIR must name an existing folder that the relay can write to", path.display())]
    DataDir {
        /// The directory or the file in it.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another relay uses the data directory.
    #[error("{}: another relay is using this folder; stop it, or set another RELAY_DATA_DIR", .0.display())]
    InUse(PathBuf),
    /// The data directory is on a network file system.
    #[error("{}: is on a network file system ({kind}), where SQLite can lose blobs; use a local disk, or set RELAY_ALLOW_NETWORK_FS=true at your own risk", path.display())]
    NetworkFileSystem {
        /// The directory.
        path: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// Another process holds a lock on the database.
    #[error("{}: {words}; another process has the database open for writing; stop that process and start the relay again", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        words: String,
    },
    /// The file is damaged, or is no database.
    #[error("{}: {words}; restore it from a backup, or move it away to start with an empty database", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        words: String,
    },
    /// The log beside the database is not one.
    #[error("{}: is damaged and may contain confirmed blobs; restore it from a backup together with the database, or move it away and lose the blobs in it", .0.display())]
    CorruptLog(PathBuf),
    /// There is a log without the database that it belongs to.
    #[error("{}: is there without {}; both belong together. Move the database back beside it, or move the log away to start with an empty database", log.display(), path.display())]
    LogAlone {
        /// The log.
        log: PathBuf,
        /// Where the database should be.
        path: PathBuf,
    },
    /// A newer relay has changed the schema.
    #[error("{}: was written by a newer relay (its schema is {found}, this relay supports {known}); run the newer relay, or restore a backup from before the upgrade", path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema's version.
        found: i64,
        /// The latest version that this build knows.
        known: i64,
    },
    /// The database was written under another secret.
    #[error("{}: was written with a different secret than {}; restore the secret that belongs to it, or its blobs are lost", path.display(), secret.display())]
    SecretMismatch {
        /// The database.
        path: PathBuf,
        /// The secret that is there.
        secret: PathBuf,
    },
    /// Anything else that SQLite has to say.
    #[error("{}: {words}; check that the disk has space and that the relay can write there", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        words: String,
    },
}

/// Holds the data directory for this process as long as it lives: by a lock on a file of its own, and
/// on the database itself, which nobody deletes because it looks like a leftover.
///
/// The database is locked by flock(2), which on Linux does not touch SQLite's own locks. Those are of the
/// process: closing any handle of the file drops them. So this one is closed only when SQLite is done.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
    database: Option<Arc<File>>,
}

impl Drop for DataDirLock {
    /// The handle of the database may be kept by who still reads.
    fn drop(&mut self) {
        if let Some(database) = &self.database {
            // Closing the last handle does it, too.
            database.unlock().ok();
        }
    }
}

/// Sees that the data directory is there, is fit for a database, and is nobody else's.
pub(super) fn take_data_dir(
    data_dir: &Path,
    allow_network_fs: bool,
) -> Result<DataDirLock, OpenError> {
    let mut lock = DataDirLock::take(data_dir, allow_network_fs)?;
    let path = data_dir.join(DATABASE_FILE);
    if lock.database.is_some() {
        return Ok(lock);
    }
    let log = beside(&path, "-wal");
    if fs::metadata(&log).is_ok_and(|found| found.len() > 0) {
        return Err(OpenError::LogAlone { log, path });
    }
    // SQLite gives its log the mode of the database, so this makes both private.
    let made = private_file(&path).map_err(|source| OpenError::DataDir { path, source })?;
    lock.hold(made, data_dir)?;
    Ok(lock)
}

impl DataDirLock {
    /// Takes the lock and makes nothing but its file.
    pub fn take(data_dir: &Path, allow_network_fs: bool) -> Result<Self, OpenError> {
        let file = take_lock(data_dir, allow_network_fs)?;
        let mut lock = Self {
            file,
            database: None,
        };
        let path = data_dir.join(DATABASE_FILE);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(database) => lock.hold(database, data_dir)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OpenError::DataDir { path, source }),
        }
        Ok(lock)
    }

    /// Locks the database, and holds it.
    fn hold(&mut self, database: File, data_dir: &Path) -> Result<(), OpenError> {
        if is_lock_apart(data_dir) {
            lock_file(&database, data_dir, DATABASE_FILE)?;
        }
        self.database = Some(Arc::new(database));
        Ok(())
    }

    /// The lock file as it is open.
    pub(super) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    /// The database as it is open; an error when there is none. Nobody else may open and close it in this
    /// process but SQLite.
    pub(super) fn database(&self) -> io::Result<Arc<File>> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        self.database.clone().ok_or_else(missing)
    }
}

/// Whether flock(2) and SQLite's locks are two things: elsewhere than on Linux, and on network file
/// systems, the one is made of the other.
fn is_lock_apart(data_dir: &Path) -> bool {
    cfg!(target_os = "linux") && !matches!(filesystem::kind(data_dir), Ok(Kind::Network(_)))
}

fn lock_file(file: &File, data_dir: &Path, name: &str) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::DataDir {
            path: data_dir.join(name),
            source,
        }),
    }
}

fn take_lock(data_dir: &Path, allow_network_fs: bool) -> Result<File, OpenError> {
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::DataDir { path, source }
    };
    fs::read_dir(data_dir).map_err(fault(data_dir))?;
    let kind = filesystem::kind(data_dir).map_err(fault(data_dir))?;
    if let (Kind::Network(kind), false) = (kind, allow_network_fs) {
        let path = data_dir.to_owned();
        return Err(OpenError::NetworkFileSystem { path, kind });
    }
    let path = data_dir.join(LOCK_FILE);
    let file = private_file(&path).map_err(fault(&path))?;
    lock_file(&file, data_dir, LOCK_FILE)?;
    Ok(file)
}

/// Opens a file for reading and writing, made with mode 0600 when it is not there.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Sees that the log that a killed relay has left is one. SQLite itself takes a log whose header is
/// damaged for an empty one, and all that was confirmed and not yet moved into the database would be
/// gone without a word. What follows the header has checksums, but no way to tell a damaged frame
/// from one that a power cut left unfinished.
pub(super) fn look_at_log(database: &Path) -> Result<(), OpenError> {
    let path = log_path(database);
    let mut header = [0; LOG_HEADER_BYTES];
    let read = File::open(&path).and_then(|mut log| log.read_exact(&mut header));
    match read {
        Ok(()) if is_log_header(&header) => Ok(()),
        Ok(()) => Err(OpenError::CorruptLog(path)),
        // There is none, or nothing was ever confirmed in it: the header is made durable first.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(OpenError::DataDir { path, source }),
    }
}

/// Whether these bytes begin a log (<https://sqlite.org/fileformat2.html#the_write_ahead_log>). Zeros
/// do, too: a power cut may leave a file that has its length and nothing else.
fn is_log_header(header: &[u8; LOG_HEADER_BYTES]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let magic = u32::from_be_bytes(words[0]);
    let number = |word: [u8; 4]| match magic & 1 {
        0 => u32::from_le_bytes(word),
        _ => u32::from_be_bytes(word),
    };
    let (mut first, mut second) = (0_u32, 0_u32);
    for pair in words[..6].chunks(2) {
        first = first.wrapping_add(number(pair[0])).wrapping_add(second);
        second = second.wrapping_add(number(pair[1])).wrapping_add(first);
    }
    let sums = [words[6], words[7]].map(u32::from_be_bytes);
    *header == [0; LOG_HEADER_BYTES] || (magic & !1 == 0x377F_0682 && sums == [first, second])
}

/// What every connection that writes is set to, in the words of `docs/storage.md`.
pub(super) const WRITER_PRAGMAS: [(&str, &str); 7] = [
    ("synchronous", "FULL"),
    ("foreign_keys", "OFF"),
    ("secure_delete", "FAST"),
    ("temp_store", "MEMORY"),
    // KiB: 64 MiB.
    ("cache_size", "-65536"),
    // `log` does it.
    ("wal_autocheckpoint", "0"),
    ("journal_size_limit", "67108864"),
];

/// How the connection is opened that makes the database and brings its schema up to date.
fn maker_options(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .page_size(8192)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(LOCK_WAIT_MAX)
        .thread_name(|_| "store-maker".to_owned())
        .disable_statement_logging();
    let pragmas = WRITER_PRAGMAS.into_iter();
    pragmas.fold(options, |options, (name, value)| {
        options.pragma(name, value)
    })
}

/// How the connections for pages are opened.
pub(super) fn reader_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .foreign_keys(false)
        .busy_timeout(LOCK_WAIT_MAX)
        .pragma("temp_store", "MEMORY")
        .pragma("cache_size", "-8192")
        // Rows that are read ahead: with bodies of 1 MiB more would be dear.
        .row_buffer_size(4)
        .thread_name(|number| format!("store-reader-{number}"))
        .disable_statement_logging()
}

/// Makes the database, if there is none, and brings its schema up to date.
pub(super) async fn open_maker(
    path: &Path,
    secret: &Secret,
) -> Result<SqliteConnection, OpenError> {
    let mut writer = maker_options(path)
        .connect()
        .await
        .map_err(|error| describe(path, &error))?;
    say_if_long(&mut writer)
        .await
        .map_err(|error| describe(path, &error))?;
    let migrated = MIGRATIONS.run(&mut writer).await;
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(found) => OpenError::NewerSchema {
            path: path.to_owned(),
            found,
            known: known_schema(),
        },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            describe(path, &error)
        }
        other => OpenError::Database {
            path: path.to_owned(),
            words: other.to_string(),
        },
    })?;
    let matches = bind_secret(&mut writer, secret)
        .await
        .map_err(|error| describe(path, &error))?;
    if !matches {
        return Err(OpenError::SecretMismatch {
            path: path.to_owned(),
            secret: path.with_file_name(SECRET_FILE),
        });
    }
    Ok(writer)
}

/// Says so before a migration that takes long: the fifth copies the index of mailboxes.
async fn say_if_long(writer: &mut SqliteConnection) -> sqlx::Result<()> {
    let index = "SELECT 1 FROM sqlite_master WHERE name = 'blob_by_mailbox'";
    if sqlx::query(index).fetch_optional(writer).await?.is_some() {
        info!("store: the index of mailboxes is converted, once: some seconds for a million blobs");
    }
    Ok(())
}

/// Whether the database belongs to this secret; a fresh one belongs to it from now on.
async fn bind_secret(writer: &mut SqliteConnection, secret: &Secret) -> sqlx::Result<bool> {
    let check = secret.check_value();
    sqlx::query("INSERT OR IGNORE INTO meta (name, value) VALUES ('secret_check', ?)")
        .bind(check.as_slice())
        .execute(&mut *writer)
        .await?;
    secret_matches(writer, secret).await
}

pub(super) async fn secret_matches(
    writer: &mut SqliteConnection,
    secret: &Secret,
) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT value FROM meta WHERE name = 'secret_check'")
        .fetch_one(&mut *writer)
        .await?;
    let kept: Vec<u8> = row.try_get(0)?;
    Ok(kept == secret.check_value())
}

pub(super) fn known_schema() -> i64 {
    MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// The line for the operator.
pub(super) fn describe(path: &Path, error: &impl Tells) -> OpenError {
    let (path, words) = (path.to_owned(), words(error));
    match primary_code(error) {
        Some(code::BUSY | code::LOCKED) => OpenError::Locked { path, words },
        Some(code::CORRUPT | code::NOTADB) => OpenError::Corrupt { path, words },
        _ => OpenError::Database { path, words },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_system_is_refused_with_a_hint() {
        let error = OpenError::NetworkFileSystem {
            path: PathBuf::from("/data"),
            kind: "NFS",
        };
        let line = error.to_string();
        assert!(line.contains("NFS") && line.contains("RELAY_ALLOW_NETWORK_FS"));
        assert!(!line.contains('\n'));
    }
}
