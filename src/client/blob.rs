//! Blobs on their way out, and what comes in.

use bytes::Bytes;

use super::ClientError;
use super::key::BlobSecret;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::proof;
pub use crate::protocol::v2::message::{ReceiptKind, SubmitTerms as Terms};

/// A blob to submit. Its name is fixed when it is made, so handing it in again, through this client or
/// a later one, stores it once. Who may have to do so keeps [`Blob::secret`] with it.
#[derive(Clone)]
pub struct Blob {
    /// Where to.
    pub mailbox: MailboxId,
    /// What its id is made from.
    pub secret: BlobSecret,
    /// What is asked beside storing it.
    pub terms: Terms,
    /// The blob itself, encrypted by you.
    pub body: Bytes,
}

impl Blob {
    /// A blob with a fresh secret, on the relay's default terms.
    pub fn new(mailbox: MailboxId, body: impl Into<Bytes>) -> Self {
        Self {
            mailbox,
            secret: BlobSecret::random(),
            terms: Terms::default(),
            body: body.into(),
        }
    }

    /// Its id within its mailbox.
    pub fn id(&self) -> BlobId {
        proof::v2_blob_id(&self.mailbox, self.secret.expose())
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.body.len())
    }
}

/// What became of a submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// The relay keeps the blob; it survives a crash of the relay.
    Stored {
        /// Until when.
        expires_at: Timestamp,
        /// It had it before.
        duplicate: bool,
    },
    /// A live-only blob was handed to a subscriber.
    Handed,
}

/// A place in a mailbox: what is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    /// The mailbox it lies in.
    pub mailbox: MailboxId,
    /// The blob's id, or the receipt's.
    pub id: BlobId,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item(…)")
    }
}

/// A blob that has come.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it lies; this is what to acknowledge.
    pub item: Item,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// When the relay drops it; `None` for a live-only blob, which is not stored.
    pub expires_at: Option<Timestamp>,
    /// Whether the relay knows that it was delivered before.
    pub redelivered: bool,
    /// The blob, without its padding.
    pub body: Bytes,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes)", self.body.len())
    }
}

/// What became of a blob whose sender asked for receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Where the receipt lies; this is what to acknowledge.
    pub item: Item,
    /// The blob that it is about.
    pub blob: BlobId,
    /// What became of it.
    pub kind: ReceiptKind,
    /// When, rounded down to the minute.
    pub at: Timestamp,
}

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A blob.
    Blob(Delivery),
    /// A receipt.
    Receipt(Receipt),
    /// Everything that these mailboxes held has been delivered.
    CaughtUp(Vec<MailboxId>),
    /// The mailbox was not opened again after a reconnect, and nothing more comes from it: the relay
    /// would not.
    Closed {
        /// Which one.
        mailbox: MailboxId,
        /// Why.
        why: ClientError,
    },
}

impl Event {
    /// The mailbox in which this blob or receipt lies.
    pub(super) fn came_from(&self) -> Option<&MailboxId> {
        match self {
            Self::Blob(delivery) => Some(&delivery.item.mailbox),
            Self::Receipt(receipt) => Some(&receipt.item.mailbox),
            Self::CaughtUp(_) | Self::Closed { .. } => None,
        }
    }
}
