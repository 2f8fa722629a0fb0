//! Word between the relays that use one database.
//!
//! A relay tells the others what they cannot see by themselves: which mailboxes have something new, what became
//! of a blob, a live blob that may find its taker there. All of it is a hint. One that is lost costs a second or
//! two (what was stored is found by [`Others::catch_up`]), a notice, or a refusal that is true.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::model::OrderKey;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};

/// What one relay tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The mailbox with this prefix has something new.
    Stored(i64),
    /// A blob was written to a recipient.
    Delivered(BlobId),
    /// A recipient acknowledged a blob.
    Acknowledged(BlobId),
    /// What became of a blob, for the sender with this prefix and under its own name for the submit: up to 64
    /// bytes.
    Notice {
        /// The first bits of the sender's mailbox.
        sender64: i64,
        /// The blob.
        blob: BlobId,
        /// It was acknowledged, and not only delivered.
        is_acknowledged: bool,
        /// The sender's name for the submit.
        name: Arc<str>,
    },
    /// A live blob waits for takers of the mailbox with this prefix, under this number.
    Live(u64, i64),
    /// So many sessions took the live blob of this number.
    Taken(u64, u32),
}

/// A live blob on its way.
#[derive(Debug, Clone)]
pub struct LiveRow {
    /// Whose it is.
    pub mailbox: MailboxHash,
    /// Its id.
    pub id: BlobId,
    /// When it was handed in.
    pub handed_at: Timestamp,
    /// The blob.
    pub body: Bytes,
}

/// What a relay tells of itself with each heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Serving {
    /// Whether it answered ready when it was last asked.
    pub is_ready: bool,
    /// Sessions open now.
    pub connections: u32,
}

/// A relay that is registered in the database, as its last heartbeat told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// No other start has had it.
    pub number: i32,
    /// Whether it is the relay that was asked.
    pub is_this: bool,
    /// Its version.
    pub version: String,
    /// `starting`, `ready`, `not ready` or `draining` in its own words; `stale` after five seconds without a
    /// heartbeat, and `gone` after fifteen.
    pub state: String,
    /// Sessions that it had.
    pub connections: u32,
    /// Since its last heartbeat, by the database's clock.
    pub silent: Duration,
    /// While it does the chores for all: how many relays have taken them over so far.
    pub chores_epoch: Option<i64>,
}

/// What is called with words from others; it returns at once.
pub type OnWords<'a> = &'a (dyn Fn(Vec<Word>) + Send + Sync);

/// What is called with mailboxes that have something up to these keys; it returns at once.
pub type OnRows<'a> = &'a (dyn Fn(Vec<(i64, OrderKey)>) + Send + Sync);

/// Nothing could be said or asked. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unheard(pub String);

/// The other relays of a database.
#[async_trait]
pub trait Others: Send + Sync + 'static {
    /// How many there are, as far as is known.
    fn count(&self) -> u32;

    /// Tells from now on how this relay serves.
    fn serves(&self, serving: Serving);

    /// All relays of the database, this one included, those that are gone for a while as well. Takes four
    /// seconds at the most.
    async fn members(&self) -> Result<Vec<Member>, Unheard>;

    /// Tells from now on that this relay is about to stop.
    fn drains(&self);

    /// Has the others told, soon. What finds no room is dropped and counted.
    fn tell(&self, words: &mut dyn Iterator<Item = Word>);

    /// Sends what is to be told. Runs for ever.
    async fn speak(&self);

    /// Hears what the others tell. Runs for ever.
    async fn listen(&self, heard: OnWords<'_>);

    /// Looks once a second at what was stored a second before, by whomever, and at once after words may have
    /// been missed. Runs for ever.
    async fn catch_up(&self, found: OnRows<'_>);

    /// Burns a nonce for all relays, for three minutes. `false` when one of them has done so before.
    async fn burn(&self, nonce: [u8; 32]) -> Result<bool, Unheard>;

    /// Lets the others have a live blob under this number, and tells them so.
    async fn put_live(&self, number: u64, row: &LiveRow) -> Result<(), Unheard>;

    /// Takes what waits under this number; it stays for the rest of the others.
    async fn live(&self, number: u64) -> Result<Option<LiveRow>, Unheard>;
}
