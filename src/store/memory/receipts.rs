//! What the memory engine tells senders.
//!
//! A receipt lies in another shard than the row that it is about, and never are two shards locked at
//! once. So the rows go first, and what is told of them follows before the call returns.

use super::MemoryStore;
use super::shard::Row;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::plan::leaving::Leaving;
use crate::store::plan::receipt::{self, Receipt, ReceiptKind};

impl MemoryStore {
    /// Tells the senders of rows that have left a mailbox. No lock is held.
    pub(in crate::store) fn tell(
        &self,
        leaving: Leaving,
        mailbox: &MailboxHash,
        rows: &[Row],
        now: Timestamp,
    ) {
        let Some(kind) = leaving.receipt() else {
            return;
        };
        for row in rows {
            if let Some(to) = row.receipt_to {
                let at = match leaving {
                    Leaving::Expired => row.expires_at.min(now),
                    _ => now,
                };
                let receipt = Receipt::new(row.id, kind, at);
                self.write_receipt((mailbox, receipt), to, now);
            }
        }
    }

    /// Tells a sender that its blob was delivered. No lock is held.
    pub(in crate::store) fn tell_delivered(
        &self,
        mailbox: &MailboxHash,
        (id, to): (BlobId, MailboxHash),
        now: Timestamp,
    ) {
        let receipt = Receipt::new(id, ReceiptKind::Delivered, now);
        self.write_receipt((mailbox, receipt), to, now);
    }

    fn write_receipt(&self, about: (&MailboxHash, Receipt), to: MailboxHash, now: Timestamp) {
        let envelope = receipt::envelope(&self.secret, about, to, (now, self.receipt_ttl));
        let checksum = self.secret.checksum(&to, &envelope.id, &envelope.body);
        let row = Row::new(&envelope, checksum);
        // A store that is closed by now keeps nothing anyway.
        let Ok(mut shard) = self.shard(&to) else {
            return;
        };
        // An earlier blob under the same id met the same fate, and its sender has not acknowledged
        // that yet.
        if shard.find(&to, &row.id).is_some() {
            return;
        }
        let held = shard.held(&to, row.class);
        let mut books = self.books();
        match books.admit(&self.quota, (held, 0), to, &row) {
            Ok(key) => {
                drop(books);
                shard.insert(to, key, row);
                drop(shard);
                (self.on_stored)(&to);
            }
            Err(_full) => books.drop_receipt(),
        }
    }
}
