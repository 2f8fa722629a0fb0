//! Every reason to say no: its code, its words, whether and when to try again.
//!
//! The table in `docs/errors.md` lists the same codes; a test compares them.

use std::borrow::Cow;
use std::time::Duration;

use crate::limits::budgets::Spent;
use crate::limits::table::Budget;
use crate::store::StoreError;

/// When to come back after a bound that only time or a recipient lifts.
const RETRY_FULL: Duration = Duration::from_secs(60);
/// When to come back after a storage fault: reopening takes a second or two.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(5);

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request makes no sense; the words quote nothing of it.
    Invalid(&'static str),
    /// The frame is larger than the relay takes.
    TooLarge {
        /// `RELAY_MAX_MESSAGE_SIZE`.
        bytes_max: usize,
    },
    /// Somebody is too fast: the client, or whoever shares its address.
    RateLimited {
        /// Which budget is spent.
        budget: Budget,
        /// When the next request would be admitted.
        retry_after: Duration,
    },
    /// The recipient's mailbox holds as much as it may.
    MailboxFull,
    /// The relay holds as much as it may.
    RelayFull,
    /// Another blob is known under this id.
    IdReused,
    /// The client did not prove what it claims. The same for every kind of bad proof.
    Unauthorized,
    /// Storage does not take writes now.
    Unavailable,
    /// A request that this version of the relay does not know.
    Unsupported,
    /// The time to live is longer than the relay keeps blobs, or too short for a receipt.
    TtlOutOfRange {
        /// The longest.
        ttl_max: Duration,
        /// The shortest of a blob that asks for receipts.
        receipt_ttl_min: Duration,
    },
    /// Nobody is there to take a live-only blob.
    NotConnected,
    /// The connection has as many mailboxes open as it may.
    TooManyMailboxes,
    /// The blob is for a relay that this one cannot reach.
    UnknownRelay,
    /// The relay is about to stop and takes nothing new.
    ShuttingDown,
    /// The client dialled another host than this relay's own: somebody between may pass its proofs on.
    WrongOrigin,
}

impl Refusal {
    /// Every code, for tables and tests.
    pub const CODES: [&'static str; 15] = [
        "invalid",
        "too_large",
        "rate_limited",
        "mailbox_full",
        "relay_full",
        "id_reused",
        "unauthorized",
        "unavailable",
        "unsupported",
        "ttl_out_of_range",
        "not_connected",
        "too_many_mailboxes",
        "unknown_relay",
        "shutting_down",
        "wrong_origin",
    ];

    /// One lower-case word, also the metric label and the anchor in `docs/errors.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::MailboxFull => "mailbox_full",
            Self::RelayFull => "relay_full",
            Self::IdReused => "id_reused",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::TtlOutOfRange { .. } => "ttl_out_of_range",
            Self::NotConnected => "not_connected",
            Self::TooManyMailboxes => "too_many_mailboxes",
            Self::UnknownRelay => "unknown_relay",
            Self::ShuttingDown => "shutting_down",
            Self::WrongOrigin => "wrong_origin",
        }
    }

    /// What is wrong and what to do, for the client's developer.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Invalid(why) => (*why).into(),
            Self::TooLarge { bytes_max } => format!(
                "the frame is larger than {bytes_max} bytes (RELAY_MAX_MESSAGE_SIZE); send a smaller blob"
            )
            .into(),
            Self::RateLimited { budget, .. } => budget.row().refusal.into(),
            Self::MailboxFull => {
                "the recipient's mailbox is full; retry after the recipient has collected its blobs".into()
            }
            Self::RelayFull => "the relay's storage is full; retry later or tell its operator".into(),
            Self::IdReused => "this id is already used for a different blob; choose a new random id".into(),
            Self::Unauthorized => {
                "the proof is missing or invalid, or the mailbox is not open on this connection; check the key and the origin"
                    .into()
            }
            Self::Unavailable => {
                "the relay's storage is unavailable; retry with the same id".into()
            }
            Self::Unsupported => {
                "unknown request type; Welcome.features lists what this relay supports".into()
            }
            Self::TtlOutOfRange {
                ttl_max,
                receipt_ttl_min,
            } => format!(
                "ttl_seconds must be at most {}, and at least {} with receipt_to",
                ttl_max.as_secs(),
                receipt_ttl_min.as_secs()
            )
            .into(),
            Self::NotConnected => {
                "the recipient is not connected with receipts enabled; submit without live_only".into()
            }
            Self::TooManyMailboxes => {
                "too many open mailboxes on this connection (Limits.mailboxes_max); close some, or open another connection"
                    .into()
            }
            Self::UnknownRelay => "this relay does not forward; connect to the recipient's relay".into(),
            Self::ShuttingDown => "the relay is shutting down; reconnect and send the same request again".into(),
            Self::WrongOrigin => {
                "the client connected under a host name that is not this relay's; use its own name, or ask its operator to list this one (RELAY_PUBLIC_ORIGINS) or to have the proxy pass the Host header unchanged"
                    .into()
            }
        }
    }

    /// Whether too many proofs from the client's address were not good, which ends its connection.
    pub fn is_of_failed_proofs(&self) -> bool {
        matches!(
            self,
            Self::RateLimited {
                budget: Budget::FailedProofs,
                ..
            }
        )
    }

    /// When to try again; `None` when an unchanged repeat cannot succeed.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::MailboxFull | Self::RelayFull => Some(RETRY_FULL),
            Self::Unavailable | Self::ShuttingDown => Some(RETRY_UNAVAILABLE),
            Self::NotConnected => Some(RETRY_FULL),
            Self::Unsupported
            | Self::TtlOutOfRange { .. }
            | Self::TooManyMailboxes
            | Self::UnknownRelay
            | Self::WrongOrigin => None,
            Self::Invalid(_) | Self::TooLarge { .. } | Self::IdReused | Self::Unauthorized => None,
        }
    }
}

impl From<StoreError> for Refusal {
    // The store's own words are for the operator; the client learns only that it may try again.
    fn from(_: StoreError) -> Self {
        Self::Unavailable
    }
}

impl From<Spent> for Refusal {
    fn from(spent: Spent) -> Self {
        Self::RateLimited {
            budget: spent.budget,
            retry_after: spent.retry_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_listed_code_and_words() {
        let all = [
            Refusal::Invalid("why"),
            Refusal::TooLarge { bytes_max: 1 },
            Refusal::RateLimited {
                budget: Budget::Client,
                retry_after: Duration::from_secs(1),
            },
            Refusal::MailboxFull,
            Refusal::RelayFull,
            Refusal::IdReused,
            Refusal::Unauthorized,
            Refusal::Unavailable,
            Refusal::Unsupported,
            Refusal::TtlOutOfRange {
                ttl_max: Duration::from_secs(7_776_000),
                receipt_ttl_min: Duration::from_secs(3_600),
            },
            Refusal::NotConnected,
            Refusal::TooManyMailboxes,
            Refusal::UnknownRelay,
            Refusal::ShuttingDown,
            Refusal::WrongOrigin,
        ];
        let codes: Vec<_> = all.iter().map(Refusal::code).collect();
        assert_eq!(codes, Refusal::CODES);
        assert!(all.iter().all(|refusal| !refusal.message().is_empty()));
    }
}
