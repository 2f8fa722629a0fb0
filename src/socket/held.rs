//! Holds the answer to an upgrade request back until the session writes, so that both leave together.
//!
//! A v2 session speaks first, right after that answer. Two writes would be a quarter of what a connect
//! costs the relay, and wake the client twice.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How an answer begins that accepts an upgrade. Nothing follows it before the session.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// A connection that holds such an answer back.
#[derive(Debug)]
pub struct Held<S> {
    inner: S,
    /// The answer while it is not written, which has some 200 bytes.
    held: Vec<u8>,
    /// The session has begun, and what is held leaves with its first write or flush.
    is_released: bool,
}

impl<S> Held<S> {
    /// Holds nothing yet.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            held: Vec::new(),
            is_released: false,
        }
    }

    /// The session begins.
    pub fn release(mut self) -> Self {
        self.is_released = true;
        self
    }

    /// The connection beneath.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    /// Writes what is held, and as much of `bytes` as goes with it. Returns how much of `bytes` that was.
    fn poll_write_with_held(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let both = [IoSlice::new(&self.held), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, &both))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_held = written.min(self.held.len());
            self.held.drain(..of_held);
            if written > of_held {
                self.held = Vec::new();
                return Poll::Ready(Ok(written - of_held));
            }
        }
        self.held = Vec::new();
        match bytes {
            [] => Poll::Ready(Ok(0)),
            bytes => Pin::new(&mut self.inner).poll_write(context, bytes),
        }
    }

    /// Whether bytes of the HTTP layer that begin like this are held back.
    fn holds(&self, first: &[u8]) -> bool {
        !self.is_released && (!self.held.is_empty() || first.starts_with(SWITCHING))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.holds(bytes) {
            this.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        this.poll_write_with_held(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.holds(pieces.first().map_or(&[], |first| first)) {
            pieces
                .iter()
                .for_each(|bytes| this.held.extend_from_slice(bytes));
            return Poll::Ready(Ok(pieces.iter().map(|bytes| bytes.len()).sum()));
        }
        ready!(this.poll_write_with_held(context, &[]))?;
        Pin::new(&mut this.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_released {
            ready!(this.poll_write_with_held(context, &[]))?;
        }
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_released {
            ready!(this.poll_write_with_held(context, &[]))?;
        }
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    #[tokio::test]
    async fn the_answer_to_an_upgrade_leaves_with_what_the_session_writes_first() {
        let (mut client, server) = tokio::io::duplex(20);
        let mut held = Held::new(server);
        held.write_all(ANSWER).await.unwrap();
        held.flush().await.unwrap();
        assert_eq!(held.held, ANSWER);
        let mut held = held.release();
        let writing = async {
            held.write_all(b"welcome").await.unwrap();
            assert!(held.held.is_empty());
            held.write_all(b"more").await.unwrap();
        };
        let mut come = vec![0; ANSWER.len() + 11];
        let ((), read) = tokio::join!(writing, client.read_exact(&mut come));
        read.unwrap();
        assert_eq!(come, [ANSWER, b"welcome", b"more"].concat());
    }

    #[tokio::test]
    async fn it_leaves_with_a_flush_when_the_session_has_nothing_to_write() {
        let (mut client, server) = tokio::io::duplex(1_024);
        let mut held = Held::new(server);
        held.write_all(ANSWER).await.unwrap();
        held.release().flush().await.unwrap();
        let mut come = vec![0; ANSWER.len()];
        client.read_exact(&mut come).await.unwrap();
        assert_eq!(come, ANSWER);
    }

    #[tokio::test]
    async fn other_answers_are_not_held() {
        let (mut client, server) = tokio::io::duplex(1_024);
        let mut held = Held::new(server);
        held.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        let mut come = [0; 17];
        client.read_exact(&mut come).await.unwrap();
        assert_eq!(&come, b"HTTP/1.1 200 OK\r\n");
    }
}
