//! From an HTTP request to a WebSocket: which protocol, is there room, and the upgrade itself.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{
    CONNECTION, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use super::forwarded::Proxies;
use super::handshake;
use super::held::Held;
use super::line::Line;
use super::watch::{WatchRules, Watched};
use super::{Connection, RemoteAddress};
use crate::limits::address::Address;
use crate::limits::connections::{ConnectionPermit, Connections, TurnedAway};
use crate::limits::table::Budget;
use crate::metrics::Metrics;
use crate::protocol::{Version, v2};

/// The library allocates so much for reading at once, for each client, and reads no more at a time. It is
/// small because [`Watched`] reads ahead, so a read of the library's costs no system call.
const READ_BYTES: usize = 512;

/// So many bytes of frames wait to be written together.
const WRITE_BYTES: usize = 4 * 1024;

/// When to try again after "full house".
const RETRY_FULL_HOUSE: Duration = Duration::from_secs(5);

/// When to try again after one's address had all of its connections: when one of them ends, which
/// nobody knows; connections live for minutes.
const RETRY_ADDRESS_FULL: Duration = Duration::from_secs(30);

/// Runs a session on a connection. The server gives it, so that this file knows no sessions.
pub type RunSession =
    Arc<dyn Fn(Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What the upgrade request settled.
struct Caller {
    version: Version,
    host: Option<Box<str>>,
    address: IpAddr,
    permit: ConnectionPermit,
}

/// What an upgrade needs.
pub struct Upgrader {
    /// `RELAY_MAX_MESSAGE_SIZE`.
    pub message_bytes_max: usize,
    /// How incoming frames are watched.
    pub watch: WatchRules,
    /// Whose word on a client's address is believed.
    pub proxies: Arc<Proxies>,
    /// Permits for sessions.
    pub connections: Connections,
    /// Who runs the sessions.
    pub run: RunSession,
    /// Who waits for the sessions at the end.
    pub sessions: TaskTracker,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The largest frame that is read at all. Up to here a frame over the limit is answered with a
/// refusal; above it the connection is closed, judged from the header.
pub fn hard_cap(message_bytes_max: usize) -> usize {
    2 * message_bytes_max + 4 * 1024
}

impl Upgrader {
    /// Answers an upgrade request and, when it is accepted, starts the session.
    pub fn upgrade(self: &Arc<Self>, request: Request) -> Response {
        let (mut request, _no_body) = request.into_parts();
        let Some(RemoteAddress(peer)) = request.extensions.get().copied() else {
            return self.turn_away(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the client's address is unknown\n",
            );
        };
        let address = self.proxies.client(peer.ip(), &request.headers);
        let host = host_of(&request.headers);
        let Some(version) = version_of(&request.headers) else {
            return self.turn_away(
                StatusCode::BAD_REQUEST,
                "none of the offered subprotocols is supported; offer vauchi.relay.v2, or none to speak protocol v1\n",
            );
        };
        let accepted = match handshake::key(&request) {
            Ok(key) => derive_accept_key(key.as_bytes()),
            Err(fault) => {
                let why = format!("bad WebSocket handshake: {fault}\n");
                let mut response = self.turn_away(StatusCode::BAD_REQUEST, &why);
                // RFC 6455, 4.4: who speaks another version is told which one is spoken here.
                response.headers_mut().insert(
                    SEC_WEBSOCKET_VERSION,
                    HeaderValue::from_static(handshake::VERSION),
                );
                return response;
            }
        };
        let permit = match self.connections.admit(Address::of(address)) {
            Ok(permit) => permit,
            Err(why) => {
                self.metrics.connections_refused_total.increment(1);
                return come_back_later(why);
            }
        };
        let Some(upgrade) = request.extensions.remove::<OnUpgrade>() else {
            return self.turn_away(
                StatusCode::BAD_REQUEST,
                "this connection cannot be upgraded\n",
            );
        };
        let caller = Caller {
            version,
            host,
            address,
            permit,
        };
        self.sessions.spawn(Arc::clone(self).begin(upgrade, caller));
        switching(version, accepted)
    }

    /// Waits for the upgrade and runs the session. This future is there as long as the session, so what the
    /// upgrade needs stays out of it.
    async fn begin(self: Arc<Self>, upgrade: OnUpgrade, caller: Caller) {
        // An upgrade fails when the client leaves before it has read our answer.
        let connection = match upgrade.await {
            Ok(upgraded) => self.connection(upgraded, caller),
            Err(_) => None,
        };
        match connection {
            Some(connection) => (self.run)(connection).await,
            None => self.metrics.connection_errors_total.increment(1),
        }
    }

    fn connection(&self, upgraded: Upgraded, caller: Caller) -> Option<Connection> {
        // What was read ahead with the request comes in a buffer of 8 KiB, which ends here.
        let parts = upgraded.downcast::<TokioIo<Held<TcpStream>>>().ok()?;
        let Caller {
            version,
            host,
            address,
            permit,
        } = caller;
        let stream = Watched::new(
            parts.io.into_inner().release(),
            &parts.read_buf,
            self.watch.clone(),
            Address::of(address),
        );
        let config = websocket_config(self.message_bytes_max);
        // Without a handshake there is nothing to wait for.
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config));
        Some(Connection {
            line: Line::new(socket.now_or_never()?),
            version,
            host,
            address,
            permit,
        })
    }

    fn turn_away(&self, status: StatusCode, why: &str) -> Response {
        self.metrics.connection_errors_total.increment(1);
        (status, why.to_owned()).into_response()
    }
}

/// The host that the request names, as an origin.
fn host_of(headers: &HeaderMap) -> Option<Box<str>> {
    let mut named = headers.get_all(HOST).iter();
    // With two of them nobody can say which one a proxy has looked at.
    let (Some(host), None) = (named.next(), named.next()) else {
        return None;
    };
    v2::origin_of_host(host.to_str().ok()?)
}

/// What a client that offers these subprotocols speaks with us: v1 where it offers none. `None` when
/// all that it offers is unknown.
fn version_of(headers: &HeaderMap) -> Option<Version> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Some(Version::V1);
    }
    handshake::elements(headers, SEC_WEBSOCKET_PROTOCOL)
        .any(|name| name == v2::SUBPROTOCOL.as_bytes())
        .then_some(Version::V2)
}

/// The answer that accepts an upgrade.
fn switching(version: Version, accepted: String) -> Response {
    let headers = [
        (CONNECTION, "Upgrade"),
        (UPGRADE, "websocket"),
        (SEC_WEBSOCKET_ACCEPT, accepted.as_str()),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if version == Version::V2 {
        response.headers_mut().insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(v2::SUBPROTOCOL),
        );
    }
    response
}

/// 503 when the relay is full, 429 when the client's address has had its share.
fn come_back_later(why: TurnedAway) -> Response {
    let (status, body, retry_after) = match why {
        TurnedAway::FullHouse => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the relay has reached its limit of connections (RELAY_MAX_CONNECTIONS); retry later",
            RETRY_FULL_HOUSE,
        ),
        TurnedAway::AddressFull => (
            StatusCode::TOO_MANY_REQUESTS,
            "your network has reached its limit of connections (RELAY_MAX_CONNECTIONS_PER_ADDRESS); close some",
            RETRY_ADDRESS_FULL,
        ),
        TurnedAway::NetworkFull => (
            StatusCode::TOO_MANY_REQUESTS,
            "the networks around your address have reached their limit of connections; retry later",
            RETRY_ADDRESS_FULL,
        ),
        TurnedAway::NearlyFull => (
            StatusCode::TOO_MANY_REQUESTS,
            "the relay is nearly full, and your network has more connections than others; close some",
            RETRY_ADDRESS_FULL,
        ),
        TurnedAway::TooMany(retry_after) => (
            StatusCode::TOO_MANY_REQUESTS,
            Budget::Connections.row().refusal,
            retry_after,
        ),
    };
    // Whole seconds, rounded up: one who comes too early is turned away again.
    let secs = retry_after.as_millis().div_ceil(1_000).max(1);
    let headers = [(RETRY_AFTER, secs.to_string())];
    (status, headers, format!("{body}\n")).into_response()
}

fn websocket_config(message_bytes_max: usize) -> WebSocketConfig {
    let cap = hard_cap(message_bytes_max);
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        // One frame waits at a time, and none is larger than the limit and what v1 wraps around it;
        // the rest is for pongs, which a flood of pings cannot make more of.
        .max_write_buffer_size(cap + 64 * 1024)
        .max_message_size(Some(cap))
        .max_frame_size(Some(cap))
}
