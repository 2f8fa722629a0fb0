//! By how much a plan changes what the relay holds, and what happened to rows in it.

use super::quota::HeldInAll;
use crate::store::model::Class;

/// By how much what the relay holds changes. Deltas, because other instances change it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Blobs.
    pub blobs: i64,
    /// Device sync messages.
    pub device_sync: i64,
    /// Receipts.
    pub receipts: i64,
    /// Recovery proofs.
    pub recovery_proofs: i64,
    /// Pins.
    pub pins: i64,
    /// Charged bytes of all.
    pub bytes: i64,
}

impl Change {
    /// From one sum to another.
    pub(super) fn between(before: HeldInAll, after: HeldInAll) -> Self {
        Self {
            blobs: after.blobs.wrapping_sub(before.blobs).cast_signed(),
            device_sync: after
                .device_sync
                .wrapping_sub(before.device_sync)
                .cast_signed(),
            receipts: after.receipts.wrapping_sub(before.receipts).cast_signed(),
            recovery_proofs: after
                .recovery_proofs
                .wrapping_sub(before.recovery_proofs)
                .cast_signed(),
            pins: after.pins.wrapping_sub(before.pins).cast_signed(),
            bytes: after.bytes.wrapping_sub(before.bytes).cast_signed(),
        }
    }

    /// What is held after it.
    pub fn applied_to(self, held: HeldInAll) -> HeldInAll {
        HeldInAll {
            blobs: held.blobs.saturating_add_signed(self.blobs),
            device_sync: held.device_sync.saturating_add_signed(self.device_sync),
            receipts: held.receipts.saturating_add_signed(self.receipts),
            recovery_proofs: held
                .recovery_proofs
                .saturating_add_signed(self.recovery_proofs),
            pins: held.pins.saturating_add_signed(self.pins),
            bytes: held.bytes.saturating_add_signed(self.bytes),
        }
    }
}

/// How many rows of one kind came and went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::store) struct Counts {
    /// Stored, repeats not counted.
    pub created: u64,
    /// Deleted by acknowledgement.
    pub acknowledged: u64,
    /// Withdrawn by their sender.
    pub cancelled: u64,
    /// Replaced by a later one of the same topic.
    pub replaced: u64,
    /// Deleted by purge.
    pub purged: u64,
    /// Deleted because they had expired.
    pub expired: u64,
    /// Set aside as corrupt.
    pub lost: u64,
}

/// What happened in one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::store) struct Happened {
    /// To blobs.
    pub blobs: Counts,
    /// To device sync messages.
    pub device_sync: Counts,
    /// To receipts.
    pub receipts: Counts,
    /// Receipts that found no room.
    pub receipts_dropped: u64,
    /// Repeats that were confirmed and not stored again.
    pub duplicates: u64,
    /// Recovery proofs that were stored.
    pub vouchers: u64,
    /// Pins that went because there were too many.
    pub pins_evicted: u64,
}

impl Happened {
    /// The counts of the kind that rows of this class belong to.
    pub(super) fn to(&mut self, class: Class) -> &mut Counts {
        match class {
            Class::DeviceSync => &mut self.device_sync,
            Class::Receipt => &mut self.receipts,
            Class::SeenByV1 | Class::ProvenOnly => &mut self.blobs,
        }
    }

    /// Rows of any kind that were set aside as corrupt.
    pub(in crate::store) fn lost(&self) -> u64 {
        self.blobs.lost + self.device_sync.lost + self.receipts.lost
    }
}
