//! How values stand in columns.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Class, charged_bytes};

/// Blobs expire by slots of this many milliseconds in the index: 600 s.
const EXPIRY_SLOT_MILLIS: u64 = 600_000;

/// The slot that `at` falls into.
pub(super) fn expiry_slot(at: Timestamp) -> i32 {
    i32::try_from(at.millis() / EXPIRY_SLOT_MILLIS).unwrap_or(i32::MAX)
}

/// The first moment of a slot.
pub(super) fn slot_start(slot: i32) -> Timestamp {
    let slot = u64::try_from(slot).unwrap_or(0);
    Timestamp::from_millis(slot.saturating_mul(EXPIRY_SLOT_MILLIS))
}

/// A number as SQL has it; the largest there is instead of an overflow.
pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that is never negative in a sound database; zero for one that is.
pub(super) fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A moment as SQL has it.
pub(super) fn millis(at: Timestamp) -> i64 {
    to_i64(at.millis())
}

/// The column `size`: bytes × 4 + class. A blob has 64 MiB at the most, so it always fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) i32);

impl Size {
    pub(super) fn new(bytes: usize, class: Class) -> Self {
        let size = (bytes as u64).saturating_mul(4) + u64::from(class as u8);
        Self(i32::try_from(size).unwrap_or(i32::MAX))
    }

    pub(super) fn bytes(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0) / 4
    }

    /// The class: its four numbers are all that the column can have.
    pub(super) fn class(self) -> Class {
        class_of(self.0 & 3)
    }
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

/// What becomes of a blob is told to nobody, to its sender, or to one who knows that it was delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind(pub(super) i16);

impl Kind {
    pub(super) fn new(wants_receipts: bool, is_delivered_told: bool) -> Self {
        Self(match (wants_receipts, is_delivered_told) {
            (false, _) => 0,
            (true, false) => 2,
            (true, true) => 3,
        })
    }

    pub(super) fn wants_receipts(self) -> bool {
        matches!(self.0, 2 | 3)
    }

    pub(super) fn is_delivered_told(self) -> bool {
        self.0 == 3
    }
}

/// A version as SQL has it: minus 2^63, so that all of them fit and sort as they are.
pub(super) fn sql_version(version: u64) -> i64 {
    version.wrapping_sub(1 << 63).cast_signed()
}

/// The version that SQL has as this.
pub(super) fn version_of(sql: i64) -> u64 {
    sql.cast_unsigned().wrapping_add(1 << 63)
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

/// The moment that SQL has as this.
pub(super) fn timestamp_of(millis: i64) -> Timestamp {
    Timestamp::from_millis(to_u64(millis))
}

/// A count in this column.
pub(super) fn count(row: &PgRow, column: &str) -> sqlx::Result<u64> {
    row.try_get(column).map(to_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_in_sql_as_they_are() {
        let versions = [0, 1, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX];
        let sql = versions.map(sql_version);
        assert!(sql.is_sorted());
        assert_eq!(sql.map(version_of), versions);
    }

    #[test]
    fn a_size_carries_bytes_and_class_up_to_the_largest_message() {
        for bytes in [0, 1_000, 64 << 20] {
            for class in Class::ALL {
                let size = Size::new(bytes, class);
                assert_eq!((size.bytes(), size.class()), (bytes as u64, class));
            }
        }
    }

    #[test]
    fn a_slot_begins_at_its_first_moment() {
        let slot = expiry_slot(Timestamp::from_millis(1_800_000_000_123));
        assert!(slot_start(slot).millis() <= 1_800_000_000_123);
        assert_eq!(slot_start(slot + 1).less(slot_start(slot)), 600_000);
    }
}
