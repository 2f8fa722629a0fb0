//! Outbox and mailbox → socket, each write under a deadline.
//!
//! The writer sends all answers that may leave, then one delivery, then looks again. When there is
//! nothing to send it flushes and waits.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::SplitSink;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::feed::{Fed, Feed};
use super::keepalive::{Due, Keepalive};
use super::mailboxes::{Mailboxes, ToBegin};
use super::outbox::Owed;
use super::v1::open::ToDevice;
use super::{Dialect, Ended, Parts, Shared};
use crate::hub::{Inbox, LiveBlob, Notice};
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::close::Close;
use crate::service::StoredBlob;
use crate::socket::{Message, Socket, binary};

/// A frame may take the write timeout and a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// The writing half of a session.
pub(super) struct Writer<'a> {
    pub(super) sink: &'a mut SplitSink<Socket, Message>,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) dialect: &'a Dialect,
    pub(super) mailboxes: Arc<Mailboxes>,
    pub(super) feed: Feed,
    /// A receipt of the last delivery that waits for a place in the next commit. Deliveries wait with
    /// it, answers do not.
    pub(super) noting: Option<BoxFuture<'static, ()>>,
    /// What other devices of the client sent this one.
    pub(super) device_feed: Option<(ToDevice<'a>, Feed)>,
    /// Brings the notices.
    pub(super) inbox: Arc<Inbox>,
    pub(super) keepalive: Keepalive,
    /// v2: the client knows that the relay is about to stop.
    pub(super) has_said_go_away: bool,
    /// Bytes of the last frame while it may not have left whole (a ping counts one), else zero.
    pub(super) unflushed: u64,
}

/// What comes next.
enum Next<'a> {
    Answer(Owed),
    Notice(Notice),
    Delivery(MailboxHash, StoredBlob),
    DeviceSync(ToDevice<'a>, StoredBlob),
    Live(LiveBlob),
    CaughtUp(Vec<MailboxId>),
    GoAway,
    /// Nothing now, and bytes wait to be flushed.
    Flush,
    Ping,
    Close(Close),
}

impl<'a> Writer<'a> {
    /// Writes until the session is over.
    pub(super) async fn run(&mut self) -> Ended {
        loop {
            let next = self.next().await;
            let written = match next {
                Next::Answer(Owed::Answer(answer)) => self.write(answer).await,
                Next::Answer(Owed::Opened { answer, to_begin }) => {
                    self.begin(answer, &to_begin).await
                }
                Next::Answer(Owed::Closed { answer, closed }) => {
                    let written = self.write(answer).await;
                    self.shared.forget(&closed);
                    written
                }
                Next::Notice(notice) => self.notify(notice).await,
                Next::Delivery(mailbox, blob) => self.deliver(mailbox, blob).await,
                Next::Live(blob) => self.deliver_live(blob).await,
                Next::CaughtUp(mailboxes) => self.say_caught_up(mailboxes).await,
                Next::GoAway => self.say_go_away().await,
                Next::DeviceSync(device, message) => {
                    self.deliver_device_sync(device, message).await
                }
                Next::Flush => self.flush().await,
                Next::Ping => {
                    self.keepalive.pinged(Instant::now());
                    self.send(Message::Ping(Bytes::new()), 0).await
                }
                Next::Answer(Owed::Close(close)) | Next::Close(close) => Err(Ended::ByRelay(close)),
            };
            if let Err(ended) = written {
                self.shared.state().closing();
                return ended;
            }
        }
    }

    async fn next(&mut self) -> Next<'a> {
        loop {
            let drain_by = self.shared.drain_deadline(self.parts);
            if drain_by.is_some() && self.owes_go_away() {
                return Next::GoAway;
            }
            if drain_by.is_some_and(|by| self.shared.is_drained() || Instant::now() >= by) {
                return Next::Close(Close::Drain);
            }
            // Most often something is there, and then no timer is touched.
            if let Poll::Ready(next) =
                poll_fn(|context| Poll::Ready(self.poll_ready(context))).await
            {
                return next;
            }
            let until = match self.keepalive.due(Instant::now(), self.shared.last_heard()) {
                Due::Ping => return Next::Ping,
                Due::Silent => return Next::Close(Close::Silent),
                Due::At(at) => drain_by.map_or(at, |by| by.min(at)),
            };
            let (shutdown, shared) = (&self.parts.shutdown, self.shared);
            tokio::select! {
                biased;
                next = poll_fn(|context| self.poll_ready(context)) => return next,
                () = tokio::time::sleep_until(until) => {}
                () = shutdown.draining(), if drain_by.is_none() => {}
                () = shared.settled.notified(), if drain_by.is_some() => {}
            }
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Next<'a>> {
        if let Poll::Ready(owed) = self.shared.outbox.poll_take(context) {
            return Poll::Ready(Next::Answer(owed));
        }
        if let Poll::Ready(notice) = self.inbox.poll_notice(context) {
            return Poll::Ready(Next::Notice(notice));
        }
        if let Poll::Ready(next) = self.poll_delivery(context) {
            return Poll::Ready(next);
        }
        // Device sync comes after the blobs that had waited, as v1 clients expect.
        if let Some((device, feed)) = &mut self.device_feed
            && self.feed.is_caught_up()
            && self.shared.state().may_deliver()
            && let Poll::Ready(Fed::Blob(_, message)) = feed.poll_next(context, |_| true)
        {
            return Poll::Ready(Next::DeviceSync(*device, message));
        }
        if self.unflushed > 0 {
            Poll::Ready(Next::Flush)
        } else {
            Poll::Pending
        }
    }

    fn poll_delivery(&mut self, context: &mut Context<'_>) -> Poll<Next<'a>> {
        // Registered before the looks, so that what comes between them is not missed.
        self.shared.unblocked.register(context.waker());
        if let Some(noting) = &mut self.noting {
            ready!(noting.as_mut().poll(context));
            self.noting = None;
        }
        if !self.shared.state().may_deliver() {
            return Poll::Pending;
        }
        if let Dialect::V2(_) = self.dialect
            && let Poll::Ready(blob) = self.inbox.poll_live(context)
        {
            return Poll::Ready(Next::Live(blob));
        }
        let shared = self.shared;
        loop {
            if self.may_be_caught_up() {
                let caught_up = self.take_caught_up();
                if !caught_up.is_empty() {
                    return Poll::Ready(Next::CaughtUp(caught_up));
                }
            }
            let admits = |bytes| shared.state().admits(bytes);
            if let Poll::Ready(Fed::Blob(mailbox, blob)) = self.feed.poll_next(context, admits) {
                return Poll::Ready(Next::Delivery(mailbox, blob));
            }
            // Unless this very look has settled that some have caught up.
            if !self.may_be_caught_up() {
                return Poll::Pending;
            }
        }
    }

    fn may_be_caught_up(&self) -> bool {
        matches!(self.dialect, Dialect::V2(_)) && self.mailboxes.is_any_caught_up()
    }

    /// Mailboxes of which all that was stored before now has been delivered. The feed is to be asked
    /// again: what has come since it last looked comes first, and is in its queue.
    fn take_caught_up(&self) -> Vec<MailboxId> {
        self.mailboxes.look_at(self.inbox.take_marks());
        self.mailboxes.take_caught_up()
    }

    /// Deliveries begin when the client can know that its mailboxes are open.
    async fn begin(&mut self, answer: Bytes, to_begin: &[ToBegin]) -> Result<(), Ended> {
        self.write(answer).await?;
        for begun in to_begin {
            if let Some(tells_senders) = self.mailboxes.begin(begun) {
                self.inbox.take_live(begun.mailbox, tells_senders);
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, mailbox: MailboxHash, blob: StoredBlob) -> Result<(), Ended> {
        match self.dialect {
            Dialect::V1(opened) => self.deliver_v1(opened, blob).await,
            Dialect::V2(_) => self.deliver_v2(mailbox, blob).await,
        }
    }

    fn owes_go_away(&self) -> bool {
        matches!(self.dialect, Dialect::V2(_)) && !self.has_said_go_away
    }

    pub(super) async fn write(&mut self, frame: Bytes) -> Result<(), Ended> {
        let bytes = frame.len() as u64;
        self.send(binary(frame), bytes).await?;
        self.parts.metrics.messages_sent_total.increment(1);
        Ok(())
    }

    async fn send(&mut self, message: Message, bytes: u64) -> Result<(), Ended> {
        // The sink takes a frame only when the one before it has left: that one is waited for, and
        // not everything since the last flush, or a long backlog would make the deadline endless.
        let deadline = self.deadline();
        self.unflushed = bytes.max(1);
        within(deadline, self.sink.feed(message)).await
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let deadline = self.deadline();
        within(deadline, self.sink.flush()).await?;
        self.unflushed = 0;
        Ok(())
    }

    fn deadline(&self) -> Duration {
        self.parts.settings.write_timeout + Duration::from_secs(self.unflushed / BYTES_PER_SECOND)
    }
}

async fn within(
    deadline: Duration,
    writing: impl Future<Output = Result<(), WsError>>,
) -> Result<(), Ended> {
    match tokio::time::timeout(deadline, writing).await {
        Ok(Ok(())) => Ok(()),
        // The reader sees the client's close at the same time, and may be asked second.
        Ok(Err(
            WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Protocol(ProtocolError::SendAfterClosing),
        )) => Err(Ended::ByClient),
        Ok(Err(WsError::WriteBufferFull(_))) => Err(Ended::ByRelay(Close::Slow(
            "the client does not read its answers",
        ))),
        Ok(Err(_)) => Err(Ended::Lost),
        Err(_) => Err(Ended::ByRelay(Close::Slow(
            "the client does not read what the relay sends",
        ))),
    }
}
