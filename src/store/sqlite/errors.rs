//! What SQLite's errors mean for a batch.

use crate::store::engine::CommitError;

/// What SQLite or the system says of a failure, through whichever library.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{words}")]
pub(super) struct Fault {
    words: String,
    /// SQLite's extended result code.
    code: Option<i32>,
    /// A value is of another type than its column may have.
    is_decode: bool,
}

impl Fault {
    /// There is no connection.
    pub(super) fn closed() -> Self {
        Self::said("the database is not open")
    }

    /// A failure that is not SQLite's.
    pub(super) fn said(words: &str) -> Self {
        Self {
            words: words.to_owned(),
            code: None,
            is_decode: false,
        }
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        error.fault()
    }
}

impl From<std::io::Error> for Fault {
    /// As SQLite says it of a failed fsync.
    fn from(error: std::io::Error) -> Self {
        Self {
            words: error.to_string(),
            code: Some(IOERR_FSYNC),
            is_decode: false,
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        error.fault()
    }
}

/// An error that tells what SQLite or the system says.
pub(super) trait Tells {
    /// What it tells.
    fn fault(&self) -> Fault;
}

impl Tells for Fault {
    fn fault(&self) -> Fault {
        self.clone()
    }
}

impl Tells for sqlx::Error {
    fn fault(&self) -> Fault {
        let words = match self {
            Self::Database(error) => error.message().to_owned(),
            Self::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        let database = self.as_database_error();
        Fault {
            words,
            code: database.and_then(|error| error.code()?.parse().ok()),
            is_decode: matches!(self, Self::ColumnDecode { .. }),
        }
    }
}

impl Tells for rusqlite::Error {
    fn fault(&self) -> Fault {
        let (code, words) = match self {
            Self::SqliteFailure(error, words) => (Some(error.extended_code), words.clone()),
            _ => (None, None),
        };
        Fault {
            words: words.unwrap_or_else(|| self.to_string()),
            code,
            is_decode: false,
        }
    }
}

/// What SQLite or the system says, without the wrapping.
pub(super) fn words(error: &impl Tells) -> String {
    error.fault().words
}

/// SQLite's primary result code, if the error has one.
pub(super) fn primary_code(error: &impl Tells) -> Option<i32> {
    // The extended code has the primary one in its low byte.
    error.fault().code.map(|code| code & 0xFF)
}

/// Whether bytes could not be written (`SQLITE_IOERR_WRITE`), or the log's shared memory could not grow
/// (`SQLITE_IOERR_SHMSIZE`): a full disk has a code of its own, all that else may be used up has not.
pub(super) fn is_failed_write(error: &impl Tells) -> bool {
    matches!(error.fault().code, Some(IOERR_WRITE | IOERR_SHMSIZE))
}

const IOERR_WRITE: i32 = code::IOERR | (3 << 8);
const IOERR_FSYNC: i32 = code::IOERR | (4 << 8);
const IOERR_SHMSIZE: i32 = code::IOERR | (19 << 8);

/// SQLite's result codes that this engine tells apart (<https://sqlite.org/rescode.html>).
pub(super) mod code {
    pub(in crate::store::sqlite) const ERROR: i32 = 1;
    pub(in crate::store::sqlite) const BUSY: i32 = 5;
    pub(in crate::store::sqlite) const LOCKED: i32 = 6;
    pub(in crate::store::sqlite) const NOMEM: i32 = 7;
    pub(in crate::store::sqlite) const READONLY: i32 = 8;
    pub(in crate::store::sqlite) const IOERR: i32 = 10;
    pub(in crate::store::sqlite) const CORRUPT: i32 = 11;
    pub(in crate::store::sqlite) const FULL: i32 = 13;
    pub(in crate::store::sqlite) const CANTOPEN: i32 = 14;
    pub(in crate::store::sqlite) const NOTADB: i32 = 26;
}

/// Whether a read failed because what it read is damaged, and not storage as such.
pub(super) fn is_damage(error: &impl Tells) -> bool {
    primary_code(error) == Some(code::CORRUPT) || error.fault().is_decode
}

/// What a failure before COMMIT means: the transaction did not happen, but the handle may be done.
pub(super) fn classify(error: &impl Tells) -> CommitError {
    let said = words(error);
    match (primary_code(error), error.fault().is_decode) {
        (Some(code::FULL), _) => CommitError::DiskFull(said),
        (Some(code::BUSY | code::LOCKED | code::NOMEM), _) => CommitError::Refused(said),
        (Some(code::IOERR | code::READONLY | code::CANTOPEN | code::NOTADB), _) => {
            CommitError::Unknown(said)
        }
        // A damaged page among them: whoever needs that page fails, the others go on.
        (Some(_), _) | (None, true) => CommitError::Rejected(said),
        (None, false) => CommitError::Unknown(said),
    }
}

/// What a failed COMMIT means. Where SQLite had no room or no lock nothing was made visible; after
/// anything else, a failed fsync first of all, nobody knows.
pub(super) fn classify_commit(error: &impl Tells) -> CommitError {
    let said = words(error);
    match primary_code(error) {
        Some(code::FULL) => CommitError::DiskFull(said),
        Some(code::BUSY | code::LOCKED) => CommitError::Refused(said),
        _ => CommitError::Unknown(said),
    }
}
