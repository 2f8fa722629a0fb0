//! Socket → state → service. Only a full answer lane, or a full commit queue, stops the reading.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::SplitStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;

use super::answers::Answers;
use super::state::Step;
use super::{Dialect, Ended, Parts, Shared};
use crate::protocol::Version;
use crate::protocol::close::Close;
use crate::protocol::message::Incoming;
use crate::protocol::{v1, v2};
use crate::service::refusal::Refusal;
use crate::socket::{Message, Socket};

/// Bytes that are no WebSocket.
const BROKEN: Close = Close::Protocol("invalid WebSocket frames (RFC 6455)");

/// The reading half of a session.
pub(super) struct Reader<'a> {
    pub(super) stream: &'a mut SplitStream<Socket>,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) dialect: &'a Dialect,
}

/// What the socket gave.
pub(super) enum Received {
    /// A binary message, whole.
    Frame(Bytes),
    /// A text message, which no client of this relay sends.
    Text,
    /// A ping, a pong or the beginning of a close.
    Sign,
    /// The connection is over, or must be.
    Over(Ended),
}

/// Reads the next message, whatever it is.
pub(super) async fn receive(stream: &mut SplitStream<Socket>) -> Received {
    match stream.next().await {
        Some(Ok(Message::Binary(frame))) => Received::Frame(frame),
        Some(Ok(Message::Text(_))) => Received::Text,
        Some(Ok(_)) => Received::Sign,
        None | Some(Err(WsError::ConnectionClosed)) => Received::Over(Ended::ByClient),
        Some(Err(error)) => Received::Over(ended_by(&error)),
    }
}

fn ended_by(error: &WsError) -> Ended {
    match error {
        WsError::Capacity(_) => Ended::ByRelay(Close::TooLarge),
        WsError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Ended::ByRelay(Close::Slow("a message was not complete in time"))
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
            let received = receive(self.stream).await;
            self.shared.heard();
            self.shared.is_listening.store(false, Ordering::SeqCst);
            let step = match received {
                Received::Sign => continue,
                Received::Over(Ended::ByRelay(close)) => {
                    self.shared.state().closing();
                    Step::Close(None, close)
                }
                Received::Over(ended) => return ended,
                Received::Frame(frame) => self.judge(&frame),
                Received::Text => self.shared.state().on_frame(Incoming::Garbage {
                    why: "text messages are not supported; send binary messages",
                }),
            };
            // A request that waits for a place in a queue is owed an answer, too.
            self.shared.is_carrying_out.store(true, Ordering::SeqCst);
            self.carry_out(step, Instant::now()).await;
            self.shared.is_carrying_out.store(false, Ordering::SeqCst);
            self.shared.settled.notify_one();
        }
    }

    fn judge(&self, frame: &Bytes) -> Step {
        self.parts.metrics.messages_received_total.increment(1);
        let bytes_max = self.parts.settings.message_bytes_max;
        let mut state = self.shared.state();
        match state.version() {
            Version::V1 if frame.len() > bytes_max => {
                state.on_oversize(v1::tag_of(frame), bytes_max)
            }
            Version::V1 => state.on_frame(v1::decode(frame)),
            // In v2 the bound is for the blob; what stands around it has room besides.
            Version::V2 if frame.len() > bytes_max + v2::FRAME_BYTES_AROUND_A_BLOB => {
                state.on_oversize(v2::tag_of(frame), bytes_max)
            }
            Version::V2 => state.on_frame(v2::decode(frame)),
        }
    }

    async fn carry_out(&self, step: Step, read_at: Instant) {
        let answers = Answers {
            parts: self.parts,
            shared: self.shared,
            read_at,
        };
        match step {
            Step::Refuse(tag, refusal) => {
                // It is refused already; the charge only makes the next ones dearer.
                let refusal = self.charge().err().unwrap_or(refusal);
                answers.refuse(tag, refusal);
            }
            Step::Ignore => {
                self.parts.metrics.messages_ignored_total.increment(1);
                // v1 clients expect no answer here, so a spent rate shows at their next request.
                drop(self.charge());
            }
            Step::Close(refusal, close) => {
                if let Some(refusal) = refusal {
                    answers.refuse(None, refusal);
                }
                answers.close(close).await;
            }
            // Boxed, so that its 3 KiB are there only while a request is carried out: most sessions
            // rest most of the time.
            step => match self.dialect {
                Dialect::V1(v1) => Box::pin(v1.carry_out(step, answers)).await,
                Dialect::V2(v2) => Box::pin(v2.carry_out(step, answers)).await,
            },
        }
    }

    fn charge(&self) -> Result<(), Refusal> {
        match self.dialect {
            Dialect::V1(v1) => v1.charge(self.parts),
            Dialect::V2(v2) => v2.charge(self.parts),
        }
    }
}
