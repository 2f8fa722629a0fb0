//! Sees every byte before the WebSocket library does, and judges messages by their headers.
//!
//! The library refuses a frame over the hard cap as soon as its header is read, but it knows neither
//! how long a message may take nor how much all sessions have begun together. This layer does: it
//! follows the frames (RFC 6455, 5.2) without touching them, fails the read when a message is not
//! complete in time, and stops reading while too many unfinished bytes are in memory.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::metrics::Metrics;

/// Messages up to this size are not counted: a connection may always hold one of them.
/// 1,000 connections × 64 KiB = 64 MiB beside the bound.
const UNCOUNTED_BYTES: u64 = 64 * 1024;

/// What a ping, a pong or a close frame may carry (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// What a message may take beside its base time: a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// The bound on announced bytes of unfinished messages, shared by all connections.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// One permit a KiB, because a semaphore counts in 32 bits.
    kib: Arc<Semaphore>,
    kib_max: u32,
    metrics: Arc<Metrics>,
}

impl Unfinished {
    /// At most `bytes_max` (`RELAY_MAX_UNFINISHED_BYTES`); zero for no limit.
    pub fn new(bytes_max: u64, metrics: Arc<Metrics>) -> Self {
        let kib_max = match bytes_max {
            0 => u32::MAX >> 3,
            bytes_max => u32::try_from(bytes_max.div_ceil(1024))
                .unwrap_or(u32::MAX)
                .min(u32::MAX >> 3),
        };
        Self {
            kib: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
            metrics,
        }
    }
}

/// What the watcher goes by.
#[derive(Debug, Clone)]
pub struct WatchRules {
    /// A message must be complete in this time, and a second for each 64 KiB that it announces.
    pub message_timeout: Duration,
    /// The largest message that is read at all.
    pub message_bytes_cap: u64,
    /// The bound over all connections.
    pub unfinished: Unfinished,
}

/// A stream whose incoming WebSocket frames are watched.
#[derive(Debug)]
pub struct Watched<S> {
    inner: S,
    /// Read by the HTTP layer together with the request; comes first.
    early: Bytes,
    rules: WatchRules,
    frames: Frames,
    /// A control frame announced more than it may carry. The library would read it to its end.
    is_broken: bool,
    unfinished: Option<Pin<Box<UnfinishedMessage>>>,
}

/// A message that has begun and not ended.
#[derive(Debug)]
struct UnfinishedMessage {
    began: Instant,
    deadline: Pin<Box<Sleep>>,
    announced: u64,
    granted: Option<Granted>,
    waiting: Option<Waiting>,
    /// When the session took what had come; it may rest before it reads on.
    taken_at: Option<Instant>,
}

/// Room for the bytes of one unfinished message; given back by dropping it.
#[derive(Debug)]
struct Granted {
    kib: u32,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.metrics
            .unfinished_bytes
            .decrement(f64::from(self.kib) * 1024.0);
    }
}

struct Waiting(Pin<Box<dyn Future<Output = Option<Granted>> + Send>>);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

impl<S> Watched<S> {
    /// Watches `inner`; `early` are bytes that were already read from it.
    pub fn new(inner: S, early: Bytes, rules: WatchRules) -> Self {
        Self {
            inner,
            early,
            rules,
            frames: Frames::default(),
            is_broken: false,
            unfinished: None,
        }
    }

    /// The stream beneath.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn observe(&mut self, bytes: &[u8]) {
        let timeout = self.rules.message_timeout;
        for event in self.frames.observe(bytes) {
            match event {
                FrameEvent::MessageEnded => self.unfinished = None,
                FrameEvent::Broken => self.is_broken = true,
                FrameEvent::Announced { bytes, is_last } => {
                    let message = self
                        .unfinished
                        .get_or_insert_with(|| Box::pin(UnfinishedMessage::begin(timeout)));
                    message
                        .as_mut()
                        .get_mut()
                        .announce(bytes, is_last, &self.rules);
                }
            }
        }
    }

    /// Ready with `Ok` when reading may go on.
    fn poll_may_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_broken {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a WebSocket control frame is larger than 125 bytes",
            )));
        }
        let Some(message) = self.unfinished.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        let message = message.as_mut().get_mut();
        message.resume();
        if message.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a message was not complete in time",
            )));
        }
        if let Some(Waiting(waiting)) = &mut message.waiting {
            message.granted = ready!(waiting.as_mut().poll(context));
            message.waiting = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl UnfinishedMessage {
    fn begin(timeout: Duration) -> Self {
        let began = Instant::now();
        Self {
            began,
            deadline: Box::pin(tokio::time::sleep_until(began + timeout)),
            announced: 0,
            granted: None,
            waiting: None,
            taken_at: None,
        }
    }

    /// The session reads on: the time in which it did not is not the client's fault.
    fn resume(&mut self) {
        let Some(taken_at) = self.taken_at.take() else {
            return;
        };
        let rest = taken_at.elapsed();
        self.began += rest;
        let deadline = self.deadline.deadline() + rest;
        self.deadline.as_mut().reset(deadline);
    }

    fn announce(&mut self, bytes: u64, is_last: bool, rules: &WatchRules) {
        self.announced = self.announced.saturating_add(bytes);
        let allowance =
            rules.message_timeout + Duration::from_secs(self.announced / BYTES_PER_SECOND);
        self.deadline.as_mut().reset(self.began + allowance);
        let is_asked = self.granted.is_some() || self.waiting.is_some();
        if self.announced > UNCOUNTED_BYTES && !is_asked {
            let room = rules.unfinished.clone();
            // What has come stays in memory until the message ends, so room is asked for once: by a
            // message that goes on in further frames, for all that it may become.
            let most = match is_last {
                true => self.announced,
                false => self.announced.max(rules.message_bytes_cap),
            };
            let kib = u32::try_from(most.div_ceil(1024))
                .unwrap_or(u32::MAX)
                .min(room.kib_max);
            self.waiting = Some(Waiting(Box::pin(room.admit(kib))));
        }
    }
}

impl Unfinished {
    async fn admit(self, kib: u32) -> Option<Granted> {
        let permit = match Arc::clone(&self.kib).try_acquire_many_owned(kib) {
            Ok(permit) => permit,
            Err(_) => {
                self.metrics.unfinished_waits_total.increment(1);
                // Fails only when the semaphore is closed, which it never is.
                self.kib.acquire_many_owned(kib).await.ok()?
            }
        };
        self.metrics
            .unfinished_bytes
            .increment(f64::from(kib) * 1024.0);
        Some(Granted {
            kib,
            metrics: self.metrics,
            _permit: permit,
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_may_read(context))?;
        let filled = buffer.filled().len();
        if this.early.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        } else {
            let taken = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early[..taken]);
            this.early.advance(taken);
        }
        this.observe(&buffer.filled()[filled..]);
        if let Some(message) = &mut this.unfinished {
            message.as_mut().get_mut().taken_at = Some(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// Follows the frames of a byte stream.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 14],
    header_filled: usize,
    payload_left: u64,
    /// The frame whose payload is being read ends a data message.
    ends_message: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum FrameEvent {
    /// A data message began or goes on, with a frame.
    Announced {
        /// So many bytes has it.
        bytes: u64,
        /// No further frame follows.
        is_last: bool,
    },
    /// The last frame of a data message is whole.
    MessageEnded,
    /// A control frame announced more than it may carry.
    Broken,
}

impl Frames {
    /// What `bytes` bring. A frame that begins and ends within them brings both events, which
    /// cancel out, so small messages never arm a timer: only what is left open at the end counts.
    fn observe(&mut self, mut bytes: &[u8]) -> Vec<FrameEvent> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let taken = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= taken;
                bytes = &bytes[taken as usize..];
                if self.payload_left == 0 {
                    self.end_frame(&mut events);
                }
                continue;
            }
            self.header[self.header_filled] = bytes[0];
            self.header_filled += 1;
            bytes = &bytes[1..];
            if self.header_filled == self.header_bytes() {
                self.begin_frame(&mut events);
            }
        }
        events
    }

    /// How long the header is, as far as its first two bytes tell.
    fn header_bytes(&self) -> usize {
        if self.header_filled < 2 {
            return 2;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + mask
            + match self.header[1] & 0x7F {
                126 => 2,
                127 => 8,
                _ => 0,
            }
    }

    fn begin_frame(&mut self, events: &mut Vec<FrameEvent>) {
        let [first, second, rest @ ..] = self.header;
        self.payload_left = match second & 0x7F {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => u64::from_be_bytes([
                rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7],
            ]),
            short => u64::from(short),
        };
        self.header_filled = 0;
        let is_control = first & 0x08 != 0;
        self.ends_message = !is_control && first & 0x80 != 0;
        if !is_control {
            events.push(FrameEvent::Announced {
                bytes: self.payload_left,
                is_last: self.ends_message,
            });
        } else if self.payload_left > CONTROL_BYTES_MAX {
            events.push(FrameEvent::Broken);
        }
        if self.payload_left == 0 {
            self.end_frame(events);
        }
    }

    fn end_frame(&mut self, events: &mut Vec<FrameEvent>) {
        if !std::mem::take(&mut self.ends_message) {
            return;
        }
        if let Some(FrameEvent::Announced { .. }) = events.last() {
            events.pop();
        }
        events.push(FrameEvent::MessageEnded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn rules(bytes_max: u64) -> WatchRules {
        let unfinished = Unfinished::new(bytes_max, Arc::new(Metrics::new()));
        WatchRules {
            message_timeout: Duration::from_secs(30),
            message_bytes_cap: 150 * 1024,
            unfinished,
        }
    }

    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(0x80 | payload as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.resize(bytes.len() + payload, 7);
        bytes
    }

    #[test]
    fn frames_are_followed_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        for payload in [0, 1, 125, 126, 300, 70_000] {
            stream.extend(frame(0x82, payload));
            stream.extend(frame(0x89, 5)); // a ping between messages
        }
        stream.extend(frame(0x02, 10)); // a message in two frames, a ping inside
        stream.extend(frame(0x89, 0));
        stream.extend(frame(0x80, 10));
        for cut in [1, 2, 3, 7, 64, 4096, stream.len()] {
            let mut frames = Frames::default();
            let ended = stream
                .chunks(cut)
                .flat_map(|bytes| frames.observe(bytes))
                .filter(|event| *event == FrameEvent::MessageEnded)
                .count();
            assert_eq!(ended, 7, "cut into {cut}");
            assert_eq!((frames.payload_left, frames.header_filled), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_not_complete_in_time_fails_the_read() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, Bytes::new(), rules(0));
        client.write_all(&frame(0x82, 1000)[..500]).await.unwrap();
        let began = Instant::now();
        let mut sink = Vec::new();
        let error = watched.read_to_end(&mut sink).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_is_given_a_second_for_each_64_kib() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, Bytes::new(), rules(0));
        client
            .write_all(&frame(0x82, 10 * 65_536)[..500])
            .await
            .unwrap();
        let began = Instant::now();
        watched.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_between_messages_is_no_fault_of_the_watcher() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, Bytes::new(), rules(0));
        let whole = frame(0x82, 1000);
        client.write_all(&whole).await.unwrap();
        let mut buffer = vec![0; whole.len()];
        watched.read_exact(&mut buffer).await.unwrap();
        let more =
            tokio::time::timeout(Duration::from_secs(3600), watched.read_exact(&mut buffer)).await;
        assert!(more.is_err(), "the read waits");
    }

    #[tokio::test]
    async fn a_control_frame_that_announces_too_much_is_not_read() {
        for (first, payload, is_fine) in
            [(0x89, 125, true), (0x89, 126, false), (0x88, 70_000, false)]
        {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            let mut watched = Watched::new(server, Bytes::new(), rules(0));
            client.write_all(&frame(first, payload)).await.unwrap();
            let mut buffer = [0; 14];
            watched.read_exact(&mut buffer).await.unwrap();
            assert_eq!(watched.read_u8().await.is_ok(), is_fine, "{payload}");
        }
    }

    #[tokio::test]
    async fn a_large_message_waits_while_others_are_unfinished() {
        let rules = rules(200 * 1024);
        let (mut first, server) = tokio::io::duplex(1 << 20);
        let mut holder = Watched::new(server, Bytes::new(), rules.clone());
        let large = frame(0x82, 150 * 1024);
        first.write_all(&large).await.unwrap();
        let mut buffer = vec![0; large.len()];
        holder.read_exact(&mut buffer[..20]).await.unwrap();
        holder.read_exact(&mut buffer[20..1000]).await.unwrap();

        let (mut second, server) = tokio::io::duplex(1 << 20);
        let mut waiter = Watched::new(server, Bytes::new(), rules);
        second.write_all(&large).await.unwrap();
        let mut other = vec![0; large.len()];
        waiter.read_exact(&mut other[..20]).await.unwrap();
        let mut waiting = Box::pin(waiter.read_exact(&mut other[20..]));
        assert!(
            tokio::time::timeout(Duration::from_millis(50), &mut waiting)
                .await
                .is_err()
        );
        holder.read_exact(&mut buffer[1000..]).await.unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn further_frames_of_a_message_give_no_room_back() {
        let rules = rules(200 * 1024);
        let (mut first, server) = tokio::io::duplex(1 << 20);
        let mut holder = Watched::new(server, Bytes::new(), rules.clone());
        let mut begun = frame(0x02, 100 * 1024);
        begun.extend(frame(0x00, 0));
        first.write_all(&begun).await.unwrap();
        let mut buffer = vec![0; begun.len()];
        holder.read_exact(&mut buffer[..20]).await.unwrap();
        holder.read_exact(&mut buffer[20..]).await.unwrap();
        let held = rules.unfinished.kib.available_permits();
        assert_eq!(held, 50, "all that the message may become is taken");
        first.write_all(&frame(0x80, 1)).await.unwrap();
        holder.read_exact(&mut [0; 7]).await.unwrap();
        assert_eq!(rules.unfinished.kib.available_permits(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_rests_does_not_make_its_client_late() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, Bytes::new(), rules(0));
        let whole = frame(0x82, 1000);
        client.write_all(&whole).await.unwrap();
        let mut buffer = vec![0; whole.len()];
        watched.read_exact(&mut buffer[..500]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        watched.read_exact(&mut buffer[500..]).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_read_with_the_request_comes_first_and_is_watched() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let whole = frame(0x82, 10);
        let (early, late) = whole.split_at(7);
        let mut watched = Watched::new(server, Bytes::copy_from_slice(early), rules(0));
        client.write_all(late).await.unwrap();
        let mut buffer = vec![0; whole.len()];
        watched.read_exact(&mut buffer).await.unwrap();
        assert_eq!(buffer, whole);
        assert!(watched.unfinished.is_none());
    }
}
