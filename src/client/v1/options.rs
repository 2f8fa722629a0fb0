//! Who connects to a relay, and the bounds of the connection.

use std::path::PathBuf;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};

use crate::clock::{Clock, Timestamp};
use crate::ids::MailboxId;
use crate::protocol::proof;
use crate::protocol::v1::client::ClientHandshake;
use crate::protocol::v1::message::HandshakeProof;

/// How to connect. Made by [`Options::unsigned`] or [`Options::signed`]; change what you like.
#[derive(Clone)]
pub struct Options {
    client_id: MailboxId,
    identity: Option<SigningKey>,
    /// The mailbox to open instead of the client's own; never proven.
    pub routing_token: Option<MailboxId>,
    /// Senders shall get no notice because of this connection.
    pub suppress_presence: bool,
    /// Whether deliveries are kept for [`Client::next_delivery`](super::Client::next_delivery). Without,
    /// they are dropped unacknowledged and the relay keeps them for the next connection.
    pub keeps_deliveries: bool,
    /// The certificates (PEM) that `wss://` is checked against; the system's when there is none.
    pub authorities: Option<PathBuf>,
    /// The largest frame, in either direction.
    pub message_bytes_max: usize,
    /// How many submits may be without an answer.
    pub in_flight_max: usize,
    /// How many deliveries may wait to be taken.
    pub deliveries_max: usize,
    /// How long connecting may take, the handshake included.
    pub connect_timeout: Duration,
    /// How long a submit may take.
    pub answer_timeout: Duration,
    /// When nothing was heard from the relay for so long, it is asked whether it is there; after the same
    /// time again without a sign the connection counts as lost. The relay pings by itself, every 30
    /// seconds by default, so less than that makes for more traffic. A frame counts as heard when all of
    /// it is there, so leave a slow line the time for a blob.
    pub ping_after: Duration,
    /// Tells the time that goes into frames.
    pub clock: Clock,
}

impl Options {
    /// Says that the client is `client_id` and proves nothing.
    pub fn unsigned(client_id: MailboxId) -> Self {
        Self {
            client_id,
            identity: None,
            routing_token: None,
            suppress_presence: false,
            keeps_deliveries: true,
            authorities: None,
            // Four times the relay's default for one frame.
            message_bytes_max: 4 << 20,
            in_flight_max: 64,
            // A v1 frame of 1 MiB holds at most 512 KiB of blob: 64 of them are 32 MiB.
            deliveries_max: 64,
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            // Twice this is two and a half of the relay's pings, as it waits for us.
            ping_after: Duration::from_millis(37_500),
            clock: Clock::system(),
        }
    }

    /// Proves to be the client whose id is the public key of `identity`.
    pub fn signed(identity: SigningKey) -> Self {
        let client_id = MailboxId::from_bytes(identity.verifying_key().to_bytes());
        Self {
            identity: Some(identity),
            ..Self::unsigned(client_id)
        }
    }

    /// Who connects.
    pub fn client_id(&self) -> MailboxId {
        self.client_id
    }

    pub(super) fn handshake(&self) -> ClientHandshake {
        ClientHandshake {
            client_id: self.client_id,
            routing_token: self.routing_token,
            suppress_presence: self.suppress_presence,
            proof: self
                .identity
                .as_ref()
                .map_or(HandshakeProof::Unsigned, |key| sign(key, self.clock.wall())),
        }
    }
}

fn sign(identity: &SigningKey, now: Timestamp) -> HandshakeProof {
    let nonce: [u8; 32] = rand::random();
    let timestamp_secs = now.secs();
    let signature = identity.sign(&proof::v1_handshake(&nonce, timestamp_secs));
    HandshakeProof::Signed {
        public_key: identity.verifying_key().to_bytes(),
        nonce,
        timestamp_secs,
        signature: signature.to_bytes(),
    }
}
