//! What PostgreSQL's errors mean for a batch, and for a start.

use std::io;
use std::path::PathBuf;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::store::engine::CommitError;

/// Why the database could not be opened. Each text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address of the database cannot be read.
    #[error("RELAY_DATABASE_URL: {0}; use for example postgres://relay@db.example.com/relay")]
    Url(String),
    /// The file with the password cannot be read.
    #[error("RELAY_DATABASE_PASSWORD_FILE: {0}")]
    Password(String),
    /// No server could be reached that takes writes.
    #[error(
        "cannot use the database {place}: {words}; check that PostgreSQL runs, and RELAY_DATABASE_URL"
    )]
    Unreachable {
        /// Hosts and name of the database.
        place: String,
        /// What the driver or the server says, of each host.
        words: String,
    },
    /// The server is too old.
    #[error(
        "the database {place}: PostgreSQL {found} is too old; the relay needs {needed} or newer"
    )]
    TooOld {
        /// Hosts and name of the database.
        place: String,
        /// The server's version.
        found: u32,
        /// The oldest one that will do.
        needed: u32,
    },
    /// A newer relay has changed the schema.
    #[error(
        "the database {place}: was written by a newer relay (its schema is {found}, this relay supports {known}); run the newer relay, or restore a dump from before the upgrade"
    )]
    NewerSchema {
        /// Hosts and name of the database.
        place: String,
        /// The schema's version.
        found: i64,
        /// The latest version that this build knows.
        known: i64,
    },
    /// The database was written under another secret.
    #[error(
        "the database {place}: was written with a different secret than {}; all relays of a database need the same secret: copy it from another relay, or restore it from a backup. Without it the blobs are lost",
        secret.display()
    )]
    SecretMismatch {
        /// Hosts and name of the database.
        place: String,
        /// The secret that is there.
        secret: PathBuf,
    },
    /// Anything else that PostgreSQL has to say.
    #[error(
        "the database {place}: {words}; the relay's role must own the database (docs/postgresql.md)"
    )]
    Database {
        /// Hosts and name of the database.
        place: String,
        /// What the server says.
        words: String,
    },
}

/// What the server or the system says, without the wrapping.
pub(super) fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server closed the connection".to_owned()
        }
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn of_server(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error
        .as_database_error()?
        .try_downcast_ref::<PgDatabaseError>()
}

/// Whether the connection goes on after this error: the server has refused a statement and no more.
pub(super) fn leaves_connection(error: &sqlx::Error) -> bool {
    match (of_server(error), error) {
        (Some(error), _) => matches!(error.severity(), PgSeverity::Error),
        (None, sqlx::Error::ColumnDecode { .. } | sqlx::Error::RowNotFound) => true,
        (None, _) => false,
    }
}

/// Whether a read failed because what it read is damaged (class XX: `data_corrupted`,
/// `index_corrupted`, a chunk of a large value that is missing), and not the server as such.
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    of_server(error).is_some_and(|error| error.code().starts_with("XX"))
        || matches!(error, sqlx::Error::ColumnDecode { .. })
}

/// What a failure before COMMIT means: the transaction did not happen, but the connection may be done.
pub(super) fn classify(error: &sqlx::Error) -> CommitError {
    let said = words(error);
    let Some(of_server) = of_server(error) else {
        return match error {
            sqlx::Error::ColumnDecode { .. } => CommitError::Rejected(said),
            _ => CommitError::Unknown(said),
        };
    };
    let code = of_server.code();
    match (code, code.get(..2).unwrap_or_default()) {
        _ if !leaves_connection(error) => CommitError::Unknown(said),
        // Another instance locked rows in another order, or changed what was read.
        ("40001" | "40P01", _) => CommitError::Raced,
        ("53100", _) => CommitError::DiskFull(said),
        // A server that became a standby, or was set to read only: another one may take writes.
        ("25006", _) => CommitError::Unknown(said),
        // A lock that took too long, a statement that did, no memory, too many of something.
        ("55P03" | "57014", _) | (_, "53") => CommitError::Refused(said),
        _ => CommitError::Rejected(said),
    }
}

/// What a failed COMMIT means. When the server itself says that it failed, it was rolled back; after
/// anything else nobody knows.
pub(super) fn classify_commit(error: &sqlx::Error) -> CommitError {
    match leaves_connection(error) && of_server(error).is_some() {
        true => classify(error),
        false => CommitError::Unknown(words(error)),
    }
}
