//! Why the relay did not start, in one line for the operator.

use std::io;
use std::net::SocketAddr;

use crate::secrets::SecretError;
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
    /// The data directory is missing, or `./data` could not be made.
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
