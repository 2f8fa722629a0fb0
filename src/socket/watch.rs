//! Sees every byte before the WebSocket library does, and judges messages by their headers.
//!
//! The library refuses a frame over the hard cap as soon as its header is read, but it knows neither
//! how long a message may take nor how much all sessions have begun together. This layer does: it
//! follows the frames (RFC 6455, 5.2) without touching them, fails the read when a message does not come
//! in time, and stops reading while too many unfinished bytes are in memory. While the relay makes a
//! client wait, the client's time stands still.
//!
//! It also reads ahead, because the library can only have one size of buffer for its whole life: that one
//! is small, and this one is there only while it has something. Reading ends at the end of each
//! payload, so that the library puts a message into a buffer of just its size and keeps nothing of it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::frames::{Cutter, FrameEvent, Frames};
use crate::limits::address::Address;
use crate::limits::unfinished::{Room, STEP_BYTES, Unfinished};

/// So much of a message is not counted: a connection may always hold it.
/// 1,000 connections × 64 KiB = 64 MiB beside the bound.
const UNCOUNTED_BYTES: u64 = 64 * 1024;

/// A message that is counted must bring another [`STEP_BYTES`], or its end, within this time: 6.4 kB a
/// second, which a slow phone does. So whoever holds memory of others has to pay for it all the time.
const STEP_TIME_MAX: Duration = Duration::from_secs(10);

/// How often a connection that waits for room looks again. A thousand that wait cost 20,000 looks a
/// second, which is 1 % of a core; and nobody can be forgotten, as in a list of those to be woken.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Bytes that are read from the connection at once: about 15 blobs of 1 KiB. 1,000 clients that send and
/// whose sessions wait hold 16 MiB by them.
const AHEAD_BYTES: usize = 16 * 1024;

/// Rest before each read of a message that comes in more frames. 16 KiB are read at a time, so these are
/// 13,600 empty frames a second.
const PIECES_REST: Duration = Duration::from_millis(200);

/// What a message may take beside its base time: a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// What the watcher goes by.
#[derive(Debug, Clone)]
pub struct WatchRules {
    /// A message must be complete in this time, and a second for each 64 KiB that it announces.
    pub message_timeout: Duration,
    /// The bound over all connections.
    pub unfinished: Unfinished,
    /// Counts pauses of those that send too many frames.
    pub slow_reading: Counter,
}

/// A stream whose incoming WebSocket frames are watched.
#[derive(Debug)]
pub struct Watched<S> {
    inner: S,
    /// Read and watched, and not handed on yet.
    ahead: Bytes,
    rules: WatchRules,
    address: Address,
    waits: Arc<Waits>,
    /// Follows what is read.
    frames: Frames,
    /// Follows what is handed on.
    cutter: Cutter,
    /// A message comes in more frames than anybody needs, so each read waits for this.
    rest: Option<Pin<Box<Sleep>>>,
    unfinished: Option<Pin<Box<UnfinishedMessage>>>,
}

/// A message that has begun and not ended.
#[derive(Debug)]
struct UnfinishedMessage {
    announced: u64,
    /// Bytes that have been read.
    come: u64,
    /// When the whole message must be there.
    whole_by: Instant,
    /// When the next step must be there, of a message that is counted, and how much was there when that
    /// was set.
    step: Option<(Instant, u64)>,
    /// Fires at the earlier of both.
    deadline: Pin<Box<Sleep>>,
    room: Option<Room>,
    waiting: Option<Waiting>,
    /// When the session took what had come; it may rest before it reads on.
    taken_at: Option<Instant>,
}

/// A message waits for room.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    look_again: Pin<Box<Sleep>>,
}

/// When the relay last made a client wait for room: meanwhile it heard nothing of it.
#[derive(Debug, Default)]
pub struct Waits(Mutex<Waited>);

#[derive(Debug, Clone, Copy, Default)]
enum Waited {
    #[default]
    Never,
    Now,
    Until(Instant),
}

impl Waits {
    /// When it last waited, which may be now.
    pub fn last(&self) -> Option<Instant> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Waited::Never => None,
            Waited::Now => Some(Instant::now()),
            Waited::Until(then) => Some(then),
        }
    }

    fn set(&self, waited: Waited) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waited;
    }
}

/// Why a read failed with [`io::ErrorKind::TimedOut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// The message was not complete in time.
    Whole,
    /// A large message came too slowly.
    Step,
}

impl Late {
    /// What the client is told.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Whole => "a message was not complete in time",
            Self::Step => "a large message came more slowly than 64 KiB in 10 seconds",
        }
    }

    /// What was late, if this is why the read failed.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Late {}

impl<S> Watched<S> {
    /// Watches `inner`, which is a client's at `address`; `early` are bytes that were already read from
    /// it, with the request. Within a runtime, because a message may begin in them and has a time limit.
    pub fn new(inner: S, early: &[u8], rules: WatchRules, address: Address) -> Self {
        let mut watched = Self {
            inner,
            ahead: Bytes::new(),
            rules,
            address,
            waits: Arc::default(),
            frames: Frames::default(),
            cutter: Cutter::default(),
            rest: None,
            unfinished: None,
        };
        watched.has_read(early);
        watched
    }

    /// The stream beneath.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// When the relay last made this client wait.
    pub fn waits(&self) -> Arc<Waits> {
        Arc::clone(&self.waits)
    }

    /// Watches these bytes, and keeps them until they are handed on.
    fn has_read(&mut self, bytes: &[u8]) {
        self.observe(bytes);
        // The buffer that they were read into may be larger, and would be kept for as long as they are.
        self.ahead = Bytes::copy_from_slice(bytes);
    }

    fn observe(&mut self, bytes: &[u8]) {
        let timeout = self.rules.message_timeout;
        for event in self.frames.observe(bytes) {
            match event {
                FrameEvent::MessageEnded => self.unfinished = None,
                FrameEvent::Announced { bytes } => {
                    let message = self
                        .unfinished
                        .get_or_insert_with(|| Box::pin(UnfinishedMessage::begin(timeout)));
                    message.as_mut().get_mut().announce(bytes);
                }
            }
        }
        if let Some(message) = &mut self.unfinished {
            let message = message.as_mut().get_mut();
            message.has_come(self.frames.message_come());
            message.taken_at = Some(Instant::now());
        }
    }

    /// Ready with `Ok` when reading may go on.
    fn poll_may_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(message) = self.unfinished.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        let message = message.as_mut().get_mut();
        message.resume();
        if message.needs_room() {
            let room = message
                .room
                .get_or_insert_with(|| self.rules.unfinished.begin(self.address));
            ready!(poll_room(room, &mut message.waiting, &self.waits, context));
            if let Some(waiting) = message.waiting.take() {
                message.postpone(waiting.since.elapsed());
                self.waits.set(Waited::Until(Instant::now()));
            }
        }
        if message.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                message.is_late(),
            )));
        }
        if self.frames.are_very_many() {
            let slow_reading = &self.rules.slow_reading;
            let rest = self.rest.get_or_insert_with(|| {
                slow_reading.increment(1);
                Box::pin(tokio::time::sleep(PIECES_REST))
            });
            ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        Poll::Ready(Ok(()))
    }
}

/// Ready when the message has got one step more.
fn poll_room(
    room: &mut Room,
    waiting: &mut Option<Waiting>,
    waits: &Waits,
    context: &mut Context<'_>,
) -> Poll<()> {
    loop {
        let Err(denied) = room.grow() else {
            return Poll::Ready(());
        };
        let waiting = waiting.get_or_insert_with(|| {
            room.count_wait(denied);
            waits.set(Waited::Now);
            Waiting {
                since: Instant::now(),
                look_again: Box::pin(tokio::time::sleep(LOOK_AGAIN)),
            }
        });
        ready!(waiting.look_again.as_mut().poll(context));
        waiting
            .look_again
            .as_mut()
            .reset(Instant::now() + LOOK_AGAIN);
    }
}

impl UnfinishedMessage {
    fn begin(timeout: Duration) -> Self {
        let whole_by = Instant::now() + timeout;
        Self {
            announced: 0,
            come: 0,
            whole_by,
            step: None,
            deadline: Box::pin(tokio::time::sleep_until(whole_by)),
            room: None,
            waiting: None,
            taken_at: None,
        }
    }

    /// The session reads on: the time in which it did not is not the client's fault.
    fn resume(&mut self) {
        if let Some(taken_at) = self.taken_at.take() {
            self.postpone(taken_at.elapsed());
        }
    }

    /// The relay did not read for so long.
    fn postpone(&mut self, rest: Duration) {
        if rest.is_zero() {
            return;
        }
        self.whole_by += rest;
        if let Some((by, _)) = &mut self.step {
            *by += rest;
        }
        self.set_deadline();
    }

    fn announce(&mut self, bytes: u64) {
        let before = self.announced;
        self.announced = before.saturating_add(bytes);
        let more = self.announced / BYTES_PER_SECOND - before / BYTES_PER_SECOND;
        self.whole_by += Duration::from_secs(more);
        self.set_deadline();
    }

    /// So much of it has come in all. What is counted must go on coming.
    fn has_come(&mut self, come: u64) {
        self.come = come;
        let is_due = match self.step {
            None => come > UNCOUNTED_BYTES,
            Some((_, had)) => come >= had + STEP_BYTES,
        };
        if is_due {
            self.step = Some((Instant::now() + STEP_TIME_MAX, come));
            self.set_deadline();
        }
    }

    fn set_deadline(&mut self) {
        let step_by = self.step.map(|(by, _)| by);
        let first = step_by.map_or(self.whole_by, |by| by.min(self.whole_by));
        self.deadline.as_mut().reset(first);
    }

    fn is_late(&self) -> Late {
        match self.step {
            Some((by, _)) if by < self.whole_by => Late::Step,
            _ => Late::Whole,
        }
    }

    /// Whether the next bytes have no room yet. What has come stays in memory until the message ends.
    fn needs_room(&self) -> bool {
        let room = self.room.as_ref().map_or(0, Room::bytes);
        let left = self.announced.saturating_sub(self.come);
        self.come + left.min(AHEAD_BYTES as u64) > UNCOUNTED_BYTES + room
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Reads ahead; nothing is there afterwards only at the end. Not inlined, because its buffer is on the
    /// stack, which costs at each call: most calls only hand on what is there.
    #[inline(never)]
    fn poll_read_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_may_read(context))?;
        let mut buffer = [MaybeUninit::uninit(); AHEAD_BYTES];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer))?;
        self.has_read(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The library would read it to its end.
        if this.cutter.is_broken() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a WebSocket control frame is larger than 125 bytes",
            )));
        }
        if this.ahead.is_empty() {
            ready!(this.poll_read_ahead(context))?;
        }
        let bytes = this.cutter.bytes_max().min(buffer.remaining());
        let piece = &this.ahead[..bytes.min(this.ahead.len())];
        this.cutter.pass(piece);
        buffer.put_slice(piece);
        let handed_on = piece.len();
        this.ahead.advance(handed_on);
        if this.ahead.is_empty() {
            this.ahead = Bytes::new();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::socket::frames::tests::frame;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn home() -> Address {
        Address::of([192, 0, 2, 1].into())
    }

    /// Reads so many bytes as the WebSocket library does, some at a time.
    async fn read(watched: &mut Watched<tokio::io::DuplexStream>, bytes: usize) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let mut buffer = vec![0; left.min(4_096)];
            left -= watched.read_exact(&mut buffer).await?;
        }
        Ok(())
    }

    fn rules(bytes_max: u64) -> WatchRules {
        let unfinished = Unfinished::new(bytes_max, Arc::new(Metrics::new()));
        WatchRules {
            message_timeout: Duration::from_secs(30),
            unfinished,
            slow_reading: Counter::noop(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_not_complete_in_time_fails_the_read() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules(0), home());
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
        let mut watched = Watched::new(server, &[], rules(0), home());
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
        let mut watched = Watched::new(server, &[], rules(0), home());
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
            let mut watched = Watched::new(server, &[], rules(0), home());
            client.write_all(&frame(first, payload)).await.unwrap();
            let mut buffer = [0; 14];
            watched.read_exact(&mut buffer).await.unwrap();
            assert_eq!(watched.read_u8().await.is_ok(), is_fine, "{payload}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_takes_no_room_and_what_has_come_takes_steps() {
        let rules = rules(2 * STEP_BYTES);
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules, home());
        let large = frame(0x82, 300 * 1024);
        client.write_all(&large).await.unwrap();
        let room = |watched: &Watched<_>| {
            let message = watched.unfinished.as_ref();
            message.and_then(|message| message.room.as_ref().map(Room::bytes))
        };
        read(&mut watched, 14 + 60 * 1024).await.unwrap();
        assert_eq!(room(&watched), None);
        read(&mut watched, 8 * 1024).await.unwrap();
        assert_eq!(room(&watched), Some(STEP_BYTES));
        read(&mut watched, 100 * 1024).await.unwrap();
        assert_eq!(room(&watched), Some(2 * STEP_BYTES));
        read(&mut watched, large.len() - 14 - 168 * 1024)
            .await
            .unwrap();
        assert!(watched.unfinished.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_stops_coming_is_late_after_ten_seconds() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules(0), home());
        let large = frame(0x82, 1 << 20);
        client.write_all(&large[..100 * 1024]).await.unwrap();
        let began = Instant::now();
        let error = read(&mut watched, large.len()).await.unwrap_err();
        assert_eq!(Late::of(&error), Some(Late::Step));
        assert_eq!(began.elapsed(), STEP_TIME_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_comes_slowly_and_steadily_is_read() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut watched = Watched::new(server, &[], rules(0), home());
        // 8 KiB a second.
        let large = frame(0x82, 200 * 1024);
        let whole = large.len();
        let sending = async {
            for piece in large.chunks(8 * 1024) {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (read, ()) = tokio::join!(read(&mut watched, whole), sending);
        read.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_s_time_stands_still_while_the_relay_makes_it_wait() {
        let rules = rules(2 * STEP_BYTES);
        // Older messages of other networks hold all that there is.
        let mut others: Vec<_> = (0..2)
            .map(|n| rules.unfinished.begin(Address::of([198, 51, n, 1].into())))
            .collect();
        others.iter_mut().for_each(|room| room.grow().unwrap());
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules, home());
        let waits = watched.waits();
        let large = frame(0x82, 150 * 1024);
        client.write_all(&large).await.unwrap();
        let mut reading = Box::pin(read(&mut watched, large.len()));
        let an_hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(an_hour, &mut reading).await.is_err());
        assert_eq!(waits.last(), Some(Instant::now()), "it is not silent");
        drop(others);
        reading.await.unwrap();
        assert!(waits.last() <= Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_in_very_many_frames_is_read_slowly_and_is_late_in_the_end() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules(0), home());
        let frames = frame(0x00, 0).repeat(600_000);
        let bytes = frames.len();
        tokio::spawn(async move {
            client.write_all(&frame(0x02, 0)).await.unwrap();
            // Ends with the test: nobody reads it all.
            client.write_all(&frames).await.ok();
        });
        // 30 seconds at 20 reads a second.
        let error = read(&mut watched, bytes).await.unwrap_err();
        assert_eq!(Late::of(&error), Some(Late::Whole));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_rests_does_not_make_its_client_late() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(server, &[], rules(0), home());
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
        let mut watched = Watched::new(server, early, rules(0), home());
        client.write_all(late).await.unwrap();
        let mut buffer = vec![0; whole.len()];
        watched.read_exact(&mut buffer).await.unwrap();
        assert_eq!(buffer, whole);
        assert!(watched.unfinished.is_none());
    }
}
