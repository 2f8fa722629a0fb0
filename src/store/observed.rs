//! Any engine, timed and counted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::model::{
    Appended, BacklogCursor, Envelope, Holding, Opener, OrderKey, Page, PageBounds, RecoveryPage,
    RecoveryProof, RecoveryPut, Removed, Swept, Tells, Usage, View,
};
use super::{Pending, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;

/// Wraps an engine. What happens inside a commit is counted by the engine itself.
pub struct Observed {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Observed {
    /// Counts the calls to `inner`.
    pub fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    fn counted<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if outcome.is_err() {
            self.metrics.store_errors_total.increment(1);
        }
        outcome
    }
}

#[async_trait]
impl Store for Observed {
    async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        self.counted(self.inner.append(envelope, expired_by).await)
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        self.counted(self.inner.acknowledge(mailbox, ids, by, now).await)
    }

    async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.counted(self.inner.delivered(mailbox, ids, now).await)
    }

    async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.counted(self.inner.extend(mailbox, id, expires_at, now).await)
    }

    async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.counted(self.inner.cancel(mailbox, id, now).await)
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        self.counted(self.inner.purge(mailbox, view, tells, now).await)
    }

    async fn purge_owner(&self, owner: MailboxHash, now: Timestamp) -> Result<Removed, StoreError> {
        self.counted(self.inner.purge_owner(owner, now).await)
    }

    async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError> {
        self.counted(self.inner.expire(limit, expired_by).await)
    }

    async fn expire_asking(&self, expired_by: Timestamp) -> Result<u64, StoreError> {
        self.counted(self.inner.expire_asking(expired_by).await)
    }

    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        let began = Instant::now();
        let page = self.inner.page(mailbox, view, after, bounds, now).await;
        self.metrics.page_duration_seconds.record(began.elapsed());
        self.counted(page)
    }

    async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        self.counted(self.inner.holdings(mailboxes, view, now).await)
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let began = Instant::now();
        let inner = &self.inner;
        let page = inner.device_sync_backlog(mailbox, after, bounds, now).await;
        self.metrics.page_duration_seconds.record(began.elapsed());
        self.counted(page)
    }

    async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        self.counted(self.inner.recovery_put(proof, expired_by).await)
    }

    async fn recovery_get(
        &self,
        key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        self.counted(self.inner.recovery_get(key_hashes, bytes_max, now).await)
    }

    async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        self.counted(self.inner.recovery_remove(key_hash, owner).await)
    }

    async fn pin(&self, mailbox: MailboxHash, now: Timestamp) -> Result<(), StoreError> {
        self.counted(self.inner.pin(mailbox, now).await)
    }

    async fn is_pinned(
        &self,
        mailbox: MailboxHash,
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.counted(self.inner.is_pinned(mailbox, max_ttl, now).await)
    }

    async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        self.counted(self.inner.unpin(mailbox).await)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.counted(self.inner.probe(now).await)
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
