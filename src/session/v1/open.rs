//! How a v1 session begins: the first frame is a handshake, which opens a mailbox.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::{self, TimeOfDay};
use crate::hub::Inbox;
use crate::ids::{ConnectionId, MailboxId};
use crate::protocol::close::Close;
use crate::protocol::v1::message::{Handshake, HandshakeProof};
use crate::protocol::v1::{self, Incoming};
use crate::service::device_sync::DeviceSubscription;
use crate::service::pins::PinShare;
use crate::service::refusal::Refusal;
use crate::service::subscribe::{NonceRefused, Subscription};
use crate::service::{OrderKey, Service, View};
use crate::session::mailboxes::{Cursor, Mailboxes};
use crate::session::reader::{Heard, Received, TEXT, receive};
use crate::session::{Ended, Parts, only};
use crate::socket::line::Line;

/// What the handshake settled.
pub(in crate::session) struct Opened {
    pub(in crate::session) client_id: MailboxId,
    pub(in crate::session) mailbox: MailboxId,
    /// Whether the handshake proved that `client_id` is the client's own.
    pub(in crate::session) is_proven: bool,
    pub(in crate::session) tells_senders: bool,
    pub(in crate::session) device: Option<Device>,
    pub(in crate::session) mailbox_as_spelt: Arc<str>,
    pub(in crate::session) subscription: Subscription,
    /// The one that it reads.
    pub(in crate::session) mailboxes: Arc<Mailboxes>,
    pub(in crate::session) inbox: Arc<Inbox>,
}

/// A device that receives messages from the others of its identity.
pub(in crate::session) struct Device {
    pub(in crate::session) id: MailboxId,
    pub(in crate::session) id_as_spelt: Arc<str>,
    pub(in crate::session) client_as_spelt: Arc<str>,
    pub(in crate::session) subscription: DeviceSubscription,
    pub(in crate::session) inbox: Arc<Inbox>,
}

/// Whom messages of other devices go to.
#[derive(Clone, Copy)]
pub(in crate::session) struct ToDevice<'a> {
    pub(in crate::session) opened: &'a Opened,
    pub(in crate::session) device: &'a Device,
}

/// Pings before the first frame, at the most.
const SIGNS_MAX: u32 = 100;

/// The largest first frame: a handshake has about 1 KiB.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Waits for the first frame, which must be a handshake.
pub(in crate::session) async fn first_frame(
    line: &Line,
    parts: &Parts,
) -> Result<Box<Handshake>, Ended> {
    let reading = async {
        // The answer to the upgrade request waits for what is written first, and here the client is to speak.
        let answered = poll_fn(|context| line.poll_flush(context)).await;
        answered.map_err(|_| Ended::Lost)?;
        let mut signs = 0;
        loop {
            match receive(line).await {
                Received::Sign if signs >= SIGNS_MAX => {
                    parts.metrics.floods_closed_total.increment(1);
                    return Err(Ended::ByRelay(Close::Flood));
                }
                Received::Sign => signs += 1,
                Received::Message(heard) => return Ok(heard),
                Received::Over(ended) => return Err(ended),
            }
        }
    };
    let heard = tokio::select! {
        heard = reading => heard?,
        () = tokio::time::sleep(parts.settings.first_frame_timeout) => return Err(Ended::ByRelay(Close::FirstFrameLate)),
        () = parts.shutdown.draining() => return Err(Ended::ByRelay(Close::Drain)),
    };
    if matches!(&heard, Heard::Frame(frame) if !is_noise(frame)) {
        parts.metrics.messages_received_total.increment(1);
    }
    let bytes_max = parts.settings.message_bytes_max.min(HANDSHAKE_BYTES_MAX);
    handshake(heard, bytes_max).map_err(Ended::ByRelay)
}

/// The handshake that a session begins with, or how it ends.
fn handshake(first: Heard, bytes_max: usize) -> Result<Box<Handshake>, Close> {
    let incoming = match first {
        Heard::Frame(frame) if is_noise(&frame) => return Err(Close::NotOffered),
        Heard::Frame(frame) if frame.len() > bytes_max => return Err(Close::TooLarge),
        Heard::Frame(frame) => v1::decode(&frame),
        Heard::Text => Incoming::Garbage { why: TEXT },
    };
    match incoming {
        Incoming::Handshake(handshake) => Ok(handshake),
        Incoming::Invalid { why, .. } => Err(Close::Protocol(why)),
        Incoming::Request { .. } | Incoming::Garbage { .. } | Incoming::Ignored => {
            Err(Close::Protocol(
                "the first frame must be a Handshake with a client_id of 64 hex digits",
            ))
        }
    }
}

/// The start of a Noise handshake (`protocol-v1.md`, 6), which this relay does not offer.
fn is_noise(frame: &[u8]) -> bool {
    frame.starts_with(&[0x00, 0x56, 0x32])
}

/// Charges the opening, checks the proof and joins the mailbox.
pub(in crate::session) async fn open(
    handshake: &Handshake,
    address: IpAddr,
    inbox: Arc<Inbox>,
    parts: &Parts,
) -> Result<Opened, Close> {
    let (service, connection) = (&parts.service, ConnectionId::next());
    service
        .charge_openings(connection, address, 1)
        .map_err(|_| Close::TooManyOpenings)?;
    let is_proven = verify(handshake, address, parts).await?;
    may_open(handshake, is_proven, address, service)
        .await
        .map_err(|refusal| {
            refusal.unwrap_or(Close::Slow("the relay's storage is unavailable; retry"))
        })?;
    let mailbox = handshake.mailbox();
    let subscription = service.subscribe(&mailbox, address, connection, Arc::clone(&inbox));
    let from = Cursor::After(OrderKey::START);
    Ok(Opened {
        client_id: handshake.client_id,
        mailbox,
        is_proven,
        tells_senders: !handshake.suppress_presence,
        device: device(handshake, connection, service),
        mailbox_as_spelt: Arc::clone(&handshake.mailbox_as_spelt),
        mailboxes: only((subscription.mailbox, mailbox), View::V1, from),
        subscription,
        inbox,
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
    let unproven: Vec<_> = unproven_id
        .into_iter()
        .chain(handshake.routing_token)
        .collect();
    if !unproven.is_empty() {
        let are_pinned = service.are_pinned(&unproven).await.map_err(|_| None)?;
        if are_pinned.contains(&true) {
            return Err(Some(Close::Pinned));
        }
    }
    if is_proven {
        // Its one pin is charged to the address alone.
        let (ids, share) = ([handshake.client_id], PinShare::default());
        let pinned = service.pin(&ids, address, &share).await;
        if let Some(Err(refusal)) = pinned.into_iter().next() {
            return Err(Some(not_pinned(&refusal)));
        }
    }
    Ok(())
}

/// Why a client that has proved itself is not let in: strangers would be, if its id were not pinned.
fn not_pinned(refusal: &Refusal) -> Close {
    Close::Slow(match refusal {
        Refusal::RateLimited { .. } => {
            "your network has opened too many ids with a signature for the first time today; retry later"
        }
        Refusal::RelayFull => {
            "the relay cannot remember more signed ids (RELAY_PINS_MAX); retry later"
        }
        _ => "the relay's storage is unavailable; retry",
    })
}

fn device(handshake: &Handshake, connection: ConnectionId, service: &Service) -> Option<Device> {
    let id = handshake.device_id?;
    let inbox = Arc::new(Inbox::default());
    let client = &handshake.client_id;
    Some(Device {
        id,
        id_as_spelt: Arc::clone(handshake.device_as_spelt.as_ref()?),
        client_as_spelt: Arc::clone(&handshake.client_as_spelt),
        subscription: service.subscribe_device(client, &id, connection, Arc::clone(&inbox)),
        inbox,
    })
}

/// Checks the proof of a handshake, if it brings one. An address with too many bad ones is refused
/// before the check; a handshake without a proof has nothing to check and costs nothing here.
/// Tells whether the `client_id` is proven.
async fn verify(handshake: &Handshake, address: IpAddr, parts: &Parts) -> Result<bool, Close> {
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
    if let Err(error) = auth::verify_v1_handshake(handshake, TimeOfDay::of(&parts.clock)) {
        tracing::debug!(%error, "handshake refused");
        return Err(Close::NotProven);
    }
    let burnt = match nonce {
        Some(nonce) => parts.service.burn_nonce(nonce).await,
        None => Ok(()),
    };
    match burnt {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::protocol::v1::Tag;
    use crate::protocol::v1::client::{ClientHandshake, ClientRequest, encode_request};
    use bytes::Bytes;

    fn frame(request: ClientRequest<'_>) -> Heard {
        let tag = Tag::new("a request");
        Heard::Frame(encode_request(&tag, request, Timestamp::default()))
    }

    #[test]
    fn a_session_begins_with_a_handshake_or_not_at_all() {
        let client_id = MailboxId::from_bytes([1; 32]);
        let greeting = ClientHandshake {
            client_id,
            routing_token: None,
            suppress_presence: false,
            proof: HandshakeProof::Unsigned,
        };
        let greeting = || frame(ClientRequest::Handshake(&greeting));
        assert_eq!(handshake(greeting(), 10_000).unwrap().client_id, client_id);
        assert_eq!(handshake(greeting(), 100).unwrap_err(), Close::TooLarge);
        let submit = ClientRequest::Submit {
            recipient: client_id,
            body: b"blob",
        };
        let ignored = br#"{"version":1,"message_id":"x","timestamp":1,"payload":{"type":"Later"}}"#;
        let length = u32::try_from(ignored.len()).unwrap().to_be_bytes();
        for first in [
            frame(submit),
            Heard::Frame([&length, &ignored[..]].concat().into()),
            Heard::Frame(Bytes::from_static(b"no JSON")),
            Heard::Text,
        ] {
            let closed = handshake(first, 10_000);
            assert!(matches!(closed, Err(Close::Protocol(_))), "{closed:?}");
        }
        let noise = Heard::Frame(Bytes::from_static(&[0x00, 0x56, 0x32, 1]));
        assert_eq!(handshake(noise, 2).unwrap_err(), Close::NotOffered);
    }
}
