//! How much a mailbox and the relay may hold.
//!
//! Count and bytes are checked together in one place, because a rule that is written twice comes
//! to differ. The fold of a batch asks here, so that two senders cannot both slip in. A quota protects the disk; the speed of a sender is the business of `limits::rate`.

use crate::store::model::{Appended, Class, ROW_OVERHEAD_BYTES};

/// The most that one mailbox or one owner ever holds, whatever the setting, so that its index fits in memory.
pub const MAILBOX_BLOBS_CEILING: u64 = 1_000_000;

/// Bounds for the store. Zero means no bound, as in the settings.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Blobs a mailbox may hold in each class (`RELAY_MAILBOX_MAX_BLOBS`).
    pub mailbox_blobs_max: u64,
    /// Bytes a mailbox may hold in each class (`RELAY_MAILBOX_MAX_BYTES`).
    pub mailbox_bytes_max: u64,
    /// Bytes the relay may hold in all (`RELAY_MAX_STORAGE_BYTES`).
    pub relay_bytes_max: u64,
    /// Device sync messages that may wait for all devices of an identity.
    pub device_sync_blobs_max: u64,
    /// Their bytes.
    pub device_sync_bytes_max: u64,
    /// Pins (`RELAY_PINS_MAX`).
    pub pins_max: u64,
}

impl Quota {
    /// No bound at all but the ceiling.
    pub const UNBOUNDED: Self = Self {
        mailbox_blobs_max: 0,
        mailbox_bytes_max: 0,
        relay_bytes_max: 0,
        device_sync_blobs_max: 0,
        device_sync_bytes_max: 0,
        pins_max: 0,
    };

    /// Device sync messages of an identity, as protocol v1 has it.
    pub const DEVICE_SYNC_BLOBS: u64 = 1_000;
    /// Their bytes.
    pub const DEVICE_SYNC_BYTES: u64 = 50_000_000;
}

/// How much there is of something: blobs and the bytes charged for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Blobs.
    pub blobs: u64,
    /// Charged bytes.
    pub bytes: u64,
}

impl Held {
    /// One blob more.
    pub fn add(&mut self, charged_bytes: u64) {
        self.blobs += 1;
        self.bytes += charged_bytes;
    }

    /// One blob less.
    pub fn remove(&mut self, charged_bytes: u64) {
        self.blobs = self.blobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(charged_bytes);
    }
}

/// What counts against the quota of a row of `class`, of what a mailbox holds in each class: receipts
/// and what v1 cannot see count together.
pub fn held_beside(class: Class, by_class: &[Held; Class::NUMBERS]) -> Held {
    let of = |class: Class| by_class[usize::from(class as u8)];
    match class {
        Class::SeenByV1 | Class::DeviceSync => of(class),
        Class::ProvenOnly | Class::Receipt => {
            let (blobs, receipts) = (of(Class::ProvenOnly), of(Class::Receipt));
            Held {
                blobs: blobs.blobs + receipts.blobs,
                bytes: blobs.bytes + receipts.bytes,
            }
        }
    }
}

/// What the relay holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldInAll {
    /// Blobs.
    pub blobs: u64,
    /// Device sync messages.
    pub device_sync: u64,
    /// Receipts.
    pub receipts: u64,
    /// Recovery proofs.
    pub recovery_proofs: u64,
    /// Pins, which cost no bytes.
    pub pins: u64,
    /// Charged bytes of all.
    pub bytes: u64,
}

impl HeldInAll {
    /// One row more.
    pub fn add(&mut self, class: Class, charged_bytes: u64) {
        *self.rows_of(class) += 1;
        self.bytes += charged_bytes;
    }

    /// One row less.
    pub fn remove(&mut self, class: Class, charged_bytes: u64) {
        let rows = self.rows_of(class);
        *rows = rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(charged_bytes);
    }

    fn rows_of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::DeviceSync => &mut self.device_sync,
            Class::Receipt => &mut self.receipts,
            Class::SeenByV1 | Class::ProvenOnly => &mut self.blobs,
        }
    }
}

impl Quota {
    /// Whether a relay that holds so many bytes takes not even an empty blob.
    pub fn is_relay_full(&self, bytes: u64) -> bool {
        self.relay_bytes_max > 0 && bytes + ROW_OVERHEAD_BYTES > self.relay_bytes_max
    }

    /// Whether a holder of `held` (a mailbox in the blob's class, or the owner of device sync
    /// messages) in a relay that holds `relay_bytes` has room for `charged_bytes` more; otherwise
    /// which answer says why not.
    pub fn admits(
        &self,
        class: Class,
        held: Held,
        relay_bytes: u64,
        charged_bytes: u64,
    ) -> Result<(), Appended> {
        if !self.holder_admits(class, held, charged_bytes) {
            return Err(Appended::MailboxFull);
        }
        if !self.relay_admits(relay_bytes, charged_bytes) {
            return Err(Appended::RelayFull);
        }
        Ok(())
    }

    /// Whether the bounds of the mailbox or the owner leave room for one of `charged_bytes` more.
    pub fn holder_admits(&self, class: Class, held: Held, charged_bytes: u64) -> bool {
        let (blobs_max, bytes_max) = match class {
            Class::SeenByV1 | Class::ProvenOnly | Class::Receipt => {
                (self.mailbox_blobs_max, self.mailbox_bytes_max)
            }
            Class::DeviceSync => (self.device_sync_blobs_max, self.device_sync_bytes_max),
        };
        let blobs = held.blobs + 1;
        blobs <= MAILBOX_BLOBS_CEILING
            && !exceeds(blobs, blobs_max)
            && !exceeds(held.bytes.saturating_add(charged_bytes), bytes_max)
    }

    /// Whether a relay that holds `relay_bytes` has room for `charged_bytes` more.
    pub fn relay_admits(&self, relay_bytes: u64, charged_bytes: u64) -> bool {
        let bytes = relay_bytes.saturating_add(charged_bytes);
        !exceeds(bytes, self.relay_bytes_max)
    }

    /// How many of `pins` are too many.
    pub fn pins_beyond(&self, pins: u64) -> u64 {
        match self.pins_max {
            0 => 0,
            max => pins.saturating_sub(max),
        }
    }
}

fn exceeds(value: u64, max: u64) -> bool {
    max != 0 && value > max
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota {
        mailbox_blobs_max: 2,
        mailbox_bytes_max: 1000,
        relay_bytes_max: 1500,
        device_sync_blobs_max: 1,
        device_sync_bytes_max: 0,
        pins_max: 3,
    };

    #[test]
    fn the_last_blob_that_fits_is_admitted_and_the_next_is_not() {
        assert_eq!(
            QUOTA.admits(
                Class::SeenByV1,
                Held {
                    blobs: 1,
                    bytes: 500
                },
                500,
                500
            ),
            Ok(())
        );
        assert_eq!(
            QUOTA.admits(
                Class::SeenByV1,
                Held {
                    blobs: 2,
                    bytes: 500
                },
                500,
                500
            ),
            Err(Appended::MailboxFull)
        );
        assert_eq!(
            QUOTA.admits(
                Class::SeenByV1,
                Held {
                    blobs: 1,
                    bytes: 501
                },
                501,
                500
            ),
            Err(Appended::MailboxFull)
        );
        assert_eq!(
            QUOTA.admits(Class::ProvenOnly, Held::default(), 1001, 500),
            Err(Appended::RelayFull)
        );
    }

    #[test]
    fn zero_means_no_bound_but_the_ceiling() {
        let none = Quota::UNBOUNDED;
        let nearly = Held {
            blobs: MAILBOX_BLOBS_CEILING - 1,
            bytes: u64::MAX,
        };
        assert_eq!(none.admits(Class::SeenByV1, nearly, u64::MAX, 1), Ok(()));
        let full = Held {
            blobs: MAILBOX_BLOBS_CEILING,
            bytes: 0,
        };
        assert_eq!(
            none.admits(Class::DeviceSync, full, 0, 1),
            Err(Appended::MailboxFull)
        );
    }

    #[test]
    fn device_sync_has_bounds_of_its_own() {
        let one = Held { blobs: 1, bytes: 1 };
        assert!(QUOTA.holder_admits(Class::SeenByV1, one, 1));
        assert!(!QUOTA.holder_admits(Class::DeviceSync, one, 1));
    }

    #[test]
    fn receipts_count_together_with_what_v1_cannot_see() {
        let mut by_class = [Held::default(); Class::NUMBERS];
        for class in Class::ALL {
            by_class[usize::from(class as u8)].add(1 << class as u8);
        }
        let bytes = Class::ALL.map(|class| held_beside(class, &by_class).bytes);
        assert_eq!(bytes, [1, 2 + 4, 2 + 4, 8]);
        assert_eq!(held_beside(Class::Receipt, &by_class).blobs, 2);
    }

    #[test]
    fn pins_beyond_the_bound_are_too_many() {
        assert_eq!([2, 3, 5].map(|pins| QUOTA.pins_beyond(pins)), [0, 0, 2]);
        assert_eq!(Quota::UNBOUNDED.pins_beyond(u64::MAX), 0);
    }
}
