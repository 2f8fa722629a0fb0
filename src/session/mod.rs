//! One connected client, from hello to goodbye.
//!
//! `state` decides (pure), `reader` and `writer` carry out, each in a loop of its own within one
//! task, so that neither can block the other. Between them lie the `outbox` (the answer lane) and
//! the `feed` (the delivery lane) of the open `mailboxes`. `window` knows what is in flight,
//! `keepalive` when to ping, `attention` how much of the relay's time the client may take for nothing.
//! Both versions go this way; only how a session begins and what its requests ask is told apart: `v1`,
//! `v2`.

mod answers;
mod attention;
pub mod feed;
pub mod keepalive;
pub mod mailboxes;
pub mod outbox;
mod reader;
pub mod state;
mod v1;
mod v2;
pub mod window;
mod writer;

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::hub::Inbox;
use crate::ids::{MailboxHash, MailboxId, SessionLabel};
use crate::metrics::Metrics;
use crate::protocol::Version;
use crate::protocol::close::Close;
use crate::service::{BacklogCursor, Service, View};
use crate::shutdown::Shutdown;
use crate::socket::line::Line;
use crate::socket::watch::Waits;
use crate::socket::{Connection, Message};
use attention::Attention;
use feed::Feed;
use keepalive::Keepalive;
use mailboxes::{Cursor, Mailboxes, ToBegin};
use outbox::{Outbox, Owed};
use reader::Reader;
use state::State;
use v1::open::{self, Opened, ToDevice};
use v2::guest::Guest;
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
    /// Whether the operator was told of clients that dial a name which the upgrade does not name.
    pub has_told_of_origins: AtomicBool,
}

/// The bounds of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `RELAY_MAX_MESSAGE_SIZE`.
    pub message_bytes_max: usize,
    /// The first frame must have come within this time.
    pub first_frame_timeout: Duration,
    /// A connection that was read slowly for so long, because its frames are refused or of no use, is
    /// closed.
    pub slow_reading_max: Duration,
    /// A frame must be taken by the client within this time, and a second for each 64 KiB.
    pub write_timeout: Duration,
    /// `RELAY_KEEPALIVE_SECS`.
    pub keepalive: Duration,
    /// `RELAY_IDLE_TIMEOUT_SECS`.
    pub idle_timeout: Duration,
    /// What v2 clients are told and held to.
    pub v2: V2Settings,
}

/// What v2 clients are told and held to.
#[derive(Debug, Clone)]
pub struct V2Settings {
    /// `RELAY_RATE_LIMIT_PER_MIN`.
    pub submits_per_minute: u32,
    /// `RELAY_BLOB_TTL_DAYS`.
    pub ttl_max: Duration,
    /// `RELAY_MAILBOX_MAX_BLOBS`.
    pub mailbox_blobs_max: u64,
    /// `RELAY_MAILBOX_MAX_BYTES`.
    pub mailbox_bytes_max: u64,
    /// `RELAY_PUBLIC_ORIGINS`; empty where what the upgrade request names counts.
    pub origins: Vec<String>,
    /// `RELAY_ALTERNATES`.
    pub alternates: Arc<[String]>,
}

impl V2Settings {
    /// Whether `origin` is a name of ours: one of the operator's list or, without a list, the `host` that
    /// the upgrade request named.
    pub fn serves(&self, origin: &str, host: Option<&str>) -> bool {
        match self.origins.is_empty() {
            true => host == Some(origin),
            false => self.origins.iter().any(|ours| ours == origin),
        }
    }
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
/// Whom a session talks to, by what it speaks.
enum Dialect {
    V1(Box<Opened>),
    V2(Box<Guest>),
}

/// What the beginning of a session settled.
struct Begun {
    dialect: Dialect,
    mailboxes: Arc<Mailboxes>,
    welcome: Bytes,
}

/// What the two loops share.
struct Shared {
    outbox: Outbox,
    /// Nothing awaits inside.
    state: Mutex<State>,
    /// When the client was last heard. Nothing awaits inside.
    heard: Mutex<Instant>,
    /// What the frame that is being carried out was worth, in units of reading.
    earned: AtomicU32,
    /// When the relay made the client wait in the middle of a message.
    waits: Arc<Waits>,
    /// A request was read and is not in the outbox yet.
    is_carrying_out: AtomicBool,
    /// The reader waits for what the client sends, and for nothing else.
    is_listening: AtomicBool,
    /// Told whenever a draining session may have become free to go.
    settled: tokio::sync::Notify,
    /// Wakes the writer when the window may admit more, or another mailbox is open.
    unblocked: AtomicWaker,
}

/// Serves a client until it leaves, breaks a rule or the relay stops.
pub async fn run(connection: Connection, parts: Arc<Parts>) {
    let label = SessionLabel::random();
    parts.metrics.connections_total.increment(1);
    parts.metrics.connections_active.increment(1.0);
    let Connection {
        line,
        version,
        host,
        address,
        permit,
    } = connection;
    let ended = async {
        let ended = serve(line, version, (address, host), &parts).await;
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

/// Where a client comes from, and the host that its upgrade request named.
type Caller = (IpAddr, Option<Box<str>>);

async fn serve(line: Line, version: Version, caller: Caller, parts: &Arc<Parts>) -> Ended {
    let stopped = parts.shutdown.stopped();
    tokio::pin!(stopped);
    let ended = tokio::select! {
        ended = converse(&line, version, caller, parts) => ended,
        () = &mut stopped => Ended::Stopped,
    };
    // Boxed like all that is rare, so that its bytes are there only while it goes on: most sessions rest
    // most of the time.
    let goodbye = Box::pin(say_goodbye(line, ended, parts));
    tokio::select! {
        () = goodbye => {}
        () = stopped => {}
    }
    ended
}

async fn converse(line: &Line, version: Version, caller: Caller, parts: &Arc<Parts>) -> Ended {
    let address = caller.0;
    let inbox = Arc::new(match version {
        Version::V1 => Inbox::default(),
        Version::V2 => Inbox::without_notices(),
    });
    let begun = match version {
        Version::V1 => Box::pin(begin_v1(line, address, &inbox, parts)).await,
        Version::V2 => Ok(begin_v2(caller, &inbox, parts)),
    };
    let Begun {
        dialect,
        mailboxes,
        welcome,
    } = match begun {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    let shared = Shared::new(State::new(version), line.waits());
    shared.outbox.push(Owed::Answer(welcome));
    let mut reader = Reader {
        line,
        parts,
        shared: &shared,
        dialect: &dialect,
        attention: Attention::new(parts, address),
    };
    let mut writer = Writer {
        line,
        parts,
        shared: &shared,
        dialect: &dialect,
        feed: Feed::new(
            Arc::clone(&parts.service),
            Arc::clone(&mailboxes),
            Arc::clone(&inbox),
        ),
        noting: None,
        device_feed: device_feed(&dialect, parts),
        mailboxes,
        inbox,
        keepalive: keepalive(version, parts),
        has_said_go_away: false,
        unflushed: 0,
    };
    tokio::select! {
        ended = reader.run() => ended,
        ended = writer.run() => ended,
    }
}

/// Waits for the handshake and opens its mailbox.
async fn begin_v1(
    line: &Line,
    address: IpAddr,
    inbox: &Arc<Inbox>,
    parts: &Arc<Parts>,
) -> Result<Begun, Ended> {
    let handshake = open::first_frame(line, parts).await?;
    let opened = open::open(&handshake, address, Arc::clone(inbox), parts)
        .await
        .map_err(Ended::ByRelay)?;
    Ok(Begun {
        mailboxes: Arc::clone(&opened.mailboxes),
        welcome: v1::welcome(parts),
        dialect: Dialect::V1(Box::new(opened)),
    })
}

/// The relay speaks first.
fn begin_v2(caller: Caller, inbox: &Arc<Inbox>, parts: &Parts) -> Begun {
    let guest = Guest::new(caller, Arc::clone(inbox), parts);
    Begun {
        mailboxes: Arc::clone(&guest.mailboxes),
        welcome: guest.first_frame(parts),
        dialect: Dialect::V2(Box::new(guest)),
    }
}

fn device_feed<'a>(dialect: &'a Dialect, parts: &Parts) -> Option<Box<(ToDevice<'a>, Feed)>> {
    let Dialect::V1(opened) = dialect else {
        return None;
    };
    let device = opened.device.as_ref()?;
    let from = Cursor::Backlog(BacklogCursor::START);
    let named = (device.subscription.mailbox, device.id);
    let mailboxes = only(named, View::DeviceSync, from);
    let inbox = Arc::clone(&device.inbox);
    let feed = Feed::new(Arc::clone(&parts.service), mailboxes, inbox);
    Some(Box::new((ToDevice { opened, device }, feed)))
}

/// A v1 session knows one mailbox of a kind, which it calls as its client spelt it.
fn only(named: (MailboxHash, MailboxId), view: View, from: Cursor) -> Arc<Mailboxes> {
    let mailboxes = Mailboxes::default();
    let (mailbox, _) = named;
    let number = mailboxes.open(named, (view, from), None);
    mailboxes.begin(&ToBegin {
        mailbox,
        number,
        has_waiting: true,
    });
    Arc::new(mailboxes)
}

fn keepalive(version: Version, parts: &Parts) -> Keepalive {
    let settings = &parts.settings;
    let idle = match version {
        Version::V1 => settings.idle_timeout,
        // A v2 client answers pings, so two and a half silent intervals are long enough.
        Version::V2 => settings.keepalive * 5 / 2,
    };
    Keepalive::new(settings.keepalive, idle, rand::random(), Instant::now())
}

/// Sends the close frame, if it is ours to send, and lets the client read it.
async fn say_goodbye(line: Line, ended: Ended, parts: &Parts) {
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
        if let Some(frame) = frame {
            poll_fn(|context| line.poll_ready(context)).await?;
            line.send(Message::Close(Some(frame)))?;
        }
        poll_fn(|context| line.poll_flush(context)).await
    };
    drop(tokio::time::timeout(GOODBYE, goodbye).await);
    // In a drain the client has half of the time that is left: it was told, and that is enough.
    let left = parts
        .shutdown
        .deadlines()
        .map(|by| by.all.saturating_duration_since(Instant::now()) / 2);
    line.linger(left.map_or(LINGER, |left| left.min(LINGER)))
        .await;
}

impl Shared {
    /// Room in the window may let the next blob go, or a draining session end.
    fn slots_came_back(&self) {
        self.unblocked.wake();
        self.settled.notify_one();
    }

    /// The client has given up what is in flight of these mailboxes.
    fn forget(&self, closed: &[MailboxHash]) {
        for mailbox in closed {
            self.state().forget(mailbox);
        }
        self.slots_came_back();
    }

    fn new(state: State, waits: Arc<Waits>) -> Self {
        Self {
            earned: AtomicU32::new(0),
            waits,
            outbox: Outbox::default(),
            state: Mutex::new(state),
            heard: Mutex::new(Instant::now()),
            is_carrying_out: AtomicBool::new(false),
            is_listening: AtomicBool::new(false),
            settled: tokio::sync::Notify::new(),
            unblocked: AtomicWaker::new(),
        }
    }

    /// The frame that is being carried out was of use for so much: blobs acknowledged, mailboxes closed.
    fn earn(&self, worth: usize) {
        let worth = u32::try_from(worth).unwrap_or(u32::MAX);
        self.earned.fetch_add(worth, Ordering::Relaxed);
    }

    /// The frame that is being carried out is charged for.
    fn earn_all(&self) {
        self.earned.store(u32::MAX, Ordering::Relaxed);
    }

    /// What the frame that was carried out was worth.
    fn earned(&self) -> u32 {
        self.earned.swap(0, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.settled.notify_one();
    }

    /// When the client was last heard. A relay that does not listen, because a request takes long, the
    /// answer lane is full or a large message waits for room, does not hear its pongs: nobody is silent
    /// then.
    fn last_heard(&self) -> Instant {
        if !self.is_listening.load(Ordering::SeqCst) {
            return Instant::now();
        }
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.waits.last().map_or(heard, |waited| waited.max(heard))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A purge that took longer than the keepalive closed its client as silent.
    #[tokio::test(start_paused = true)]
    async fn a_client_is_silent_only_while_the_relay_listens() {
        let shared = Shared::new(State::new(Version::V2), Arc::default());
        shared.heard();
        shared.is_listening.store(true, Ordering::SeqCst);
        let heard = Instant::now();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(shared.last_heard(), heard);
        shared.is_listening.store(false, Ordering::SeqCst);
        assert_eq!(shared.last_heard(), Instant::now());
    }
}
