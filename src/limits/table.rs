//! The table of budgets. A limit on speed is added by adding a row.

use std::time::Duration;

use super::address::{Address, Width};
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

/// Refused and free frames that an address may always have read in a minute: 1,000 a second. The dearest
/// to read, long lists for `Unsubscribe`, take 10 µs for each KiB, so that is 1 % of a core.
const READING_MIN: u64 = 60_000;

/// Ids that one address may have pinned in a day, at the least.
const PINS_A_DAY_MIN: u64 = 1_000;

/// So many addresses need a day to use up all pins.
const ADDRESSES_FOR_ALL_PINS: u64 = 1_000;

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
    /// Frames from an address that nothing else is charged for.
    Reading,
}

/// Which networks around an address have buckets of their own in a budget, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wider {
    /// None: the bucket is not an address's.
    Alone,
    /// A /56 has twice and a /48 four times what one address has.
    Ipv6,
    /// As `Ipv6`, and an IPv4 /24 has four times what one address has.
    Ipv6AndIpv4,
    /// A /48 has no more than one address.
    OneForIpv6,
    /// A /48 and an IPv4 /24 have twice what one address has.
    TwoForAll,
}

impl Wider {
    /// How much more a network of this width around `address` has than one address; `None` if it has no
    /// bucket.
    pub fn factor(self, address: Address, width: Width) -> Option<u64> {
        if width == Width::Address {
            return Some(1);
        }
        address.within(width)?;
        let counts_ipv4 = matches!(self, Self::Ipv6AndIpv4 | Self::TwoForAll);
        if address.is_ipv4() && !counts_ipv4 {
            return None;
        }
        self.factor_at(width)
    }

    /// How much more any network of this width has than one address.
    pub(super) fn factor_at(self, width: Width) -> Option<u64> {
        match (self, width) {
            (_, Width::Address) => Some(1),
            (Self::Alone, _) => None,
            (Self::Ipv6 | Self::Ipv6AndIpv4, width) => Some(width.factor()),
            (Self::OneForIpv6 | Self::TwoForAll, Width::Site) => None,
            (Self::OneForIpv6, Width::Neighbours) => Some(1),
            (Self::TwoForAll, Width::Neighbours) => Some(2),
        }
    }

    /// The words for it in the documents.
    pub fn label(self) -> &'static str {
        match self {
            Self::Alone => "-",
            Self::Ipv6 => "/56 × 2, /48 × 4",
            Self::Ipv6AndIpv4 => "/56 × 2, /48 and /24 × 4",
            Self::OneForIpv6 => "/48 × 1",
            Self::TwoForAll => "/48 and /24 × 2",
        }
    }
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
    /// What the networks around that address have together.
    pub wider: Wider,
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
pub const TABLE: [Row; 13] = [
    Row {
        budget: Budget::Client,
        label: "client",
        charged: "requests",
        whose: "mailbox name and address",
        wider: Wider::Alone,
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
        wider: Wider::Ipv6,
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
        wider: Wider::OneForIpv6,
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
        wider: Wider::OneForIpv6,
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
        wider: Wider::Ipv6AndIpv4,
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
        wider: Wider::Alone,
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
        wider: Wider::Ipv6,
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
        wider: Wider::Ipv6AndIpv4,
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
        wider: Wider::Ipv6,
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
        wider: Wider::Alone,
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
        wider: Wider::TwoForAll,
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
        wider: Wider::Ipv6,
        period: DAY,
        setting: "RELAY_PINS_MAX",
        holds: |config| PINS_A_DAY_MIN.max(config.pins_max / ADDRESSES_FOR_ALL_PINS),
        refusal: "your network has pinned too many mailboxes for the first time today; retry tomorrow, or set no_pin",
    },
    Row {
        budget: Budget::Reading,
        label: "reading",
        charged: "refused and free frames: 1 each, and 1 for each KiB",
        whose: "address",
        wider: Wider::Ipv6,
        period: MINUTE,
        setting: "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
        holds: |config| reading(config.rate_limit_per_address_per_min.into()),
        refusal: "too many refused or free frames from your network",
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

/// What an address may have read that is refused or free: a hundred times its requests, and at least
/// [`READING_MIN`]; without a limit on requests there is none.
fn reading(requests_per_min: u64) -> u64 {
    match requests_per_min {
        0 => 0,
        requests => requests.saturating_mul(100).max(READING_MIN),
    }
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
                60, 600, 500, 24_415, 524_288, 1_024, 4_096, 300, 20, 10, 2, 1_000, 60_000
            ]
        );
    }

    #[test]
    fn with_more_pins_each_address_may_set_more() {
        let holds = |pins_max| {
            let config = Config {
                pins_max,
                ..Config::default()
            };
            (Budget::Pins.row().holds)(&config)
        };
        assert_eq!(holds(100), 1_000);
        assert_eq!(holds(1_000_000), 1_000);
        assert_eq!(holds(5_000_000), 5_000);
    }

    #[test]
    fn a_share_is_at_least_one_and_none_of_what_has_no_bound() {
        let half = Share::parse("0.5").unwrap();
        assert_eq!(share(half, 1), 1);
        assert_eq!(share(half, 0), 0);
        assert_eq!(share(Share::parse("0").unwrap(), 1_000), 0);
    }
}
