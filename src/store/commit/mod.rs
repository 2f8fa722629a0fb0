//! How writes become durable together.
//!
//! Sessions hand their writes to one queue, bounded in items and bytes. One committer takes all
//! that is queued when the last commit ends and hands it to the engine as one transaction with one
//! fsync. It never waits for a batch to fill: while one commit runs the next gathers by itself, so
//! a lone sender pays one fsync and a thousand share it. This file is the sessions' side, `committer`
//! the task, `queues` what it takes its batches from, `batch` those who wait.

mod batch;
mod committer;
mod queues;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::engine::{Engine, Reads};
use super::health::Health;
use super::model::OrderKey;
use super::plan::Rules;
use super::tally::Tally;
use super::write::Write;
use super::{OnNews, Pending, StoreError};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::metrics::Metrics;
pub(super) use batch::Answer;
use committer::Committer;
use queues::{Item, Job, Queues};

/// Writes that may wait: eight full batches.
const QUEUE_ITEMS_MAX: usize = 4_096;

/// Bytes of writes that may wait or be in a commit.
pub(super) const QUEUE_BYTES_MAX: u32 = 64 << 20;

/// Low-priority writes that may wait. Their callers wait for each, so this many callers.
const LOW_QUEUE_ITEMS_MAX: usize = 16;

/// How long a write waits for a place in the queue.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a thread is kept that has nothing to do.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// Which queue a write waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// In the order of the calls.
    Normal,
    /// When nothing else waits, or after a second.
    Low,
}

/// What both sides of the pipeline see.
#[derive(Debug)]
struct Gate {
    /// Why nothing is taken, when nothing is. Nothing awaits while it is locked.
    down: Mutex<Option<Arc<str>>>,
    closing: CancellationToken,
}

impl Gate {
    fn set_down(&self, why: Option<&str>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = why.map(Arc::from);
    }

    /// What writes are answered while there is no handle.
    fn why_down(&self) -> Option<StoreError> {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let why = down.as_ref()?;
        Some(StoreError::unavailable(format!("a write failed: {why}")))
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.closing.is_cancelled() {
            return Err(StoreError::Closed);
        }
        self.why_down().map_or(Ok(()), Err)
    }
}

/// What the committer works with beside its engine.
pub(super) struct Ground {
    pub(super) rules: Rules,
    pub(super) reads: Arc<dyn Reads>,
    pub(super) news: OnNews,
    pub(super) tally: Arc<Tally>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
}

/// The queue before the committer.
#[derive(Debug)]
pub(super) struct Pipeline {
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
    pub(super) fn start(engine: Box<dyn Engine>, ground: Ground) -> Self {
        let (normal, normal_end) = mpsc::channel(QUEUE_ITEMS_MAX);
        let (low, low_end) = mpsc::channel(LOW_QUEUE_ITEMS_MAX);
        let gate = Arc::new(Gate {
            down: Mutex::new(None),
            closing: CancellationToken::new(),
        });
        let metrics = Arc::clone(&ground.metrics);
        let health = Arc::clone(&ground.health);
        health.set_down(false);
        let queues = Queues::new(
            (normal_end, low_end),
            Arc::clone(&gate),
            Arc::clone(&metrics),
        );
        let blocks = engine.blocks();
        let committer = Committer::new(engine, queues, Arc::clone(&gate), ground);
        let tasks = TaskTracker::new();
        if !blocks {
            tasks.spawn(committer.run());
        } else if let Err(error) = run_apart(committer, &tasks) {
            error!("store: cannot start the thread that writes: {error}; nothing is stored");
            gate.set_down(Some("there is no thread that writes"));
            health.set_down(true);
        }
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
    fn with_place_wait_max(mut self, wait: Duration) -> Self {
        self.place_wait_max = wait;
        self
    }

    /// Queues a write; the order of calls is the order of writes.
    pub(super) async fn queue<T: Answer>(
        &self,
        lane: Lane,
        write: Write,
    ) -> Result<Pending<T>, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(lane, Job::Write(write, T::reply(reply))).await?;
        Ok(pending)
    }

    /// Queues a write that is durable on return.
    pub(super) async fn write<T: Answer>(&self, write: Write) -> Result<T, StoreError> {
        self.queue(Lane::Normal, write).await?.await
    }

    /// Does a slice of housekeeping at low priority; tells whether there is more.
    pub(super) async fn upkeep(&self, expired_by: Timestamp) -> Result<bool, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(Lane::Low, Job::Upkeep(expired_by, reply))
            .await?;
        pending.await
    }

    /// Mends those of these rows that stand wrongly, at low priority; tells which.
    pub(super) async fn mend(
        &self,
        misplaced: Vec<OrderKey>,
    ) -> Result<Vec<(MailboxHash, OrderKey)>, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(Lane::Low, Job::Mend(misplaced, reply)).await?;
        pending.await
    }

    /// The largest order key that was given out before this call; all up to it is committed or
    /// refused.
    pub(super) async fn horizon(&self) -> Result<OrderKey, StoreError> {
        let (reply, pending) = Pending::channel();
        self.place(Lane::Normal, Job::Horizon(reply)).await?;
        pending.await
    }

    /// Whether writes are taken now.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.gate.check()
    }

    /// Whether the store is closed, or is being closed.
    pub(super) fn is_closed(&self) -> bool {
        self.gate.closing.is_cancelled()
    }

    /// Finishes what is queued and closes the engine. Later writes are refused.
    pub(super) async fn close(&self) {
        self.gate.closing.cancel();
        self.tasks.wait().await;
    }

    async fn place(&self, lane: Lane, job: Job) -> Result<(), StoreError> {
        self.gate.check()?;
        let queue = match lane {
            Lane::Normal => &self.normal,
            Lane::Low => &self.low,
        };
        let bytes = u32::try_from(job.bytes()).unwrap_or(u32::MAX);
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
            job,
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

/// Runs a committer whose engine blocks on a thread of its own, which the tracker waits for.
fn run_apart(committer: Committer, tasks: &TaskTracker) -> io::Result<()> {
    let (ended, end) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .thread_keep_alive(FOR_EVER)
        .build()?;
    // Its thread stays: what hangs in the disk while the engine is reopened has one, also when there are no more.
    drop(runtime.spawn_blocking(|| ()));
    let thread = std::thread::Builder::new().name("store-committer".to_owned());
    thread.spawn(move || {
        runtime.block_on(committer.run());
        // Before anybody hears of the end: it waits for what runs on other threads.
        drop(runtime);
        drop(ended);
    })?;
    tasks.spawn(async move { end.await.ok() });
    Ok(())
}

impl Drop for Pipeline {
    /// A store that is dropped without being closed still finishes its queue and its task.
    fn drop(&mut self) {
        self.gate.closing.cancel();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
