//! The one task that commits: takes what is queued, hands it to the engine, confirms each write.
//!
//! Four things can go wrong, and each ends in a true answer. One bad write does not fail its
//! neighbours: the batch is split until the culprit stands alone. A full disk refuses appends and
//! lets deletions try again. A refusal that is nobody's fault is told to all. And after a commit
//! whose end is unknown the handle is finished: the engine is reopened and asked what happened,
//! while the senders of that batch wait a bounded time and everybody else is refused at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::commit::{CommitError, Engine, Gate, Item, Outcome, Reply, Write, being_reopened};
use super::model::{Appended, Removed};
use super::{OnStored, StoreError};
use crate::metrics::Metrics;

/// Rows of a batch. More make each commit longer and each row hardly cheaper.
const BATCH_ROWS_MAX: usize = 500;

/// Bytes of a batch: 500 rows of 8 KiB.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A low-priority write that has waited this long joins the next batch, however full the queue is.
const LOW_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the senders of a batch with an unknown end wait for the truth.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long one attempt to reopen may take.
const REOPEN_TIME_MAX: Duration = Duration::from_secs(10);

/// Pauses between two attempts to reopen: from the first, doubled, to the second.
const REOPEN_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Between two log lines about writes that fail one after the other.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// The committer's side of the pipeline.
pub(super) struct Committer<E> {
    engine: E,
    queues: Queues,
    gate: Arc<Gate>,
    on_stored: OnStored,
    metrics: Arc<Metrics>,
    /// When a failed write was logged last: a full disk fails every batch, and once is enough.
    warned_at: Option<Instant>,
}

impl<E: Engine> Committer<E> {
    pub(super) fn new(
        engine: E,
        normal: mpsc::Receiver<Item>,
        low: mpsc::Receiver<Item>,
        gate: Arc<Gate>,
        on_stored: OnStored,
        metrics: Arc<Metrics>,
    ) -> Self {
        let queues = Queues {
            normal,
            low,
            first: None,
            first_low: None,
            gate: Arc::clone(&gate),
            metrics: Arc::clone(&metrics),
        };
        Self {
            engine,
            queues,
            gate,
            on_stored,
            metrics,
            warned_at: None,
        }
    }

    /// Commits until the pipeline is closed and its queue is empty, then closes the engine.
    pub(super) async fn run(mut self) {
        while let Some(items) = self.queues.next_batch().await {
            self.commit(Batch::new(items)).await;
        }
        self.engine.close().await;
        self.metrics.store_up.set(0.0);
    }

    async fn commit(&mut self, mut batch: Batch) {
        // Parts that are still to be committed, the next one last.
        let mut parts = vec![(0..batch.writes.len()).collect::<Vec<_>>()];
        while let Some(part) = parts.pop() {
            let Err(error) = self.commit_part(&mut batch, &part).await else {
                continue;
            };
            self.metrics.store_errors_total.increment(1);
            self.warn(&error);
            let error = match self.remove_in_pieces(&batch, &part, error).await {
                Ok(outcome) => {
                    batch.confirm(&part, [Some(outcome)], self.on_stored.as_ref());
                    continue;
                }
                Err(error) => error,
            };
            match error {
                CommitError::Rejected(_) | CommitError::TooWide | CommitError::DiskFull(_)
                    if part.len() > 1 =>
                {
                    let part = match error {
                        CommitError::DiskFull(_) => batch.refuse_appends(part),
                        _ => part,
                    };
                    parts.extend(halves(part));
                }
                CommitError::DiskFull(cause) => {
                    let rest = batch.refuse_appends(part);
                    batch.fail(&rest, &StoreError::unavailable(cause));
                }
                CommitError::Rejected(_) | CommitError::TooWide | CommitError::Refused(_) => {
                    batch.fail(&part, &StoreError::unavailable(error));
                }
                CommitError::Unknown(cause) => {
                    if self.recover(&mut batch, &part, &cause).await.is_err() {
                        batch.fail_all(&StoreError::Closed);
                        return;
                    }
                }
            }
        }
    }

    /// A removal of many rows that was rejected: goes on without the rows that cannot be removed, or
    /// one damaged page would keep the sweep from all that comes after it. Any other error is handed
    /// back as it is.
    async fn remove_in_pieces(
        &mut self,
        batch: &Batch,
        part: &[usize],
        error: CommitError,
    ) -> Result<Outcome, CommitError> {
        let (CommitError::Rejected(_), [Write::Remove { keys, cause, now }]) =
            (&error, &batch.select(part)[..])
        else {
            return Err(error);
        };
        if keys.len() < 2 {
            return Err(error);
        }
        let mut removed = Removed::default();
        let mut pieces = Vec::from(halves(keys.clone()));
        while let Some(keys) = pieces.pop() {
            let piece = Write::Remove {
                keys: keys.clone(),
                cause: *cause,
                now: *now,
            };
            match self.engine.commit(&[&piece]).await {
                Ok(outcomes) => {
                    for outcome in outcomes {
                        if let Outcome::Removed(of_piece) = outcome {
                            removed.blobs += of_piece.blobs;
                        }
                    }
                }
                Err(CommitError::Rejected(_)) if keys.len() > 1 => pieces.extend(halves(keys)),
                Err(CommitError::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Removed(removed))
    }

    fn warn(&mut self, error: &CommitError) {
        if self
            .warned_at
            .is_some_and(|at| at.elapsed() < WARNING_PAUSE)
        {
            return;
        }
        self.warned_at = Some(Instant::now());
        match error {
            CommitError::DiskFull(cause) => warn!(
                "store: {cause}. New blobs are refused until space is free; delivery goes on."
            ),
            CommitError::Rejected(cause) | CommitError::Refused(cause) => {
                warn!("store: a write failed: {cause}");
            }
            // Solved by smaller batches; told where it is handled.
            CommitError::TooWide | CommitError::Unknown(_) => self.warned_at = None,
        }
    }

    async fn commit_part(&mut self, batch: &mut Batch, part: &[usize]) -> Result<(), CommitError> {
        if part.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let outcomes = self.engine.commit(&batch.select(part)).await?;
        self.metrics
            .commit_duration_seconds
            .record(begun.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "at most a few thousand")]
        self.metrics.commit_batch_size.record(part.len() as f64);
        batch.confirm(
            part,
            outcomes.into_iter().map(Some),
            self.on_stored.as_ref(),
        );
        Ok(())
    }

    /// Reopens the engine after a commit with an unknown end and tells its senders the truth.
    /// Returns an error when the pipeline was closed before that succeeded.
    async fn recover(
        &mut self,
        batch: &mut Batch,
        part: &[usize],
        cause: &str,
    ) -> Result<(), StoreError> {
        error!("store: a commit failed: {cause}. New blobs are refused until storage is reopened.");
        self.gate.set_down(true);
        self.metrics.store_up.set(0.0);
        let deadline = Instant::now() + SETTLE_WAIT_MAX;
        let mut pause = REOPEN_PAUSES.0;
        loop {
            match self.try_recover(batch, part).await {
                Ok(()) => break,
                Err(error) => warn!("store: cannot be reopened yet: {error}"),
            }
            if self.gate.closing.is_cancelled() {
                return Err(StoreError::Closed);
            }
            self.wait(pause, deadline, batch).await;
            pause = (pause * 2).min(REOPEN_PAUSES.1);
        }
        self.gate.set_down(false);
        self.metrics.store_up.set(1.0);
        self.metrics.store_reopened_total.increment(1);
        info!("store: reopened; new blobs are taken again.");
        Ok(())
    }

    async fn try_recover(&mut self, batch: &mut Batch, part: &[usize]) -> Result<(), StoreError> {
        let writes = batch.select(part);
        let both = async {
            self.engine.reopen().await?;
            self.engine.settle(&writes).await
        };
        let outcomes = tokio::time::timeout(REOPEN_TIME_MAX, both)
            .await
            .map_err(|_| StoreError::unavailable("reopening takes too long"))??;
        // Also when its senders were answered long ago: what was stored after all is delivered.
        batch.confirm(part, outcomes, self.on_stored.as_ref());
        Ok(())
    }

    /// Waits before the next attempt, refuses what comes in, and lets go of the senders of the
    /// failed batch when their time is over.
    async fn wait(&mut self, pause: Duration, deadline: Instant, batch: &mut Batch) {
        let jitter = pause.mul_f64(0.2 * f64::from(rand::random::<u8>()) / 255.0);
        let until = Instant::now() + pause + jitter;
        if until < deadline {
            self.queues.refuse_until(until).await;
            return;
        }
        self.queues.refuse_until(deadline).await;
        batch.fail_all(&being_reopened());
        self.queues.refuse_until(until).await;
    }
}

/// Cut in the middle, the first half last.
fn halves<T>(mut part: Vec<T>) -> [Vec<T>; 2] {
    let second = part.split_off(part.len() / 2);
    [second, part]
}

/// What waits to be committed.
struct Queues {
    normal: mpsc::Receiver<Item>,
    low: mpsc::Receiver<Item>,
    /// Taken from the queue, but too large for the batch that was gathered.
    first: Option<Item>,
    /// The low-priority write whose turn it is.
    first_low: Option<Item>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

impl Queues {
    /// Waits for a write and takes all that is there with it, within the bounds of a batch.
    /// `None` when the pipeline is closed and everything is taken.
    async fn next_batch(&mut self) -> Option<Vec<Item>> {
        let first = self.next().await?;
        let (mut rows, mut bytes) = (first.write.rows(), first.write.bytes());
        let mut batch = vec![first];
        let mut fits = |item: &Item| {
            rows += item.write.rows();
            bytes += item.write.bytes();
            rows <= BATCH_ROWS_MAX && bytes <= BATCH_BYTES_MAX
        };
        while let Ok(item) = self.normal.try_recv() {
            if !fits(&item) {
                self.first = Some(item);
                break;
            }
            batch.push(item);
        }
        if self.first_low.is_none() {
            self.first_low = self.low.try_recv().ok();
        }
        // It joins a batch that took all there was, or any batch once it has waited long enough.
        let is_drained = self.first.is_none();
        if let Some(low) = self
            .first_low
            .take_if(|low| (is_drained && fits(low)) || low.queued_at.elapsed() >= LOW_WAIT_MAX)
        {
            batch.push(low);
        }
        for item in &batch {
            self.count_out(item);
        }
        Some(batch)
    }

    async fn next(&mut self) -> Option<Item> {
        if let Some(item) = self.first.take() {
            return Some(item);
        }
        if let Ok(item) = self.normal.try_recv() {
            return Some(item);
        }
        if let Some(item) = self.first_low.take() {
            return Some(item);
        }
        loop {
            tokio::select! {
                biased;
                Some(item) = self.normal.recv() => return Some(item),
                Some(item) = self.low.recv() => return Some(item),
                () = self.gate.closing.cancelled(), if !self.normal.is_closed() => {
                    self.normal.close();
                    self.low.close();
                }
                else => return None,
            }
        }
    }

    /// Refuses whatever comes in until `until`, or until the pipeline is closed.
    async fn refuse_until(&mut self, until: Instant) {
        for item in [self.first.take(), self.first_low.take()]
            .into_iter()
            .flatten()
        {
            self.refuse(item);
        }
        loop {
            tokio::select! {
                biased;
                () = self.gate.closing.cancelled() => return,
                Some(item) = self.normal.recv() => self.refuse(item),
                Some(item) = self.low.recv() => self.refuse(item),
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn refuse(&self, item: Item) {
        self.count_out(&item);
        item.reply.tell(Err(being_reopened()));
    }

    fn count_out(&self, item: &Item) {
        let bytes = u32::try_from(item.bytes.num_permits()).unwrap_or(u32::MAX);
        self.metrics.commit_queue_depth.decrement(1.0);
        self.metrics.commit_queue_bytes.decrement(f64::from(bytes));
    }
}

/// The writes of one batch and those who wait for them.
struct Batch {
    writes: Vec<Write>,
    /// `None` once answered; the bytes in the queue are given back with the answer.
    waiting: Vec<Option<(Reply, OwnedSemaphorePermit)>>,
}

impl Batch {
    fn new(items: Vec<Item>) -> Self {
        let (writes, waiting) = items
            .into_iter()
            .map(|item| (item.write, Some((item.reply, item.bytes))))
            .unzip();
        Self { writes, waiting }
    }

    fn select(&self, part: &[usize]) -> Vec<&Write> {
        part.iter()
            .filter_map(|index| self.writes.get(*index))
            .collect()
    }

    fn tell(&mut self, index: usize, outcome: Result<Outcome, StoreError>) {
        if let Some((reply, _bytes)) = self.waiting.get_mut(index).and_then(Option::take) {
            reply.tell(outcome);
        }
    }

    /// Confirms each write of `part`, then wakes each mailbox that got something.
    fn confirm(
        &mut self,
        part: &[usize],
        outcomes: impl IntoIterator<Item = Option<Outcome>>,
        on_stored: &(dyn Fn(&crate::ids::MailboxHash) + Send + Sync),
    ) {
        let mut woken = Vec::new();
        for (index, outcome) in part.iter().copied().zip(outcomes) {
            if let (
                Some(Outcome::Appended(Appended::Stored { .. })),
                Some(Write::Append { envelope, .. }),
            ) = (outcome, self.writes.get(index))
            {
                woken.push(envelope.mailbox);
            }
            let told = outcome.ok_or_else(|| StoreError::unavailable("the write was lost"));
            self.tell(index, told);
        }
        woken.sort_unstable();
        woken.dedup();
        for mailbox in &woken {
            on_stored(mailbox);
        }
    }

    fn fail(&mut self, part: &[usize], error: &StoreError) {
        for index in part {
            self.tell(*index, Err(error.clone()));
        }
    }

    fn fail_all(&mut self, error: &StoreError) {
        for index in 0..self.waiting.len() {
            self.tell(index, Err(error.clone()));
        }
    }

    /// Answers the appends of `part` that the relay is full; returns the others.
    fn refuse_appends(&mut self, part: Vec<usize>) -> Vec<usize> {
        let (appends, others): (Vec<_>, Vec<_>) = part
            .into_iter()
            .partition(|index| matches!(self.writes.get(*index), Some(Write::Append { .. })));
        for index in appends {
            self.tell(index, Ok(Outcome::Appended(Appended::RelayFull)));
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};
    use std::sync::{Mutex, PoisonError};

    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::super::commit::{Engine, Lane, Pipeline, QUEUE_ITEMS_MAX};
    use super::super::model::{Class, Envelope};
    use super::super::{Pending, StoreError};
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{BlobId, MailboxHash};

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
        }
    }

    fn outcome(write: &Write) -> Outcome {
        match write {
            Write::Append { envelope, .. } => Outcome::Appended(Appended::Stored {
                expires_at: envelope.expires_at,
            }),
            Write::Acknowledge { .. } | Write::Remove { .. } => {
                Outcome::Removed(Removed { blobs: 1 })
            }
            Write::Tidy { .. } => Outcome::Tidied { more: false },
            Write::Trial => Outcome::Written,
            Write::Mark => Outcome::Marked(crate::store::model::OrderKey::START),
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
                stored_at: Timestamp::default(),
                expires_at: Timestamp::from_millis(1),
                sealed: bytes::Bytes::new(),
                body: body.into(),
            };
            self.pipeline.append(envelope, [0; 16]).await
        }

        async fn acknowledge(&self) -> Pending<Removed> {
            let mailbox = MailboxHash::from_bytes([1; 32]);
            let ids = vec![BlobId::from_bytes([1; 16])];
            self.pipeline
                .acknowledge(mailbox, ids, Timestamp::default())
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
            let cause = super::super::commit::Cause::Expired;
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
}
