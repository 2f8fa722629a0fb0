//! A connection to a relay: what comes next on it, and how its end is told.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::ClientError;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The next message. After `silence` the relay is asked whether it is there; after the same again it is not.
pub(super) async fn next_message(
    messages: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    silence: Duration,
    ask: impl FnOnce(),
) -> Result<Message, ClientError> {
    let heard = match tokio::time::timeout(silence, messages.next()).await {
        Ok(heard) => heard,
        Err(_silent) => {
            ask();
            let heard = tokio::time::timeout(silence, messages.next()).await;
            let nothing = |_| ClientError::Lost("the relay sent nothing for too long".to_owned());
            heard.map_err(nothing)?
        }
    };
    match heard {
        Some(message) => message.map_err(lost),
        None => Err(ClientError::Lost(
            "the relay ended the connection".to_owned(),
        )),
    }
}

/// The next frame of a handshake; `missing` says what did not come when the connection ends instead.
pub(super) async fn next_frame(socket: &mut Socket, missing: &str) -> Result<Bytes, ClientError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(frame))) => return Ok(frame),
            Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(lost(error)),
            None => return Err(ClientError::Lost(missing.to_owned())),
        }
    }
}

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
