//! Connections as such: accepting them, upgrading them, and judging frames before they are buffered.
//!
//! `accept_queue` listens, `listener` accepts and speaks HTTP until the upgrade, with those that have not
//! come so far in the `lobby`, `forwarded` tells whose request it is, `handshake` judges what asks for a
//! WebSocket, `websocket` turns it into a [`Connection`], whose WebSocket is its `line`, `held` lets the
//! answer to the request leave with what the session writes first, `watch` sits under the WebSocket and sees
//! every byte first, and `frames` where messages begin and end.

pub mod accept_queue;
pub mod forwarded;
mod frames;
pub mod handshake;
pub mod held;
pub mod line;
pub mod listener;
mod lobby;
pub mod watch;
pub mod websocket;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;

use crate::limits::connections::ConnectionPermit;
use crate::protocol::Version;
use held::Held;
use line::Line;
use watch::Watched;

/// A WebSocket over TCP with the frame watcher beneath.
pub type Socket = WebSocketStream<Watched<Held<TcpStream>>>;

/// Who is at the other end of a request's connection, be it the client or a proxy; the listener puts it into the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct RemoteAddress(pub SocketAddr);

/// A client's connection after the upgrade.
#[derive(Debug)]
pub struct Connection {
    /// Reads and writes WebSocket messages.
    pub line: Line,
    /// What the upgrade request settled.
    pub version: Version,
    /// The host that the upgrade request names, spelt as an origin (`protocol::v2::origin`); `None` where it
    /// names none or several.
    pub host: Option<Box<str>>,
    /// The client's address, as far as it is known.
    pub address: IpAddr,
    /// Given back when the session is over.
    pub permit: ConnectionPermit,
}

/// Bytes that are thrown away while lingering, at the most.
const LINGER_BYTES: u64 = 8 << 20;

/// Ends a connection politely: no more writes, then wait until the client is done, for `at_most`
/// this time. Closing a socket with unread bytes in it makes the system reset it, and a reset
/// overtakes the close frame.
pub async fn linger(socket: Socket, at_most: Duration) {
    let mut stream = socket.into_inner().into_inner();
    let goodbye = async {
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // However it ends, the connection is over and nobody is left to tell.
    drop(tokio::time::timeout(at_most, goodbye).await);
}

/// The bytes of a message from and to a client.
pub(crate) type Message = tokio_tungstenite::tungstenite::Message;

/// A binary message with these bytes.
pub(crate) fn binary(bytes: Bytes) -> Message {
    Message::Binary(bytes)
}
