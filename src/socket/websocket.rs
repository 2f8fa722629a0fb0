//! From an HTTP request to a WebSocket: which protocol, is there room, and the upgrade itself.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use super::watch::{WatchRules, Watched};
use super::{Connection, RemoteAddress};
use crate::limits::connections::{ConnectionPermit, Connections};
use crate::metrics::Metrics;

/// Read and write buffers of a connection. The library's 128 KiB would cost 134 kB for each idle
/// client; 4 KiB is as fast for blobs of a few KiB.
const BUFFER_BYTES: usize = 4 * 1024;

/// When to try again after "full house".
const RETRY_FULL_HOUSE_SECS: &str = "5";

/// Runs a session on a connection. The server gives it, so that this file knows no sessions.
pub type RunSession =
    Arc<dyn Fn(Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What an upgrade needs.
#[derive(Clone)]
pub struct Upgrader {
    /// `RELAY_MAX_MESSAGE_SIZE`.
    pub message_bytes_max: usize,
    /// How incoming frames are watched.
    pub watch: WatchRules,
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

/// Whether the client asks for a WebSocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

impl Upgrader {
    /// Answers an upgrade request and, when it is accepted, starts the session.
    pub fn upgrade(&self, mut request: Request) -> Response {
        let Some(RemoteAddress(address)) = request.extensions().get().copied() else {
            return self.turn_away(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the client's address is not known\n",
            );
        };
        if request.headers().contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return self.turn_away(
                StatusCode::BAD_REQUEST,
                "none of the offered subprotocols is spoken here; offer none to speak protocol v1\n",
            );
        }
        let response = match create_response_with_body(&request, Body::empty) {
            Ok(response) => response,
            Err(fault) => {
                let why = format!("bad WebSocket handshake: {fault}\n");
                let mut response = self.turn_away(StatusCode::BAD_REQUEST, &why);
                // RFC 6455, 4.4: who speaks another version is told which one is spoken here.
                response
                    .headers_mut()
                    .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                return response;
            }
        };
        let Some(permit) = self.connections.admit() else {
            self.metrics.connections_refused_total.increment(1);
            let body = "the relay has as many connections as it may (RELAY_MAX_CONNECTIONS); try again soon\n";
            return (
                StatusCode::SERVICE_UNAVAILABLE,
                [(RETRY_AFTER, RETRY_FULL_HOUSE_SECS)],
                body,
            )
                .into_response();
        };
        let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
            return self.turn_away(
                StatusCode::BAD_REQUEST,
                "this connection can not be upgraded\n",
            );
        };
        self.sessions
            .spawn(self.clone().begin(upgrade, address.ip(), permit));
        response
    }

    async fn begin(self, upgrade: OnUpgrade, address: IpAddr, permit: ConnectionPermit) {
        // An upgrade fails when the client leaves before it has read our answer.
        let Ok(upgraded) = upgrade.await else {
            return self.metrics.connection_errors_total.increment(1);
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            return self.metrics.connection_errors_total.increment(1);
        };
        let stream = Watched::new(parts.io.into_inner(), parts.read_buf, self.watch.clone());
        let config = websocket_config(self.message_bytes_max);
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        (self.run)(Connection {
            socket,
            address,
            permit,
        })
        .await;
    }

    fn turn_away(&self, status: StatusCode, why: &str) -> Response {
        self.metrics.connection_errors_total.increment(1);
        (status, why.to_owned()).into_response()
    }
}

fn websocket_config(message_bytes_max: usize) -> WebSocketConfig {
    let cap = hard_cap(message_bytes_max);
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        // A v1 frame of the largest blob is the largest thing we write, and only one waits at a time.
        .max_write_buffer_size(2 * cap)
        .max_message_size(Some(cap))
        .max_frame_size(Some(cap))
}
