//! Second thoughts: an owner deletes what is kept for it, a sender extends or takes back a blob.

use std::time::Duration;

use super::Service;
use super::refusal::Refusal;
use crate::ids::{BlobId, MailboxHash, MailboxId};
use crate::store::Pending;
use crate::store::model::{Removed, Tells, View};

impl Service {
    /// Deletes every blob of an opened mailbox that its opener can see; returns how many. Durable
    /// when it returns; what is stored later stays.
    pub async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
    ) -> Result<Removed, Refusal> {
        let now = self.parts.clock.now();
        let store = &self.parts.store;
        Ok(store.purge(mailbox, view, tells, now).await?)
    }

    /// Keeps a blob for `ttl` from now, at most as long as the relay keeps any, and never for less
    /// than it was kept before. The answer does not tell whether it is there.
    pub async fn extend(
        &self,
        mailbox: &MailboxId,
        id: BlobId,
        ttl: Duration,
    ) -> Result<Pending<()>, Refusal> {
        let now = self.parts.clock.now();
        let expires_at = self.parts.clock.date().plus(ttl.min(self.parts.blob_ttl));
        let (store, mailbox) = (&self.parts.store, self.parts.secret.mailbox(mailbox));
        Ok(store.extend(mailbox, id, expires_at, now).await?)
    }

    /// Takes a blob back. The answer does not tell whether it was there.
    pub async fn cancel(&self, mailbox: &MailboxId, id: BlobId) -> Result<Pending<()>, Refusal> {
        let now = self.parts.clock.now();
        let (store, mailbox) = (&self.parts.store, self.parts.secret.mailbox(mailbox));
        Ok(store.cancel(mailbox, id, now).await?)
    }
}
