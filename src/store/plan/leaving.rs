//! How a row leaves: where that is counted, and what its sender is told.

use super::change::Counts;
use crate::store::model::{ReceiptKind, Tells};

/// How a row leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Its recipient has it.
    Acknowledged(Tells),
    /// Its mailbox, or its owner, was purged.
    Purged(Tells),
    /// Its sender withdrew it.
    Cancelled,
    /// A later one of the same topic took its place.
    Replaced,
    /// Its time is over.
    Expired,
    /// Its checksum did not match.
    Lost,
}

impl Leaving {
    /// What a sender who asked is told. An acknowledgement or a purge is told only where the
    /// recipient lets senders know; the rest is the sender's own doing, or the relay's.
    pub(super) fn receipt(self) -> Option<ReceiptKind> {
        match self {
            Self::Acknowledged(Tells::Nobody) | Self::Purged(Tells::Nobody) => None,
            Self::Acknowledged(Tells::Senders) => Some(ReceiptKind::Acknowledged),
            Self::Purged(Tells::Senders) | Self::Cancelled | Self::Replaced => {
                Some(ReceiptKind::Removed)
            }
            Self::Expired => Some(ReceiptKind::Expired),
            Self::Lost => Some(ReceiptKind::Lost),
        }
    }

    /// Where it is counted.
    pub(super) fn count_in(self, counts: &mut Counts) -> &mut u64 {
        match self {
            Self::Acknowledged(_) => &mut counts.acknowledged,
            Self::Purged(_) => &mut counts.purged,
            Self::Cancelled => &mut counts.cancelled,
            Self::Replaced => &mut counts.replaced,
            Self::Expired => &mut counts.expired,
            Self::Lost => &mut counts.lost,
        }
    }
}
