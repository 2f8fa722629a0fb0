//! What became of a blob, told to its sender.
//!
//! A receipt is a row of the mailbox that the sender named, written in the transaction of the event
//! that it tells of. DELIVERED comes at most once, then exactly one of the others.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use crate::store::model::{Class, Envelope};

/// What a receipt tells. The numbers are stored; they are never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ReceiptKind {
    /// It was handed to a subscriber that lets senders know.
    Delivered = 1,
    /// A subscriber that lets senders know has acknowledged it.
    Acknowledged = 2,
    /// It expired.
    Expired = 3,
    /// It was purged, replaced or cancelled.
    Removed = 4,
    /// It did not match its checksum and was set aside.
    Lost = 5,
}

impl ReceiptKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Delivered,
        Self::Acknowledged,
        Self::Expired,
        Self::Removed,
        Self::Lost,
    ];
}

/// `at` is rounded down to this.
const PRECISION_MILLIS: u64 = 60_000;

/// Blob id, kind, time.
pub(in crate::store) const BODY_BYTES: usize = 16 + 1 + 8;

/// The content of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The blob that it is about.
    pub id: BlobId,
    /// What became of it.
    pub kind: ReceiptKind,
    /// When, rounded down to the minute.
    pub at: Timestamp,
}

impl Receipt {
    /// The receipt for something that happened `at` this moment.
    pub fn new(id: BlobId, kind: ReceiptKind, at: Timestamp) -> Self {
        let millis = at.millis();
        Self {
            id,
            kind,
            at: Timestamp::from_millis(millis - millis % PRECISION_MILLIS),
        }
    }

    /// As it is stored: the blob's id, the kind, the Unix milliseconds.
    pub fn to_body(self) -> Bytes {
        let mut body = Vec::with_capacity(BODY_BYTES);
        body.extend_from_slice(self.id.as_bytes());
        body.push(self.kind as u8);
        body.extend_from_slice(&self.at.millis().to_be_bytes());
        body.into()
    }

    /// Reads what [`Receipt::to_body`] wrote; `None` for anything else.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (id, rest) = body.split_first_chunk::<16>()?;
        let (number, millis) = rest.split_first()?;
        let millis = u64::from_be_bytes(millis.try_into().ok()?);
        let kind = ReceiptKind::ALL
            .into_iter()
            .find(|kind| *kind as u8 == *number)?;
        Some(Self {
            id: BlobId::from_bytes(*id),
            kind,
            at: Timestamp::from_millis(millis),
        })
    }
}

/// The row that tells of an event: of the blob `id` in `mailbox`, for the mailbox `to`.
pub(in crate::store) fn envelope(
    secret: &Secret,
    (mailbox, receipt): (&MailboxHash, Receipt),
    to: MailboxHash,
    (now, ttl): (Timestamp, Duration),
) -> Envelope {
    Envelope {
        mailbox: to,
        id: secret.receipt_id(mailbox, &receipt.id, receipt.kind as u8),
        class: Class::Receipt,
        owner: None,
        topic: None,
        receipt_to: None,
        stored_at: now,
        expires_at: now.plus(ttl),
        sealed: Bytes::new(),
        body: receipt.to_body(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_comes_back_as_it_was_written_with_its_time_rounded_down() {
        for kind in ReceiptKind::ALL {
            let id = BlobId::from_bytes([7; 16]);
            let receipt = Receipt::new(id, kind, Timestamp::from_millis(1_800_000_059_999));
            assert_eq!(receipt.at.millis(), 1_800_000_000_000);
            assert_eq!(Receipt::parse(&receipt.to_body()), Some(receipt));
        }
    }

    #[test]
    fn what_is_no_receipt_is_not_read_as_one() {
        let id = BlobId::from_bytes([7; 16]);
        let body = Receipt::new(id, ReceiptKind::Lost, Timestamp::from_millis(0)).to_body();
        for end in 0..body.len() {
            assert_eq!(Receipt::parse(&body[..end]), None);
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(Receipt::parse(&longer), None);
        let mut unknown = body.to_vec();
        unknown[16] = 6;
        assert_eq!(Receipt::parse(&unknown), None);
    }
}
