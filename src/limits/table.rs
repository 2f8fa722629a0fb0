//! The table of budgets. A limit on speed is added by adding a row.

use std::time::Duration;

use crate::config::Config;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Budgets of bytes count in these, so that 4 TiB fit into 32 bits. A blob costs what the store
/// charges for it, rounded up.
pub const CELL_BYTES: u64 = 1024;

/// How much more an address may open than one of its connections.
const OPENINGS_PER_ADDRESS: u64 = 4;

/// Of the eight proofs that one hash may have, those that one address may store in a day.
const SLOTS_A_DAY: u64 = 2;

/// Ids that one address may have pinned in a day.
const PINS_A_DAY: u64 = 1_000;

/// Which budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Budget {
    /// Requests of a mailbox name from an address.
    Client,
    /// Requests from an address.
    Address,
    /// Blobs from an address into one mailbox.
    MailboxBlobs,
    /// Bytes from an address into one mailbox.
    MailboxBytes,
    /// Bytes from an address into the relay.
    AddressBytes,
    /// Mailboxes opened on a connection.
    Openings,
    /// Mailboxes opened from an address.
    AddressOpenings,
    /// New connections from an address.
    Connections,
    /// Proofs from an address that were not good.
    FailedProofs,
    /// Recovery requests of a mailbox name from an address.
    Recovery,
    /// Recovery proofs under one hash from an address.
    RecoverySlots,
    /// Newly pinned ids from an address.
    Pins,
}

/// One budget.
#[derive(Debug)]
pub struct Row {
    /// Which one; its place in the table is its number.
    pub budget: Budget,
    /// The word for it in `relay_rate_limited_by_total`.
    pub label: &'static str,
    /// What is charged.
    pub charged: &'static str,
    /// Whose bucket it is.
    pub whose: &'static str,
    /// The time in which an empty bucket is full again.
    pub period: Duration,
    /// The setting that says how much.
    pub setting: &'static str,
    /// How much a bucket holds; zero for no limit.
    pub holds: fn(&Config) -> u64,
    /// What a client is told.
    pub refusal: &'static str,
}

/// Every budget, each at the place of its number.
pub const TABLE: [Row; 12] = [
    Row {
        budget: Budget::Client,
        label: "client",
        charged: "requests",
        whose: "mailbox name and address",
        period: MINUTE,
        setting: "RELAY_RATE_LIMIT_PER_MIN",
        holds: |config| config.rate_limit_per_min.into(),
        refusal: "too many requests; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::Address,
        label: "address",
        charged: "requests",
        whose: "address",
        period: MINUTE,
        setting: "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
        holds: |config| config.rate_limit_per_address_per_min.into(),
        refusal: "too many requests from your network; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::MailboxBlobs,
        label: "mailbox_blobs",
        charged: "blobs stored in one mailbox",
        whose: "address and recipient",
        period: HOUR,
        setting: "RELAY_MAILBOX_SHARE_PER_HOUR",
        holds: |config| share(config.mailbox_share_per_hour, config.mailbox_blobs_max),
        refusal: "your network has used its hourly share of this mailbox's blobs; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::MailboxBytes,
        label: "mailbox_bytes",
        charged: "KiB stored in one mailbox",
        whose: "address and recipient",
        period: HOUR,
        setting: "RELAY_MAILBOX_SHARE_PER_HOUR",
        holds: |config| {
            cells(share(
                config.mailbox_share_per_hour,
                config.mailbox_bytes_max,
            ))
        },
        refusal: "your network has used its hourly share of this mailbox's bytes; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::AddressBytes,
        label: "address_bytes",
        charged: "KiB stored in the relay",
        whose: "address",
        period: DAY,
        setting: "RELAY_ADDRESS_SHARE_PER_DAY",
        holds: |config| {
            cells(share(
                config.address_share_per_day,
                config.storage_bytes_max,
            ))
        },
        refusal: "your network has used its daily share of this relay's storage; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::Openings,
        label: "openings",
        charged: "mailboxes opened",
        whose: "connection",
        period: MINUTE,
        setting: "RELAY_OPENINGS_PER_MIN",
        holds: |config| config.openings_per_min.into(),
        refusal: "too many mailboxes opened on this connection; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::AddressOpenings,
        label: "address_openings",
        charged: "mailboxes opened",
        whose: "address",
        period: MINUTE,
        setting: "RELAY_OPENINGS_PER_MIN",
        holds: |config| OPENINGS_PER_ADDRESS * u64::from(config.openings_per_min),
        refusal: "too many mailboxes opened from your network; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::Connections,
        label: "connections",
        charged: "new connections",
        whose: "address",
        period: MINUTE,
        setting: "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
        holds: |config| config.connections_per_address_per_min.into(),
        refusal: "too many new connections from your network; retry after the time in Retry-After",
    },
    Row {
        budget: Budget::FailedProofs,
        label: "failed_proofs",
        charged: "failed proofs",
        whose: "address",
        period: MINUTE,
        setting: "RELAY_FAILED_PROOFS_PER_MIN",
        holds: |config| config.failed_proofs_per_min.into(),
        refusal: "too many failed proofs from your network; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::Recovery,
        label: "recovery",
        charged: "recovery requests",
        whose: "mailbox name and address",
        period: MINUTE,
        setting: "RELAY_RECOVERY_RATE_LIMIT",
        holds: |config| config.recovery_rate_limit.into(),
        refusal: "too many recovery requests; retry when retry_after_ms has passed",
    },
    Row {
        budget: Budget::RecoverySlots,
        label: "recovery_slots",
        charged: "recovery proofs stored under one hash",
        whose: "address and hash",
        period: DAY,
        setting: "RELAY_RECOVERY_RATE_LIMIT",
        holds: |config| SLOTS_A_DAY * u64::from(config.recovery_rate_limit.min(1)),
        refusal: "your network may store two recovery proofs a day under one hash; retry tomorrow",
    },
    Row {
        budget: Budget::Pins,
        label: "pins",
        charged: "ids pinned for the first time",
        whose: "address",
        period: DAY,
        setting: "RELAY_PINS_MAX",
        holds: |_| PINS_A_DAY,
        refusal: "your network has pinned too many mailboxes for the first time today; retry tomorrow, or set no_pin",
    },
];

impl Budget {
    /// Its row.
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

/// A share of `whole`, at least 1; none of a whole without bound.
fn share(share: crate::config::Share, whole: u64) -> u64 {
    if whole == 0 || share.is_zero() {
        return 0;
    }
    share.of(whole).max(1)
}

fn cells(bytes: u64) -> u64 {
    bytes.div_ceil(CELL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;

    #[test]
    fn every_row_stands_at_its_number_under_a_word_of_its_own() {
        for (place, row) in TABLE.iter().enumerate() {
            assert_eq!(row.budget as usize, place);
            assert_eq!(row.budget.row().label, row.label);
        }
        let labels: std::collections::BTreeSet<_> = TABLE.iter().map(|row| row.label).collect();
        assert_eq!(labels.len(), TABLE.len());
    }

    #[test]
    fn the_defaults_give_the_amounts_of_the_documents() {
        let config = Config::default();
        let holds: Vec<_> = TABLE.iter().map(|row| (row.holds)(&config)).collect();
        // 25 MB and 512 MiB in KiB.
        assert_eq!(
            holds,
            [
                60, 600, 500, 24_415, 524_288, 1_024, 4_096, 300, 20, 10, 2, 1_000
            ]
        );
    }

    #[test]
    fn a_share_is_at_least_one_and_none_of_what_has_no_bound() {
        let half = Share::parse("0.5").unwrap();
        assert_eq!(share(half, 1), 1);
        assert_eq!(share(half, 0), 0);
        assert_eq!(share(Share::parse("0").unwrap(), 1_000), 0);
    }
}
