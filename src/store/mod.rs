//! The only place that remembers.
//!
//! A [`Store`] keeps blobs in mailboxes, in order, until they are acknowledged, purged or expired.
//! Every engine keeps the same promises; `tests/it/store_contract.rs` runs each promise on each
//! engine. Reading order: `model` (what is kept), `plan` (the rules: what a batch of writes comes
//! to), `commit` (how writes become durable together), then the engines `memory` and `sqlite`.
//! `tally` counts, `observed` times every call.

mod commit;
pub mod memory;
pub mod model;
pub mod observed;
mod plan;
pub mod sqlite;
mod tally;

pub use plan::quota;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use model::{
    Appended, BacklogCursor, Envelope, Holding, Opener, OrderKey, Page, PageBounds, RecoveryPage,
    RecoveryProof, RecoveryPut, Removed, Swept, Tells, Usage, View,
};

/// Called by an engine after the commit for each mailbox that has something new: once for blobs,
/// once for receipts.
///
/// It comes from the committer and not from the sender's session, so that a sender who does not
/// take its answers never delays a recipient. It must return quickly and not block.
pub type OnStored = Arc<dyn Fn(&MailboxHash) + Send + Sync>;

/// How far back [`Store::expire_asking`] looks, at least.
pub const LATELY: Duration = Duration::from_secs(600);

/// What every engine promises (`docs/storage.md` has the reasons).
///
/// Writes answer in two steps: the call returns when the write has its place in the order, and the
/// [`Pending`] it returns resolves when the write is durable. A session may so hand in its next
/// blob while the last one is being committed, and the order of calls is the order of blobs.
/// Time is an argument; no engine reads a clock. `now` decides what is shown, `expired_by` what is
/// deleted for good because its time is over: it is now or, while the clock is not to be trusted
/// with that (`clock::steady`), the epoch.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Takes a blob into its mailbox. `envelope.stored_at` is the time of the call. A full mailbox
    /// first loses what had expired by `expired_by`.
    async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError>;

    /// Deletes blobs and receipts that their recipient has, of those that it may see. What is not
    /// there (any more) is passed over.
    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError>;

    /// Tells the senders of these blobs that they were delivered: those who asked to hear it and
    /// have not been told before. For subscribers that let senders know; what is not there (any
    /// more) is passed over.
    async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError>;

    /// Lets a blob live until `expires_at`, if that is later than its expiry. The answer does not
    /// tell whether it was there; one that has expired stays so.
    async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError>;

    /// Deletes a blob for its sender. The answer does not tell whether it was there.
    async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError>;

    /// Deletes everything of a mailbox that `view` can see and that was stored before this call;
    /// durable when it returns. Large mailboxes are emptied in slices between other writes.
    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
        now: Timestamp,
    ) -> Result<Removed, StoreError>;

    /// Deletes every device sync message of this owner, on all its devices, that was stored before
    /// this call; durable when it returns.
    async fn purge_owner(&self, owner: MailboxHash, now: Timestamp) -> Result<Removed, StoreError>;

    /// Deletes up to `limit` blobs that had expired by `expired_by`, the oldest expiry first, recovery
    /// proofs that had, and forgets departures past their time; durable when it returns. Runs at
    /// lower priority than the other writes.
    async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError>;

    /// Deletes what [`Store::expire`] would delete later of the blobs that asked for receipts, so that
    /// their senders hear soon: those that had expired by `expired_by`, and not before [`LATELY`].
    /// Answers how many; durable when it returns.
    async fn expire_asking(&self, expired_by: Timestamp) -> Result<u64, StoreError>;

    /// The next blobs of a mailbox after `after`, in order, bounded by `bounds`, expired ones left
    /// out. Never passes over a blob that becomes visible later.
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError>;

    /// What each of these mailboxes holds of what `view` shows, in the order asked.
    async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError>;

    /// What waited for a device when its first page was asked for: device sync messages by version,
    /// then by arrival, bounded and checked as a page is. What comes later is read with
    /// [`Store::page`] after [`BacklogCursor::up_to`].
    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError>;

    /// Keeps a recovery proof; durable when it returns. Each owner has one under a recovery key, a
    /// later one replaces it; each key has eight. What had expired by `expired_by` goes first; else a
    /// ninth takes the place of the oldest of an owner that never proved itself.
    async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError>;

    /// What is known about these recovery keys (at most 50, more are not looked up), the newest
    /// first, expired ones left out. Stops before sealed proofs of more than `bytes_max` in all.
    async fn recovery_get(
        &self,
        key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError>;

    /// Deletes the proof of this owner under this recovery key; tells how many that were. Durable
    /// when it returns.
    async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError>;

    /// Remembers that a mailbox was opened with a proof; durable when it returns. The last use is
    /// written at most once a day. When there are too many pins, one that protects least goes.
    async fn pin(&self, mailbox: MailboxHash, now: Timestamp) -> Result<(), StoreError>;

    /// Whether a mailbox was opened with a proof within `max_ttl`; up to a day longer, because that
    /// is how exactly its last use is known.
    async fn is_pinned(
        &self,
        mailbox: MailboxHash,
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Forgets that a mailbox was opened with a proof; durable when it returns.
    async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError>;

    /// What is kept now, from counters and never by counting rows.
    fn usage(&self) -> Usage;

    /// Whether storage answers: a real read, and a real write when none has succeeded lately.
    async fn probe(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Finishes the writes that have their place, then closes files. Later writes are refused.
    async fn close(&self);
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
