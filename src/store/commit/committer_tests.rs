//! The pipeline over an engine that fails as it is told.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::super::{Pending, StoreError};
use super::*;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::commit::{Engine, Lane, Pipeline, QUEUE_ITEMS_MAX};
use crate::store::model::{Class, Envelope, Opener, RecoveryPut, Removed, Tells, View};

/// What the engine does with the next commits; afterwards it commits everything.
#[derive(Debug, Clone, Copy)]
enum Fault {
    DiskFull,
    Refused,
    /// The end is unknown; it did take place.
    UnknownDone,
    /// The end is unknown; it did not take place.
    UnknownLost,
}

#[derive(Default)]
struct Seen {
    batches: Vec<Vec<u8>>,
    stored: HashSet<u8>,
    faults: VecDeque<Fault>,
    /// Attempts to reopen that fail.
    cannot_reopen: usize,
    bad: Option<u8>,
    is_closed: bool,
}

/// An engine in memory; the first byte of a body is the name of a blob.
#[derive(Clone)]
struct Fake {
    seen: Arc<Mutex<Seen>>,
    /// A permit for each commit that may go on.
    turns: Arc<Semaphore>,
}

impl Fake {
    fn new(turns: usize) -> Self {
        Self {
            seen: Arc::default(),
            turns: Arc::new(Semaphore::new(turns)),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(write: &Write) -> u8 {
    match write {
        Write::Append { envelope, .. } => envelope.body[0],
        Write::Acknowledge { .. } => b'a',
        Write::Remove { .. } => b'r',
        Write::Tidy { .. } => b't',
        Write::Trial => b'w',
        Write::Mark => b'm',
        _ => b'o',
    }
}

fn outcome(write: &Write) -> Outcome {
    match write {
        Write::Append { envelope, .. } => Outcome::Appended(Appended::Stored {
            expires_at: envelope.expires_at,
        }),
        Write::Acknowledge { .. } | Write::Remove { .. } => Outcome::Removed(Removed {
            blobs: 1,
            receipts: 0,
        }),
        Write::Tidy { .. } => Outcome::Tidied { more: false },
        Write::RecoveryPut { .. } => Outcome::RecoveryPut(RecoveryPut::Stored),
        Write::Mark => Outcome::Marked(crate::store::model::OrderKey::START),
        _ => Outcome::Written,
    }
}

#[async_trait]
impl Engine for Fake {
    async fn commit(&mut self, batch: &[&Write]) -> Result<Vec<Outcome>, CommitError> {
        self.turns.acquire().await.unwrap().forget();
        let mut seen = self.seen();
        let names: Vec<_> = batch.iter().map(|write| name(write)).collect();
        if seen.bad.is_some_and(|bad| names.contains(&bad)) {
            return Err(CommitError::Rejected("a bad write".to_owned()));
        }
        match seen.faults.pop_front() {
            Some(Fault::DiskFull) => Err(CommitError::DiskFull("no space".to_owned())),
            Some(Fault::Refused) => Err(CommitError::Refused("locked".to_owned())),
            Some(Fault::UnknownLost) => Err(CommitError::Unknown("fsync".to_owned())),
            Some(Fault::UnknownDone) => {
                seen.stored.extend(names);
                Err(CommitError::Unknown("fsync".to_owned()))
            }
            None => {
                seen.stored.extend(&names);
                seen.batches.push(names);
                Ok(batch.iter().map(|write| outcome(write)).collect())
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), StoreError> {
        let mut seen = self.seen();
        if seen.cannot_reopen > 0 {
            seen.cannot_reopen -= 1;
            return Err(StoreError::unavailable("still broken"));
        }
        Ok(())
    }

    async fn settle(&mut self, batch: &[&Write]) -> Result<Vec<Option<Outcome>>, StoreError> {
        let seen = self.seen();
        Ok(batch
            .iter()
            .map(|write| seen.stored.contains(&name(write)).then(|| outcome(write)))
            .collect())
    }

    async fn close(&mut self) {
        self.seen().is_closed = true;
    }
}

struct Bench {
    fake: Fake,
    pipeline: Pipeline,
    woken: Arc<Mutex<Vec<MailboxHash>>>,
    metrics: Arc<Metrics>,
}

const MANY: usize = 1 << 20;

fn bench(turns: usize) -> Bench {
    let fake = Fake::new(turns);
    let woken = Arc::<Mutex<Vec<MailboxHash>>>::default();
    let list = Arc::clone(&woken);
    let on_stored: OnStored = Arc::new(move |mailbox| {
        list.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(*mailbox);
    });
    let metrics = Arc::new(Metrics::new());
    Bench {
        pipeline: Pipeline::start(fake.clone(), on_stored, Arc::clone(&metrics))
            .with_place_wait_max(Duration::from_millis(50)),
        fake,
        woken,
        metrics,
    }
}

impl Bench {
    async fn append(&self, name: u8) -> Result<Pending<Appended>, StoreError> {
        self.append_to(1, vec![name]).await
    }

    async fn append_to(&self, to: u8, body: Vec<u8>) -> Result<Pending<Appended>, StoreError> {
        let envelope = Envelope {
            mailbox: MailboxHash::from_bytes([to; 32]),
            id: BlobId::from_bytes([body[0]; 16]),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::from_millis(1),
            sealed: bytes::Bytes::new(),
            body: body.into(),
        };
        self.pipeline
            .append(envelope, [0; 16], Timestamp::default())
            .await
    }

    async fn acknowledge(&self) -> Pending<Removed> {
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let ids = vec![BlobId::from_bytes([1; 16])];
        let by = Opener {
            view: View::Proven,
            tells: Tells::Nobody,
        };
        self.pipeline
            .acknowledge(mailbox, ids, by, Timestamp::default())
            .await
            .unwrap()
    }

    /// Holds the committer in a commit of the blob 0, so that what follows gathers.
    async fn hold(&self) -> Pending<Appended> {
        let first = self.append(0).await.unwrap();
        while self.value("relay_commit_queue_depth") != 0.0 {
            tokio::task::yield_now().await;
        }
        first
    }

    fn release(&self) {
        self.fake.turns.add_permits(MANY);
    }

    fn value(&self, metric: &str) -> f64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| {
            line.strip_prefix(metric)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap()
    }
}

const STORED: Appended = Appended::Stored {
    expires_at: Timestamp::from_millis(1),
};

#[tokio::test(start_paused = true)]
async fn a_lone_write_does_not_wait_for_others() {
    let bench = bench(MANY);
    let begun = Instant::now();
    assert_eq!(bench.append(1).await.unwrap().await.unwrap(), STORED);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(bench.woken.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_gathers_during_a_commit_shares_the_next_one_in_order() {
    let bench = bench(0);
    let first = bench.hold().await;
    let mut pending = Vec::new();
    for name in 1..=100 {
        pending.push(bench.append_to(name % 3, vec![name]).await.unwrap());
    }
    assert_eq!(bench.value("relay_commit_queue_depth"), 100.0);
    bench.release();
    first.await.unwrap();
    for stored in pending {
        assert_eq!(stored.await.unwrap(), STORED);
    }
    let batches = bench.fake.seen().batches.clone();
    assert_eq!(batches, [vec![0], (1..=100).collect()]);
    let woken = bench.woken.lock().unwrap().len();
    assert_eq!(woken, 1 + 3, "once for each mailbox of a batch");
    assert_eq!(bench.value("relay_commit_queue_depth"), 0.0);
    assert_eq!(bench.value("relay_commit_queue_bytes"), 0.0);
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_the_rest_keeps_its_order() {
    let bench = bench(0);
    let _first = bench.hold().await;
    let mut last = None;
    for name in 1..=9 {
        let body = vec![name; 1 << 20];
        last = Some(bench.append_to(1, body).await.unwrap());
    }
    bench.release();
    last.unwrap().await.unwrap();
    let batches = bench.fake.seen().batches.clone();
    let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 3, 3, 3]);
    assert_eq!(batches.concat(), (0..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_bad_write_does_not_fail_its_neighbours() {
    let bench = bench(0);
    let _first = bench.hold().await;
    bench.fake.seen().bad = Some(7);
    let mut pending = Vec::new();
    for name in 1..=20 {
        pending.push((name, bench.append(name).await.unwrap()));
    }
    bench.release();
    for (name, stored) in pending {
        assert_eq!(stored.await.is_ok(), name != 7, "{name}");
    }
    let order = bench.fake.seen().batches.concat();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(order.len(), 20);
}

#[tokio::test]
async fn a_refusal_that_is_nobodys_fault_is_told_to_all() {
    let bench = bench(MANY);
    bench.fake.seen().faults.push_back(Fault::Refused);
    let refused = bench.append(1).await.unwrap().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    assert!(bench.append(2).await.unwrap().await.is_ok());
}

#[tokio::test]
async fn a_full_disk_refuses_blobs_and_lets_acknowledgements_through() {
    let bench = bench(0);
    let first = bench.hold().await;
    let append = bench.append(1).await.unwrap();
    let acknowledge = bench.acknowledge().await;
    bench.fake.turns.add_permits(1);
    first.await.unwrap();
    bench.fake.seen().faults.push_back(Fault::DiskFull);
    bench.release();
    assert_eq!(append.await.unwrap(), Appended::RelayFull);
    assert_eq!(acknowledge.await.unwrap().blobs, 1);
    bench.fake.seen().faults.push_back(Fault::DiskFull);
    let refused = bench.acknowledge().await.await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn after_a_commit_with_an_unknown_end_the_senders_hear_the_truth() {
    let bench = bench(MANY);
    bench.fake.seen().faults.push_back(Fault::UnknownDone);
    assert_eq!(bench.append(1).await.unwrap().await.unwrap(), STORED);
    assert_eq!(bench.woken.lock().unwrap().len(), 1);
    bench.fake.seen().faults.push_back(Fault::UnknownLost);
    let lost = bench.append(2).await.unwrap().await;
    assert!(matches!(lost, Err(StoreError::Unavailable(_))));
    assert!(bench.append(3).await.unwrap().await.is_ok());
    assert_eq!(bench.value("relay_store_reopened_total"), 2.0);
    assert_eq!(bench.value("relay_store_up"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn while_it_cannot_be_reopened_writes_are_refused_at_once_and_then_it_recovers() {
    let bench = bench(MANY);
    bench.fake.seen().faults.push_back(Fault::UnknownDone);
    bench.fake.seen().cannot_reopen = 20;
    let begun = Instant::now();
    let unsettled = bench.append(1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let refused = bench.append(2).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    assert_eq!(bench.value("relay_store_up"), 0.0);
    assert!(bench.pipeline.check().is_err());
    let told = unsettled.await;
    assert!(matches!(told, Err(StoreError::Unavailable(_))));
    assert_eq!(begun.elapsed().as_secs(), 10, "its sender waits 10 s");
    while bench.pipeline.check().is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(bench.append(3).await.unwrap().await.is_ok());
    let woken = bench.woken.lock().unwrap().len();
    assert_eq!(woken, 2, "what was stored after all is delivered");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_senders_wait_and_then_refuses_them() {
    let bench = bench(0);
    let _first = bench.hold().await;
    let mut pending = Vec::new();
    for _ in 0..QUEUE_ITEMS_MAX {
        pending.push(bench.append(1).await.unwrap());
    }
    assert!(matches!(bench.append(2).await, Err(StoreError::Busy)));
    assert_eq!(bench.value("relay_commit_queue_full_total"), 1.0);
    let later = bench.append(3);
    bench.release();
    assert!(later.await.unwrap().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_bytes_until_they_are_confirmed() {
    let bench = bench(0);
    let mut pending = Vec::new();
    for _ in 0..63 {
        pending.push(bench.append_to(1, vec![1; 1 << 20]).await.unwrap());
    }
    let refused = bench.append_to(1, vec![2; 1 << 20]).await;
    assert!(matches!(refused, Err(StoreError::Busy)));
    bench.release();
    for stored in pending {
        stored.await.unwrap();
    }
    assert!(bench.append_to(1, vec![3; 65 << 20]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_sweep_joins_when_nothing_waits_or_after_a_second() {
    let bench = bench(0);
    let _first = bench.hold().await;
    let remove = |lane| {
        let cause = crate::store::commit::Cause::Expired;
        bench
            .pipeline
            .remove(lane, Vec::new(), cause, Timestamp::default())
    };
    let sweep = remove(Lane::Low).await.unwrap();
    for _ in 0..1_200 {
        bench.append(1).await.unwrap();
    }
    bench.fake.turns.add_permits(2);
    while bench.fake.seen().batches.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!bench.fake.seen().batches[1].contains(&b'r'));
    // The next batch is gathered already; the one after that is not.
    tokio::time::advance(Duration::from_secs(1)).await;
    bench.release();
    sweep.await.unwrap();
    let batches = bench.fake.seen().batches.clone();
    let place = batches.iter().position(|batch| batch.contains(&b'r'));
    assert_eq!(place, Some(3));
}

#[tokio::test(start_paused = true)]
async fn closing_finishes_what_is_queued_and_leaves_no_task() {
    let bench = bench(0);
    let first = bench.hold().await;
    let second = bench.append(1).await.unwrap();
    let close = bench.pipeline.close();
    bench.release();
    close.await;
    assert_eq!(first.await.unwrap(), STORED);
    assert_eq!(second.await.unwrap(), STORED);
    assert!(bench.fake.seen().is_closed);
    assert!(matches!(bench.append(2).await, Err(StoreError::Closed)));
    assert_eq!(Arc::strong_count(&bench.fake.seen), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_store_that_cannot_be_reopened() {
    let bench = bench(MANY);
    bench.fake.seen().faults.push_back(Fault::UnknownLost);
    bench.fake.seen().cannot_reopen = usize::MAX;
    let lost = bench.append(1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    bench.pipeline.close().await;
    assert!(lost.await.is_err());
    assert!(bench.fake.seen().is_closed);
}
