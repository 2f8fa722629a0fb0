//! Outbox and mailbox → socket, each write under a deadline.
//!
//! The writer sends all answers that may leave, then one delivery, then looks again. When there is
//! nothing to send it flushes and waits.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::SplitSink;
use futures_util::{FutureExt as _, SinkExt as _};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::answers::worded;
use super::feed::{Fed, Feed, delivered_bytes};
use super::keepalive::{Due, Keepalive};
use super::mailboxes::{Mailboxes, Named, ToBegin};
use super::outbox::Ready;
use super::state::ANY_MAILBOX;
use super::{Dialect, Ended, Opened, Parts, Shared};
use crate::clock::Timestamp;
use crate::hub::{Fate, LiveBlob, Notice, Wakes};
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::close::Close;
use crate::protocol::message::{Delivery, DeviceSyncDelivery, NoticeStatus, Outgoing, Tag};
use crate::protocol::message_v2::{
    BlobDelivery, GoAway, GoAwayReason, ReceiptDelivery, ReceiptKind,
};
use crate::protocol::{v1, v2};
use crate::service::give_back::GiveBack;
use crate::service::{self, Receipt, StoredBlob};
use crate::socket::{Message, Socket, binary};

/// A frame may take the write timeout and a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// A v2 client that is told to go comes back after a fifth to all of this.
const RECONNECT_AFTER: Duration = Duration::from_secs(5);

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
    pub(super) device_feed: Option<Feed>,
    /// Brings the notices.
    pub(super) wakes: Arc<Wakes>,
    pub(super) keepalive: Keepalive,
    /// v2: the client knows that the relay is about to stop.
    pub(super) has_said_go_away: bool,
    /// Bytes of the last frame while it may not have left whole (a ping counts one), else zero.
    pub(super) unflushed: u64,
}

/// What comes next.
enum Next {
    Answer(Ready),
    Notice(Notice),
    Delivery(MailboxHash, StoredBlob),
    DeviceSync(StoredBlob),
    Live(LiveBlob),
    CaughtUp(Vec<MailboxId>),
    GoAway,
    /// Nothing now, and bytes wait to be flushed.
    Flush,
    Ping,
    Close(Close),
}

impl Writer<'_> {
    /// Writes until the session is over.
    pub(super) async fn run(&mut self) -> Ended {
        loop {
            let next = self.next().await;
            let written = match next {
                Next::Answer(Ready::Answer(answer)) => self.write(&answer).await,
                Next::Answer(Ready::Outcome {
                    tag,
                    outcome,
                    read_at,
                }) => {
                    self.parts
                        .metrics
                        .message_duration_seconds
                        .record(read_at.elapsed());
                    self.write(&match outcome {
                        Ok(stored) => Outgoing::Stored {
                            tag,
                            expires_at: stored.expires_at,
                            duplicate: stored.duplicate,
                        },
                        Err(refusal) => {
                            self.parts.service.count_refusal(&refusal);
                            Outgoing::Refused {
                                tag: Some(tag),
                                refused: worded(&refusal),
                            }
                        }
                    })
                    .await
                }
                Next::Answer(Ready::Late { answer, read_at }) => {
                    let duration = &self.parts.metrics.message_duration_seconds;
                    duration.record(read_at.elapsed());
                    self.write(&answer).await
                }
                Next::Answer(Ready::Opened { answer, to_begin }) => {
                    self.begin(&answer, &to_begin).await
                }
                Next::Notice(notice) => self.notify(notice).await,
                Next::Delivery(mailbox, blob) => self.deliver(mailbox, blob).await,
                Next::Live(blob) => self.deliver_live(blob).await,
                Next::CaughtUp(mailboxes) => self.write(&Outgoing::CaughtUp { mailboxes }).await,
                Next::GoAway => self.say_go_away().await,
                Next::DeviceSync(message) => self.deliver_device_sync(message).await,
                Next::Flush => self.flush().await,
                Next::Ping => {
                    self.keepalive.pinged(Instant::now());
                    self.send(Message::Ping(bytes::Bytes::new()), 0).await
                }
                Next::Answer(Ready::Close(close)) | Next::Close(close) => {
                    Err(Ended::ByRelay(close))
                }
            };
            if let Err(ended) = written {
                self.shared.state().closing();
                return ended;
            }
        }
    }

    async fn next(&mut self) -> Next {
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

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if let Poll::Ready(ready) = self.shared.outbox.poll_take(context) {
            return Poll::Ready(Next::Answer(ready));
        }
        if let Poll::Ready(notice) = self.wakes.poll_notice(context) {
            return Poll::Ready(Next::Notice(notice));
        }
        if let Poll::Ready(next) = self.poll_delivery(context) {
            return Poll::Ready(next);
        }
        // Device sync comes after the blobs that had waited, as v1 clients expect.
        if let Some(feed) = &mut self.device_feed
            && self.feed.is_caught_up()
            && self.shared.state().may_deliver()
            && let Poll::Ready(Fed::Blob(_, message)) = feed.poll_next(context, |_| true)
        {
            return Poll::Ready(Next::DeviceSync(message));
        }
        if self.unflushed > 0 {
            Poll::Ready(Next::Flush)
        } else {
            Poll::Pending
        }
    }

    fn poll_delivery(&mut self, context: &mut Context<'_>) -> Poll<Next> {
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
            && let Poll::Ready(blob) = self.wakes.poll_live(context)
        {
            return Poll::Ready(Next::Live(blob));
        }
        let shared = self.shared;
        loop {
            if self.may_be_caught_up() {
                let caught_up = self.take_caught_up(context);
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
    fn take_caught_up(&self, context: &mut Context<'_>) -> Vec<MailboxId> {
        if let Poll::Ready(marked) = self.wakes.poll_take(context) {
            self.mailboxes.look_at(marked);
        }
        self.mailboxes.take_caught_up()
    }

    /// Deliveries begin when the client can know that its mailboxes are open.
    async fn begin(&mut self, answer: &Outgoing, to_begin: &[ToBegin]) -> Result<(), Ended> {
        self.write(answer).await?;
        for begun in to_begin {
            if let Some(tells_senders) = self.mailboxes.begin(begun) {
                self.wakes.take_live(begun.mailbox, tells_senders);
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

    async fn deliver_v1(&mut self, opened: &Opened, blob: StoredBlob) -> Result<(), Ended> {
        // Noted before it is written: the acknowledgement may be read before this returns.
        let bytes = delivered_bytes(&blob);
        self.shared.state().delivered(ANY_MAILBOX, blob.id, bytes);
        let mailbox_as_spelt = Arc::clone(&opened.mailbox_as_spelt);
        let service = &self.parts.service;
        let (sender_id, body) = match service.give_back(&opened.mailbox, &blob.sealed) {
            Some(GiveBack::SenderId(sender_id)) => (Some(sender_id), blob.body),
            Some(GiveBack::Frame(frame)) => (None, frame),
            Some(GiveBack::SenderDevice(_)) | None => (None, blob.body),
        };
        let sender_id = sender_id.filter(|_| service.v1_keeps_sender_id());
        self.write(&Outgoing::Delivery(Delivery {
            id: blob.id,
            mailbox_as_spelt,
            sender_id,
            body,
        }))
        .await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        if opened.tells_senders {
            self.parts.service.tell_delivered(&blob.id);
        }
        Ok(())
    }

    async fn deliver_v2(&mut self, mailbox: MailboxHash, blob: StoredBlob) -> Result<(), Ended> {
        // Closed in the meantime: nobody waits for it.
        let Some(named) = self.mailboxes.named(&mailbox) else {
            return Ok(());
        };
        let bytes = delivered_bytes(&blob);
        self.shared.state().delivered(mailbox, blob.id, bytes);
        if let Some(receipt) = blob.receipt() {
            self.write(&receipt_delivery(named, &blob, &receipt))
                .await?;
            self.parts.metrics.receipts_delivered_total.increment(1);
            return Ok(());
        }
        let (service, id) = (&self.parts.service, blob.id);
        let redelivered = service.is_redelivered(&mailbox, &id);
        let body = match service.give_back(&named.id, &blob.sealed) {
            Some(GiveBack::Frame(frame)) => frame,
            _ => blob.body,
        };
        self.write(&Outgoing::Blob(BlobDelivery {
            id,
            mailbox: named.id,
            stored_at: blob.stored_at,
            expires_at: blob.expires_at,
            redelivered,
            body,
        }))
        .await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        let service = &self.parts.service;
        if named.tells_senders {
            service.tell_delivered(&id);
        }
        if named.tells_senders && blob.wants_receipts && !blob.is_delivered_told {
            let service = Arc::clone(service);
            let noting = async move { service.note_delivered(mailbox, id).await };
            let mut noting = noting.boxed();
            // Takes its place among the writes at once, before the client's acknowledgement does.
            if (&mut noting).now_or_never().is_none() {
                self.noting = Some(noting);
            }
        }
        Ok(())
    }

    /// A live blob is not in flight: whoever loses it loses nothing that the relay had promised.
    async fn deliver_live(&mut self, blob: LiveBlob) -> Result<(), Ended> {
        let Some(named) = self.mailboxes.named(&blob.mailbox) else {
            return Ok(());
        };
        self.write(&Outgoing::Blob(BlobDelivery {
            id: blob.id,
            mailbox: named.id,
            stored_at: blob.handed_at,
            expires_at: Timestamp::default(),
            redelivered: false,
            body: blob.body,
        }))
        .await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        Ok(())
    }

    fn owes_go_away(&self) -> bool {
        matches!(self.dialect, Dialect::V2(_)) && !self.has_said_go_away
    }

    async fn say_go_away(&mut self) -> Result<(), Ended> {
        self.has_said_go_away = true;
        // Spread over some seconds, so that not all come back, here or elsewhere, at once.
        let reconnect_after = RECONNECT_AFTER.mul_f64(0.2 + 0.8 * rand::random::<f64>());
        self.write(&Outgoing::GoAway(GoAway {
            reason: GoAwayReason::Draining,
            reconnect_after,
            alternates: Arc::clone(&self.parts.settings.v2.alternates),
        }))
        .await
    }

    async fn deliver_device_sync(&mut self, message: StoredBlob) -> Result<(), Ended> {
        // Only a session with a device has a feed for one.
        let Dialect::V1(opened) = self.dialect else {
            return Ok(());
        };
        let Some(device) = &opened.device else {
            return Ok(());
        };
        let bytes = delivered_bytes(&message);
        self.shared
            .state()
            .delivered(ANY_MAILBOX, message.id, bytes);
        let service = &self.parts.service;
        let sender_device = match service.give_back(&device.id, &message.sealed) {
            Some(GiveBack::SenderDevice(sender)) => sender,
            _ => Box::default(),
        };
        let delivery = DeviceSyncDelivery {
            id: message.id,
            identity_as_spelt: Arc::clone(&device.client_as_spelt),
            target_as_spelt: Arc::clone(&device.id_as_spelt),
            sender_device,
            version: message.version.unwrap_or_default(),
            body: message.body,
        };
        self.write(&Outgoing::DeviceSync(delivery)).await?;
        self.parts.metrics.device_sync_delivered_total.increment(1);
        Ok(())
    }

    async fn notify(&mut self, notice: Notice) -> Result<(), Ended> {
        let status = match notice.fate {
            Fate::Delivered => NoticeStatus::Delivered,
            Fate::Acknowledged => NoticeStatus::ReceivedByRecipient,
        };
        let tag = Tag::Name(Box::from(&*notice.name));
        let blob_id = notice.blob;
        self.write(&Outgoing::Notice {
            tag,
            blob_id,
            status,
        })
        .await
    }

    async fn write(&mut self, outgoing: &Outgoing) -> Result<(), Ended> {
        let frame = match self.dialect {
            Dialect::V1(_) => v1::encode(outgoing, self.parts.clock.now()),
            Dialect::V2(_) => v2::encode(outgoing),
        };
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

fn receipt_delivery(named: Named, blob: &StoredBlob, receipt: &Receipt) -> Outgoing {
    let kind = match receipt.kind {
        service::ReceiptKind::Delivered => ReceiptKind::Delivered,
        service::ReceiptKind::Acknowledged => ReceiptKind::Acknowledged,
        service::ReceiptKind::Expired => ReceiptKind::Expired,
        service::ReceiptKind::Removed => ReceiptKind::Removed,
        service::ReceiptKind::Lost => ReceiptKind::Lost,
    };
    Outgoing::Receipt(ReceiptDelivery {
        mailbox: named.id,
        receipt_id: blob.id,
        id: receipt.id,
        kind,
        at: receipt.at,
    })
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
