//! The state that the sessions of a relay share beside the store.
//!
//! Sessions meet in the store and in memory: a commit wakes its recipients, a sender waits to hear
//! of its blob, a live blob finds its takers, a nonce is good once, a client has one rate. The part in
//! memory would change if the sessions of a relay ran in several processes, so it is behind one trait,
//! and `service` asks nobody else for it. [`Alone`] is a relay of one process, [`Together`] one of several on a
//! database.
//!
//! A verb whose answer may have to come from elsewhere is `async`. One that only leaves word is not:
//! the committer, for one, must never wait for a session, let alone for another process.
//!
//! Some memory belongs to its process whatever the others do, and is not here: which session has
//! opened which mailbox (`hub`), the limits of an address (`limits`), recent deliveries (`service`).

mod alone;
mod nonces;
mod notices;
mod together;

use async_trait::async_trait;

pub use alone::Alone;
pub use together::Together;

use crate::clock::Timestamp;
use crate::hub::{Fate, LiveBlob};
use crate::ids::{BlobId, MailboxHash};
use crate::limits::address::Address;
use crate::limits::budgets::{Charge, Spent};
use crate::store::engine::NewRow;
use crate::store::model::OrderKey;
use crate::store::others::{Member, Unheard};

/// Why a proven handshake opens nothing all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceRefused {
    /// It was used before: somebody recorded it.
    Used,
    /// Too many are remembered; try again within two minutes.
    Full,
}

/// Between the sessions of one relay, beside the store.
#[async_trait]
pub trait Commons: Send + Sync + 'static {
    /// Burns the nonce of a handshake whose signature is good, for as long as the signature is. This
    /// holds also while the store cannot write; the store's own [`Store::burn`] outlasts a restart.
    ///
    /// [`Store::burn`]: crate::store::Store::burn
    async fn burn(
        &self,
        nonce: [u8; 32],
        expired_by: Timestamp,
        now: Timestamp,
    ) -> Result<(), NonceRefused>;

    /// Takes all of these from the budgets of clients, or nothing. `address` is who is counted, for
    /// the operator's hint.
    async fn lease(&self, charges: &[Charge], address: Address) -> Result<(), Spent>;

    /// Hands a live blob to every session that takes it; returns how many did.
    async fn hand(&self, blob: &LiveBlob) -> usize;

    /// Wakes the sessions that have opened the mailboxes of these rows, which were just committed.
    fn woke(&self, rows: &[NewRow<'_>]);

    /// Has the sessions that have opened this mailbox read again from before this key on: what could not
    /// be read there can be read now.
    fn came_back(&self, mailbox: MailboxHash, key: OrderKey);

    /// From now on, `sender` is told what becomes of `blob` under the name it gave its submit.
    /// Called before the blob is stored, because a recipient may have it before its sender is told.
    fn await_fate(&self, blob: BlobId, sender: MailboxHash, name: &str);

    /// The relays that share the database, this one included; `None` for a relay that shares it with nobody.
    async fn relays(&self) -> Result<Option<Vec<Member>>, Unheard>;

    /// Tells the sender of a blob, if it waits to hear it, what became of it: each fate once.
    fn tell(&self, blob: &BlobId, fate: Fate);
}
