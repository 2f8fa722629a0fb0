//! The only place that remembers.
//!
//! A [`Store`] keeps blobs in mailboxes, in order, until they are acknowledged, purged or expired.
//! It keeps the same promises over every engine; `tests/it/store/` runs each promise on each engine.
//! Reading order: `model` (what is kept), `write` (what is written), `plan` (the rules: what a batch of
//! writes comes to), `commit` (how writes become durable together), `engine` (what a database must do for
//! that), then the engines `memory`, `sqlite` and `postgres`. `sql` is what the last two have in common;
//! `departures` is what the first two remember of blobs that left. `tally` counts, `usage` is what it counts,
//! and `health` tells whether blobs come in and go out. `others` are relays on the same database. The longer
//! verbs of [`Store`] have files of their own: `purge`, `expire`, `probe`.

mod commit;
mod departures;
pub mod engine;
mod expire;
mod health;
pub mod memory;
pub mod model;
pub mod others;
mod plan;
pub mod postgres;
mod probe;
mod purge;
mod sql;
pub mod sqlite;
mod tally;
mod usage;
mod write;

pub use plan::quota;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::{Clock, Timestamp};
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use crate::secrets::Secret;
use commit::{Ground, Lane, Pipeline};
use engine::{NewRow, Opened, Reads};
use health::{Health, Unread};
use model::{
    Appended, BacklogCursor, Burnt, Envelope, Holding, Opener, OrderKey, Page, PageBounds,
    RECOVERY_KEYS_MAX, RecoveryPage, RecoveryProof, RecoveryPut, Removed, Scrub, Usage, View,
};
use plan::Rules;
use quota::Quota;
use tally::Tally;
use write::{Cause, Write};

/// Called after each commit with the rows that it brought, in order.
///
/// It comes from the committer and not from the sender's session, so that a sender who does not
/// take its answers never delays a recipient. It must return quickly and not block.
pub type OnNews = Arc<dyn Fn(&[NewRow<'_>]) + Send + Sync>;

/// Rows that a purge or the sweep removes in one transaction.
const SLICE_ROWS: u32 = 256;

/// What a store goes by, whatever its engine.
pub struct StoreOptions {
    /// Keys the checksums by which repeats are recognised, and names receipts.
    pub secret: Secret,
    /// Bounds of mailboxes and of the relay.
    pub quota: Quota,
    /// How long a departed blob is remembered; zero remembers none.
    pub dedup: Duration,
    /// How long a receipt lives.
    pub receipt_ttl: Duration,
    /// Told of what was stored.
    pub news: OnNews,
    /// Says by how much what is new is dated later than `now` ([`Clock::date`]).
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What is kept, over one engine (`docs/storage.md` has the promises and their reasons).
///
/// Writes answer in two steps: the call returns when the write has its place in the order, and the
/// [`Pending`] it returns resolves when the write is durable. A session may so hand in its next
/// blob while the last one is being committed, and the order of calls is the order of blobs.
/// Time is an argument, and it is the relay's time (`clock`). `now` decides what is shown, `expired_by`
/// what is deleted for good because its time is over: it is now or, while nothing is to be deleted
/// (`clock::steady`), the epoch.
pub struct Store {
    pipeline: Pipeline,
    reads: Arc<dyn Reads>,
    secret: Secret,
    quota: Quota,
    tally: Arc<Tally>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Starts the committer over a database that was just opened.
    pub fn start(opened: Opened, options: StoreOptions) -> Self {
        let metrics = options.metrics;
        let tally = Arc::new(Tally::new(opened.held, Arc::clone(&metrics)));
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        health.set_full(options.quota.is_relay_full(opened.held.bytes));
        let ground = Ground {
            rules: Rules {
                secret: options.secret.clone(),
                quota: options.quota,
                dedup: options.dedup,
                receipt_ttl: options.receipt_ttl,
                clock: options.clock,
            },
            reads: Arc::clone(&opened.reads),
            news: options.news,
            tally: Arc::clone(&tally),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        };
        Self {
            pipeline: Pipeline::start(opened.engine, ground),
            reads: opened.reads,
            secret: options.secret,
            quota: options.quota,
            tally,
            health,
            metrics,
        }
    }

    /// Takes a blob into its mailbox. `envelope.stored_at` is [`Clock::date`] at the call. A full mailbox
    /// first loses what had expired by `expired_by`.
    pub async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        let checksum = self
            .secret
            .checksum(&envelope.mailbox, &envelope.id, &envelope.body);
        let write = Write::Append {
            envelope,
            checksum,
            expired_by,
        };
        self.queue(write).await
    }

    /// Deletes blobs and receipts that their recipient has, of those that it may see. What is not
    /// there (any more) is passed over.
    pub async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let write = Write::Acknowledge {
            mailbox,
            ids,
            by,
            now,
        };
        self.queue(write).await
    }

    /// Tells the senders of these blobs that they were delivered: those who asked to hear it and
    /// have not been told before. For subscribers that let senders know; what is not there (any
    /// more) is passed over.
    pub async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.queue(Write::Delivered { mailbox, ids, now }).await
    }

    /// Lets a blob live until `expires_at`, if that is later than its expiry. The answer does not
    /// tell whether it was there; one that has expired stays so.
    pub async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = Write::Extend {
            mailbox,
            id,
            expires_at,
            now,
        };
        self.queue(write).await
    }

    /// Deletes a blob for its sender. The answer does not tell whether it was there.
    pub async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.queue(Write::Cancel { mailbox, id, now }).await
    }

    /// The next blobs of a mailbox after `after`, in order, bounded by `bounds`, expired ones left
    /// out. Never passes over a blob that becomes visible later.
    pub async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        let began = Instant::now();
        let page = self.read(self.reads.page(mailbox, view, after, bounds, now));
        let page = page.await;
        self.metrics.page_duration_seconds.record(began.elapsed());
        if let Err(StoreError::Unavailable(_)) = &page {
            let unread = Unread::Page(mailbox, view, after, now);
            self.health.failed_to_read(unread);
        }
        page
    }

    /// What waited for a device when its first page was asked for: device sync messages by version,
    /// then by arrival, bounded and checked as a page is. What comes later is read with
    /// [`Store::page`] after [`BacklogCursor::up_to`].
    pub async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let began = Instant::now();
        let page = self.reads.device_sync_backlog(mailbox, after, bounds, now);
        let page = self.read(page).await;
        self.metrics.page_duration_seconds.record(began.elapsed());
        page
    }

    /// Looks again at the rows that were found damaged, which pages skip; to be called once a minute.
    /// Takes out those that stayed damaged for long enough, and returns where others are whole again: a
    /// reader that has passed one must read it after all. When it returns an error, nobody can tell yet.
    pub async fn look_again(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(MailboxHash, OrderKey)>, StoreError> {
        let looked = self.read(self.reads.look_again()).await?;
        if !looked.damaged.is_empty() {
            let write = Write::Remove {
                keys: looked.damaged,
                cause: Cause::Corrupt,
                now,
            };
            let _lost: Removed = self.write_low(write).await?;
        }
        Ok(looked.sound)
    }

    /// Tries again to read the files, if that failed the last time: until it succeeds, [`Store::probe`]
    /// fails. To be called every few seconds.
    pub async fn read_again(&self) -> Result<(), StoreError> {
        self.read(self.reads.read_again()).await
    }

    /// Compares a slice of rows behind `after` with their checksums and with the indexes, and mends what
    /// stands wrongly. A reader that has passed one of the mended rows must read it after all.
    pub async fn scrub(&self, after: OrderKey) -> Result<Scrub, StoreError> {
        let scrubbed = self.read(self.reads.scrub(after)).await?;
        let mended = match scrubbed.misplaced.is_empty() {
            true => Vec::new(),
            false => self.counted(self.pipeline.mend(scrubbed.misplaced).await)?,
        };
        self.metrics.scrub_rows_total.increment(scrubbed.rows);
        Ok(Scrub {
            next: scrubbed.next,
            rows: scrubbed.rows,
            bytes: scrubbed.bytes,
            mended,
        })
    }

    /// What each of these mailboxes holds of what `view` shows, in the order asked.
    pub async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        self.read(self.reads.holdings(&mailboxes, view, now)).await
    }

    /// Keeps a recovery proof; durable when it returns. Each owner has one under a recovery key, a
    /// later one replaces it; each key has eight. What had expired by `expired_by` goes first; else a
    /// ninth takes the place of the oldest of an owner that never proved itself.
    pub async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        self.write(Write::RecoveryPut { proof, expired_by }).await
    }

    /// What is known about these recovery keys (at most 50, more are not looked up), the newest
    /// first, expired ones left out. Stops before sealed proofs of more than `bytes_max` in all.
    pub async fn recovery_get(
        &self,
        mut key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        key_hashes.truncate(RECOVERY_KEYS_MAX);
        key_hashes.sort_unstable();
        key_hashes.dedup();
        self.read(self.reads.recovery(&key_hashes, bytes_max, now))
            .await
    }

    /// Deletes the proof of this owner under this recovery key; tells how many that were. Durable
    /// when it returns.
    pub async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        let removed: Removed = self
            .write(Write::RecoveryRemove { key_hash, owner })
            .await?;
        Ok(removed.blobs)
    }

    /// Remembers that these mailboxes were opened with a proof; durable when it returns. Tells which
    /// of them are pinned now: with as many pins as there may be, only those that were unused for
    /// `max_ttl` at `expired_by` make room. The last use is written at most once a day, and nothing else
    /// is committed.
    pub async fn pin(
        &self,
        mailboxes: Vec<MailboxHash>,
        (max_ttl, expired_by): (Duration, Timestamp),
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let over_by = plan::pins::over_by(max_ttl, expired_by);
        self.write(Write::Pin {
            mailboxes,
            over_by,
            now,
        })
        .await
    }

    /// Which of these mailboxes were opened with a proof within `max_ttl`; up to a day longer,
    /// because that is how exactly their last use is known.
    pub async fn are_pinned(
        &self,
        mailboxes: &[MailboxHash],
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let pins = self.read(self.reads.pins(mailboxes)).await?;
        let holds = |pin: Option<engine::Pin>| pin.is_some_and(|pin| pin.holds(max_ttl, now));
        Ok(pins.into_iter().map(holds).collect())
    }

    /// Forgets that a mailbox was opened with a proof; durable when it returns.
    pub async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        self.unpin_all(vec![mailbox]).await
    }

    /// As [`Store::unpin`], of several mailboxes in one commit.
    pub async fn unpin_all(&self, mailboxes: Vec<MailboxHash>) -> Result<(), StoreError> {
        self.write(Write::Unpin { mailboxes }).await
    }

    /// Burns the nonce of a handshake whose signature is good; durable when it returns. Nonces whose
    /// time was over by `expired_by` may be forgotten.
    pub async fn burn(
        &self,
        nonce: [u8; 32],
        expired_by: Timestamp,
        now: Timestamp,
    ) -> Result<Burnt, StoreError> {
        let write = Write::Burn {
            nonce,
            expired_by,
            now,
        };
        self.write(write).await
    }

    /// What is kept now, from counters and never by counting rows.
    pub fn usage(&self) -> Usage {
        self.tally.usage()
    }

    /// Finishes the writes that have their place, then closes files. Later writes are refused.
    pub async fn close(&self) {
        // The readers first, so that the writer leaves one complete file behind.
        self.reads.close().await;
        self.pipeline.close().await;
    }

    async fn queue<T: commit::Answer>(&self, write: Write) -> Result<Pending<T>, StoreError> {
        self.counted(self.pipeline.queue(Lane::Normal, write).await)
    }

    async fn write<T: commit::Answer>(&self, write: Write) -> Result<T, StoreError> {
        self.counted(self.pipeline.write(write).await)
    }

    async fn write_low<T: commit::Answer>(&self, write: Write) -> Result<T, StoreError> {
        let done = async { self.pipeline.queue(Lane::Low, write).await?.await };
        self.counted(done.await)
    }

    /// Reads, unless the store is closed.
    async fn read<T>(
        &self,
        read: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let read = match self.pipeline.is_closed() {
            true => Err(StoreError::Closed),
            false => read.await,
        };
        if let Err(StoreError::Unavailable(_)) = &read {
            self.health.failed_to_read(Unread::Other);
        }
        self.counted(read)
    }

    fn counted<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if outcome.is_err() {
            self.metrics.store_errors_total.increment(1);
        }
        outcome
    }
}

/// Why a store did not do what was asked. The texts are for the operator, not for clients.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The commit queue stayed full for too long.
    #[error("the commit queue is full: storage is slower than the senders")]
    Busy,
    /// Storage failed or is being reopened; the write did not happen.
    #[error("storage is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// An [`StoreError::Unavailable`] with the words of `cause`.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable(cause.to_string().into())
    }
}

/// A write that has its place in the order; resolves when it is durable, or has failed.
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Pending<T> {
    /// A pending write and the sender that resolves it. Dropping the sender resolves it as
    /// [`StoreError::Closed`].
    pub fn channel() -> (oneshot::Sender<Result<T, StoreError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// A write that is already done.
    pub fn ready(outcome: T) -> Self {
        let (sender, pending) = Self::channel();
        // The receiver lives in `pending`, so this cannot fail.
        sender.send(Ok(outcome)).ok();
        pending
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|received| received.unwrap_or(Err(StoreError::Closed)))
    }
}
