//! An owner's second thoughts: delete what is kept for it.

use super::Service;
use super::refusal::Refusal;
use crate::ids::MailboxHash;
use crate::store::model::{Tells, View};

impl Service {
    /// Deletes every blob of an opened mailbox that its opener can see; returns how many. Durable
    /// when it returns; what is stored later stays.
    pub async fn purge(&self, mailbox: MailboxHash, view: View) -> Result<u64, Refusal> {
        let now = self.parts.clock.now();
        let store = &self.parts.store;
        Ok(store.purge(mailbox, view, Tells::Nobody, now).await?.blobs)
    }
}
