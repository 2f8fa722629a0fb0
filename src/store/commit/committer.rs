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

use super::{CommitError, Engine, Gate, Item, Outcome, Reply, Write, being_reopened};
use crate::metrics::Metrics;
use crate::store::model::{Appended, Removed};
use crate::store::{OnStored, StoreError};

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
pub(in crate::store) struct Committer<E> {
    engine: E,
    queues: Queues,
    gate: Arc<Gate>,
    on_stored: OnStored,
    metrics: Arc<Metrics>,
    /// When a failed write was logged last: a full disk fails every batch, and once is enough.
    warned_at: Option<Instant>,
}

/// Says that nothing is written any more, however the committer has come to its end.
struct Ended {
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.gate.set_down(true);
        self.metrics.store_up.set(0.0);
    }
}

impl<E: Engine> Committer<E> {
    pub(in crate::store) fn new(
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
    pub(in crate::store) async fn run(mut self) {
        let _ended = Ended {
            gate: Arc::clone(&self.gate),
            metrics: Arc::clone(&self.metrics),
        };
        while let Some(items) = self.queues.next_batch().await {
            self.commit(Batch::new(items)).await;
        }
        self.engine.close().await;
    }

    async fn commit(&mut self, mut batch: Batch) {
        // Parts that are still to be committed, the next one last.
        let mut parts = vec![(0..batch.writes.len()).collect::<Vec<_>>()];
        while let Some(mut part) = parts.pop() {
            // Whoever was answered while the store was reopened must not be proven wrong now.
            part.retain(|index| batch.is_waiting(*index));
            if part.is_empty() {
                continue;
            }
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
                        CommitError::DiskFull(_) => batch.refuse_what_comes(part),
                        _ => part,
                    };
                    parts.extend(halves(part));
                }
                CommitError::DiskFull(cause) => {
                    let rest = batch.refuse_what_comes(part);
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

    /// A removal of many rows that was rejected, or that touches too much: goes on without the rows that cannot be removed, or
    /// one damaged page would keep the sweep from all that comes after it. Any other error is handed
    /// back as it is.
    async fn remove_in_pieces(
        &mut self,
        batch: &Batch,
        part: &[usize],
        error: CommitError,
    ) -> Result<Outcome, CommitError> {
        let (CommitError::Rejected(_) | CommitError::TooWide, [Write::Remove { keys, cause, now }]) =
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
                            removed.receipts += of_piece.receipts;
                        }
                    }
                }
                Err(CommitError::Rejected(_) | CommitError::TooWide) if keys.len() > 1 => {
                    pieces.extend(halves(keys));
                }
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

    /// Whether this write has not been answered.
    fn is_waiting(&self, index: usize) -> bool {
        self.waiting.get(index).is_some_and(Option::is_some)
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

    /// Answers those of `part` that bring something that the relay is full; returns the others.
    fn refuse_what_comes(&mut self, part: Vec<usize>) -> Vec<usize> {
        let mut others = Vec::new();
        for index in part {
            match self.writes.get(index).and_then(Write::without_room) {
                Some(full) => self.tell(index, Ok(full)),
                None => others.push(index),
            }
        }
        others
    }
}

#[cfg(test)]
#[path = "committer_tests.rs"]
mod tests;
