//! Blobs that were found damaged, or that an index does not find: delivered after all when they can be.

use super::Service;
use crate::ids::MailboxHash;
use crate::store::StoreError;
use crate::store::model::{OrderKey, Scrub};

impl Service {
    /// Looks again at what was found damaged and is skipped; to be called once a minute. Sessions that
    /// have passed a blob that is whole after all read it now.
    pub async fn look_again(&self) -> Result<(), StoreError> {
        let sound = self.parts.store.look_again(self.now()).await?;
        self.came_back(&sound);
        Ok(())
    }

    /// Compares a slice of rows with their checksums and indexes ([`crate::store::Store::scrub`]).
    pub async fn scrub(&self, after: OrderKey) -> Result<Scrub, StoreError> {
        let scrub = self.parts.store.scrub(after).await?;
        self.came_back(&scrub.mended);
        Ok(scrub)
    }

    /// A session looks into so many mailboxes of which no word had come in time: it was lost on its way from
    /// another relay.
    pub fn note_missed_words(&self, mailboxes: usize) {
        self.parts
            .metrics
            .notifications_repaired_total
            .increment(mailboxes as u64);
    }

    fn came_back(&self, rows: &[(MailboxHash, OrderKey)]) {
        for (mailbox, key) in rows {
            self.parts.commons.came_back(*mailbox, *key);
        }
    }
}
