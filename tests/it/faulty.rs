//! A store that fails or stalls on demand, around any other one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxHash};
use vauchi_relay::store::model::{
    Appended, BacklogCursor, Envelope, Holding, Opener, OrderKey, Page, PageBounds, RecoveryPage,
    RecoveryProof, RecoveryPut, Removed, Swept, Tells, Usage, View,
};
use vauchi_relay::store::{Pending, Store, StoreError};

/// The calls that can be made to fail or stall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Append,
    Acknowledge,
    Delivered,
    Extend,
    Cancel,
    Purge,
    Page,
    Holdings,
    Expire,
    Probe,
    RecoveryPut,
    RecoveryGet,
    RecoveryRemove,
    Pin,
    IsPinned,
    Unpin,
}

/// What happens to a chosen call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It answers [`StoreError::Unavailable`] and does nothing.
    Fail,
    /// It answers a `Pending` that resolves to [`StoreError::Unavailable`], and does nothing: what a
    /// failed commit looks like. For calls without a `Pending` the same as [`Fault::Fail`].
    FailCommit,
    /// It waits before it does anything.
    Stall(Stall),
    /// It has its place and its effect at once, but its `Pending` waits: what a slow disk looks
    /// like. For calls without a `Pending` the same as [`Fault::Stall`].
    StallCommit(Stall),
}

/// Holds calls until it is released. Clones are the same stall.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stall {
    reached: CancellationToken,
    released: CancellationToken,
}

impl Stall {
    /// Returns when a call has come to the stall.
    pub(crate) async fn reached(&self) {
        self.reached.cancelled().await;
    }

    /// Lets the held call go on, and whichever comes later.
    pub(crate) fn release(&self) {
        self.released.cancel();
    }

    async fn hold(&self) {
        self.reached.cancel();
        self.released.cancelled().await;
    }
}

/// A store around another one that does what it is told to the n-th call of a kind.
pub(crate) struct FaultyStore {
    inner: Arc<dyn Store>,
    /// Nothing awaits under this lock.
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    counts: HashMap<Call, u64>,
    /// By kind and number of the call since the start.
    faults: HashMap<(Call, u64), Fault>,
    /// By kind: every call, until it is mended.
    broken: HashMap<Call, Fault>,
}

impl FaultyStore {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let plan = Mutex::default();
        Arc::new(Self { inner, plan })
    }

    /// The `nth` call of this kind from now on meets the fault; 1 is the next one.
    pub(crate) fn on(&self, call: Call, nth: u64, fault: Fault) {
        let mut plan = self.plan.lock().unwrap();
        let number = plan.count(call) + nth;
        plan.faults.insert((call, number), fault);
    }

    /// From now on every call of this kind meets the fault, until [`FaultyStore::mend`].
    pub(crate) fn on_every(&self, call: Call, fault: Fault) {
        self.plan.lock().unwrap().broken.insert(call, fault);
    }

    /// Calls of this kind meet no fault any more. Stalls that hold a call keep it.
    pub(crate) fn mend(&self, call: Call) {
        let mut plan = self.plan.lock().unwrap();
        plan.broken.remove(&call);
        plan.faults.retain(|(kind, _), _| *kind != call);
    }

    /// How many calls of this kind there were, failed and stalled ones included.
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.plan.lock().unwrap().count(call)
    }

    /// Counts the call; holds or fails it before it does anything, if that is its lot. Otherwise
    /// answers the fault that its commit shall meet.
    async fn meet(&self, call: Call) -> Result<Option<Fault>, StoreError> {
        let fault = self.plan.lock().unwrap().next(call);
        match fault {
            Some(Fault::Fail) => Err(failure()),
            Some(Fault::Stall(stall)) => {
                stall.hold().await;
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// [`FaultyStore::meet`] for a call whose effect is there when it returns.
    async fn meet_whole(&self, call: Call) -> Result<(), StoreError> {
        match self.meet(call).await? {
            Some(Fault::FailCommit) => Err(failure()),
            Some(Fault::StallCommit(stall)) => {
                stall.hold().await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// [`FaultyStore::meet`] for a call that answers a `Pending`.
    async fn meet_commit<T: Send + 'static>(
        &self,
        call: Call,
        write: impl Future<Output = Result<Pending<T>, StoreError>>,
    ) -> Result<Pending<T>, StoreError> {
        match self.meet(call).await? {
            Some(Fault::FailCommit) => {
                let (sender, pending) = Pending::channel();
                sender.send(Err(failure())).ok();
                Ok(pending)
            }
            Some(Fault::StallCommit(stall)) => {
                let inner = write.await?;
                let (sender, pending) = Pending::channel();
                tokio::spawn(async move {
                    stall.hold().await;
                    sender.send(inner.await).ok();
                });
                Ok(pending)
            }
            _ => write.await,
        }
    }
}

impl Plan {
    fn count(&self, call: Call) -> u64 {
        self.counts.get(&call).copied().unwrap_or_default()
    }

    fn next(&mut self, call: Call) -> Option<Fault> {
        let number = self.count(call) + 1;
        self.counts.insert(call, number);
        self.faults
            .remove(&(call, number))
            .or_else(|| self.broken.get(&call).cloned())
    }
}

fn failure() -> StoreError {
    StoreError::unavailable("a fault that a test asked for")
}

#[async_trait]
impl Store for FaultyStore {
    async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        let write = self.inner.append(envelope, expired_by);
        self.meet_commit(Call::Append, write).await
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let write = self.inner.acknowledge(mailbox, ids, by, now);
        self.meet_commit(Call::Acknowledge, write).await
    }

    async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = self.inner.delivered(mailbox, ids, now);
        self.meet_commit(Call::Delivered, write).await
    }

    async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = self.inner.extend(mailbox, id, expires_at, now);
        self.meet_commit(Call::Extend, write).await
    }

    async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = self.inner.cancel(mailbox, id, now);
        self.meet_commit(Call::Cancel, write).await
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        self.meet_whole(Call::Purge).await?;
        self.inner.purge(mailbox, view, tells, now).await
    }

    async fn purge_owner(&self, owner: MailboxHash, now: Timestamp) -> Result<Removed, StoreError> {
        self.meet_whole(Call::Purge).await?;
        self.inner.purge_owner(owner, now).await
    }

    async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError> {
        self.meet_whole(Call::Expire).await?;
        self.inner.expire(limit, expired_by).await
    }

    async fn expire_asking(&self, expired_by: Timestamp) -> Result<u64, StoreError> {
        self.meet_whole(Call::Expire).await?;
        self.inner.expire_asking(expired_by).await
    }

    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        self.meet_whole(Call::Page).await?;
        self.inner.page(mailbox, view, after, bounds, now).await
    }

    async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        self.meet_whole(Call::Holdings).await?;
        self.inner.holdings(mailboxes, view, now).await
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        self.meet_whole(Call::Page).await?;
        let inner = &self.inner;
        inner.device_sync_backlog(mailbox, after, bounds, now).await
    }

    async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        self.meet_whole(Call::RecoveryPut).await?;
        self.inner.recovery_put(proof, expired_by).await
    }

    async fn recovery_get(
        &self,
        key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        self.meet_whole(Call::RecoveryGet).await?;
        self.inner.recovery_get(key_hashes, bytes_max, now).await
    }

    async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        self.meet_whole(Call::RecoveryRemove).await?;
        self.inner.recovery_remove(key_hash, owner).await
    }

    async fn pin(&self, mailbox: MailboxHash, now: Timestamp) -> Result<(), StoreError> {
        self.meet_whole(Call::Pin).await?;
        self.inner.pin(mailbox, now).await
    }

    async fn is_pinned(
        &self,
        mailbox: MailboxHash,
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.meet_whole(Call::IsPinned).await?;
        self.inner.is_pinned(mailbox, max_ttl, now).await
    }

    async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        self.meet_whole(Call::Unpin).await?;
        self.inner.unpin(mailbox).await
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.meet_whole(Call::Probe).await?;
        self.inner.probe(now).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

mod tests {
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::store_contract::{NOW, Rig, blob, mailbox};

    fn faulty() -> Arc<FaultyStore> {
        FaultyStore::new(Rig::memory())
    }

    async fn append(store: &FaultyStore, id: u32) -> Result<Appended, StoreError> {
        store.append(blob(1, id), NOW).await?.await
    }

    #[tokio::test]
    async fn only_the_chosen_call_of_the_chosen_kind_fails() {
        let store = faulty();
        store.on(Call::Append, 2, Fault::Fail);
        append(&store, 1).await.unwrap();
        store.probe(NOW).await.unwrap();
        assert!(matches!(
            append(&store, 2).await,
            Err(StoreError::Unavailable(_))
        ));
        append(&store, 3).await.unwrap();
        assert_eq!(store.calls(Call::Append), 3);
        assert_eq!(store.calls(Call::Probe), 1);
        assert_eq!(store.usage().stored, 2);
    }

    #[tokio::test]
    async fn every_call_fails_until_it_is_mended() {
        let store = faulty();
        store.on_every(Call::Probe, Fault::FailCommit);
        for _ in 0..3 {
            store.probe(NOW).await.unwrap_err();
        }
        store.mend(Call::Probe);
        store.probe(NOW).await.unwrap();
    }

    #[tokio::test]
    async fn a_failed_commit_is_told_by_the_pending_and_stores_nothing() {
        let store = faulty();
        store.on(Call::Append, 1, Fault::FailCommit);
        let pending = store.append(blob(1, 1), NOW).await.unwrap();
        pending.await.unwrap_err();
        assert_eq!(store.usage().stored, 0);
    }

    #[tokio::test]
    async fn a_stalled_call_does_nothing_until_it_is_released() {
        let store = faulty();
        let stall = Stall::default();
        store.on(Call::Purge, 1, Fault::Stall(stall.clone()));
        append(&store, 1).await.unwrap();

        let purger = Arc::clone(&store);
        let purge = tokio::spawn(async move {
            purger
                .purge(mailbox(1), View::Proven, Tells::Nobody, NOW)
                .await
        });
        stall.reached().await;
        assert_eq!(store.usage().stored, 1);
        stall.release();
        assert_eq!(purge.await.unwrap().unwrap().blobs, 1);
    }

    #[tokio::test]
    async fn a_stalled_commit_has_its_place_and_answers_when_it_is_released() {
        let store = faulty();
        let stall = Stall::default();
        store.on(Call::Append, 1, Fault::StallCommit(stall.clone()));
        let mut first = store.append(blob(1, 1), NOW).await.unwrap();
        append(&store, 2).await.unwrap();
        stall.reached().await;
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut first).poll(&mut context).is_pending());
        stall.release();
        assert!(matches!(first.await, Ok(Appended::Stored { .. })));
    }
}
