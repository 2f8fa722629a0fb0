//! How a v1 session begins: the first frame is a handshake, which opens a mailbox.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::stream::SplitStream;

use super::mailboxes::{Cursor, Mailboxes};
use super::reader::{Received, receive};
use super::state::{State, Step};
use super::{Ended, Parts, only};
use crate::auth;
use crate::hub::Wakes;
use crate::ids::{ConnectionId, MailboxId};
use crate::protocol::close::Close;
use crate::protocol::message::{Handshake, HandshakeProof, Incoming};
use crate::protocol::v1;
use crate::service::device_sync::DeviceSubscription;
use crate::service::subscribe::{NonceRefused, Subscription};
use crate::service::{OrderKey, Service, View};
use crate::socket::Socket;

/// What the handshake settled.
pub(super) struct Opened {
    pub(super) client_id: MailboxId,
    pub(super) mailbox: MailboxId,
    /// Whether the handshake proved that `client_id` is the client's own.
    pub(super) is_proven: bool,
    pub(super) tells_senders: bool,
    pub(super) device: Option<Device>,
    pub(super) mailbox_as_spelt: Arc<str>,
    pub(super) subscription: Subscription,
    /// The one that it reads.
    pub(super) mailboxes: Arc<Mailboxes>,
}

/// A device that receives messages from the others of its identity.
pub(super) struct Device {
    pub(super) id: MailboxId,
    pub(super) id_as_spelt: Arc<str>,
    pub(super) client_as_spelt: Arc<str>,
    pub(super) subscription: DeviceSubscription,
    pub(super) wakes: Arc<Wakes>,
}
/// Waits for the first frame, which must be a handshake.
pub(super) async fn first_frame(
    stream: &mut SplitStream<Socket>,
    state: &mut State,
    parts: &Parts,
) -> Result<Box<Handshake>, Ended> {
    let reading = async {
        loop {
            match receive(stream).await {
                Received::Sign => {}
                other => return other,
            }
        }
    };
    let received = tokio::select! {
        received = reading => received,
        () = tokio::time::sleep(parts.settings.first_frame_timeout) => return Err(Ended::ByRelay(Close::FirstFrameLate)),
        () = parts.shutdown.draining() => return Err(Ended::ByRelay(Close::Drain)),
    };
    let step = match received {
        Received::Over(ended) => return Err(ended),
        Received::Frame(frame) if is_noise(&frame) => {
            return Err(Ended::ByRelay(Close::NotOffered));
        }
        Received::Frame(frame) => {
            parts.metrics.messages_received_total.increment(1);
            if frame.len() > parts.settings.message_bytes_max {
                state.on_oversize(None, parts.settings.message_bytes_max)
            } else {
                state.on_frame(v1::decode(&frame))
            }
        }
        Received::Text | Received::Sign => state.on_frame(Incoming::Garbage {
            why: "a text message",
        }),
    };
    match step {
        Step::Greet(handshake) => Ok(handshake),
        Step::Close(_, close) => Err(Ended::ByRelay(close)),
        _ => Err(Ended::ByRelay(Close::Protocol(
            "the first frame must be a Handshake",
        ))),
    }
}

/// The start of a Noise handshake (`protocol-v1.md`, 6), which this relay does not offer.
fn is_noise(frame: &[u8]) -> bool {
    frame.starts_with(&[0x00, 0x56, 0x32])
}

/// Charges the opening, checks the proof and joins the mailbox.
pub(super) async fn open(
    handshake: &Handshake,
    address: IpAddr,
    wakes: Arc<Wakes>,
    parts: &Parts,
) -> Result<Opened, Close> {
    let (service, connection) = (&parts.service, ConnectionId::next());
    service
        .charge_openings(connection, address, 1)
        .map_err(|_| Close::TooManyOpenings)?;
    let is_proven = verify(handshake, address, parts)?;
    may_open(handshake, is_proven, address, service)
        .await
        .map_err(|refusal| {
            refusal.unwrap_or(Close::Slow("the relay's storage is unavailable; retry"))
        })?;
    let mailbox = handshake.mailbox();
    let subscription = service.subscribe(&mailbox, address, connection, wakes);
    let from = Cursor::After(OrderKey::START);
    Ok(Opened {
        client_id: handshake.client_id,
        mailbox,
        is_proven,
        tells_senders: !handshake.suppress_presence,
        device: device(handshake, connection, service),
        mailbox_as_spelt: Arc::clone(&handshake.mailbox_as_spelt),
        mailboxes: only(subscription.mailbox, View::V1, from),
        subscription,
    })
}

/// Refuses what is pinned and not proven, and pins what is proven. `None` when the store fails.
async fn may_open(
    handshake: &Handshake,
    is_proven: bool,
    address: IpAddr,
    service: &Service,
) -> Result<(), Option<Close>> {
    // A signature proves the client_id; a routing_token is always unproven.
    let unproven_id = (!is_proven).then_some(handshake.client_id);
    for id in unproven_id.into_iter().chain(handshake.routing_token) {
        if service.is_pinned(&id).await.map_err(|_| None)? {
            return Err(Some(Close::Pinned));
        }
    }
    if is_proven {
        // Whoever proves itself is let in also while nothing can be written, as on a full disk; the
        // pin is set the next time.
        if service.pin(&handshake.client_id, address).await.is_err() {
            tracing::warn!(
                "cannot save the pin of a proven mailbox; retrying when it is opened next"
            );
        }
    }
    Ok(())
}

fn device(handshake: &Handshake, connection: ConnectionId, service: &Service) -> Option<Device> {
    let id = handshake.device_id?;
    let wakes = Arc::new(Wakes::default());
    let client = &handshake.client_id;
    Some(Device {
        id,
        id_as_spelt: Arc::clone(handshake.device_as_spelt.as_ref()?),
        client_as_spelt: Arc::clone(&handshake.client_as_spelt),
        subscription: service.subscribe_device(client, &id, connection, Arc::clone(&wakes)),
        wakes,
    })
}

/// Checks the proof of a handshake, if it brings one. An address with too many bad ones is refused
/// before the check; a handshake without a proof has nothing to check and costs nothing here.
/// Tells whether the `client_id` is proven.
fn verify(handshake: &Handshake, address: IpAddr, parts: &Parts) -> Result<bool, Close> {
    let allows_unverified = parts.service.v1_allows_unverified();
    // A signature proves the client_id, never a routing_token.
    if !allows_unverified && handshake.routing_token.is_some() {
        return Err(Close::ProofRequired);
    }
    let nonce = match &handshake.proof {
        HandshakeProof::Unsigned if allows_unverified => return Ok(false),
        HandshakeProof::Unsigned => return Err(Close::ProofRequired),
        HandshakeProof::Partial => None,
        HandshakeProof::Signed { nonce, .. } => Some(*nonce),
    };
    let attempt = parts
        .service
        .begin_proof(address)
        .map_err(|_| Close::TooManyFailedProofs)?;
    if let Err(error) = auth::verify_v1_handshake(handshake, parts.clock.now()) {
        tracing::debug!(%error, "handshake refused");
        return Err(Close::NotProven);
    }
    match nonce.map_or(Ok(()), |nonce| parts.service.burn_nonce(nonce)) {
        Ok(()) => {}
        Err(NonceRefused::Used) => return Err(Close::NotProven),
        Err(NonceRefused::Full) => {
            // The proof itself is good, so it costs nothing to bring it again.
            attempt.succeeded();
            return Err(Close::Slow(
                "too many signed handshakes at once; retry in a minute",
            ));
        }
    }
    attempt.succeeded();
    Ok(true)
}
