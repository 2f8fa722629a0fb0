//! How values stand in columns.

use crate::clock::Timestamp;
use crate::store::model::{Class, charged_bytes};

/// Blobs expire by slots of this many milliseconds in the index: 600 s.
const EXPIRY_SLOT_MILLIS: u64 = 600_000;

/// The slot that `at` falls into.
pub(in crate::store) fn expiry_slot(at: Timestamp) -> i64 {
    to_i64(at.millis() / EXPIRY_SLOT_MILLIS)
}

/// The first moment of a slot.
pub(in crate::store) fn slot_start(slot: i64) -> Timestamp {
    Timestamp::from_millis(to_u64(slot).saturating_mul(EXPIRY_SLOT_MILLIS))
}

/// A number as SQL has it; the largest there is instead of an overflow.
pub(in crate::store) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that is never negative in a sound database; zero for one that is.
pub(in crate::store) fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The `size` column: bytes × 4 + class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Size(pub(in crate::store) i64);

impl Size {
    pub(in crate::store) fn new(bytes: usize, class: Class) -> Self {
        Self(to_i64(bytes as u64 * 4 + u64::from(class as u8)))
    }

    pub(in crate::store) fn bytes(self) -> u64 {
        to_u64(self.0) / 4
    }

    /// The class: its four numbers are all that the column can have.
    pub(in crate::store) fn class(self) -> Class {
        let number = (to_u64(self.0) % 4) as u8;
        Class::from_number(number).unwrap_or(Class::ProvenOnly)
    }

    /// What it counts against quotas.
    pub(in crate::store) fn charged_bytes(self) -> u64 {
        charged_bytes(usize::try_from(self.bytes()).unwrap_or(usize::MAX))
    }
}

/// What becomes of a blob is told to nobody, to its sender, or to one who knows that it was
/// delivered.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Kind(pub(in crate::store) i64);

impl Kind {
    pub(in crate::store) fn new(wants_receipts: bool, is_delivered_told: bool) -> Self {
        Self(match (wants_receipts, is_delivered_told) {
            (false, _) => 0,
            (true, false) => 2,
            (true, true) => 3,
        })
    }

    pub(in crate::store) fn wants_receipts(self) -> bool {
        matches!(self.0, 2 | 3)
    }

    pub(in crate::store) fn is_delivered_told(self) -> bool {
        self.0 == 3
    }
}

/// A version as SQL has it: minus 2^63, so that all of them fit and sort as they are.
pub(in crate::store) fn sql_version(version: u64) -> i64 {
    version.wrapping_sub(1 << 63).cast_signed()
}

/// The version that SQL has as this.
pub(in crate::store) fn version_of(sql: i64) -> u64 {
    sql.cast_unsigned().wrapping_add(1 << 63)
}

/// The moment that SQL has as this.
pub(in crate::store) fn timestamp_of(millis: i64) -> Timestamp {
    Timestamp::from_millis(to_u64(millis))
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
    fn a_slot_begins_at_its_first_moment() {
        let slot = expiry_slot(Timestamp::from_millis(1_800_000_000_123));
        assert!(slot_start(slot).millis() <= 1_800_000_000_123);
        assert_eq!(slot_start(slot + 1).less(slot_start(slot)), 600_000);
    }

    #[test]
    fn a_size_carries_bytes_and_class() {
        let size = Size::new(1000, Class::ProvenOnly);
        assert_eq!((size.0, size.bytes()), (4001, 1000));
        assert_eq!(size.class(), Class::ProvenOnly);
        assert_eq!(size.charged_bytes(), 1256);
        assert_eq!(Size(4002).class(), Class::Receipt);
    }
}
