//! What an engine does: a database behind the commit pipeline ([`Engine`]), and the reads beside it
//! ([`Reads`]).
//!
//! An engine stores facts and decides nothing: the rules stand in `plan`, order and retries in
//! `commit`. To add one, implement both traits, return an [`Opened`], and add it to
//! `KNOWN` in `tests/it/store/contract.rs`; `tests/it/store/scratch.rs` has the smallest one there is.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use super::model::{BacklogCursor, Holding, OrderKey, Page, PageBounds, RecoveryPage, View};
use super::others::Others;
use crate::clock::Timestamp;
use crate::ids::MailboxHash;

pub use super::departures::Departures;
pub use super::plan::change::Change;
pub use super::plan::known::{
    Account, Asked, Departed, Header, Holder, Known, Name, RELIEF_ROWS_MAX,
};
pub use super::plan::nonces::{KnownNonces, NoncePlan, is_nonce_over};
pub use super::plan::pins::{KnownPins, Pin, PinPlan};
pub use super::plan::quota::{Held, HeldInAll};
pub use super::plan::recovery::{KnownProofs, ProofPlan, SWEPT_PROOFS_MAX, Slot};
pub use super::plan::{Departure, NewRow, Plan};
pub use super::write::{Cause, Checksum, Write};

/// Why a batch was not committed. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing happened, and one of the writes may be to blame: smaller batches may go through.
    #[error("{0}")]
    Rejected(String),
    /// Nothing happened: the batch needs more memory than there is for it.
    #[error("the batch is too large")]
    TooWide,
    /// Nothing happened: another instance came first. It is folded again.
    #[error("other instances repeatedly committed first")]
    Raced,
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

/// Whether the transaction whose end was unknown took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TookPlace {
    /// It did, and is durable.
    Yes,
    /// It did not, or there was none.
    No,
}

/// One writer of a database.
#[async_trait]
pub trait Engine: Send + 'static {
    /// Whether its calls hold up the thread that makes them, as a disk does: then the committer gets a
    /// thread of its own.
    fn blocks(&self) -> bool {
        false
    }

    /// Answers what a fold asks, as of the end of the last commit; what it has answered holds until
    /// [`Engine::commit`], or that says [`CommitError::Raced`].
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError>;

    /// Does what the plan says in one transaction; durable on return. A row may come under the name
    /// or the topic of one that goes. An empty plan ([`Plan::is_empty`]) ends what [`Engine::known`]
    /// began, and writes nothing. Departures and nonces are forgotten by [`Plan::forget_by`], here
    /// and in [`Engine::upkeep`] alone: at a start nobody knows whether the clock is right.
    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError>;

    /// Opens a fresh handle and verifies it: schema version, secret check value, one trial write.
    /// After [`CommitError::Unknown`] from a commit: tells whether that took place, by the
    /// transaction's own number.
    async fn reopen(&mut self) -> Result<TookPlace, StoreError>;

    /// Does a step of what can wait until the senders of a commit are answered: it is called after each, and
    /// once more after the time that it returns, when nothing else is to be done then (`is_idle`). A failure
    /// concerns no write. `None` when there is nothing to do.
    async fn tidy(&mut self, _is_idle: bool) -> Result<Option<Duration>, CommitError> {
        Ok(None)
    }

    /// Does a slice of housekeeping: forgets what was over by `expired_by`, trims what is remembered,
    /// gives free pages back. Tells whether there is more to do.
    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError>;

    /// Looks at rows that [`Reads::scrub`] found to stand wrongly, and mends those that do. Tells which.
    /// An engine that finds none mends none.
    async fn mend(
        &mut self,
        _misplaced: &[OrderKey],
    ) -> Result<Vec<(MailboxHash, OrderKey)>, CommitError> {
        Ok(Vec::new())
    }

    /// Closes the handle.
    async fn close(&mut self);
}

/// Whose keys are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysOf {
    /// What a view shows of a mailbox.
    Mailbox(MailboxHash, View),
    /// What an owner has on all its devices.
    Owner(MailboxHash),
}

impl KeysOf {
    /// The holder of the rows, and which of them are meant.
    pub fn holder_and_view(self) -> (Holder, View) {
        match self {
            Self::Mailbox(mailbox, view) => (Holder::Mailbox(mailbox), view),
            Self::Owner(owner) => (Holder::Owner(owner), View::DeviceSync),
        }
    }
}

/// How far rows were looked at that are read by their expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpiryCursor {
    /// Up to rows that expire then.
    pub expires_at: Timestamp,
    /// And of these up to this key.
    pub key: OrderKey,
}

impl ExpiryCursor {
    /// At the row with this key, which expires then.
    pub fn new(expires_at: Timestamp, key: OrderKey) -> Self {
        Self { expires_at, key }
    }
}

/// What another look at rows that are skipped has found.
#[derive(Debug, Default)]
pub struct LookedAgain {
    /// Damaged at every look for long enough: to be taken out.
    pub damaged: Vec<OrderKey>,
    /// Whole after all, each with its mailbox: no longer skipped.
    pub sound: Vec<(MailboxHash, OrderKey)>,
}

/// What a slice of the scrub has found.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Where the next slice begins; `None` when everything was looked at.
    pub next: Option<OrderKey>,
    /// Rows that were looked at.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows that an index does not find as they are: to be mended.
    pub misplaced: Vec<OrderKey>,
}

/// Reads beside the writer. None waits for a commit.
#[async_trait]
pub trait Reads: Send + Sync + 'static {
    /// The next blobs of a mailbox ([`super::Store::page`]).
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError>;

    /// What waited for a device ([`super::Store::device_sync_backlog`]).
    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError>;

    /// What each of these mailboxes holds of what `view` shows, in the order asked.
    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError>;

    /// What is known about these recovery keys, each named once ([`super::Store::recovery_get`]).
    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError>;

    /// The pins of these mailboxes, in the order asked.
    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError>;

    /// Up to `limit` keys after `after` and up to `up_to`, in order.
    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError>;

    /// Up to `limit` rows that had expired by `expired_by`, the oldest expiry first, give or take ten
    /// minutes. Fewer than `limit` when there are no more, or when it has looked through much in vain; the
    /// flag tells whether another call may find more.
    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError>;

    /// Looks at up to `limit` rows from `from` on, by expiry, give or take ten minutes. Tells which
    /// of them asked for receipts and had expired by `expired_by`, and where to go on if there may be
    /// more.
    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError>;

    /// When the next row expires, give or take ten minutes.
    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError>;

    /// The largest order key that was ever given out; all up to it is committed or refused.
    async fn horizon(&self) -> Result<OrderKey, StoreError>;

    /// Whether storage is where it was when it was opened; the error is one line for the operator. It is
    /// asked every second.
    async fn look(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether this relay is the one that deletes what has expired and forgets what is over. With several on
    /// one database it is one of them.
    async fn does_chores(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// What is kept in all, as far as others write, too: the writer alone does not know it then.
    fn held_by_all(&self) -> Option<HeldInAll> {
        None
    }

    /// Looks again at rows that were found damaged and are skipped, on a fresh handle; called once a
    /// minute. An engine whose rows cannot be damaged has none.
    async fn look_again(&self) -> Result<LookedAgain, StoreError> {
        Ok(LookedAgain::default())
    }

    /// Tries again to read the files, if that failed the last time.
    async fn read_again(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Compares a slice of rows behind `after` with their checksums and with their entries in the
    /// indexes. An engine whose rows cannot stand wrongly has nothing to compare.
    async fn scrub(&self, _after: OrderKey) -> Result<Scrubbed, StoreError> {
        Ok(Scrubbed::default())
    }

    /// Reads something, to see whether storage answers.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Closes the handles.
    async fn close(&self);
}

/// A database that was just opened.
pub struct Opened {
    /// Its writer.
    pub engine: Box<dyn Engine>,
    /// Its reads.
    pub reads: Arc<dyn Reads>,
    /// What it holds.
    pub held: HeldInAll,
    /// The other relays that use it, where there may be some.
    pub others: Option<Arc<dyn Others>>,
}
