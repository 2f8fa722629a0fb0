//! What waits for the committer, and how it is gathered to batches.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::Gate;
use super::batch::Reply;
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::model::OrderKey;
use crate::store::write::{ITEM_BYTES, Write};

/// Rows of a batch. More make each commit longer and each row hardly cheaper.
pub(super) const BATCH_ROWS_MAX: usize = 500;

/// Bytes of a batch: 500 rows of 8 KiB.
pub(super) const BATCH_BYTES_MAX: usize = 4 << 20;

/// A low-priority write that has waited this long joins the next batch, however full the queue is.
const LOW_WAIT_MAX: Duration = Duration::from_secs(1);

/// Where it is told which rows were mended.
type MendReply = oneshot::Sender<Result<Vec<(MailboxHash, OrderKey)>, StoreError>>;

/// One thing for the committer to do.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are writes")]
#[derive(Debug)]
pub(super) enum Job {
    /// Commit this and tell what became of it.
    Write(Write, Reply),
    /// A slice of housekeeping; tell whether there is more.
    Upkeep(Timestamp, oneshot::Sender<Result<bool, StoreError>>),
    /// Mend those of these rows that stand wrongly; tell which.
    Mend(Vec<OrderKey>, MendReply),
    /// Tell the largest order key that was given out before this place in the queue.
    Horizon(oneshot::Sender<Result<OrderKey, StoreError>>),
}

impl Job {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Write(write, _) => write.bytes(),
            Self::Upkeep(..) | Self::Mend(..) | Self::Horizon(_) => ITEM_BYTES,
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Write(write, _) => write.rows(),
            Self::Upkeep(..) | Self::Mend(..) | Self::Horizon(_) => 1,
        }
    }

    /// It is not done.
    pub(super) fn refuse(self, error: StoreError) {
        // That nobody waits any more is fine: a session may end at any time.
        match self {
            Self::Write(_, reply) => reply.tell(Err(error)),
            Self::Upkeep(_, reply) => drop(reply.send(Err(error))),
            Self::Mend(_, reply) => drop(reply.send(Err(error))),
            Self::Horizon(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// A job in the queue. Its bytes are given back when it is dropped, after its answer.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) job: Job,
    pub(super) bytes: OwnedSemaphorePermit,
    pub(super) queued_at: Instant,
}

impl Item {
    fn ends_batch(&self) -> bool {
        matches!(self.job, Job::Horizon(_))
    }
}

/// What waits to be committed.
pub(super) struct Queues {
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
    pub(super) fn new(
        (normal, low): (mpsc::Receiver<Item>, mpsc::Receiver<Item>),
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            normal,
            low,
            first: None,
            first_low: None,
            gate,
            metrics,
        }
    }

    /// Waits for a job and takes all that is there with it, within the bounds of a batch. `None`
    /// when the pipeline is closed and everything is taken.
    pub(super) async fn next_batch(&mut self) -> Option<Vec<Item>> {
        let first = self.next().await?;
        let (mut rows, mut bytes) = (first.job.rows(), first.job.bytes());
        let mut batch = vec![first];
        let mut fits = |item: &Item| {
            rows += item.job.rows();
            bytes += item.job.bytes();
            rows <= BATCH_ROWS_MAX && bytes <= BATCH_BYTES_MAX
        };
        // What comes after a question for the horizon must not be below it.
        while !batch.last().is_some_and(Item::ends_batch)
            && let Ok(item) = self.normal.try_recv()
        {
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
    pub(super) async fn refuse_until(&mut self, until: Instant) {
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
        item.job
            .refuse(self.gate.why_down().unwrap_or(StoreError::Closed));
    }

    fn count_out(&self, item: &Item) {
        let bytes = u32::try_from(item.bytes.num_permits()).unwrap_or(u32::MAX);
        self.metrics.commit_queue_depth.decrement(1.0);
        self.metrics.commit_queue_bytes.decrement(f64::from(bytes));
    }
}
