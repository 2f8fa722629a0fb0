//! What a v2 client and a relay say to each other, as values.
//!
//! Lengths are checked by the codec; what is of the wrong length never becomes one of these.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use crate::protocol::proof;

/// The number a client gave to its request; the answer carries it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(NonZeroU32);

impl Tag {
    /// The tag of a number; zero is none.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// As it stands in the frames.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl std::fmt::Debug for Tag {
    // A client may put anything here, so it is never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tag(…)")
    }
}

/// One frame from a client, as far as it could be read. Without a tag no answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A request, understood. Only some may be without a tag.
    Request {
        /// Its number.
        tag: Option<Tag>,
        /// What is asked.
        request: Request,
    },
    /// The frame can be read and says nothing that can be done.
    Invalid {
        /// Its number.
        tag: Option<Tag>,
        /// What is wrong, in words that quote nothing of the frame.
        why: &'static str,
    },
    /// It cannot be read, or has no number although it needs an answer.
    Garbage {
        /// What is wrong, in words that quote nothing of the frame.
        why: &'static str,
    },
    /// Well formed, and asks for something that this build does not know.
    Unsupported {
        /// Its number.
        tag: Option<Tag>,
    },
}

/// What a client may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who is there and what it understands; the welcome is said again, with a proof if one is asked for.
    Hello(Option<Introduce>),
    /// Take this blob.
    Submit(Submit),
    /// Open these mailboxes.
    Subscribe(Subscribe),
    /// Close these mailboxes.
    Unsubscribe(Vec<MailboxId>),
    /// How much may be in flight on this connection.
    Window {
        /// Blobs.
        blobs: u32,
        /// Bytes.
        bytes: u64,
    },
    /// These blobs and receipts have arrived.
    Acknowledge(Vec<(MailboxId, BlobId)>),
    /// Keep a blob for longer, or take it back.
    Withdraw(Withdrawal),
    /// Delete what these mailboxes hold.
    Purge(Vec<MailboxId>),
    /// This mailbox may be opened without a proof again.
    Unpin(MailboxId),
    /// Keep this recovery proof.
    RecoveryStore(RecoveryProof),
    /// Say which recovery proofs are kept under these hashes.
    RecoveryQuery(RecoveryQuery),
    /// Are you there?
    Ping,
}

/// A client wants the relay to prove who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduce {
    /// The client's own random bytes, so that the proof is fresh.
    pub nonce: [u8; 32],
    /// The host that the client dialled, in lower case.
    pub origin: Box<str>,
}

/// A blob handed in.
#[derive(Clone, PartialEq, Eq)]
pub struct Submit {
    /// Whose mailbox.
    pub recipient: MailboxId,
    /// Its id, which the sender chooses.
    pub id: BlobId,
    /// What is asked beside storing it.
    pub terms: SubmitTerms,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for Submit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Submit({} bytes)", self.body.len())
    }
}

/// What a submit asks beside storing the blob.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SubmitTerms {
    /// How long it shall be kept; `None` for the relay's default.
    pub ttl: Option<Duration>,
    /// Replaces the unacknowledged blob of the same mailbox and topic. Never delivered. The client library
    /// makes another topic of it for each relay, so that no relay can replace blobs at another.
    pub topic: Option<[u8; 32]>,
    /// The mailbox that gets its receipts.
    pub receipt_to: Option<MailboxId>,
    /// Hand it to who is there now or refuse it; never store it.
    pub live_only: bool,
    /// v1 clients may see it, too.
    pub v1_ok: bool,
    /// The relay it is for; `None` for this one.
    pub relay: Option<[u8; 32]>,
}

impl std::fmt::Debug for SubmitTerms {
    // Topics, receipt mailboxes and relays tell who has to do with whom.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SubmitTerms")
            .field("ttl", &self.ttl)
            .field("topic", &self.topic.is_some())
            .field("receipt_to", &self.receipt_to.is_some())
            .field("live_only", &self.live_only)
            .field("v1_ok", &self.v1_ok)
            .field("relay", &self.relay.is_some())
            .finish()
    }
}

/// A request to open mailboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The host that the client dialled, in lower case; part of what a key signs.
    pub origin: Box<str>,
    /// Which mailboxes, each with its proof.
    pub openings: Vec<Opening>,
}

/// One mailbox to open.
#[derive(Clone, PartialEq, Eq)]
pub struct Opening {
    /// Which one.
    pub mailbox: MailboxId,
    /// Over what [`crate::protocol::proof::v2_subscribe`] gives, by the key that the mailbox is named by.
    /// `None` for none or one of another length: as good as a wrong one.
    pub signature: Option<[u8; 64]>,
    /// Whether the senders of its blobs may get every receipt they asked for.
    pub tells_senders: bool,
    /// Whether v1 clients may go on to open it without a proof.
    pub no_pin: bool,
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_signed = self.signature.is_some();
        write!(f, "Opening(signed: {is_signed})")
    }
}

/// A sender's second thoughts about a blob whose secret it kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// The blob's mailbox.
    pub mailbox: MailboxId,
    /// What gives the right to it: the blob's secret for a cancel, and for an extension what is made from
    /// that ([`crate::protocol::proof::v2_extend_key`]).
    pub shown: [u8; 32],
    /// What to do.
    pub kind: WithdrawalKind,
}

impl Withdrawal {
    /// The blob that it is about.
    pub fn id(&self) -> BlobId {
        match self.kind {
            WithdrawalKind::Extend(_) => proof::v2_extendable_blob_id(&self.mailbox, &self.shown),
            WithdrawalKind::Cancel => proof::v2_blob_id(&self.mailbox, &self.shown),
        }
    }
}

impl std::fmt::Debug for Withdrawal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Withdrawal({:?})", self.kind)
    }
}

/// What a [`Withdrawal`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithdrawalKind {
    /// Keep it for so long from now, if that is longer than it is kept now.
    Extend(Duration),
    /// Take it back.
    Cancel,
}

/// What a relay says: the answers to requests, then what comes without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Who we are and what we serve: the first frame of a connection, and the answer to a hello.
    Welcome(Box<Welcome>),
    /// The request was refused.
    Refused(Refused),
    /// The blob of this request is durable.
    Stored {
        /// From then on it is not delivered any more.
        expires_at: Timestamp,
        /// It was stored before; nothing was added.
        duplicate: bool,
    },
    /// A live-only blob was handed to a subscriber's queue.
    Handed,
    /// What became of each opening, in the order asked.
    Subscribed(Vec<Result<Opened, &'static str>>),
    /// The window that is in force.
    Windowed {
        /// Blobs.
        blobs: u32,
        /// Bytes.
        bytes: u64,
    },
    /// The request is done, and there is nothing to say about it.
    Done(Done),
    /// What was deleted in each mailbox, in the order asked.
    Purged(Vec<PurgedMailbox>),
    /// The recovery proof of this request is durable.
    RecoveryKept {
        /// From then on it is not shown any more.
        expires_at: Timestamp,
    },
    /// The recovery proofs that were found.
    RecoveryFound {
        /// The newest first.
        proofs: Vec<FoundProof>,
        /// Whether some were left out because the frame would be too large.
        more: bool,
    },
    /// A blob for the client.
    Blob(BlobDelivery),
    /// A receipt for the client.
    Receipt(ReceiptDelivery),
    /// Everything stored in these mailboxes before now has been delivered.
    CaughtUp(Vec<MailboxId>),
    /// The relay is about to stop.
    GoAway(GoAway),
}

/// Requests whose answer says only that they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The mailboxes are closed.
    Unsubscribed,
    /// The deletion is durable.
    Acknowledged,
    /// Durable, whether or not the blob was still there.
    Extended,
    /// Durable, whether or not the blob was still there.
    Cancelled,
    /// The pin is off.
    Unpinned,
    /// Here we are.
    Pong,
}

/// Who the relay is and what it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Its public key.
    pub relay_id: [u8; 32],
    /// Its version.
    pub server_version: Cow<'static, str>,
    /// This connection's own; part of what a key signs.
    pub challenge: [u8; 32],
    /// What it takes.
    pub limits: Limits,
    /// How often it pings; a client that hears nothing for two and a half times as long is alone.
    pub keepalive: Duration,
    /// What it serves beyond version 2.0.
    pub features: Vec<Cow<'static, str>>,
    /// That it holds the key of `relay_id`, over [`crate::protocol::proof::v2_welcome`]; `None` unless the
    /// client asked for it.
    pub proof: Option<[u8; 64]>,
}

/// What a relay takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a blob.
    pub blob_bytes_max: u64,
    /// Submits a minute; zero for no limit.
    pub submits_per_minute: u32,
    /// Kept for so long when a submit does not say.
    pub ttl_default: Duration,
    /// The longest that a submit may say.
    pub ttl_max: Duration,
    /// Mailboxes that one connection may have open.
    pub mailboxes_max: u32,
    /// The window that a connection begins with.
    pub window_default: (u32, u64),
    /// The largest window.
    pub window_max: (u32, u64),
    /// Blobs a mailbox may hold; zero for no limit.
    pub mailbox_blobs_max: u64,
    /// Bytes a mailbox may hold; zero for no limit.
    pub mailbox_bytes_max: u64,
}

/// An opened mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Blobs that wait in it, up to 1,000.
    pub pending: u32,
    /// What counts against its quota: blobs.
    pub blobs: u64,
    /// What counts against its quota: bytes.
    pub bytes: u64,
}

/// What a purge deleted in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgedMailbox {
    /// Which one.
    pub mailbox: MailboxId,
    /// Blobs.
    pub blobs: u64,
    /// Receipts.
    pub receipts: u64,
}

/// A recovery proof, as it was found.
#[derive(Clone, PartialEq, Eq)]
pub struct FoundProof {
    /// The hash of the lost key.
    pub key_hash: [u8; 32],
    /// The proof.
    pub proof: Bytes,
    /// When it was stored.
    pub stored_at: Timestamp,
}

impl std::fmt::Debug for FoundProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FoundProof({} bytes)", self.proof.len())
    }
}

/// A blob on its way to a subscriber.
#[derive(Clone, PartialEq, Eq)]
pub struct BlobDelivery {
    /// Its id within the mailbox.
    pub id: BlobId,
    /// The mailbox it lies in.
    pub mailbox: MailboxId,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// From then on it is not delivered any more; `None` for a live-only blob, which is not stored.
    pub expires_at: Option<Timestamp>,
    /// Whether this process knows that it was delivered before.
    pub redelivered: bool,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for BlobDelivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobDelivery({} bytes)", self.body.len())
    }
}

/// What became of a blob, for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptDelivery {
    /// The mailbox that the receipt lies in.
    pub mailbox: MailboxId,
    /// Its own id there; acknowledging it deletes the receipt.
    pub receipt_id: BlobId,
    /// The blob that it is about.
    pub id: BlobId,
    /// What became of it.
    pub kind: ReceiptKind,
    /// When, rounded down to the minute.
    pub at: Timestamp,
}

/// What may become of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptKind {
    /// It was written to a connection of a recipient.
    Delivered,
    /// A recipient acknowledged it.
    Acknowledged,
    /// Its time was up.
    Expired,
    /// It was purged, replaced or cancelled.
    Removed,
    /// Its row was damaged.
    Lost,
}

/// Word that the relay is about to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// Why.
    pub reason: GoAwayReason,
    /// When to come back; drawn for each connection, so that they do not come at once.
    pub reconnect_after: Duration,
    /// Relays that serve in its place (`RELAY_ALTERNATES`).
    pub alternates: std::sync::Arc<[String]>,
}

/// Why a client shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAwayReason {
    /// The relay stops.
    Draining,
    /// The relay has too much to do.
    Overloaded,
}
