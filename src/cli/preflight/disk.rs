//! The data directory and its disk: may the relay write there, is there room, will it last.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::Finding;
use super::syncs::Trial;
use crate::cli::banner::{full_path, in_bytes};
use crate::cli::{container, permissions};
use crate::config::Config;
use crate::filesystem::{self, Kind};
use crate::server::{DataDirMissing, StartError};
use crate::store::sqlite::{DATABASE_FILE, LOCK_FILE, OpenError};

/// All of it.
pub(super) fn storage(config: &Config) -> Vec<Finding> {
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
pub(super) fn data_dir(config: &Config) -> Result<(PathBuf, Finding), Finding> {
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
pub(super) fn volume(config: &Config) -> Option<Finding> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::preflight::Level;

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
