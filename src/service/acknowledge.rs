//! Delete what was received.

use super::Service;
use super::refusal::Refusal;
use crate::ids::{BlobId, MailboxHash};
use crate::store::Pending;
use crate::store::model::{Removed, Tells};

impl Service {
    /// A blob was written to a recipient that lets its sender know.
    pub fn tell_delivered(&self, id: &BlobId) {
        self.notices.delivered(id);
    }

    /// A blob was acknowledged by a recipient that lets its sender know.
    pub fn tell_acknowledged(&self, id: &BlobId) {
        self.notices.acknowledged(id);
    }

    /// Hands the deletion of acknowledged blobs to the store. It is durable when the answer
    /// resolves; a caller that does not wait may drop the answer, the deletion goes on.
    pub async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
    ) -> Result<Pending<Removed>, Refusal> {
        Ok(self
            .parts
            .store
            .acknowledge(mailbox, ids, Tells::Nobody, self.parts.clock.now())
            .await?)
    }
}
