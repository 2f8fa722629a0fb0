//! Delete what was received.

use std::sync::PoisonError;

use super::Service;
use super::refusal::Refusal;
use crate::hub::Fate;
use crate::ids::{BlobId, MailboxHash};
use crate::store::Pending;
use crate::store::model::{Opener, Removed};

impl Service {
    /// A blob was written to a recipient that lets its sender know.
    pub fn tell_delivered(&self, id: &BlobId) {
        self.parts.commons.tell(id, Fate::Delivered);
    }

    /// A blob was acknowledged by a recipient that lets its sender know.
    pub fn tell_acknowledged(&self, id: &BlobId) {
        self.parts.commons.tell(id, Fate::Acknowledged);
    }

    /// Hands the deletion of acknowledged blobs to the store. It is durable when the answer
    /// resolves; a caller that does not wait may drop the answer, the deletion goes on.
    pub async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
    ) -> Result<Pending<Removed>, Refusal> {
        let now = self.parts.clock.now();
        Ok(self.parts.store.acknowledge(mailbox, ids, by, now).await?)
    }

    /// A blob that asks for receipts was written to a subscriber that tells senders. Nobody waits
    /// for it: should it fail, the sender hears of what comes next.
    pub async fn note_delivered(&self, mailbox: MailboxHash, id: BlobId) {
        let now = self.parts.clock.now();
        if let Err(error) = self.parts.store.delivered(mailbox, vec![id], now).await {
            tracing::debug!(%error, "cannot write the receipt of a delivery");
        }
    }

    /// Notes that a blob is being delivered; whether this process did so before and has not
    /// forgotten. Of the last 100,000 deliveries (40 bytes each) it is known.
    pub fn is_redelivered(&self, mailbox: &MailboxHash, id: &BlobId) -> bool {
        let mut delivered = self
            .delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        delivered.put((mailbox.prefix64(), *id), ()).is_some()
    }
}
