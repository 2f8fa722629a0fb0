//! The one task that commits: takes what is queued, has it folded to a plan, hands that to the
//! engine, confirms each write.
//!
//! Four things can go wrong, and each ends in a true answer. One bad write does not fail its
//! neighbours: the batch is split until the culprit stands alone. A full disk refuses appends and
//! lets deletions try again. A refusal that is nobody's fault is told to all. And after a commit
//! whose end is unknown the handle is finished: the engine is reopened and asked what happened,
//! while the senders of that batch wait a bounded time and everybody else is refused at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::batch::Batch;
use super::queues::{Item, Job, Queues};
use super::{Gate, Ground};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::StoreError;
use crate::store::engine::{Asked, CommitError, Engine, TookPlace};
use crate::store::health::Health;
use crate::store::model::{OrderKey, Removed};
use crate::store::plan::known::Learnt;
use crate::store::plan::{self, Folded, NewRow, PLAN_ROWS_MAX, Plan, RELIEFS_MAX};
use crate::store::write::{Outcome, Write};

/// How long the senders of a batch with an unknown end wait for the truth.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long one attempt to reopen may take.
const REOPEN_TIME_MAX: Duration = Duration::from_secs(10);

/// Pauses between two attempts to reopen: from the first, doubled, to the second.
const REOPEN_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Between two log lines about writes that fail one after the other.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// After tidying up has failed it is tried again after this time.
const TIDY_PAUSE: Duration = Duration::from_secs(1);

/// How often a batch is folded again because another instance came first, before it is split.
const RACES_MAX: usize = 3;

/// Rounds of questions that a fold may take. What the writes name, the receipts of rows that leave,
/// what has expired in full mailboxes, and the receipts of that: five and some more.
const QUESTIONS_MAX: usize = 8;

/// The committer's side of the pipeline.
pub(super) struct Committer {
    engine: Box<dyn Engine>,
    queues: Queues,
    gate: Arc<Gate>,
    ground: Ground,
    /// The plan whose commit ended as [`CommitError::Unknown`].
    unsettled: Option<Box<Plan>>,
    /// When a failed write was logged last: a full disk fails every batch, and once is enough.
    warned_at: Option<Instant>,
    /// When the engine wants to tidy up, if nothing else is to be done.
    tidy_at: Option<Instant>,
}

/// Says that nothing is written any more, however the committer has come to its end.
struct Ended {
    gate: Arc<Gate>,
    health: Arc<Health>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.gate.set_down(Some("the committer has ended"));
        self.health.set_down(true);
    }
}

impl Committer {
    pub(super) fn new(
        engine: Box<dyn Engine>,
        queues: Queues,
        gate: Arc<Gate>,
        ground: Ground,
    ) -> Self {
        Self {
            engine,
            queues,
            gate,
            ground,
            unsettled: None,
            warned_at: None,
            tidy_at: None,
        }
    }

    /// Commits until the pipeline is closed and its queue is empty, then closes the engine.
    pub(super) async fn run(mut self) {
        let _ended = Ended {
            gate: Arc::clone(&self.gate),
            health: Arc::clone(&self.ground.health),
        };
        while let Some(items) = self.next_batch().await {
            self.work(items).await;
            self.tidy(false).await;
        }
        self.engine.close().await;
    }

    /// Waits for work, and tidies up meanwhile when it is time.
    async fn next_batch(&mut self) -> Option<Vec<Item>> {
        while let Some(at) = self.tidy_at {
            match tokio::time::timeout_at(at, self.queues.next_batch()).await {
                Ok(items) => return items,
                Err(_) => self.tidy(true).await,
            }
        }
        self.queues.next_batch().await
    }

    async fn tidy(&mut self, is_idle: bool) {
        let wait = match self.engine.tidy(is_idle).await {
            Ok(wait) => wait,
            Err(error) => {
                self.housekeeping_failed(error).await;
                Some(TIDY_PAUSE)
            }
        };
        self.tidy_at = wait.map(|wait| Instant::now() + wait);
    }

    /// Commits the writes of what was gathered, then does the rest.
    async fn work(&mut self, items: Vec<Item>) {
        let (mut writes, mut others) = (Vec::with_capacity(items.len()), Vec::new());
        for Item { job, bytes, .. } in items {
            match job {
                Job::Write(write, reply) => writes.push((write, reply, bytes)),
                other => others.push(other),
            }
        }
        if !writes.is_empty() {
            self.commit(Batch::new(writes)).await;
        }
        for job in others {
            match job {
                Job::Upkeep(expired_by, reply) => {
                    let done = self.upkeep(expired_by).await;
                    // Whoever asked may have gone.
                    reply.send(done).ok();
                }
                Job::Mend(misplaced, reply) => {
                    let done = self.mend(&misplaced).await;
                    reply.send(done).ok();
                }
                Job::Horizon(reply) => {
                    reply.send(self.ground.reads.horizon().await).ok();
                }
                write @ Job::Write(..) => write.refuse(StoreError::Closed),
            }
        }
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, StoreError> {
        match self.engine.upkeep(expired_by).await {
            Ok(more) => Ok(more),
            Err(error) => Err(self.housekeeping_failed(error).await),
        }
    }

    async fn mend(
        &mut self,
        misplaced: &[OrderKey],
    ) -> Result<Vec<(MailboxHash, OrderKey)>, StoreError> {
        match self.engine.mend(misplaced).await {
            Ok(mended) => Ok(mended),
            Err(error) => Err(self.housekeeping_failed(error).await),
        }
    }

    async fn housekeeping_failed(&mut self, error: CommitError) -> StoreError {
        self.failed(&error);
        let told = StoreError::unavailable(&error);
        if let CommitError::Unknown(cause) = error {
            // Nobody waits for this; whoever waits for the next batch finds out by itself.
            self.recover(&mut Batch::new(Vec::new()), &[], &cause)
                .await
                .ok();
        }
        told
    }

    async fn commit(&mut self, mut batch: Batch) {
        // Parts that are still to be committed, the next one last.
        let mut parts = vec![batch.all()];
        while let Some(mut part) = parts.pop() {
            // Whoever was answered while the store was reopened must not be proven wrong now.
            part.retain(|index| batch.is_waiting(*index));
            if part.is_empty() {
                continue;
            }
            let Err(error) = self.commit_part(&mut batch, &part).await else {
                continue;
            };
            self.failed(&error);
            let error = match self.remove_in_pieces(&batch, &part, error).await {
                Ok(outcome) => {
                    batch.confirm(&part, vec![outcome]);
                    continue;
                }
                Err(error) => error,
            };
            match error {
                CommitError::Rejected(_)
                | CommitError::TooWide
                | CommitError::Raced
                | CommitError::DiskFull(_)
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
                CommitError::Rejected(_)
                | CommitError::TooWide
                | CommitError::Raced
                | CommitError::Refused(_) => {
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

    /// A removal of many rows that was rejected, or that touches too much or needs more room than there
    /// is: goes on without the rows that cannot be removed, or one damaged page would keep the sweep
    /// from all that comes after it.
    /// Any other error is handed back as it is.
    async fn remove_in_pieces(
        &mut self,
        batch: &Batch,
        part: &[usize],
        error: CommitError,
    ) -> Result<Outcome, CommitError> {
        let (
            CommitError::Rejected(_) | CommitError::TooWide | CommitError::DiskFull(_),
            [Write::Remove { keys, cause, now }],
        ) = (&error, &batch.select(part)[..])
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
            match self.commit_writes(&[&piece]).await {
                Ok(outcomes) => {
                    for outcome in outcomes {
                        if let Outcome::Removed(of_piece) = outcome {
                            removed.blobs += of_piece.blobs;
                            removed.receipts += of_piece.receipts;
                        }
                    }
                }
                Err(CommitError::Rejected(_) | CommitError::TooWide | CommitError::DiskFull(_))
                    if keys.len() > 1 =>
                {
                    pieces.extend(halves(keys));
                }
                Err(CommitError::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Removed(removed))
    }

    /// Counts a failure, and says so now and then.
    fn failed(&mut self, error: &CommitError) {
        self.ground.metrics.store_errors_total.increment(1);
        if is_nobodys_fault(error) {
            self.ground.health.wrote(false);
        }
        if self
            .warned_at
            .is_some_and(|at| at.elapsed() < WARNING_PAUSE)
        {
            return;
        }
        match error {
            CommitError::DiskFull(cause) => warn!(
                "store: {cause}. New blobs are refused until space is free; delivery continues."
            ),
            CommitError::Rejected(cause) | CommitError::Refused(cause) => {
                warn!("store: a write failed: {cause}");
            }
            // Solved by smaller batches; told where it is handled.
            CommitError::TooWide | CommitError::Raced | CommitError::Unknown(_) => return,
        }
        self.warned_at = Some(Instant::now());
    }

    async fn commit_part(&mut self, batch: &mut Batch, part: &[usize]) -> Result<(), CommitError> {
        let begun = Instant::now();
        let (plan, writes) = {
            let writes = batch.select(part);
            (self.commit_plan(&writes).await?, writes.len())
        };
        let metrics = &self.ground.metrics;
        metrics
            .commit_duration_seconds
            .record(begun.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "at most a few thousand")]
        metrics.commit_batch_size.record(writes as f64);
        self.finish(batch, part, *plan);
        Ok(())
    }

    /// Commits writes that nobody waits for; tells what became of them.
    async fn commit_writes(&mut self, writes: &[&Write]) -> Result<Vec<Outcome>, CommitError> {
        let plan = self.commit_plan(writes).await?;
        self.show(&plan);
        self.tell_news(&plan, writes);
        Ok(plan.outcomes)
    }

    /// Plans writes and commits them.
    async fn commit_plan(&mut self, writes: &[&Write]) -> Result<Box<Plan>, CommitError> {
        self.ground.health.commit_begins();
        let committed = self.plan_and_commit(writes).await;
        self.ground.health.commit_ended();
        if committed.as_ref().is_ok_and(|plan| !plan.is_empty()) {
            self.ground.health.wrote(true);
        }
        committed
    }

    async fn plan_and_commit(&mut self, writes: &[&Write]) -> Result<Box<Plan>, CommitError> {
        for _ in 0..RACES_MAX {
            let plan = self.plan(writes).await?;
            match self.engine.commit(writes, &plan).await {
                Ok(()) => return Ok(plan),
                Err(CommitError::Raced) => {}
                Err(error) => {
                    if let CommitError::Unknown(_) = error {
                        self.unsettled = Some(plan);
                    }
                    return Err(error);
                }
            }
        }
        Err(CommitError::Raced)
    }

    /// Asks the engine until nothing is left to ask.
    async fn plan(&mut self, writes: &[&Write]) -> Result<Box<Plan>, CommitError> {
        let is_splittable = writes.len() > 1;
        let mut learnt = Learnt::default();
        let mut asked = Asked::about(writes);
        for _ in 0..QUESTIONS_MAX {
            let answer = self.engine.known(&asked).await?;
            self.ground.health.set_room(answer.has_room);
            learnt.learn(asked, answer);
            asked = match plan::fold(writes, &self.ground.rules, &learnt) {
                Folded::Plan(plan) if plan.rows() > PLAN_ROWS_MAX && is_splittable => {
                    return Err(CommitError::TooWide);
                }
                Folded::Plan(plan) => return Ok(plan),
                Folded::Asks(more) if more.expired.len() > RELIEFS_MAX && is_splittable => {
                    return Err(CommitError::TooWide);
                }
                Folded::Asks(more) => *more,
            };
        }
        Err(CommitError::Refused(
            "the batch needs too many lookups".into(),
        ))
    }

    /// Lets the world see a plan that is durable: counters, answers, then those who wait for blobs: a v1 client
    /// that sends to itself has always had its answer first.
    fn finish(&mut self, batch: &mut Batch, part: &[usize], mut plan: Plan) {
        self.show(&plan);
        batch.confirm(part, std::mem::take(&mut plan.outcomes));
        self.tell_news(&plan, &batch.select(part));
    }

    fn show(&self, plan: &Plan) {
        self.ground.tally.count(plan);
        let bytes = self.ground.tally.usage().bytes;
        let is_full = self.ground.rules.quota.is_relay_full(bytes);
        self.ground.health.set_full(is_full);
        let lost = plan.happened.lost();
        if lost > 0 {
            warn!(
                blobs = lost,
                "store: {lost} stored blobs did not match their checksum and were set aside; check the disk"
            );
        }
    }

    fn tell_news(&self, plan: &Plan, writes: &[&Write]) {
        let news: Vec<NewRow<'_>> = plan.new_rows(writes).collect();
        if !news.is_empty() {
            (self.ground.news)(&news);
        }
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
        self.gate.set_down(Some(cause));
        self.ground.health.set_down(true);
        // Said once: what is wrong may be so for hours.
        let mut said = StoreError::unavailable(cause).to_string();
        let deadline = Instant::now() + SETTLE_WAIT_MAX;
        let mut pause = REOPEN_PAUSES.0;
        loop {
            match self.try_recover(batch, part).await {
                Ok(()) => break,
                Err(error) if error.to_string() == said => {}
                Err(error) => {
                    said = error.to_string();
                    warn!("store: cannot reopen storage yet, retrying: {error}");
                }
            }
            if self.gate.closing.is_cancelled() {
                return Err(StoreError::Closed);
            }
            self.wait(pause, deadline, batch).await;
            pause = (pause * 2).min(REOPEN_PAUSES.1);
        }
        self.gate.set_down(None);
        self.ground.health.wrote(true);
        self.ground.health.set_down(false);
        self.ground.metrics.store_reopened_total.increment(1);
        info!("store: reopened; new blobs are accepted again.");
        Ok(())
    }

    async fn try_recover(&mut self, batch: &mut Batch, part: &[usize]) -> Result<(), StoreError> {
        let took_place = tokio::time::timeout(REOPEN_TIME_MAX, self.engine.reopen())
            .await
            .map_err(|_| StoreError::unavailable("reopening took too long"))??;
        match (self.unsettled.take(), took_place) {
            // Also when its senders were answered long ago: what was stored after all is delivered.
            (Some(plan), TookPlace::Yes) => {
                info!("store: the failed commit is on disk after all");
                self.finish(batch, part, *plan);
            }
            _ => batch.fail(part, &StoreError::unavailable("the write was lost")),
        }
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
        let why = self.gate.why_down();
        batch.fail_all(&why.unwrap_or(StoreError::Closed));
        self.queues.refuse_until(until).await;
    }
}

/// Whether a failure says that storage takes no writes, and not that a write was one it cannot take.
fn is_nobodys_fault(error: &CommitError) -> bool {
    match error {
        CommitError::Refused(_) | CommitError::DiskFull(_) | CommitError::Unknown(_) => true,
        CommitError::Rejected(_) | CommitError::TooWide | CommitError::Raced => false,
    }
}

/// Cut in the middle, the first half last.
fn halves<T>(mut part: Vec<T>) -> [Vec<T>; 2] {
    let second = part.split_off(part.len() / 2);
    [second, part]
}
