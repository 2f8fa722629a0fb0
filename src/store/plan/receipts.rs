//! What a batch tells senders: receipts, as rows of the same transaction.
//!
//! A receipt that finds its mailbox or the relay full is dropped and counted. Expired rows do not
//! make room for one: what they tell in turn would need room, too.

use bytes::Bytes;

use super::known::{Header, Holder};
use super::leaving::Leaving;
use super::{Folding, Source};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Appended, Class, Envelope, Receipt, ReceiptKind};

/// What a sender is to be told.
#[derive(Debug)]
pub(super) struct Due {
    /// The mailbox that it goes to.
    to: MailboxHash,
    /// The mailbox of the blob.
    mailbox: MailboxHash,
    receipt: Receipt,
    now: Timestamp,
}

impl Due {
    /// What is told of a row that leaves, if anything is.
    pub(super) fn of(header: Header, leaving: Leaving, now: Timestamp) -> Option<Self> {
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
    pub(super) fn delivered(&mut self, mailbox: &MailboxHash, ids: &[BlobId], now: Timestamp) {
        let now = self.dated(now);
        for id in ids {
            if let Some((key, mut header)) = self.look_up(&(*mailbox, *id))
                && let Some(due) = Due::new(header, ReceiptKind::Delivered, now, now)
                && !header.is_delivered_told
            {
                header.is_delivered_told = true;
                self.rows.insert(key, Some(header));
                if !self.is_new(key) {
                    self.plan.delivered.insert(key, *mailbox);
                }
                self.due.push(due);
            }
        }
    }

    /// Writes the receipts that are due.
    pub(super) fn tell(&mut self) {
        for due in std::mem::take(&mut self.due) {
            if self.write_receipt(&due).is_err() {
                self.plan.happened.receipts_dropped += 1;
            }
        }
    }

    fn write_receipt(&mut self, due: &Due) -> Result<(), Appended> {
        let envelope = self.receipt(due);
        let name = (envelope.mailbox, envelope.id);
        // An earlier blob under the same id met the same fate, and its sender has not acknowledged
        // that yet.
        if self.key_of(&name).is_some() {
            return Ok(());
        }
        if !self.learnt.is_told(&name) {
            self.asks.names.push(name);
        }
        // The receipt of a row that leaves takes less room than that did; only this one adds to all.
        if due.receipt.kind == ReceiptKind::Delivered && !self.known.has_room {
            return Err(Appended::RelayFull);
        }
        let account = self.account(Holder::Mailbox(due.to));
        let (held, bytes) = (account.held(envelope.class), envelope.charged_bytes());
        let quota = &self.rules.quota;
        quota.admits(envelope.class, held, self.held.bytes, bytes)?;
        let secret = &self.rules.secret;
        let checksum = secret.checksum(&envelope.mailbox, &envelope.id, &envelope.body);
        let header = Header::new(&envelope, &checksum);
        let index = self.plan.receipts.len();
        self.plan.receipts.push((envelope, checksum));
        self.come(Source::Receipt(index), header);
        Ok(())
    }

    /// The row that tells of an event.
    fn receipt(&self, due: &Due) -> Envelope {
        let (rules, receipt) = (self.rules, due.receipt);
        let kind = receipt.kind as u8;
        Envelope {
            mailbox: due.to,
            id: rules.secret.receipt_id(&due.mailbox, &receipt.id, kind),
            class: Class::Receipt,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: due.now,
            expires_at: due.now.plus(rules.receipt_ttl),
            sealed: Bytes::new(),
            body: receipt.to_body(),
        }
    }
}
