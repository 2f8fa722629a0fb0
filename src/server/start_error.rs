//! Why the relay did not start, in one line for the operator.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::secrets::SecretError;
use crate::store::postgres;
use crate::store::sqlite::OpenError;

/// Why the relay did not start. One line for the operator, with the system's own words.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error(
        "cannot listen on {address} ({variable}): {}{}",
        bind_words(source),
        bind_hint(source, address)
    )]
    Bind {
        /// The setting that names the address.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The folder that `RELAY_DATA_DIR` names does not exist.
    #[error("{0}")]
    DataDirMissing(DataDirMissing),
    /// The data directory cannot be read, or `./data` could not be made.
    #[error(
        "cannot use the data directory {path}: {source}; set RELAY_DATA_DIR to a folder that this user can write to"
    )]
    DataDir {
        /// The folder.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The secret in the data directory could not be read or made.
    #[error("cannot use the relay's secret: {0}")]
    Secret(SecretError),
    /// There is a database and not its secret. A new one would lock it for good.
    #[error(
        "{path} is missing, and the database beside it needs it; restore it from the backup, or set RELAY_SECRET_FILE to its location"
    )]
    SecretGone {
        /// Where it belongs.
        path: String,
    },
    /// The secret that `RELAY_SECRET_FILE` names could not be read.
    #[error("RELAY_SECRET_FILE: cannot use the relay's secret: {0}")]
    SecretFile(SecretError),
    /// The database could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The database on a PostgreSQL server could not be opened.
    #[error("{0}")]
    Postgres(#[from] Box<postgres::OpenError>),
    /// Settings that were not read from variables name no database.
    #[error("RELAY_STORAGE_BACKEND is postgres, and no RELAY_DATABASE_URL is set")]
    NoDatabase,
}

/// The folder that `RELAY_DATA_DIR` names does not exist: the error of a start, and of `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDirMissing {
    /// The folder, in full.
    pub path: String,
    /// The user that has to own it: the one that runs the relay.
    pub user: u32,
}

impl DataDirMissing {
    /// Of the user that this process runs as.
    pub fn of_this_user(path: &Path) -> Self {
        // Only fails without a working directory; then the path as it was set says the most.
        let full = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self {
            path: full.display().to_string(),
            user: rustix::process::geteuid().as_raw(),
        }
    }
}

impl fmt::Display for DataDirMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, user } = self;
        let quoted = in_shell(path);
        write!(
            f,
            "the data directory {path} does not exist; create it: install -d -m 700 -o {user} {quoted} (as root), or mount its volume there; RELAY_DATA_DIR names the folder"
        )
    }
}

/// The path as a shell takes it for one word.
fn in_shell(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if path.chars().all(is_plain) {
        return path.to_owned();
    }
    format!("'{}'", path.replace('\'', "'\\''"))
}

/// The system's words. Those of the commonest case differ between C libraries, and the deployment guide has these.
fn bind_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "Address already in use".to_owned(),
        _ => error.to_string(),
    }
}

/// What to do about an address that cannot be bound, where that can be told.
fn bind_hint(error: &io::Error, address: &SocketAddr) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; to see which process uses the port: lsof -i :{port}")
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 require CAP_NET_BIND_SERVICE: use a higher port".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => format!(
            "; no interface of this machine has this address: use 0.0.0.0:{port} for all interfaces"
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_comes_with_the_command_that_creates_it() {
        let missing = |path: &str| {
            let path = path.to_owned();
            DataDirMissing { path, user: 998 }.to_string()
        };
        assert_eq!(
            missing("/srv/relay"),
            "the data directory /srv/relay does not exist; create it: install -d -m 700 -o 998 /srv/relay (as root), or mount its volume there; RELAY_DATA_DIR names the folder"
        );
        let text = missing("/srv/it's here");
        assert!(
            text.contains(r"-o 998 '/srv/it'\''s here' (as root)"),
            "{text}"
        );
    }
}
