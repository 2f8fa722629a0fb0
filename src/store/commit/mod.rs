//! How writes become durable together.
//!
//! Sessions hand their writes to one queue, bounded in items and bytes. One committer takes all
//! that is queued when the last commit ends and hands it to the engine as one transaction with one
//! fsync. It never waits for a batch to fill: while one commit runs the next gathers by itself, so
//! a lone sender pays one fsync and a thousand share it. This file is the sessions' side; the
//! committer is in `committer`, and what an engine must do is [`Engine`].

mod committer;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::model::{Appended, Envelope, Opener, OrderKey, RecoveryProof, RecoveryPut, Removed};
use super::{OnStored, Pending, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use committer::Committer;

pub(in crate::store) use write::{Cause, Checksum, Outcome, Write};

/// Writes that may wait: eight full batches.
pub(in crate::store) const QUEUE_ITEMS_MAX: usize = 4_096;

/// Bytes of writes that may wait or be in a commit.
pub(in crate::store) const QUEUE_BYTES_MAX: u32 = 64 << 20;

/// Low-priority writes that may wait. Their callers wait for each, so this many callers.
const LOW_QUEUE_ITEMS_MAX: usize = 16;

/// How long a write waits for a place in the queue.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why a batch was not committed. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum CommitError {
    /// Nothing happened, and one of the writes may be to blame: smaller batches may go through.
    #[error("{0}")]
    Rejected(String),
    /// Nothing happened: the batch needs more memory than there is for it.
    #[error("the batch touches too much at once")]
    TooWide,
    /// Nothing happened, and no write is to blame.
    #[error("{0}")]
    Refused(String),
    /// Nothing happened: the disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// Whether it happened is unknown, or the engine's handle is finished: reopen.
    #[error("{0}")]
    Unknown(String),
}

/// What commits batches: a database behind the pipeline.
#[async_trait]
pub(in crate::store) trait Engine: Send + 'static {
    /// Commits the batch in one transaction, in its order, and tells each write's outcome.
    async fn commit(&mut self, batch: &[&Write]) -> Result<Vec<Outcome>, CommitError>;

    /// Opens a fresh handle and verifies it: schema version, secret check value, one trial write.
    async fn reopen(&mut self) -> Result<(), StoreError>;

    /// After reopening: what became of a batch whose commit ended as [`CommitError::Unknown`].
    /// `None` for a write that did not happen.
    async fn settle(&mut self, batch: &[&Write]) -> Result<Vec<Option<Outcome>>, StoreError>;

    /// Closes the handle.
    async fn close(&mut self);
}

/// Where an outcome goes to.
#[derive(Debug)]
pub(in crate::store) enum Reply {
    Appended(oneshot::Sender<Result<Appended, StoreError>>),
    Removed(oneshot::Sender<Result<Removed, StoreError>>),
    RecoveryPut(oneshot::Sender<Result<RecoveryPut, StoreError>>),
    Tidied(oneshot::Sender<Result<bool, StoreError>>),
    Written(oneshot::Sender<Result<(), StoreError>>),
    Marked(oneshot::Sender<Result<OrderKey, StoreError>>),
}

impl Reply {
    /// Tells whoever waits. That nobody waits any more is fine: a session may end at any time.
    pub(in crate::store) fn tell(self, outcome: Result<Outcome, StoreError>) {
        fn send<T>(
            to: oneshot::Sender<Result<T, StoreError>>,
            outcome: Result<Outcome, StoreError>,
            pick: impl FnOnce(Outcome) -> Option<T>,
        ) {
            let mixed_up = || StoreError::unavailable("an outcome of another kind of write");
            let told = outcome.and_then(|outcome| pick(outcome).ok_or_else(mixed_up));
            to.send(told).ok();
        }
        match self {
            Self::Appended(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Appended(appended) => Some(appended),
                _ => None,
            }),
            Self::Removed(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Removed(removed) => Some(removed),
                _ => None,
            }),
            Self::RecoveryPut(to) => send(to, outcome, |outcome| match outcome {
                Outcome::RecoveryPut(put) => Some(put),
                _ => None,
            }),
            Self::Tidied(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Tidied { more } => Some(more),
                _ => None,
            }),
            Self::Written(to) => send(to, outcome, |outcome| {
                (outcome == Outcome::Written).then_some(())
            }),
            Self::Marked(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Marked(key) => Some(key),
                _ => None,
            }),
        }
    }
}

/// A write in the queue. Its bytes are given back when it is dropped, after its answer.
#[derive(Debug)]
pub(in crate::store) struct Item {
    pub(in crate::store) write: Write,
    pub(in crate::store) reply: Reply,
    pub(in crate::store) bytes: OwnedSemaphorePermit,
    pub(in crate::store) queued_at: Instant,
}

/// Which queue a write waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Lane {
    /// In the order of the calls.
    Normal,
    /// When nothing else waits, or after a second.
    Low,
}

/// What both sides of the pipeline see.
#[derive(Debug)]
pub(in crate::store) struct Gate {
    is_down: AtomicBool,
    pub(in crate::store) closing: CancellationToken,
}

impl Gate {
    pub(in crate::store) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.closing.is_cancelled() {
            return Err(StoreError::Closed);
        }
        if self.is_down.load(Ordering::SeqCst) {
            return Err(being_reopened());
        }
        Ok(())
    }
}

/// What writes are answered while there is no handle.
pub(in crate::store) fn being_reopened() -> StoreError {
    StoreError::unavailable("it is being reopened after a failed write")
}

/// The queue before the committer.
#[derive(Debug)]
pub(in crate::store) struct Pipeline {
    normal: mpsc::Sender<Item>,
    low: mpsc::Sender<Item>,
    bytes: Arc<Semaphore>,
    place_wait_max: Duration,
    gate: Arc<Gate>,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

impl Pipeline {
    /// Starts the committer over an engine that is open.
    pub(in crate::store) fn start(
        engine: impl Engine,
        on_stored: OnStored,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (normal, normal_end) = mpsc::channel(QUEUE_ITEMS_MAX);
        let (low, low_end) = mpsc::channel(LOW_QUEUE_ITEMS_MAX);
        let gate = Arc::new(Gate {
            is_down: AtomicBool::new(false),
            closing: CancellationToken::new(),
        });
        metrics.store_up.set(1.0);
        let committer = Committer::new(
            engine,
            normal_end,
            low_end,
            Arc::clone(&gate),
            on_stored,
            Arc::clone(&metrics),
        );
        let tasks = TaskTracker::new();
        tasks.spawn(committer.run());
        tasks.close();
        Self {
            normal,
            low,
            bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)),
            place_wait_max: PLACE_WAIT_MAX,
            gate,
            tasks,
            metrics,
        }
    }

    /// The same with a shorter wait for a place, for tests.
    #[cfg(test)]
    pub(in crate::store) fn with_place_wait_max(mut self, wait: Duration) -> Self {
        self.place_wait_max = wait;
        self
    }

    /// Queues an append; the order of calls is the order of blobs.
    pub(in crate::store) async fn append(
        &self,
        envelope: Envelope,
        checksum: Checksum,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::Append {
            envelope,
            checksum,
            expired_by,
        };
        self.place(Lane::Normal, write, Reply::Appended(reply))
            .await?;
        Ok(pending)
    }

    /// Queues an acknowledgement.
    pub(in crate::store) async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::Acknowledge {
            mailbox,
            ids,
            by,
            now,
        };
        self.place(Lane::Normal, write, Reply::Removed(reply))
            .await?;
        Ok(pending)
    }

    /// Queues the removal of rows.
    pub(in crate::store) async fn remove(
        &self,
        lane: Lane,
        keys: Vec<OrderKey>,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::Remove { keys, cause, now };
        self.place(lane, write, Reply::Removed(reply)).await?;
        Ok(pending)
    }

    /// Keeps a recovery proof; it is durable on return.
    pub(in crate::store) async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::RecoveryPut { proof, expired_by };
        self.place(Lane::Normal, write, Reply::RecoveryPut(reply))
            .await?;
        pending.await
    }

    /// Deletes an owner's recovery proof; tells how many that were.
    pub(in crate::store) async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::RecoveryRemove { key_hash, owner };
        self.place(Lane::Normal, write, Reply::Removed(reply))
            .await?;
        Ok(pending.await?.blobs)
    }

    /// Pins a mailbox; durable on return.
    pub(in crate::store) async fn pin(
        &self,
        mailbox: MailboxHash,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Write::Pin { mailbox, now }).await
    }

    /// Takes the pin off a mailbox; durable on return.
    pub(in crate::store) async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        self.write(Write::Unpin { mailbox }).await
    }

    /// Does a slice of housekeeping; tells whether there is more.
    pub(in crate::store) async fn tidy(&self, expired_by: Timestamp) -> Result<bool, StoreError> {
        let (reply, pending) = Pending::channel();
        let write = Write::Tidy { expired_by };
        self.place(Lane::Low, write, Reply::Tidied(reply)).await?;
        pending.await
    }

    /// Writes something, to see whether storage takes it.
    pub(in crate::store) async fn trial(&self) -> Result<(), StoreError> {
        self.write(Write::Trial).await
    }

    async fn write(&self, write: Write) -> Result<(), StoreError> {
        self.queue(write).await?.await
    }

    /// Queues a write that has nothing to tell but that it is durable.
    pub(in crate::store) async fn queue(&self, write: Write) -> Result<Pending<()>, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(Lane::Normal, write, Reply::Written(reply))
            .await?;
        Ok(pending)
    }

    /// The last order key given out before this call; all up to it is committed or refused.
    pub(in crate::store) async fn mark(&self) -> Result<OrderKey, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(Lane::Normal, Write::Mark, Reply::Marked(reply))
            .await?;
        pending.await
    }

    /// Whether writes are taken now.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        self.gate.check()
    }

    /// Finishes what is queued and closes the engine. Later writes are refused.
    pub(in crate::store) async fn close(&self) {
        self.gate.closing.cancel();
        self.tasks.wait().await;
    }

    async fn place(&self, lane: Lane, write: Write, reply: Reply) -> Result<(), StoreError> {
        self.gate.check()?;
        let queue = match lane {
            Lane::Normal => &self.normal,
            Lane::Low => &self.low,
        };
        let bytes = u32::try_from(write.bytes()).unwrap_or(u32::MAX);
        // One write that is larger than the whole queue may still go, alone.
        let bytes = bytes.min(QUEUE_BYTES_MAX);
        let (place, permit) = match self.try_reserve(queue, bytes) {
            Some(reserved) => reserved,
            None => self.reserve(queue, bytes).await?,
        };
        // What waited while the store went down would wait again.
        self.gate.check()?;
        self.metrics.commit_queue_depth.increment(1.0);
        self.metrics.commit_queue_bytes.increment(f64::from(bytes));
        place.send(Item {
            write,
            reply,
            bytes: permit,
            queued_at: Instant::now(),
        });
        Ok(())
    }

    fn try_reserve<'a>(
        &self,
        queue: &'a mpsc::Sender<Item>,
        bytes: u32,
    ) -> Option<(mpsc::Permit<'a, Item>, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?;
        let place = queue.try_reserve().ok()?;
        Some((place, permit))
    }

    async fn reserve<'a>(
        &self,
        queue: &'a mpsc::Sender<Item>,
        bytes: u32,
    ) -> Result<(mpsc::Permit<'a, Item>, OwnedSemaphorePermit), StoreError> {
        self.metrics.commit_queue_full_total.increment(1);
        let both = async {
            let permit = Arc::clone(&self.bytes)
                .acquire_many_owned(bytes)
                .await
                .map_err(|_| StoreError::Closed)?;
            let place = queue.reserve().await.map_err(|_| StoreError::Closed)?;
            Ok((place, permit))
        };
        tokio::time::timeout(self.place_wait_max, both)
            .await
            .unwrap_or(Err(StoreError::Busy))
    }
}

impl Drop for Pipeline {
    /// A store that is dropped without being closed still finishes its queue and its task.
    fn drop(&mut self) {
        self.gate.closing.cancel();
    }
}
