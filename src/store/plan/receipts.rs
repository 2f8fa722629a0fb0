//! What a batch tells senders: receipts, as rows of the same transaction.
//!
//! A receipt that finds its mailbox or the relay full is dropped and counted. Expired rows do not
//! make room for one: what they tell in turn would need room, too.

use super::leaving::Leaving;
use super::receipt::{self, Receipt, ReceiptKind};
use super::{Folding, Header, Insert};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::Appended;

/// What a sender is to be told.
#[derive(Debug)]
pub(in crate::store) struct Due {
    /// The mailbox that it goes to.
    to: MailboxHash,
    /// The mailbox of the blob.
    mailbox: MailboxHash,
    receipt: Receipt,
    now: Timestamp,
}

impl Due {
    /// What is told of a row that leaves, if anything is.
    pub(in crate::store) fn of(header: Header, leaving: Leaving, now: Timestamp) -> Option<Self> {
        let at = match leaving {
            Leaving::Expired => header.expires_at.min(now),
            _ => now,
        };
        Self::new(header, leaving.receipt()?, at, now)
    }

    fn new(header: Header, kind: ReceiptKind, at: Timestamp, now: Timestamp) -> Option<Self> {
        Some(Self {
            to: header.receipt_to?,
            mailbox: header.mailbox,
            receipt: Receipt::new(header.id, kind, at),
            now,
        })
    }
}

impl Folding<'_> {
    /// Marks rows as delivered whose sender wants to hear it and has not heard it.
    pub(in crate::store) fn delivered(
        &mut self,
        mailbox: &MailboxHash,
        ids: &[BlobId],
        now: Timestamp,
    ) {
        for id in ids {
            if let Some((key, mut header)) = self.look_up(mailbox, id)
                && let Some(due) = Due::new(header, ReceiptKind::Delivered, now, now)
                && !header.is_delivered_told
            {
                header.is_delivered_told = true;
                self.known.headers.insert(key, header);
                self.plan.delivered.insert(key);
                self.due.push(due);
            }
        }
    }

    /// Writes the receipts that are due.
    pub(in crate::store) fn tell(&mut self) {
        for due in std::mem::take(&mut self.due) {
            if self.write_receipt(&due).is_err() {
                self.plan.happened.receipts_dropped += 1;
            }
        }
    }

    fn write_receipt(&mut self, due: &Due) -> Result<(), Appended> {
        let secret = self.rules.secret;
        let about = (&due.mailbox, due.receipt);
        let envelope = receipt::envelope(secret, about, due.to, (due.now, self.rules.receipt_ttl));
        let set = self.sets.peek(due.to.prefix64());
        let id64 = secret.id64(&envelope.id);
        // An earlier blob under the same id met the same fate, and its sender has not acknowledged
        // that yet. A prefix decides: both hashes are keyed, so nobody can aim at a collision.
        if set.is_some_and(|set| set.find(id64).next().is_some()) {
            return Ok(());
        }
        // The receipt of a row that leaves takes less room than that did; only this one adds to all.
        if due.receipt.kind == ReceiptKind::Delivered && !self.rules.has_room {
            return Err(Appended::RelayFull);
        }
        let held = set.map(|set| set.held(envelope.class)).unwrap_or_default();
        let bytes = self.plan.held.bytes;
        let quota = &self.rules.quota;
        quota.admits(envelope.class, held, bytes, envelope.charged_bytes())?;
        let checksum = secret.checksum(&envelope.mailbox, &envelope.id, &envelope.body);
        let header = Header::new(&envelope, &checksum, secret);
        let index = self.plan.receipts.len();
        self.plan.receipts.push((envelope, checksum));
        self.come(Insert::Receipt(index), header);
        Ok(())
    }
}
