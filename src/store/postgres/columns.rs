//! What is read from a column, and values whose columns are narrower here.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Class, charged_bytes};
use crate::store::sql::columns;
pub(super) use crate::store::sql::columns::{
    Kind, Size, sql_version, timestamp_of, to_i64, to_u64, version_of,
};

/// The slot that `at` falls into.
pub(super) fn expiry_slot(at: Timestamp) -> i32 {
    narrow(columns::expiry_slot(at))
}

/// The first moment of a slot.
pub(super) fn slot_start(slot: i32) -> Timestamp {
    columns::slot_start(i64::from(slot))
}

/// A value of a column of 32 bits: slots, and sizes up to blobs of 512 MiB, fit.
pub(super) fn narrow(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A moment as SQL has it.
pub(super) fn millis(at: Timestamp) -> i64 {
    to_i64(at.millis())
}

/// The class with this number.
pub(super) fn class_of(number: i32) -> Class {
    let number = u8::try_from(number).ok();
    number
        .and_then(Class::from_number)
        .unwrap_or(Class::ProvenOnly)
}

/// What `rows` rows with `bytes` bytes in all count against quotas.
pub(super) fn charged(rows: u64, bytes: u64) -> u64 {
    bytes.saturating_add(rows.saturating_mul(charged_bytes(0)))
}

/// A blob's id as SQL has it.
pub(super) fn uuid(id: &BlobId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// The blob's id in this column.
pub(super) fn blob_id(row: &PgRow, column: &str) -> sqlx::Result<BlobId> {
    let id: Uuid = row.try_get(column)?;
    Ok(BlobId::from_bytes(*id.as_bytes()))
}

/// A column of exactly `N` bytes. A damaged one of another length reads as zeros, which is nobody's keyed
/// hash or checksum, so its row matches nothing and can still be set aside.
pub(super) fn fixed<const N: usize>(row: &PgRow, column: &str) -> sqlx::Result<[u8; N]> {
    let bytes: &[u8] = row.try_get(column)?;
    Ok(bytes.try_into().unwrap_or([0; N]))
}

/// The mailbox, or the owner, in this column.
pub(super) fn hash(row: &PgRow, column: &str) -> sqlx::Result<MailboxHash> {
    fixed(row, column).map(MailboxHash::from_bytes)
}

/// A column of Unix milliseconds.
pub(super) fn timestamp(row: &PgRow, column: &str) -> sqlx::Result<Timestamp> {
    row.try_get(column).map(timestamp_of)
}

/// A count in this column.
pub(super) fn count(row: &PgRow, column: &str) -> sqlx::Result<u64> {
    row.try_get(column).map(to_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_size_carries_bytes_and_class_up_to_the_largest_message() {
        for bytes in [0, 1_000, 64 << 20] {
            for class in Class::ALL {
                let size = Size(i64::from(narrow(Size::new(bytes, class).0)));
                assert_eq!((size.bytes(), size.class()), (bytes as u64, class));
            }
        }
    }
}
