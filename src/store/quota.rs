//! How much a mailbox and the relay may hold.
//!
//! Count and bytes are checked together in one place, because a rule that is written twice comes
//! to differ. Each engine asks here inside its append, so that two senders cannot both slip in. A
//! quota protects the disk; the speed of a sender is the business of `limits::rate`.

use super::model::Appended;

/// The most that one mailbox ever holds, whatever the setting, so that its index fits in memory.
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

impl Quota {
    /// Whether a mailbox that holds `mailbox` in the blob's class, in a relay that holds
    /// `relay_bytes`, has room for `charged_bytes` more; otherwise which answer says why not.
    pub fn admits(
        &self,
        mailbox: Held,
        relay_bytes: u64,
        charged_bytes: u64,
    ) -> Result<(), Appended> {
        if !self.mailbox_admits(mailbox, charged_bytes) {
            return Err(Appended::MailboxFull);
        }
        if exceeds(
            relay_bytes.saturating_add(charged_bytes),
            self.relay_bytes_max,
        ) {
            return Err(Appended::RelayFull);
        }
        Ok(())
    }

    /// Whether the mailbox's own bounds leave room for one blob of `charged_bytes` more.
    pub fn mailbox_admits(&self, mailbox: Held, charged_bytes: u64) -> bool {
        let blobs = mailbox.blobs + 1;
        blobs <= MAILBOX_BLOBS_CEILING
            && !exceeds(blobs, self.mailbox_blobs_max)
            && !exceeds(
                mailbox.bytes.saturating_add(charged_bytes),
                self.mailbox_bytes_max,
            )
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
    };

    #[test]
    fn the_last_blob_that_fits_is_admitted_and_the_next_is_not() {
        assert_eq!(
            QUOTA.admits(
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
            QUOTA.admits(Held::default(), 1001, 500),
            Err(Appended::RelayFull)
        );
    }

    #[test]
    fn zero_means_no_bound_but_the_ceiling() {
        let none = Quota {
            mailbox_blobs_max: 0,
            mailbox_bytes_max: 0,
            relay_bytes_max: 0,
        };
        let nearly = Held {
            blobs: MAILBOX_BLOBS_CEILING - 1,
            bytes: u64::MAX,
        };
        assert_eq!(none.admits(nearly, u64::MAX, 1), Ok(()));
        let full = Held {
            blobs: MAILBOX_BLOBS_CEILING,
            bytes: 0,
        };
        assert_eq!(none.admits(full, 0, 1), Err(Appended::MailboxFull));
    }
}
