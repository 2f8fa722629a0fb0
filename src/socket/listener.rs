//! Accepts connections and speaks HTTP on them until they are upgraded, answered or too slow.
//!
//! `axum::serve` has no timeout for headers, so this is an accept loop of our own on hyper. Sockets
//! that have not become a session yet wait in the `lobby`, which is bounded.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::RemoteAddress;
use super::held::Held;
use super::lobby::{Lobby, Place};
use crate::limits::address::Address;
use crate::metrics::Metrics;

/// Bytes of an HTTP request head: cookies and proxy headers fit, floods do not.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Rest after accepting failed: out of file descriptors does not get better by asking at once.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Between two log lines that say so.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// One listening port.
pub struct Listener {
    /// Bound and listening.
    pub socket: TcpListener,
    /// What is served on it.
    pub routes: Router,
    /// A request's head must have come within this time.
    pub header_timeout: Duration,
    /// Whether a connection may be used for several requests. If not, each answer says so; the
    /// server's own switch would say it to upgrades too, and break them.
    pub keep_alive: bool,
    /// Connections that are not sessions, at the most.
    pub lobby_max: usize,
    /// The last file descriptors of the process that are not for these connections.
    pub descriptors_kept: u64,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Listener {
    /// Accepts until `until` is cancelled; then requests that are being answered are finished, by
    /// `tasks`.
    pub async fn run(mut self, until: CancellationToken, tasks: TaskTracker) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(HEAD_BYTES_MAX);
        if !self.keep_alive {
            self.routes = self
                .routes
                .layer(tower::util::MapResponseLayer::new(last_answer));
        }
        let shown_out = self.metrics.lobby_shown_out_total.clone();
        let lobby = Lobby::new(self.lobby_max, shown_out);
        let mut complaint = Complaint::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = until.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) if is_last(&stream, self.descriptors_kept) => {
                    self.metrics.accept_errors_total.increment(1);
                    complaint.say("all but the last file descriptors are in use");
                }
                Ok((stream, address)) => {
                    let place = lobby.enter(Address::of(address.ip()));
                    tasks.spawn(serve(
                        http.clone(),
                        stream,
                        address,
                        self.routes.clone(),
                        place,
                        until.clone(),
                    ));
                }
                Err(error) => {
                    self.metrics.accept_errors_total.increment(1);
                    if !is_about_one_connection(&error) {
                        complaint.say(error);
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                }
            }
        }
    }
}

/// Whether a connection has one of the last descriptors that the process may have. The system gives the
/// lowest that is free, so then all but these are in use.
fn is_last(stream: &TcpStream, kept: u64) -> bool {
    let max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    number >= max.saturating_sub(kept)
}

/// Says that no connection can be accepted, and not at each of them.
#[derive(Default)]
struct Complaint {
    said_at: Option<Instant>,
}

impl Complaint {
    fn say(&mut self, error: impl std::fmt::Display) {
        let is_news = self.said_at.is_none_or(|at| at.elapsed() > COMPLAINT_PAUSE);
        if is_news {
            self.said_at = Some(Instant::now());
            tracing::error!(%error, "cannot accept connections; retrying");
        }
    }
}

fn last_answer(mut response: Response) -> Response {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn serve(
    http: http1::Builder,
    stream: TcpStream,
    address: SocketAddr,
    routes: Router,
    place: Place,
    until: CancellationToken,
) {
    let service = routes.map_request(
        move |mut request: axum::http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(RemoteAddress(address));
            request.map(axum::body::Body::new)
        },
    );
    let connection = http
        .serve_connection(
            TokioIo::new(Held::new(stream)),
            TowerToHyperService::new(service),
        )
        .with_upgrades();
    tokio::pin!(connection);
    // A connection that fails before it is a session concerns nobody but its client.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = place.must_leave.cancelled() => return,
        () = until.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    drop(tokio::time::timeout(Duration::from_secs(1), connection).await);
}

/// A connection that was already gone when it was accepted says nothing about the next one.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
