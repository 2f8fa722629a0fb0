//! The pipeline over an engine that fails as it is told.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::*;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use crate::store::engine::{
    Asked, CommitError, Engine, Header, HeldInAll, Known, Plan, TookPlace, Write,
};
use crate::store::memory::{self, MemoryOptions};
use crate::store::model::{Appended, Class, Envelope, Opener, OrderKey, Removed, Tells, View};
use crate::store::quota::Quota;
use crate::store::write::Cause;

/// What the engine does with the next commits; afterwards it commits everything.
#[derive(Debug, Clone, Copy)]
enum Fault {
    DiskFull,
    Refused,
    Raced,
    /// The end is unknown; it did take place.
    UnknownDone,
    /// The end is unknown; it did not take place.
    UnknownLost,
}

#[derive(Default)]
struct Seen {
    batches: Vec<Vec<u8>>,
    stored: HashSet<u8>,
    next_key: i64,
    unsettled: Option<TookPlace>,
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
        Write::Trial => b'w',
        _ => b'o',
    }
}

#[async_trait]
impl Engine for Fake {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        let seen = self.seen();
        // What the bench acknowledges.
        let acknowledged = asked.names.iter().filter(|(_, id)| *id == ACKNOWLEDGED);
        let rows = acknowledged.map(|(mailbox, id)| {
            let header = Header {
                mailbox: *mailbox,
                id: *id,
                class: Class::SeenByV1,
                bytes: 1,
                checksum: [0; 16],
                expires_at: Timestamp::from_millis(1),
                owner: None,
                topic: None,
                receipt_to: None,
                is_delivered_told: false,
            };
            (OrderKey(0), header)
        });
        Ok(Known {
            rows: rows.collect(),
            next_key: seen.next_key + 1,
            has_room: true,
            ..Known::default()
        })
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        self.turns.acquire().await.unwrap().forget();
        let mut seen = self.seen();
        let names: Vec<_> = batch.iter().map(|write| name(write)).collect();
        if seen.bad.is_some_and(|bad| names.contains(&bad)) {
            return Err(CommitError::Rejected("a bad write".to_owned()));
        }
        match seen.faults.pop_front() {
            Some(Fault::DiskFull) => Err(CommitError::DiskFull("no space".to_owned())),
            Some(Fault::Refused) => Err(CommitError::Refused("locked".to_owned())),
            Some(Fault::Raced) => Err(CommitError::Raced),
            Some(Fault::UnknownLost) => {
                seen.unsettled = Some(TookPlace::No);
                Err(CommitError::Unknown("fsync".to_owned()))
            }
            Some(Fault::UnknownDone) => {
                seen.stored.extend(names);
                seen.unsettled = Some(TookPlace::Yes);
                Err(CommitError::Unknown("fsync".to_owned()))
            }
            None => {
                seen.stored.extend(&names);
                seen.batches.push(names);
                seen.next_key = plan.next_key;
                Ok(())
            }
        }
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        let mut seen = self.seen();
        if seen.cannot_reopen > 0 {
            seen.cannot_reopen -= 1;
            return Err(StoreError::unavailable("still broken"));
        }
        Ok(seen.unsettled.take().unwrap_or(TookPlace::No))
    }

    async fn upkeep(&mut self, _expired_by: Timestamp) -> Result<bool, CommitError> {
        Ok(false)
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

/// A blob that the engine always has.
const ACKNOWLEDGED: BlobId = BlobId::from_bytes([255; 16]);

fn bench(turns: usize) -> Bench {
    let fake = Fake::new(turns);
    let woken = Arc::<Mutex<Vec<MailboxHash>>>::default();
    let list = Arc::clone(&woken);
    let news: OnNews = Arc::new(move |news| {
        let mailboxes = news.iter().map(|row| row.envelope.mailbox);
        list.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(mailboxes);
    });
    let metrics = Arc::new(Metrics::new());
    // Nothing here reads: an empty database does.
    let elsewhere = memory::open(MemoryOptions {
        dedup: Duration::ZERO,
        dedup_max: 0,
        metrics: Arc::clone(&metrics),
    });
    let ground = Ground {
        reads: elsewhere.reads,
        rules: Rules {
            secret: Secret::from_bytes([1; 32]),
            quota: Quota::UNBOUNDED,
            dedup: Duration::ZERO,
            receipt_ttl: Duration::from_secs(60),
            clock: crate::clock::Clock::manual(Timestamp::default()).0,
        },
        news,
        tally: Arc::new(Tally::new(HeldInAll::default(), Arc::clone(&metrics))),
        health: Arc::new(Health::new(Arc::clone(&metrics))),
        metrics: Arc::clone(&metrics),
    };
    Bench {
        pipeline: Pipeline::start(Box::new(fake.clone()), ground)
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
            // Another one for each, or the second would be a repeat of the first.
            id: BlobId::from_bytes(rand::random()),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::from_millis(1),
            sealed: bytes::Bytes::new(),
            body: body.into(),
        };
        let checksum = [0; 16];
        let write = Write::Append {
            envelope,
            checksum,
            expired_by: Timestamp::default(),
        };
        self.pipeline.queue(Lane::Normal, write).await
    }

    async fn acknowledge(&self) -> Pending<Removed> {
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let ids = vec![ACKNOWLEDGED];
        let by = Opener {
            view: View::Proven,
            tells: Tells::Nobody,
        };
        let write = Write::Acknowledge {
            mailbox,
            ids,
            by,
            now: Timestamp::default(),
        };
        self.pipeline.queue(Lane::Normal, write).await.unwrap()
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
    assert_eq!(woken, 1 + 100, "each blob is news");
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

/// Another instance came first: it is folded again, and a batch that never comes first is split.
#[tokio::test]
async fn a_batch_that_is_raced_is_folded_again_and_then_split() {
    let bench = bench(0);
    let first = bench.hold().await;
    let mut pending = Vec::new();
    for name in 1..=2 {
        pending.push(bench.append(name).await.unwrap());
    }
    bench.fake.turns.add_permits(1);
    first.await.unwrap();
    bench.fake.seen().faults.extend([Fault::Raced; 4]);
    bench.release();
    for stored in pending {
        assert_eq!(stored.await.unwrap(), STORED);
    }
    assert_eq!(bench.fake.seen().batches, [vec![0], vec![1], vec![2]]);
    let raced = bench.append(3);
    bench.fake.seen().faults.extend([Fault::Raced; 3]);
    let refused = raced.await.unwrap().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
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
    let remove = Write::Remove {
        keys: Vec::new(),
        cause: Cause::Expired,
        now: Timestamp::default(),
    };
    let sweep: Pending<Removed> = bench.pipeline.queue(Lane::Low, remove).await.unwrap();
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
