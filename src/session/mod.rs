//! One connected client, from hello to goodbye.
//!
//! `state` decides (pure), `reader` and `writer` carry out, each in a loop of its own within one
//! task, so that neither can block the other. Between them lie the `outbox` (the answer lane) and
//! the `feed` (the delivery lane). `window` knows what is in flight, `keepalive` when to ping.

pub mod feed;
pub mod keepalive;
pub mod outbox;
mod reader;
pub mod state;
pub mod window;
mod writer;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tracing::Instrument as _;

use crate::auth;
use crate::clock::Clock;
use crate::hub::Wakes;
use crate::ids::{ConnectionId, MailboxId, SessionLabel};
use crate::metrics::Metrics;
use crate::protocol::close::Close;
use crate::protocol::message::{Handshake, HandshakeProof, Incoming, Outgoing};
use crate::protocol::v1;
use crate::service::Service;
use crate::service::View;
use crate::service::device_sync::DeviceSubscription;
use crate::service::subscribe::{NonceRefused, Subscription};
use crate::shutdown::Shutdown;
use crate::socket::{Connection, Message, Socket, linger};
use feed::Feed;
use keepalive::Keepalive;
use outbox::{Outbox, Owed};
use reader::{Reader, Received, receive};
use state::{State, Step};
use writer::Writer;

/// How long we try to hand a close frame to a client.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a closed connection is still read, so that the client gets our close frame.
const LINGER: Duration = Duration::from_secs(2);

/// What every session stands on.
pub struct Parts {
    /// The rules.
    pub service: Arc<Service>,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the relay is on its way out.
    pub shutdown: Shutdown,
    /// The bounds of a session.
    pub settings: Settings,
}

/// The bounds of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `RELAY_MAX_MESSAGE_SIZE`.
    pub message_bytes_max: usize,
    /// The first frame must have come within this time.
    pub first_frame_timeout: Duration,
    /// A frame must be taken by the client within this time, and a second for each 64 KiB.
    pub write_timeout: Duration,
    /// `RELAY_KEEPALIVE_SECS`.
    pub keepalive: Duration,
    /// `RELAY_IDLE_TIMEOUT_SECS`.
    pub idle_timeout: Duration,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The client closed it.
    ByClient,
    /// The connection broke.
    Lost,
    /// We close it.
    ByRelay(Close),
    /// The relay stops at once.
    Stopped,
}

/// What the handshake settled.
struct Opened {
    client_id: MailboxId,
    mailbox: MailboxId,
    /// Whether the handshake proved that `client_id` is the client's own.
    is_proven: bool,
    tells_senders: bool,
    device: Option<Device>,
    mailbox_as_spelt: Arc<str>,
    subscription: Subscription,
}

/// A device that receives messages from the others of its identity.
struct Device {
    id: MailboxId,
    id_as_spelt: Arc<str>,
    client_as_spelt: Arc<str>,
    subscription: DeviceSubscription,
    wakes: Arc<Wakes>,
}

/// What the two loops share.
struct Shared {
    outbox: Outbox,
    /// Nothing awaits inside.
    state: Mutex<State>,
    /// When the client was last heard. Nothing awaits inside.
    heard: Mutex<Instant>,
    /// A request was read and is not in the outbox yet.
    is_carrying_out: AtomicBool,
    /// Told whenever a draining session may have become free to go.
    settled: tokio::sync::Notify,
}

/// Serves a client until it leaves, breaks a rule or the relay stops.
pub async fn run(connection: Connection, parts: Arc<Parts>) {
    let label = SessionLabel::random();
    parts.metrics.connections_total.increment(1);
    parts.metrics.connections_active.increment(1.0);
    let Connection {
        socket,
        address,
        permit,
    } = connection;
    let ended = async {
        let ended = serve(socket, address, &parts).await;
        tracing::debug!(?ended, "session ended");
        ended
    }
    .instrument(tracing::info_span!("session", %label))
    .await;
    if !matches!(
        ended,
        Ended::ByClient | Ended::Stopped | Ended::ByRelay(Close::Drain)
    ) {
        parts.metrics.connection_errors_total.increment(1);
    }
    parts.metrics.connections_active.decrement(1.0);
    drop(permit);
}

async fn serve(socket: Socket, address: IpAddr, parts: &Arc<Parts>) -> Ended {
    let (mut sink, mut stream) = socket.split();
    let stopped = parts.shutdown.stopped();
    tokio::pin!(stopped);
    let ended = tokio::select! {
        ended = converse(&mut sink, &mut stream, address, parts) => ended,
        () = &mut stopped => Ended::Stopped,
    };
    tokio::select! {
        () = say_goodbye(sink, stream, ended, parts) => {}
        () = stopped => {}
    }
    ended
}

async fn converse(
    sink: &mut SplitSink<Socket, Message>,
    stream: &mut SplitStream<Socket>,
    address: IpAddr,
    parts: &Arc<Parts>,
) -> Ended {
    let mut state = State::default();
    let handshake = match first_frame(stream, &mut state, parts).await {
        Ok(handshake) => handshake,
        Err(ended) => return ended,
    };
    let wakes = Arc::new(Wakes::default());
    let opened = match open(&handshake, address, Arc::clone(&wakes), parts).await {
        Ok(opened) => opened,
        Err(close) => return Ended::ByRelay(close),
    };
    drop(handshake);
    state.opened();
    let shared = Shared::new(state);
    shared
        .outbox
        .push(Owed::Answer(Outgoing::HandshakeAccepted));

    let feed = Feed::new(
        Arc::clone(&parts.service),
        opened.subscription.mailbox,
        View::V1,
        Arc::clone(&wakes),
    );
    let settings = &parts.settings;
    let keepalive = Keepalive::new(
        settings.keepalive,
        settings.idle_timeout,
        rand::random(),
        Instant::now(),
    );
    let mut reader = Reader {
        stream,
        parts,
        shared: &shared,
        opened: &opened,
    };
    let mut writer = Writer {
        sink,
        parts,
        shared: &shared,
        opened: &opened,
        feed,
        device_feed: opened.device.as_ref().map(|device| {
            let mailbox = device.subscription.mailbox;
            Feed::of_device(
                Arc::clone(&parts.service),
                mailbox,
                Arc::clone(&device.wakes),
            )
        }),
        wakes,
        keepalive,
        unflushed: 0,
    };
    tokio::select! {
        ended = reader.run() => ended,
        ended = writer.run() => ended,
    }
}

/// Waits for the first frame, which must be a handshake.
async fn first_frame(
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
async fn open(
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
        .map_err(|refusal| refusal.unwrap_or(Close::Slow("storage does not answer; try again")))?;
    let mailbox = handshake.mailbox();
    Ok(Opened {
        client_id: handshake.client_id,
        mailbox,
        is_proven,
        tells_senders: !handshake.suppress_presence,
        device: device(handshake, connection, service),
        mailbox_as_spelt: Arc::clone(&handshake.mailbox_as_spelt),
        subscription: service.subscribe(&mailbox, address, connection, wakes),
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
            tracing::warn!("an id that proved itself could not be pinned");
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
                "too many signed handshakes; try again in a minute",
            ));
        }
    }
    attempt.succeeded();
    Ok(true)
}

/// Sends the close frame, if it is ours to send, and lets the client read it.
async fn say_goodbye(
    mut sink: SplitSink<Socket, Message>,
    stream: SplitStream<Socket>,
    ended: Ended,
    parts: &Parts,
) {
    let frame = match ended {
        Ended::ByRelay(close) => Some(CloseFrame {
            code: close.code().into(),
            reason: close.reason().into(),
        }),
        Ended::ByClient => None,
        Ended::Lost | Ended::Stopped => return,
    };
    // A client that does not take it within this time does not want it; the connection ends anyway.
    let goodbye = async {
        match frame {
            Some(frame) => sink.send(Message::Close(Some(frame))).await,
            None => sink.flush().await,
        }
    };
    drop(tokio::time::timeout(GOODBYE, goodbye).await);
    if let Ok(socket) = sink.reunite(stream) {
        // In a drain the client has half of the time that is left: it was told, and that is enough.
        let left = parts
            .shutdown
            .deadlines()
            .map(|by| by.all.saturating_duration_since(Instant::now()) / 2);
        linger(socket, left.map_or(LINGER, |left| left.min(LINGER))).await;
    }
}

impl Shared {
    fn new(state: State) -> Self {
        Self {
            outbox: Outbox::default(),
            state: Mutex::new(state),
            heard: Mutex::new(Instant::now()),
            is_carrying_out: AtomicBool::new(false),
            settled: tokio::sync::Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.settled.notify_one();
    }

    fn last_heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_drained(&self) -> bool {
        !self.is_carrying_out.load(Ordering::SeqCst) && self.state().is_drained(self.outbox.len())
    }

    /// By when this session must have ended, once the relay drains.
    fn drain_deadline(&self, parts: &Parts) -> Option<Instant> {
        let deadlines = parts.shutdown.deadlines()?;
        self.state().drain();
        Some(deadlines.sessions)
    }
}
