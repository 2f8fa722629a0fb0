//! A connection to a relay, and how its end is told.

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::ClientError;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(super) fn lost(error: SocketError) -> ClientError {
    match error {
        SocketError::Capacity(_) => {
            ClientError::Protocol("a frame is larger than message_bytes_max")
        }
        other => ClientError::Lost(other.to_string()),
    }
}

pub(super) fn closed(frame: Option<CloseFrame>) -> ClientError {
    match frame {
        Some(frame) => ClientError::Closed {
            code: frame.code.into(),
            reason: frame.reason.to_string(),
        },
        None => ClientError::Closed {
            code: 1005,
            reason: String::new(),
        },
    }
}
