//! What a start would need, tried without starting: the disk, the secret, the ports, the limits.
//!
//! Nothing is left behind: the one file that is written is removed, ports are given back, and a
//! secret or a folder that a start would make is not made.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use super::banner::{full_path, in_bytes};
use super::container;
use super::descriptors::Descriptors;
use super::permissions;
use super::say;
use crate::config::{Config, Database, StorageBackend};
use crate::filesystem::{self, Kind};
use crate::secrets::{SECRET_FILE, Secret, SecretError};
use crate::server::accept_queue::{self, Dropped};
use crate::server::{self, DataDirMissing, StartError};
use crate::store::postgres;
use crate::store::sqlite::{DATABASE_FILE, LOCK_FILE, OpenError};
use crate::telemetry;

/// Writes whose fsync is timed, each of a page: enough that one slow one does not decide.
const SYNCS: usize = 20;
const SYNC_BYTES: usize = 4 * 1024;

/// A disk that takes longer for all of them is slow, whatever the rest would have said.
const SYNCING_MAX: Duration = Duration::from_secs(10);

/// From here on an fsync is called slow: a lone sender then gets fewer than 100 stores a second.
const SYNC_SLOW: Duration = Duration::from_millis(10);

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// The relay would start, and the operator should know.
    Warn,
    /// The relay would not start, not take a blob, or not do what a setting is there for.
    Fail,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at, in a word or two.
    pub(super) subject: &'static str,
    /// One line.
    pub(super) text: String,
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, text)
    }

    pub(super) fn warn(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Warn, subject, text)
    }

    pub(super) fn fail(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Fail, subject, text)
    }

    fn new(level: Level, subject: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            level,
            subject,
            text,
        }
    }
}

/// Tries everything.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = match config.storage {
        StorageBackend::Memory => {
            vec![Finding::ok(
                "storage",
                "memory; a restart deletes everything",
            )]
        }
        StorageBackend::Sqlite => storage(config),
        StorageBackend::Postgres => database(config),
    };
    findings.extend(secret(config));
    findings.extend(ports(config));
    findings.push(queue(accept_queue::room_max(), Dropped::read()));
    findings.push(descriptors(config));
    findings.extend(log_filter(config));
    findings
}

/// A database on a server, and the folder of the secret where that is not given.
fn database(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "database";
    let mut findings = Vec::new();
    if config.needs_data_dir() {
        findings.push(match data_dir(config) {
            Ok((_, finding)) | Err(finding) => finding,
        });
        findings.extend(volume(config));
    }
    let Some(database) = config.database.clone() else {
        findings.push(Finding::fail(SUBJECT, StartError::NoDatabase.to_string()));
        return findings;
    };
    let file = server::secret_file(config);
    let secret = Secret::load(&file).ok();
    // A runtime of its own on a thread of its own, whoever calls this.
    let looking = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let secret = secret.as_ref().map(|secret| (secret, file));
        io::Result::Ok(runtime.block_on(postgres::look(&database, secret)))
    });
    let looked = looking
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    match looked {
        Ok(Ok(looked)) => {
            let place = config.database.as_ref().map(Database::place);
            let mut text = format!(
                "PostgreSQL {}, {}: takes writes; {} running relays use it",
                looked.version,
                place.unwrap_or_default(),
                looked.relays
            );
            if looked.is_empty {
                text += "; a start creates the tables";
            }
            findings.push(Finding::ok(SUBJECT, text));
            let advice = looked.advice.into_iter();
            findings.extend(advice.map(|line| Finding::warn(SUBJECT, line)));
        }
        Ok(Err(error)) => findings.push(Finding::fail(SUBJECT, error.to_string())),
        Err(error) => {
            let text = format!("cannot look at the database: {error}");
            findings.push(Finding::fail(SUBJECT, text));
        }
    }
    findings
}

fn storage(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = match data_dir(config) {
        Ok((folder, finding)) => {
            findings.push(finding);
            folder
        }
        Err(finding) => return vec![finding],
    };
    findings.extend(file_system(config, &folder));
    findings.extend(volume(config));
    let too_open = permissions::warnings(config).into_iter();
    findings.extend(too_open.map(|text| Finding::warn("permissions", text)));
    findings.extend(room(config, &folder));
    let database = fs::metadata(folder.join(DATABASE_FILE)).map_or(0, |found| found.len());
    findings.extend(file_size(config, filesystem::file_bytes_max(), database));
    match Trial::begin(&folder) {
        Ok(mut trial) => {
            findings.extend(trial.links());
            findings.push(trial.finding());
        }
        // That it cannot be written to is the one thing to say of it.
        Err(error) => {
            findings[0] = Finding::fail(
                DATA_DIR,
                format!(
                    "cannot write to {}: {error}; change its owner to the user that runs the relay, or set RELAY_DATA_DIR to another folder",
                    full_path(&folder)
                ),
            );
        }
    }
    findings
}

const DATA_DIR: &str = "data directory";

/// The folder that is there: the data directory or, where a start would make it, its parent.
fn data_dir(config: &Config) -> Result<(PathBuf, Finding), Finding> {
    let folder = config.data_dir.clone();
    let path = full_path(&folder);
    match fs::read_dir(&folder) {
        Ok(_) if is_in_use(&folder) => Err(Finding::fail(
            DATA_DIR,
            OpenError::InUse(folder).to_string(),
        )),
        Ok(_) => {
            let text = format!("{path} exists and is writable");
            Ok((folder, Finding::ok(DATA_DIR, text)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && config.data_dir_is_fallback => {
            let parent = folder.parent().unwrap_or(Path::new(".")).to_owned();
            let text = format!("{path} does not exist; a start creates it");
            Ok((parent, Finding::ok(DATA_DIR, text)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let missing = DataDirMissing::of_this_user(&folder);
            Err(Finding::fail(DATA_DIR, missing.to_string()))
        }
        Err(source) => {
            let error = StartError::DataDir { path, source };
            Err(Finding::fail(DATA_DIR, error.to_string()))
        }
    }
}

/// Whether a relay holds the folder's lock. Asked with a lock that two checks may share, given back
/// at once.
fn is_in_use(folder: &Path) -> bool {
    File::open(folder.join(LOCK_FILE))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn file_system(config: &Config, folder: &Path) -> Option<Finding> {
    const SUBJECT: &str = "file system";
    Some(match filesystem::kind(folder) {
        Ok(Kind::Local) => Finding::ok(SUBJECT, "local"),
        Ok(Kind::Memory(name)) => Finding::warn(
            SUBJECT,
            format!("{name}, in memory: a restart of this machine deletes everything"),
        ),
        Ok(Kind::Network(name)) if config.allow_network_fs => Finding::warn(
            SUBJECT,
            format!("{name}, where SQLite can lose blobs; allowed by RELAY_ALLOW_NETWORK_FS"),
        ),
        Ok(Kind::Network(kind)) => {
            let path = folder.to_owned();
            let error = OpenError::NetworkFileSystem { path, kind };
            Finding::fail(SUBJECT, error.to_string())
        }
        Err(error) => Finding::warn(SUBJECT, format!("unknown: {error}")),
    })
}

/// Only in a container, which may take the data along.
fn volume(config: &Config) -> Option<Finding> {
    const SUBJECT: &str = "volume";
    Some(match container::goes_along(config)? {
        Ok(()) => Finding::ok(
            SUBJECT,
            "the data is on a volume that outlives this container",
        ),
        Err(place) => Finding::warn(SUBJECT, container::told(place, config)),
    })
}

fn room(config: &Config, folder: &Path) -> Option<Finding> {
    const SUBJECT: &str = "free disk";
    let free = match filesystem::free_bytes(folder) {
        Ok(free) => free,
        Err(error) => {
            return Some(Finding::warn(SUBJECT, format!("unknown: {error}")));
        }
    };
    let (max, min) = (config.storage_bytes_max, config.free_bytes_min);
    let shown = in_bytes(free);
    if free < min {
        let min = in_bytes(min);
        let text = format!(
            "{shown}, less than RELAY_MIN_FREE_BYTES ({min}): the relay would refuse every blob; free disk space"
        );
        return Some(Finding::fail(SUBJECT, text));
    }
    if max == 0 {
        let text = format!("{shown}; RELAY_MAX_STORAGE_BYTES is 0, so the disk is the limit");
        return Some(Finding::ok(SUBJECT, text));
    }
    let to_come = max.saturating_sub(database_bytes(folder));
    if free < to_come.saturating_add(min) {
        let to_come = in_bytes(to_come);
        let text = format!(
            "{shown}, but RELAY_MAX_STORAGE_BYTES allows another {to_come} (plus RELAY_MIN_FREE_BYTES); lower RELAY_MAX_STORAGE_BYTES or free disk space"
        );
        return Some(Finding::warn(SUBJECT, text));
    }
    let text = format!(
        "{shown}, enough for RELAY_MAX_STORAGE_BYTES ({})",
        in_bytes(max)
    );
    Some(Finding::ok(SUBJECT, text))
}

/// Whether the database may grow as far as the settings let it; nothing without a limit on file size.
fn file_size(config: &Config, limit: Option<u64>, database: u64) -> Option<Finding> {
    const SUBJECT: &str = "file size";
    const RAISE: &str = "raise the limit (LimitFSIZE in systemd, ulimit -f)";
    let (limit, max) = (limit?, config.storage_bytes_max);
    let shown = in_bytes(limit);
    if limit <= database {
        let database = in_bytes(database);
        let text = format!(
            "files of this process may have {shown}, and {DATABASE_FILE} has {database}: the relay would store nothing, and no acknowledgement either; {RAISE}"
        );
        return Some(Finding::fail(SUBJECT, text));
    }
    if max > 0 && limit >= max {
        let max = in_bytes(max);
        let text = format!("limit: {shown}, enough for RELAY_MAX_STORAGE_BYTES ({max})");
        return Some(Finding::ok(SUBJECT, text));
    }
    let allowed = match max {
        0 => "RELAY_MAX_STORAGE_BYTES is 0".to_owned(),
        max => format!("RELAY_MAX_STORAGE_BYTES allows {}", in_bytes(max)),
    };
    let text = format!(
        "files of this process may have {shown}, but {allowed}: from that size of {DATABASE_FILE} on the relay would refuse every blob; {RAISE} or lower RELAY_MAX_STORAGE_BYTES"
    );
    Some(Finding::warn(SUBJECT, text))
}

/// Bytes that the database takes already, its log included; what is kept fits into them.
fn database_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(DATABASE_FILE)
        })
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// A file of our own in the data directory; removed when it is dropped.
struct Trial {
    path: PathBuf,
    file: File,
}

impl Trial {
    fn begin(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!(".check-{:016x}", rand::random::<u64>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { path, file })
    }

    fn finding(&mut self) -> Finding {
        const SUBJECT: &str = "fsync";
        match self.times() {
            Ok(times) => {
                let (level, text) = told_of_syncs(median(times));
                Finding::new(level, SUBJECT, text)
            }
            Err(error) => Finding::fail(SUBJECT, format!("a write failed: {error}")),
        }
    }

    /// Only where a file cannot have two names, as on FAT and exFAT. Finished files are renamed there.
    fn links(&self) -> Option<Finding> {
        let second = self.path.with_extension("link");
        match fs::hard_link(&self.path, &second) {
            Ok(()) => remove(&second),
            Err(_) => return Some(Finding::warn("file names", NO_LINKS)),
        }
        None
    }

    /// How long each write took to be on the disk.
    fn times(&mut self) -> io::Result<Vec<Duration>> {
        let page = [0x5A; SYNC_BYTES];
        let (begun, mut times) = (Instant::now(), Vec::with_capacity(SYNCS));
        while times.len() < SYNCS && begun.elapsed() < SYNCING_MAX {
            let writing = Instant::now();
            self.file.write_all(&page)?;
            self.file.sync_data()?;
            times.push(writing.elapsed());
        }
        Ok(times)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        say::note(format_args!("cannot remove {}: {error}", path.display()));
    }
}

const NO_LINKS: &str = "this file system has no hard links (FAT or exFAT?): the relay works on it, but it keeps no permissions either; mount it with umask=077 and the relay's user as its owner, so that no other user reads relay.secret";

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn told_of_syncs(median: Duration) -> (Level, String) {
    let millis = median.as_secs_f64() * 1e3;
    let a_second = 1.0 / median.as_secs_f64().max(1e-6);
    let mut text = format!(
        "{millis:.2} ms (median of {SYNCS}): a single sender gets at most {a_second:.0} stores a second; concurrent senders share each fsync"
    );
    if median <= SYNC_SLOW {
        return (Level::Ok, text);
    }
    text += "; over 10 ms is slow: use a local SSD, and check what else writes to this disk";
    (Level::Warn, text)
}

fn secret(config: &Config) -> Option<Finding> {
    const SUBJECT: &str = "secret";
    if let Some(path) = &config.secret_file {
        return Some(match Secret::load(path) {
            Ok(_) => privacy_of(path),
            Err(error) => Finding::fail(SUBJECT, StartError::SecretFile(error).to_string()),
        });
    }
    if !config.needs_data_dir() {
        return None;
    }
    let path = config.data_dir.join(SECRET_FILE);
    if config.storage.keeps_files() && server::is_secret_gone(&config.data_dir) {
        let path = full_path(&path);
        return Some(Finding::fail(
            SUBJECT,
            StartError::SecretGone { path }.to_string(),
        ));
    }
    Some(match Secret::load(&path) {
        Ok(_) => privacy_of(&path),
        Err(SecretError::Missing(_)) => Finding::ok(
            SUBJECT,
            format!("{} does not exist; a start creates it", full_path(&path)),
        ),
        Err(error) => Finding::fail(SUBJECT, StartError::Secret(error).to_string()),
    })
}

/// A group may read it, as container platforms arrange it; more is too much.
fn privacy_of(path: &Path) -> Finding {
    const SUBJECT: &str = "secret";
    const TOO_OPEN: u32 = 0o027;
    let shown = full_path(path);
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & TOO_OPEN == 0 => {
            Finding::ok(SUBJECT, format!("{shown}: readable, permissions OK"))
        }
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            let text = format!(
                "{shown} is accessible to other users (mode {mode:03o}); run: chmod 600 {shown}"
            );
            Finding::warn(SUBJECT, text)
        }
        Err(error) => Finding::fail(SUBJECT, format!("{shown}: {error}")),
    }
}

/// Both are held until both were tried.
fn ports(config: &Config) -> [Finding; 2] {
    let (clients, _held) = port("RELAY_LISTEN_ADDR", config.listen_addr);
    let (operators, _held_too) = port("RELAY_HTTP_ADDR", config.http_addr);
    [clients, operators]
}

fn port(variable: &'static str, address: SocketAddr) -> (Finding, Option<TcpListener>) {
    const SUBJECT: &str = "port";
    match TcpListener::bind(address) {
        Ok(listener) => {
            let text = format!("{address} ({variable}) is free");
            (Finding::ok(SUBJECT, text), Some(listener))
        }
        Err(source) => {
            let error = StartError::Bind {
                variable,
                address,
                source,
            };
            (Finding::fail(SUBJECT, error.to_string()), None)
        }
    }
}

/// By what the system allows and what it has dropped.
fn queue(room_max: Option<u32>, dropped: Option<Dropped>) -> Finding {
    const SUBJECT: &str = "accept queue";
    let wanted = accept_queue::ROOM;
    let dropped = match dropped {
        Some(dropped) => format!(
            "{} dropped so far by full queues (all programs of this network namespace)",
            dropped.overflows
        ),
        None => "the system does not report drops".to_owned(),
    };
    match room_max {
        Some(max) if max < wanted => Finding::warn(
            SUBJECT,
            format!(
                "room for {max} connections waiting to be accepted, not {wanted}, because net.core.somaxconn is {max}; {dropped}; run: sysctl -w net.core.somaxconn={wanted}"
            ),
        ),
        Some(_) => Finding::ok(
            SUBJECT,
            format!("room for {wanted} connections waiting to be accepted; {dropped}"),
        ),
        None => Finding::ok(
            SUBJECT,
            format!(
                "the relay asks for room for {wanted} connections waiting to be accepted; {dropped}"
            ),
        ),
    }
}

fn descriptors(config: &Config) -> Finding {
    const SUBJECT: &str = "file descriptors";
    let descriptors = Descriptors::of(config);
    if let Some(warning) = descriptors.warning() {
        return Finding::warn(SUBJECT, warning);
    }
    let count = |count: Option<u64>| count.map_or("no limit".to_owned(), |count| count.to_string());
    let (allowed, needed) = (count(descriptors.allowed), count(descriptors.needed));
    let text = format!("limit: {allowed}; needed for RELAY_MAX_CONNECTIONS: {needed}");
    Finding::ok(SUBJECT, text)
}

fn log_filter(config: &Config) -> Vec<Finding> {
    telemetry::faults(config.log_filter_file.as_deref())
        .into_iter()
        .map(|fault| Finding::warn("log filter", fault))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_fsync_is_warned_about_and_says_what_it_means() {
        let (level, text) = told_of_syncs(Duration::from_millis(2));
        assert_eq!(level, Level::Ok);
        assert!(text.starts_with("2.00 ms"), "{text}");
        assert!(text.contains("at most 500 stores a second"), "{text}");
        let (level, text) = told_of_syncs(Duration::from_millis(25));
        assert_eq!(level, Level::Warn);
        assert!(text.contains("at most 40 stores a second"), "{text}");
        // A file system in memory may take no time at all.
        assert_eq!(told_of_syncs(Duration::ZERO).0, Level::Ok);
    }

    #[test]
    fn a_queue_that_the_system_caps_is_warned_about() {
        let dropped = Some(Dropped {
            overflows: 856,
            all: 900,
        });
        let capped = queue(Some(128), dropped);
        assert_eq!(capped.level, Level::Warn);
        for words in ["room for 128", "856 dropped so far", "somaxconn=4096"] {
            assert!(capped.text.contains(words), "{}", capped.text);
        }
        for (room_max, dropped) in [
            (Some(4_096), dropped),
            (Some(65_535), dropped),
            (None, None),
        ] {
            assert_eq!(queue(room_max, dropped).level, Level::Ok);
        }
    }

    #[test]
    fn the_middle_is_not_moved_by_one_slow_write() {
        let mut times = vec![Duration::from_millis(1); SYNCS - 1];
        times.push(Duration::from_secs(9));
        assert_eq!(median(times), Duration::from_millis(1));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn a_folder_whose_lock_is_held_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_in_use(folder.path()), "there is no lock");
        let lock = File::create(folder.path().join(LOCK_FILE)).unwrap();
        assert!(!is_in_use(folder.path()), "nobody holds it");
        lock.try_lock().unwrap();
        assert!(is_in_use(folder.path()));
    }

    #[test]
    fn a_trial_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut trial = Trial::begin(folder.path()).unwrap();
        assert_eq!(trial.times().unwrap().len(), SYNCS);
        drop(trial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn room_is_measured_against_what_may_still_come() {
        let folder = tempfile::tempdir().unwrap();
        let found = |storage_bytes_max, free_bytes_min| {
            let config = Config {
                storage_bytes_max,
                free_bytes_min,
                ..Config::default()
            };
            room(&config, folder.path()).unwrap()
        };
        assert_eq!(found(1, 1).level, Level::Ok);
        assert_eq!(found(0, 1).level, Level::Ok);
        assert_eq!(found(1 << 60, 1).level, Level::Warn);
        assert_eq!(found(1, 1 << 60).level, Level::Fail);
        // What is stored already does not have to fit a second time.
        let database = File::create(folder.path().join("relay.db")).unwrap();
        database.set_len(1 << 40).unwrap();
        assert_eq!(found(1 << 40, 1).level, Level::Ok);
    }

    #[test]
    fn a_limit_on_file_size_is_measured_against_what_the_database_may_become() {
        let found = |storage_bytes_max, limit, database| {
            let config = Config {
                storage_bytes_max,
                ..Config::default()
            };
            file_size(&config, limit, database)
        };
        let level = |max, limit, database| found(max, Some(limit), database).unwrap().level;
        assert_eq!(found(0, None, 1 << 30), None);
        assert_eq!(level(1 << 30, 1 << 30, 1 << 20), Level::Ok);
        assert_eq!(level(1 << 30, (1 << 30) - 1, 1 << 20), Level::Warn);
        assert_eq!(level(0, 1 << 50, 1 << 20), Level::Warn);
        assert_eq!(level(1 << 30, 1 << 20, 1 << 20), Level::Fail);
        let text = found(10 << 30, Some(1 << 30), 0).unwrap().text;
        assert!(
            text.starts_with("files of this process may have 1 GiB"),
            "{text}"
        );
        assert!(text.contains("LimitFSIZE in systemd, ulimit -f"), "{text}");
    }
}
