//! What SQLite's errors mean for a batch.

use crate::store::engine::CommitError;

/// What SQLite or the system says, without the wrapping.
pub(super) fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// SQLite's primary result code, if the error has one.
pub(super) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    // The extended code has the primary one in its low byte.
    code.parse::<i32>().ok().map(|code| code & 0xFF)
}

/// Whether bytes could not be written (`SQLITE_IOERR_WRITE`), or the log's shared memory could not grow
/// (`SQLITE_IOERR_SHMSIZE`): a full disk has a code of its own, all that else may be used up has not.
pub(super) fn is_failed_write(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    let code = database.and_then(|error| error.code()?.parse::<i32>().ok());
    matches!(code, Some(IOERR_WRITE | IOERR_SHMSIZE))
}

const IOERR_WRITE: i32 = code::IOERR | (3 << 8);
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
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(code::CORRUPT) || matches!(error, sqlx::Error::ColumnDecode { .. })
}

/// What a failure before COMMIT means: the transaction did not happen, but the handle may be done.
pub(super) fn classify(error: &sqlx::Error) -> CommitError {
    let said = words(error);
    match (primary_code(error), error) {
        (Some(code::FULL), _) => CommitError::DiskFull(said),
        (Some(code::BUSY | code::LOCKED | code::NOMEM), _) => CommitError::Refused(said),
        (Some(code::IOERR | code::READONLY | code::CANTOPEN | code::NOTADB), _) => {
            CommitError::Unknown(said)
        }
        // A damaged page among them: whoever needs that page fails, the others go on.
        (Some(_), _) | (None, sqlx::Error::ColumnDecode { .. }) => CommitError::Rejected(said),
        (None, _) => CommitError::Unknown(said),
    }
}

/// What a failed COMMIT means. Where SQLite had no room or no lock nothing was made visible; after
/// anything else, a failed fsync first of all, nobody knows.
pub(super) fn classify_commit(error: &sqlx::Error) -> CommitError {
    let said = words(error);
    match primary_code(error) {
        Some(code::FULL) => CommitError::DiskFull(said),
        Some(code::BUSY | code::LOCKED) => CommitError::Refused(said),
        _ => CommitError::Unknown(said),
    }
}
