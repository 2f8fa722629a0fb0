//! Outbox and mailbox → socket, each write under a deadline.
//!
//! The writer sends all answers that may leave, then one delivery, then looks again. When there is
//! nothing to send it flushes and waits.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::feed::{Fed, Feed};
use super::keepalive::{Due, Keepalive};
use super::mailboxes::{Mailboxes, ToBegin};
use super::outbox::Owed;
use super::v1::open::ToDevice;
use super::v2::caught_up_v2;
use super::{Dialect, Ended, Parts, Shared};
use crate::hub::{Inbox, LiveBlob, Notice};
use crate::ids::{BlobId, MailboxHash, MailboxId};
use crate::protocol::close::Close;
use crate::service::StoredBlob;
use crate::socket::line::Line;
use crate::socket::{Message, binary};

/// A frame may take the write timeout and a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// The writing half of a session.
pub(super) struct Writer<'a> {
    pub(super) line: &'a Line,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) dialect: &'a Dialect,
    pub(super) mailboxes: Arc<Mailboxes>,
    pub(super) feed: Feed,
    /// A receipt of the last delivery that waits for a place in the next commit. Deliveries wait with
    /// it, answers do not.
    pub(super) noting: Option<BoxFuture<'static, ()>>,
    /// What other devices of the client sent this one.
    pub(super) device_feed: Option<Box<(ToDevice<'a>, Feed)>>,
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

/// A frame that was decided on, and what is done when it has been handed to the socket.
pub(super) struct Outgoing {
    pub(super) frame: Bytes,
    pub(super) then: Then,
}

/// What is done when a frame has been handed to the socket.
pub(super) enum Then {
    Nothing,
    /// Deliveries begin: the client can know that its mailboxes are open.
    Begin(Vec<ToBegin>),
    /// The client has given up what is in flight of these mailboxes.
    Forget(Vec<MailboxHash>),
    /// A blob was delivered.
    Delivered(Delivered),
    /// A receipt was.
    ReceiptDelivered,
    /// A message for a device was.
    DeviceSyncDelivered,
}

/// What hangs on the delivery of a blob.
pub(super) struct Delivered {
    /// The blob whose senders hear of it while they are connected.
    pub(super) tell: Option<BlobId>,
    /// The blob for which a receipt is stored.
    pub(super) note: Option<(MailboxHash, BlobId)>,
}

/// What the writer does next, and waits for.
enum Step {
    Write(Outgoing),
    Flush,
    Ping,
    /// A mailbox was closed before its delivery: there is nothing to do.
    Skip,
    Close(Close),
}

impl<'a> Writer<'a> {
    /// Writes until the session is over.
    pub(super) async fn run(&mut self) -> Ended {
        loop {
            // Decided without waiting, and into few bytes: this future is there as long as the session.
            let step = {
                let next = self.next().await;
                self.step(next)
            };
            let written = match step {
                Step::Write(outgoing) => self.write(outgoing).await,
                Step::Flush => self.flush().await,
                Step::Ping => self.ping().await,
                Step::Skip => Ok(()),
                Step::Close(close) => Err(Ended::ByRelay(close)),
            };
            if let Err(ended) = written {
                self.shared.state().closing();
                return ended;
            }
        }
    }

    fn step(&mut self, next: Next<'a>) -> Step {
        let (frame, then) = match next {
            Next::Answer(Owed::Answer(answer)) => (answer, Then::Nothing),
            Next::Answer(Owed::Opened { answer, to_begin }) => (answer, Then::Begin(to_begin)),
            Next::Answer(Owed::Closed { answer, closed }) => (answer, Then::Forget(closed)),
            Next::Answer(Owed::Close(close)) | Next::Close(close) => return Step::Close(close),
            Next::Notice(notice) => (self.notice_v1(&notice), Then::Nothing),
            Next::Delivery(mailbox, blob) => {
                return self.delivery(mailbox, blob).map_or(Step::Skip, Step::Write);
            }
            Next::Live(blob) => {
                return self.live_delivery_v2(blob).map_or(Step::Skip, Step::Write);
            }
            Next::CaughtUp(mailboxes) => (caught_up_v2(mailboxes), Then::Nothing),
            Next::GoAway => (self.go_away_v2(), Then::Nothing),
            Next::DeviceSync(device, message) => (
                self.device_sync_delivery_v1(device, message),
                Then::DeviceSyncDelivered,
            ),
            Next::Flush => return Step::Flush,
            Next::Ping => return Step::Ping,
        };
        Step::Write(Outgoing { frame, then })
    }

    fn delivery(&mut self, mailbox: MailboxHash, blob: StoredBlob) -> Option<Outgoing> {
        match self.dialect {
            Dialect::V1(opened) => Some(self.delivery_v1(opened, blob)),
            Dialect::V2(_) => self.delivery_v2(mailbox, blob),
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
        if let Some((device, feed)) = self.device_feed.as_deref_mut()
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

    fn owes_go_away(&self) -> bool {
        matches!(self.dialect, Dialect::V2(_)) && !self.has_said_go_away
    }

    async fn write(&mut self, outgoing: Outgoing) -> Result<(), Ended> {
        self.ready(outgoing.frame.len() as u64).await?;
        let sent = self.line.send(binary(outgoing.frame));
        sent.map_err(|error| ended_by(&error))?;
        self.parts.metrics.messages_sent_total.increment(1);
        self.then(outgoing.then);
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Ended> {
        self.keepalive.pinged(Instant::now());
        self.ready(0).await?;
        let sent = self.line.send(Message::Ping(Bytes::new()));
        sent.map_err(|error| ended_by(&error))
    }

    fn then(&mut self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Begin(to_begin) => {
                for begun in &to_begin {
                    if let Some(tells_senders) = self.mailboxes.begin(begun) {
                        self.inbox.take_live(begun.mailbox, tells_senders);
                    }
                }
            }
            Then::Forget(closed) => self.shared.forget(&closed),
            Then::Delivered(delivered) => {
                self.parts.metrics.blobs_delivered_total.increment(1);
                self.delivered(delivered);
            }
            Then::ReceiptDelivered => self.parts.metrics.receipts_delivered_total.increment(1),
            Then::DeviceSyncDelivered => {
                self.parts.metrics.device_sync_delivered_total.increment(1);
            }
        }
    }

    fn delivered(&mut self, Delivered { tell, note }: Delivered) {
        let service = &self.parts.service;
        if let Some(id) = tell {
            service.tell_delivered(&id);
        }
        if let Some((mailbox, id)) = note {
            let service = Arc::clone(service);
            let noting = async move { service.note_delivered(mailbox, id).await };
            let mut noting = noting.boxed();
            // Takes its place among the writes at once, before the client's acknowledgement does.
            if (&mut noting).now_or_never().is_none() {
                self.noting = Some(noting);
            }
        }
    }

    /// Waits until the line takes a frame of so many bytes. It does when the frame before has left: that
    /// one is waited for, and not everything since the last flush, or a long backlog would make the
    /// deadline endless.
    async fn ready(&mut self, bytes: u64) -> Result<(), Ended> {
        let deadline = self.deadline();
        self.unflushed = bytes.max(1);
        within(deadline, poll_fn(|context| self.line.poll_ready(context))).await
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let deadline = self.deadline();
        within(deadline, poll_fn(|context| self.line.poll_flush(context))).await?;
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
        Ok(written) => written.map_err(|error| ended_by(&error)),
        Err(_) => Err(Ended::ByRelay(Close::Slow(
            "the client does not read what the relay sends",
        ))),
    }
}

fn ended_by(error: &WsError) -> Ended {
    match error {
        // The reader sees the client's close at the same time, and may be asked second.
        WsError::ConnectionClosed
        | WsError::AlreadyClosed
        | WsError::Protocol(ProtocolError::SendAfterClosing) => Ended::ByClient,
        WsError::WriteBufferFull(_) => {
            Ended::ByRelay(Close::Slow("the client does not read its answers"))
        }
        _ => Ended::Lost,
    }
}
