//! What clients and relay say to each other: one enum per direction, the same for every version.
//!
//! The codecs (`v1`, later `v2`) turn bytes into these values and back. Nothing here knows a socket,
//! a clock or a rule.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{BlobId, MailboxId};

/// The name a client gave to its request; the answer carries it back.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Tag(pub Box<str>);

impl std::fmt::Debug for Tag {
    // A client may put anything here, so it is never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tag(…)")
    }
}

/// One frame from a client, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// A v1 handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Who is there.
    pub client_id: MailboxId,
    /// Which of its devices.
    pub device_id: Option<MailboxId>,
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
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for Submit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Submit({} bytes)", self.body.len())
    }
}

/// One frame to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// The handshake was accepted.
    Welcome,
    /// The blob of this request is durable.
    Stored {
        /// The request's name.
        tag: Tag,
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
    /// The blob.
    pub body: Bytes,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes)", self.body.len())
    }
}
