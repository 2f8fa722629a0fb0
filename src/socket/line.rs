//! A client's WebSocket as the two halves of a session use it: one reads, the other writes.
//!
//! Both are polled by one task, so the lock is never waited for.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Error;

use super::watch::Waits;
use super::{Message, Socket, linger};

/// A message of more bytes is large: its buffer must not stay.
const LARGE_BYTES: usize = 4 * 1024;

/// The line to a client. In a box, because a session's future would hold several copies of it.
pub struct Line(Box<Mutex<Ends>>);

struct Ends {
    socket: Socket,
    /// The last message that was read, if it was large. The library reads the next message into the same
    /// memory when nobody else has it, and then never gives it back. So this is held until the library has
    /// begun to wait for the next message, for which it then takes a small buffer.
    large: Option<Bytes>,
}

impl Line {
    /// The line over this socket.
    pub fn new(socket: Socket) -> Self {
        let large = None;
        Self(Box::new(Mutex::new(Ends { socket, large })))
    }

    /// When the relay last made this client wait.
    pub fn waits(&self) -> Arc<Waits> {
        self.ends().socket.get_ref().waits()
    }

    /// The next message; `None` at the end. One task at a time may wait here.
    pub fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        let mut ends = self.ends();
        let polled = ends.socket.poll_next_unpin(context);
        ends.large = match &polled {
            Poll::Ready(Some(Ok(Message::Binary(bytes)))) if bytes.len() > LARGE_BYTES => {
                Some(bytes.clone())
            }
            _ => None,
        };
        polled
    }

    /// Whether the frame before has left, so that [`Line::send`] may be called. One task at a time may wait
    /// here or in [`Line::poll_flush`].
    pub fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.ends().socket.poll_ready_unpin(context)
    }

    /// Takes a message to be written.
    pub fn send(&self, message: Message) -> Result<(), Error> {
        self.ends().socket.start_send_unpin(message)
    }

    /// Writes all that was taken.
    pub fn poll_flush(&self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.ends().socket.poll_flush_unpin(context)
    }

    /// Ends the connection as [`linger`] does.
    pub async fn linger(self, at_most: Duration) {
        let ends = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Ends { socket, large } = ends;
        drop(large);
        linger(socket, at_most).await;
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line(…)")
    }
}
