//! A database that fails or stalls on demand, around any other one. It lies under the commit pipeline,
//! so what meets the faults is the real committer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::harness::Relay;
use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::MailboxHash;
use vauchi_relay::store::StoreError;
use vauchi_relay::store::engine::{
    Asked, CommitError, Engine, ExpiryCursor, HeldInAll, KeysOf, Known, LookedAgain, Opened, Pin,
    Plan, Reads, Scrubbed, TookPlace, Write,
};
use vauchi_relay::store::model::{
    BacklogCursor, Holding, OrderKey, Page, PageBounds, RecoveryPage, View,
};

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
    Trial,
}

/// What happens to a chosen call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It fails through nobody's fault, and does nothing.
    Fail,
    /// It is rejected, and does nothing. For reads the same as [`Fault::Fail`].
    FailCommit,
    /// It waits before it does anything.
    Stall(Stall),
    /// It has its effect at once, and answers late: what a slow disk looks like. For reads the same as
    /// [`Fault::Stall`].
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

/// What becomes of the n-th call of a kind. A write's call is its commit; a purge's is where it asks
/// how far it goes.
#[derive(Default)]
pub(crate) struct Faults {
    /// Nothing awaits under this lock.
    lots: Mutex<Lots>,
}

#[derive(Default)]
struct Lots {
    counts: HashMap<Call, u64>,
    /// By kind and number of the call since the start.
    faults: HashMap<(Call, u64), Fault>,
    /// By kind: every call, until it is mended.
    broken: HashMap<Call, Fault>,
    /// The next commit ends unknown, and nothing is reopened.
    is_down: bool,
    /// No blob follows what any session has read.
    hides_hints: bool,
}

impl Faults {
    /// Lays faults under a store; none at first.
    pub(crate) fn under(opened: Opened) -> (Arc<Self>, Opened) {
        let faults = Arc::<Self>::default();
        let opened = Opened {
            engine: Box::new(FaultyEngine {
                faults: Arc::clone(&faults),
                inner: opened.engine,
            }),
            reads: Arc::new(FaultyReads {
                faults: Arc::clone(&faults),
                inner: opened.reads,
            }),
            held: opened.held,
            others: opened.others,
        };
        (faults, opened)
    }

    /// The `nth` call of this kind from now on meets the fault; 1 is the next one.
    pub(crate) fn on(&self, call: Call, nth: u64, fault: Fault) {
        let mut lots = self.lots.lock().unwrap();
        let number = lots.count(call) + nth;
        lots.faults.insert((call, number), fault);
    }

    /// From now on every call of this kind meets the fault, until [`Faults::mend`].
    pub(crate) fn on_every(&self, call: Call, fault: Fault) {
        self.lots.lock().unwrap().broken.insert(call, fault);
    }

    /// Calls of this kind meet no fault any more. Stalls that hold a call keep it.
    pub(crate) fn mend(&self, call: Call) {
        let mut lots = self.lots.lock().unwrap();
        lots.broken.remove(&call);
        lots.faults.retain(|(kind, _), _| *kind != call);
    }

    /// From the next commit on the database is away: that one ends unknown, and until
    /// [`Faults::bring_up`] it cannot be reopened, so that what comes is refused at once.
    pub(crate) fn take_down(&self) {
        self.lots.lock().unwrap().is_down = true;
    }

    /// From now on no session is handed a blob from memory: the key before it seems to be the largest
    /// there is.
    pub(crate) fn hide_hints(&self) {
        self.lots.lock().unwrap().hides_hints = true;
    }

    /// It can be reopened.
    pub(crate) fn bring_up(&self) {
        self.lots.lock().unwrap().is_down = false;
    }

    fn is_down(&self) -> bool {
        self.lots.lock().unwrap().is_down
    }

    /// How many calls of this kind there were, failed and stalled ones included.
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.lots.lock().unwrap().count(call)
    }

    /// Counts a read; holds or fails it, if that is its lot.
    async fn meet(&self, call: Call) -> Result<(), StoreError> {
        let fault = self.lots.lock().unwrap().next(call);
        match fault {
            Some(Fault::Fail | Fault::FailCommit) => Err(StoreError::unavailable(ASKED_FOR)),
            Some(Fault::Stall(stall) | Fault::StallCommit(stall)) => {
                stall.hold().await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The fault that a batch meets. One of several writes that is to meet one has the batch split
    /// first, so that it meets it alone.
    fn of_batch(&self, batch: &[&Write]) -> Result<Option<Fault>, CommitError> {
        let mut lots = self.lots.lock().unwrap();
        let calls: Vec<_> = batch.iter().filter_map(|write| call_of(write)).collect();
        if batch.len() > 1 && lots.are_faulty(&calls) {
            return Err(CommitError::Rejected(ASKED_FOR.to_owned()));
        }
        let faults: Vec<_> = calls.into_iter().map(|call| lots.next(call)).collect();
        Ok(faults.into_iter().flatten().next())
    }
}

/// A relay over such a store.
pub(crate) async fn faulty_relay(variables: &[(&str, &str)]) -> (Relay, Arc<Faults>) {
    let mut faulty = None;
    let wrap = |opened| {
        let (faults, opened) = Faults::under(opened);
        faulty = Some(faults);
        opened
    };
    let relay = Relay::start_with(variables, |_| {}, wrap).await;
    (relay, faulty.unwrap())
}

const ASKED_FOR: &str = "a fault that a test asked for";

fn call_of(write: &Write) -> Option<Call> {
    Some(match write {
        Write::Append { .. } => Call::Append,
        Write::Acknowledge { .. } => Call::Acknowledge,
        Write::Delivered { .. } => Call::Delivered,
        Write::Extend { .. } => Call::Extend,
        Write::Cancel { .. } => Call::Cancel,
        Write::RecoveryPut { .. } => Call::RecoveryPut,
        Write::RecoveryRemove { .. } => Call::RecoveryRemove,
        Write::Pin { .. } => Call::Pin,
        Write::Unpin { .. } => Call::Unpin,
        Write::Trial => Call::Trial,
        Write::Remove { .. } | Write::ExpireProofs { .. } | Write::Burn { .. } => return None,
    })
}

impl Lots {
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

    fn are_faulty(&self, calls: &[Call]) -> bool {
        let mut counts = self.counts.clone();
        calls.iter().any(|call| {
            let number = counts.entry(*call).or_default();
            *number += 1;
            self.faults.contains_key(&(*call, *number)) || self.broken.contains_key(call)
        })
    }
}

struct FaultyEngine {
    faults: Arc<Faults>,
    inner: Box<dyn Engine>,
}

#[async_trait]
impl Engine for FaultyEngine {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        let mut known = self.inner.known(asked).await?;
        if self.faults.lots.lock().unwrap().hides_hints {
            for account in known.accounts.values_mut() {
                account.last_key = OrderKey(i64::MAX);
            }
        }
        Ok(known)
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        if self.faults.is_down() {
            return Err(CommitError::Unknown(ASKED_FOR.to_owned()));
        }
        match self.faults.of_batch(batch)? {
            Some(Fault::Fail) => Err(CommitError::Refused(ASKED_FOR.to_owned())),
            Some(Fault::FailCommit) => Err(CommitError::Rejected(ASKED_FOR.to_owned())),
            Some(Fault::Stall(stall)) => {
                stall.hold().await;
                self.inner.commit(batch, plan).await
            }
            Some(Fault::StallCommit(stall)) => {
                self.inner.commit(batch, plan).await?;
                stall.hold().await;
                Ok(())
            }
            None => self.inner.commit(batch, plan).await,
        }
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        match self.faults.is_down() {
            true => Err(StoreError::unavailable(ASKED_FOR)),
            false => self.inner.reopen().await,
        }
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        self.inner.upkeep(expired_by).await
    }

    async fn mend(
        &mut self,
        misplaced: &[OrderKey],
    ) -> Result<Vec<(MailboxHash, OrderKey)>, CommitError> {
        self.inner.mend(misplaced).await
    }

    async fn close(&mut self) {
        self.inner.close().await;
    }
}

struct FaultyReads {
    faults: Arc<Faults>,
    inner: Arc<dyn Reads>,
}

#[async_trait]
impl Reads for FaultyReads {
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        self.faults.meet(Call::Page).await?;
        self.inner.page(mailbox, view, after, bounds, now).await
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        self.faults.meet(Call::Page).await?;
        let inner = &self.inner;
        inner.device_sync_backlog(mailbox, after, bounds, now).await
    }

    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        self.faults.meet(Call::Holdings).await?;
        self.inner.holdings(mailboxes, view, now).await
    }

    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        self.faults.meet(Call::RecoveryGet).await?;
        self.inner.recovery(key_hashes, bytes_max, now).await
    }

    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError> {
        self.faults.meet(Call::IsPinned).await?;
        self.inner.pins(mailboxes).await
    }

    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError> {
        self.inner.keys(of, after, up_to, limit).await
    }

    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        self.faults.meet(Call::Expire).await?;
        self.inner.expired(limit, expired_by).await
    }

    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError> {
        self.faults.meet(Call::Expire).await?;
        self.inner.expired_asking(from, limit, expired_by).await
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        self.inner.next_expiry().await
    }

    async fn horizon(&self) -> Result<OrderKey, StoreError> {
        self.faults.meet(Call::Purge).await?;
        self.inner.horizon().await
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.inner.look().await
    }

    async fn does_chores(&self) -> Result<bool, StoreError> {
        self.inner.does_chores().await
    }

    fn held_by_all(&self) -> Option<HeldInAll> {
        self.inner.held_by_all()
    }

    async fn look_again(&self) -> Result<LookedAgain, StoreError> {
        self.inner.look_again().await
    }

    async fn read_again(&self) -> Result<(), StoreError> {
        self.inner.read_again().await
    }

    async fn scrub(&self, after: OrderKey) -> Result<Scrubbed, StoreError> {
        self.inner.scrub(after).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.faults.meet(Call::Probe).await?;
        self.inner.probe().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

mod tests {
    use vauchi_relay::store::Store;
    use vauchi_relay::store::model::{Appended, Tells};

    use super::*;
    use crate::store::contract::{ENGINES, NOW, Rig, Settings, blob, mailbox};

    /// Every engine with faults under it.
    async fn faulty_engines() -> Vec<(Arc<Faults>, Rig)> {
        let mut rigs = Vec::new();
        for engine in ENGINES {
            let mut faults = None;
            let wrap = |opened| {
                let (made, opened) = Faults::under(opened);
                faults = Some(made);
                opened
            };
            let rig = Rig::open_under(engine, Settings::default(), wrap).await;
            rigs.push((faults.unwrap(), rig));
        }
        rigs
    }

    async fn append(store: &Store, id: u32) -> Result<Appended, StoreError> {
        store.append(blob(1, id), NOW).await?.await
    }

    #[tokio::test]
    async fn only_the_chosen_call_of_the_chosen_kind_fails() {
        for (faults, rig) in faulty_engines().await {
            let store = &rig.store;
            faults.on(Call::Append, 2, Fault::Fail);
            append(store, 1).await.unwrap();
            store.probe().await.unwrap();
            assert!(matches!(
                append(store, 2).await,
                Err(StoreError::Unavailable(_))
            ));
            append(store, 3).await.unwrap();
            assert_eq!(faults.calls(Call::Append), 3);
            assert_eq!(faults.calls(Call::Probe), 1);
            assert_eq!(store.usage().stored, 2);
        }
    }

    #[tokio::test]
    async fn every_call_fails_until_it_is_mended() {
        for (faults, rig) in faulty_engines().await {
            faults.on_every(Call::Holdings, Fault::FailCommit);
            let held = || rig.store.holdings(vec![mailbox(1)], View::V1, NOW);
            for _ in 0..3 {
                held().await.unwrap_err();
            }
            faults.mend(Call::Holdings);
            held().await.unwrap();
        }
    }

    #[tokio::test]
    async fn of_several_writes_only_the_chosen_one_fails() {
        for (faults, rig) in faulty_engines().await {
            faults.on(Call::Append, 2, Fault::FailCommit);
            let mut pending = Vec::new();
            for id in 1..=3 {
                pending.push(rig.store.append(blob(1, id), NOW).await.unwrap());
            }
            let mut are_stored = Vec::new();
            for pending in pending {
                are_stored.push(pending.await.is_ok());
            }
            assert_eq!(are_stored, [true, false, true]);
            assert_eq!(rig.store.usage().stored, 2);
            assert_eq!(rig.ids(1, View::V1, NOW).await, [1, 3]);
        }
    }

    #[tokio::test]
    async fn while_the_database_is_away_writes_are_refused_and_afterwards_taken() {
        for (faults, rig) in faulty_engines().await {
            append(&rig.store, 1).await.unwrap();
            faults.take_down();
            let lost = rig.store.append(blob(1, 2), NOW).await.unwrap();
            while rig.metric("store_up") > 0.5 {
                tokio::task::yield_now().await;
            }
            append(&rig.store, 3).await.unwrap_err();
            assert_eq!(rig.ids(1, View::V1, NOW).await, [1], "reads go on");
            faults.bring_up();
            lost.await.unwrap_err();
            for id in [2, 3] {
                append(&rig.store, id).await.unwrap();
            }
            assert_eq!(rig.ids(1, View::V1, NOW).await, [1, 2, 3]);
        }
    }

    #[tokio::test]
    async fn a_stalled_call_does_nothing_until_it_is_released() {
        for (faults, rig) in faulty_engines().await {
            let stall = Stall::default();
            faults.on(Call::Purge, 1, Fault::Stall(stall.clone()));
            append(&rig.store, 1).await.unwrap();

            let purger = Arc::clone(&rig.store);
            let purge = tokio::spawn(async move {
                purger
                    .purge(mailbox(1), View::Proven, Tells::Nobody, NOW)
                    .await
            });
            stall.reached().await;
            assert_eq!(rig.store.usage().stored, 1);
            stall.release();
            assert_eq!(purge.await.unwrap().unwrap().blobs, 1);
        }
    }

    #[tokio::test]
    async fn a_stalled_commit_has_its_effect_and_answers_when_it_is_released() {
        for (faults, rig) in faulty_engines().await {
            let (stall, store) = (Stall::default(), &rig.store);
            faults.on(Call::Append, 1, Fault::StallCommit(stall.clone()));
            let first = store.append(blob(1, 1), NOW).await.unwrap();
            stall.reached().await;
            let held = store.holdings(vec![mailbox(1)], View::Proven, NOW).await;
            assert_eq!(held.unwrap()[0].blobs, 1);
            assert_eq!(store.usage().stored, 0, "not confirmed");
            stall.release();
            assert!(matches!(first.await, Ok(Appended::Stored { .. })));
        }
    }
}
