//! What a v1 client and a relay say to each other, as values.

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{RecoveryProof, RecoveryQuery, Refused};

/// The name a client gave to its request (`message_id`); the answer carries it back.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    /// A request's name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// As it stands in the frames.
    pub fn name(&self) -> &str {
        &self.0
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
pub enum Incoming {
    /// The first frame: who is there, and which mailbox it opens. Later ones are ignored.
    Handshake(Box<Handshake>),
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
    /// Well formed, and nothing is done for it: a type that this relay does not serve or that only a relay
    /// sends, or word that something has arrived which no relay ever sent.
    Ignored,
}

/// What a client may ask for once it has said who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Take this blob.
    Submit(Submit),
    /// The blob with this id has arrived.
    Acknowledge(BlobId),
    /// Take this blob for another device of the same identity.
    DeviceSync(DeviceSync),
    /// The device-sync blob with this id has arrived.
    DeviceSyncAcknowledge(BlobId),
    /// Keep this recovery proof.
    RecoveryStore(RecoveryProof),
    /// Say which recovery proofs are kept under these hashes.
    RecoveryQuery(RecoveryQuery),
    /// Delete what is kept for this client.
    Purge(Purge),
    /// Tell this mailbox that an account is no more.
    AccountRevoked(AccountRevoked),
}

/// Who a client is.
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

/// How a handshake is signed.
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
    /// Who says to have sent it, as it stands in the frame, for clients that cannot read a delivery
    /// without it. Never empty.
    pub sender_id: Option<Box<str>>,
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

/// What a relay says: the answers to requests, then what comes without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The handshake was accepted.
    HandshakeAccepted,
    /// What was handed in is durable.
    Stored,
    /// The request was refused.
    Refused(Refused),
    /// The recovery proofs that were found, in the order in which the client shall see them.
    RecoveryProofs(Vec<RecoveryProof>),
    /// What a purge has deleted.
    Purged {
        /// Blobs of the opened mailbox.
        blobs_deleted: u64,
        /// Blobs for the client's devices.
        device_sync_deleted: u64,
        /// Recovery proofs.
        recovery_proofs_deleted: u64,
    },
    /// A blob for the client.
    Delivery(Delivery),
    /// A blob from another device of the client.
    DeviceSync(DeviceSyncDelivery),
    /// What became of a blob that the client had submitted, under the name of that submit.
    Notice {
        /// The blob.
        blob_id: BlobId,
        /// What became of it.
        status: NoticeStatus,
    },
}

/// What became of a blob, as a notice tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeStatus {
    /// It was written to a connection of its recipient.
    Delivered,
    /// The recipient has acknowledged it.
    ReceivedByRecipient,
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
