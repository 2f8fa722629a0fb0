//! What clients and relay say to each other: one enum per direction, the same for every version.
//!
//! The codecs (`v1`, `v2`) turn bytes into these values and back. Nothing here knows a socket, a
//! clock or a rule. What only v2 says is spelt out in [`super::v2::message`].

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::v2::message::{
    BlobDelivery, FoundProof, GoAway, Opened, PurgedMailbox, ReceiptDelivery, SubmitTerms,
    Subscribe, Welcome, Withdrawal,
};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};

/// The name a client gave to its request; the answer carries it back.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Tag {
    /// A v1 `message_id`.
    Name(Box<str>),
    /// A v2 `request`; zero where no answer is wanted.
    Number(u32),
}

impl Tag {
    /// The name as v1 has it; empty for a number, which v1 never sees.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Number(_) => "",
        }
    }

    /// The number as v2 has it; zero for a name, which v2 never sees.
    pub fn number(&self) -> u32 {
        match self {
            Self::Name(_) => 0,
            Self::Number(number) => *number,
        }
    }
}

impl std::fmt::Debug for Tag {
    // A client may put anything here, so it is never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tag(…)")
    }
}

/// One frame from a client, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every frame is the large variant, and it is moved, not kept"
)]
pub enum Incoming {
    /// A request, understood.
    Request {
        /// Its name.
        tag: Tag,
        /// What is asked.
        request: Request,
    },
    /// The frame has a name but does not say anything that can be done.
    Invalid {
        /// Its name.
        tag: Tag,
        /// What is wrong, in words that quote nothing of the frame.
        why: &'static str,
    },
    /// Not even a name can be read.
    Garbage {
        /// What is wrong, in words that quote nothing of the frame.
        why: &'static str,
    },
    /// Well formed, but a type that this relay does not serve or that only a relay sends.
    Ignored,
    /// Well formed, and asks for something that this build does not know. v2 answers that.
    Unsupported {
        /// Its name.
        tag: Tag,
    },
}

/// What a client may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The first frame: who is there, and which mailbox it opens.
    Handshake(Box<Handshake>),
    /// Take this blob.
    Submit(Submit),
    /// The blob with this id has arrived. `None` when the id is none that the relay ever made.
    Acknowledge(Option<BlobId>),
    /// Take this blob for another device of the same identity.
    DeviceSync(DeviceSync),
    /// The device-sync blob with this id has arrived. `None` when the id is none that the relay ever
    /// made.
    DeviceSyncAcknowledge(Option<BlobId>),
    /// Keep this recovery proof.
    RecoveryStore(RecoveryProof),
    /// Say which recovery proofs are kept under these hashes.
    RecoveryQuery(RecoveryQuery),
    /// Delete what is kept for this client.
    Purge(Purge),
    /// Tell this mailbox that an account is no more.
    AccountRevoked(AccountRevoked),
    /// v2: who is there and what it understands; the welcome is said again.
    Hello,
    /// v2: open these mailboxes.
    Subscribe(Subscribe),
    /// v2: close these mailboxes.
    Unsubscribe(Vec<MailboxId>),
    /// v2: how much may be in flight on this connection.
    Window {
        /// Blobs.
        blobs: u32,
        /// Bytes.
        bytes: u64,
    },
    /// v2: these blobs and receipts have arrived.
    AcknowledgeEach(Vec<(MailboxId, BlobId)>),
    /// v2: keep a blob for longer, or take it back.
    Withdraw(Withdrawal),
    /// v2: delete what these mailboxes hold.
    PurgeMailboxes(Vec<MailboxId>),
    /// v2: this mailbox may be opened without a proof again.
    Unpin(MailboxId),
    /// v2: are you there?
    Ping,
}

/// A v1 handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Who is there.
    pub client_id: MailboxId,
    /// `client_id` as the client spelt it; device sync repeats this spelling.
    pub client_as_spelt: Arc<str>,
    /// Which of its devices; without it there is no device sync.
    pub device_id: Option<MailboxId>,
    /// `device_id` as the client spelt it; device sync repeats this spelling.
    pub device_as_spelt: Option<Arc<str>>,
    /// When present, the mailbox to open instead of `client_id`.
    pub routing_token: Option<MailboxId>,
    /// The opened mailbox as the client spelt it; deliveries repeat this spelling.
    pub mailbox_as_spelt: Arc<str>,
    /// Senders get no notice because of this connection.
    pub suppress_presence: bool,
    /// Whether and how the client proves that `client_id` is its own.
    pub proof: HandshakeProof,
}

impl Handshake {
    /// The mailbox that this handshake opens.
    pub fn mailbox(&self) -> MailboxId {
        self.routing_token.unwrap_or(self.client_id)
    }
}

/// How a v1 handshake is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandshakeProof {
    /// None of the four fields is there.
    Unsigned,
    /// Some but not all are there, or one has the wrong shape: never taken as unsigned.
    Partial,
    /// All four are there.
    Signed {
        /// Ed25519 public key; must equal `client_id`.
        public_key: [u8; 32],
        /// Fresh random bytes.
        nonce: [u8; 32],
        /// Unix seconds by the client's clock.
        timestamp_secs: u64,
        /// Over what `protocol::proof` gives.
        signature: [u8; 64],
    },
}

/// A blob handed in.
#[derive(Clone, PartialEq, Eq)]
pub struct Submit {
    /// Whose mailbox.
    pub recipient: MailboxId,
    /// Its id, which v2 senders choose; v1 names none, and the relay makes one from the frame.
    pub id: Option<BlobId>,
    /// v1: who says to have sent it, as it stands in the frame, for clients that can not read a
    /// delivery without it. Never empty.
    pub sender_id: Option<Box<str>>,
    /// v2: what is asked beside storing it.
    pub terms: SubmitTerms,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for Submit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Submit({} bytes)", self.body.len())
    }
}

/// A blob handed in by one device for another of the same identity.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceSync {
    /// Whose devices they are. Whether it is the client's own identity is for the session to see.
    pub identity: MailboxId,
    /// The device that shall have it.
    pub target_device: MailboxId,
    /// The device that hands it in, as it stands in the frame; any text.
    pub sender_device: Box<str>,
    /// The client's own count, by which what waits is ordered.
    pub version: u64,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for DeviceSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSync({} bytes)", self.body.len())
    }
}

/// A proof kept for whoever lost the key and knows the hash.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryProof {
    /// The hash of the lost key.
    pub key_hash: [u8; 32],
    /// The proof; as opaque as a blob.
    pub proof: Bytes,
}

impl std::fmt::Debug for RecoveryProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecoveryProof({} bytes)", self.proof.len())
    }
}

/// Hashes in one query, at the most; those behind are left out.
pub const RECOVERY_HASHES_MAX: usize = 50;

/// A question for recovery proofs.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryQuery {
    /// The hashes asked for, each once, in the order of the frame; at most [`RECOVERY_HASHES_MAX`].
    pub key_hashes: Vec<[u8; 32]>,
    /// Whether more hashes were asked for.
    pub is_cut: bool,
}

impl std::fmt::Debug for RecoveryQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecoveryQuery({} hashes)", self.key_hashes.len())
    }
}

/// What to delete beside the blobs of the opened mailbox.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    /// All that waits for any device of the client.
    pub device_sync: bool,
    /// The client's recovery proof under this hash.
    pub recovery: Option<[u8; 32]>,
}

impl std::fmt::Debug for Purge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The hash would tell whose proof it is.
        f.debug_struct("Purge")
            .field("device_sync", &self.device_sync)
            .field("recovery", &self.recovery.is_some())
            .finish()
    }
}

/// Word that an account is no more. It travels on as a blob whose body is a frame.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountRevoked {
    /// Whose mailbox.
    pub recipient: MailboxId,
    /// The whole frame, written anew, its length prefix included.
    pub frame: Bytes,
}

impl std::fmt::Debug for AccountRevoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccountRevoked({} bytes)", self.frame.len())
    }
}

/// One frame to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// v1: the handshake was accepted.
    HandshakeAccepted,
    /// v2: the first frame of a connection, and the answer to a hello.
    Welcome {
        /// The hello's name; `None` for the first frame.
        tag: Option<Tag>,
        /// Who we are and what we serve.
        welcome: Box<Welcome>,
    },
    /// The blob of this request is durable.
    Stored {
        /// The request's name.
        tag: Tag,
        /// From then on it is not delivered any more.
        expires_at: Timestamp,
        /// It was stored before; nothing was added.
        duplicate: bool,
    },
    /// The request was refused.
    Refused {
        /// The request's name; `None` when it could not be read.
        tag: Option<Tag>,
        /// Why.
        refused: Refused,
    },
    /// A blob for the client.
    Delivery(Delivery),
    /// A blob from another device of the client.
    DeviceSync(DeviceSyncDelivery),
    /// What became of a blob that the client had submitted.
    Notice {
        /// The name of the request that submitted it.
        tag: Tag,
        /// The blob.
        blob_id: BlobId,
        /// What became of it.
        status: NoticeStatus,
    },
    /// The recovery proofs that were found.
    RecoveryProofs {
        /// In the order in which the client shall see them.
        proofs: Vec<RecoveryProof>,
    },
    /// What a purge has deleted.
    Purged {
        /// The request's name.
        tag: Tag,
        /// Blobs of the opened mailbox.
        blobs_deleted: u64,
        /// Blobs for the client's devices.
        device_sync_deleted: u64,
        /// Recovery proofs.
        recovery_proofs_deleted: u64,
    },
    /// The recovery proof of this request is durable.
    RecoveryKept {
        /// The request's name.
        tag: Tag,
        /// From then on it is not shown any more.
        expires_at: Timestamp,
    },
    /// v2: a live-only blob was handed to a subscriber's queue.
    Handed {
        /// The request's name.
        tag: Tag,
    },
    /// v2: what became of each opening, in the order asked.
    Subscribed {
        /// The request's name.
        tag: Tag,
        /// One for each mailbox.
        openings: Vec<Result<Opened, &'static str>>,
    },
    /// v2: the window that is in force.
    Windowed {
        /// The request's name.
        tag: Tag,
        /// Blobs.
        blobs: u32,
        /// Bytes.
        bytes: u64,
    },
    /// v2: the request is done, and there is nothing to say about it.
    Done {
        /// The request's name.
        tag: Tag,
        /// Which kind of request it was.
        done: Done,
    },
    /// v2: what was deleted in each mailbox.
    PurgedMailboxes {
        /// The request's name.
        tag: Tag,
        /// In the order asked.
        mailboxes: Vec<PurgedMailbox>,
    },
    /// v2: the recovery proofs that were found.
    RecoveryFound {
        /// The request's name.
        tag: Tag,
        /// The newest first.
        proofs: Vec<FoundProof>,
        /// Whether some were left out because the frame would be too large.
        more: bool,
    },
    /// v2: a blob for the client.
    Blob(BlobDelivery),
    /// v2: a receipt for the client.
    Receipt(ReceiptDelivery),
    /// v2: everything stored in these mailboxes before now has been delivered.
    CaughtUp {
        /// Which mailboxes.
        mailboxes: Vec<MailboxId>,
    },
    /// v2: the relay is about to stop.
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

/// What became of a blob, as a notice tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeStatus {
    /// It was written to a connection of its recipient.
    Delivered,
    /// The recipient has acknowledged it.
    ReceivedByRecipient,
}

/// A refusal as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One word from the table in `docs/errors.md`, lower case.
    pub code: &'static str,
    /// What is wrong and what to do.
    pub message: Cow<'static, str>,
    /// When to try again; `None` when an unchanged repeat can not succeed.
    pub retry_after: Option<Duration>,
}

/// A blob on its way to its recipient.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id; acknowledging it deletes the blob.
    pub id: BlobId,
    /// The mailbox as the recipient spelt it.
    pub mailbox_as_spelt: Arc<str>,
    /// What the submitting frame said; `None`, never empty, when it said nothing.
    pub sender_id: Option<Box<str>>,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes)", self.body.len())
    }
}

/// A blob on its way from one device to another.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceSyncDelivery {
    /// Its id; acknowledging it deletes the blob.
    pub id: BlobId,
    /// The identity as the recipient spelt it.
    pub identity_as_spelt: Arc<str>,
    /// The receiving device as the recipient spelt it.
    pub target_as_spelt: Arc<str>,
    /// The device that handed it in, as it was spelt there.
    pub sender_device: Box<str>,
    /// The sender's own count.
    pub version: u64,
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for DeviceSyncDelivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSyncDelivery({} bytes)", self.body.len())
    }
}
