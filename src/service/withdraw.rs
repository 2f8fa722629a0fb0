//! Second thoughts: an owner deletes what is kept for it, a sender extends or takes back a blob.

use std::time::Duration;

use super::Service;
use super::charge::Client;
use super::refusal::Refusal;
use crate::clock::Timestamp;
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

    /// Purges several mailboxes that were opened with a proof, each named once; what was purged of each,
    /// in the order asked. One request has been charged ([`Service::charge`]); each mailbox but the first
    /// costs another one, if it holds anything. One that holds nothing costs nothing, and nothing is
    /// written for it.
    pub async fn purge_all(
        &self,
        client: &Client,
        mailboxes: &[(MailboxHash, Tells)],
    ) -> Result<Vec<Removed>, Refusal> {
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        let hashes = mailboxes.iter().map(|(mailbox, _)| *mailbox).collect();
        // At the beginning of time nothing has expired: also what has is there to be purged.
        let nothing_expired = Timestamp::default();
        let held = store.holdings(hashes, View::Proven, nothing_expired);
        let held: Vec<_> = held.await?.iter().map(|held| held.pending > 0).collect();
        let full = mailboxes.iter().zip(&held).filter(|(_, held)| **held);
        let full: Vec<_> = full.map(|(mailbox, _)| *mailbox).collect();
        let more = u32::try_from(full.len())
            .unwrap_or(u32::MAX)
            .saturating_sub(1);
        self.charge_requests(client, more).await?;
        if full.is_empty() {
            return Ok(vec![Removed::default(); mailboxes.len()]);
        }
        let mut purged = store.purge_all(&full, View::Proven, now).await?.into_iter();
        let of_one = |held: &bool| held.then(|| purged.next()).flatten().unwrap_or_default();
        Ok(held.iter().map(of_one).collect())
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
