//! Socket → state → service. Only a full answer lane, or a full commit queue, stops the reading.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;

use super::answers::Answers;
use super::attention::{Attention, price};
use super::{Dialect, Ended, Parts, Shared};
use crate::protocol::close::Close;
use crate::socket::Message;
use crate::socket::line::Line;
use crate::socket::watch::Late;

/// Bytes that are no WebSocket.
const BROKEN: Close = Close::Protocol("invalid WebSocket frames (RFC 6455)");

/// The reading half of a session.
pub(super) struct Reader<'a> {
    pub(super) line: &'a Line,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) dialect: &'a Dialect,
    pub(super) attention: Attention,
}

/// What a client has said.
pub(super) enum Heard {
    /// A binary message, whole.
    Frame(Bytes),
    /// A text message, which no client of this relay sends.
    Text,
}

/// What is wrong with a text message.
pub(super) const TEXT: &str = "text messages are not supported; send binary messages";

/// What the socket gave.
pub(super) enum Received {
    /// A message.
    Message(Heard),
    /// A ping, a pong or the beginning of a close.
    Sign,
    /// The connection is over, or must be.
    Over(Ended),
}

/// Reads the next message, whatever it is.
pub(super) async fn receive(line: &Line) -> Received {
    match poll_fn(|context| line.poll_receive(context)).await {
        Some(Ok(Message::Binary(frame))) => Received::Message(Heard::Frame(frame)),
        Some(Ok(Message::Text(_))) => Received::Message(Heard::Text),
        Some(Ok(_)) => Received::Sign,
        None | Some(Err(WsError::ConnectionClosed)) => Received::Over(Ended::ByClient),
        Some(Err(error)) => Received::Over(ended_by(&error)),
    }
}

fn price_of(received: &Received) -> u32 {
    match received {
        Received::Message(Heard::Frame(frame)) => price(frame.len()),
        Received::Message(Heard::Text) | Received::Sign => price(0),
        Received::Over(_) => 0,
    }
}

fn ended_by(error: &WsError) -> Ended {
    match error {
        WsError::Capacity(_) => Ended::ByRelay(Close::TooLarge),
        WsError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            let late = Late::of(error).unwrap_or(Late::Whole);
            Ended::ByRelay(Close::Slow(late.reason()))
        }
        WsError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Ended::ByRelay(BROKEN)
        }
        WsError::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        )
        | WsError::Io(_) => Ended::Lost,
        _ => Ended::ByRelay(BROKEN),
    }
}

impl Reader<'_> {
    /// Reads until the connection is over. When the session is to end with a close frame, that is
    /// put behind what is still owed, and the writer ends the session.
    pub(super) async fn run(&mut self) -> Ended {
        loop {
            if self.shared.outbox.is_full() {
                self.parts.metrics.answer_lane_full_total.increment(1);
                self.shared.outbox.room().await;
            }
            // While the relay itself did not read, the client's pongs were not seen.
            self.shared.heard();
            self.shared.is_listening.store(true, Ordering::SeqCst);
            let received = receive(self.line).await;
            self.shared.heard();
            self.shared.is_listening.store(false, Ordering::SeqCst);
            let answers = Answers {
                parts: self.parts,
                shared: self.shared,
                read_at: Instant::now(),
            };
            let units = price_of(&received);
            if self.attention.pay(units).await.is_err() {
                answers.close(Close::Flood).await;
            }
            // A request that waits for a place in a queue is owed an answer, too.
            self.shared.is_carrying_out.store(true, Ordering::SeqCst);
            match received {
                Received::Sign => {}
                Received::Over(Ended::ByRelay(close)) => answers.close(close).await,
                Received::Over(ended) => return ended,
                Received::Message(heard) => {
                    self.hear(heard, answers).await;
                    self.attention.earned(self.shared.earned().min(units));
                }
            }
            self.shared.is_carrying_out.store(false, Ordering::SeqCst);
            self.shared.settled.notify_one();
        }
    }

    async fn hear(&self, heard: Heard, answers: Answers<'_>) {
        if let Heard::Frame(_) = heard {
            self.parts.metrics.messages_received_total.increment(1);
        }
        // Boxed, so that its 3 KiB are there only while a request is carried out: most sessions rest most
        // of the time.
        match self.dialect {
            Dialect::V1(v1) => Box::pin(v1.hear(heard, answers)).await,
            Dialect::V2(v2) => Box::pin(v2.hear(heard, answers)).await,
        }
    }
}
