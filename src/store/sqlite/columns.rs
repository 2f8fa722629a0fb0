//! What is read from a column.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::clock::Timestamp;
pub(super) use crate::store::sql::columns::{
    Kind, Size, expiry_slot, slot_start, sql_version, timestamp_of, to_i64, to_u64, version_of,
};

/// A column of exactly `N` bytes. A damaged one of another length reads as zeros, which is
/// nobody's keyed hash or checksum, so its row matches nothing and can still be set aside.
pub(super) fn fixed<const N: usize>(row: &SqliteRow, column: usize) -> sqlx::Result<[u8; N]> {
    let bytes: &[u8] = row.try_get(column)?;
    Ok(bytes.try_into().unwrap_or([0; N]))
}

/// A column of Unix milliseconds.
pub(super) fn timestamp(row: &SqliteRow, column: usize) -> sqlx::Result<Timestamp> {
    row.try_get(column).map(timestamp_of)
}
