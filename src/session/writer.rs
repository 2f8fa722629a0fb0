//! Outbox and mailbox → socket, each write under a deadline.
//!
//! The writer sends all answers that may leave, then one delivery, then looks again. When there is
//! nothing to send it flushes and waits.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::SinkExt as _;
use futures_util::stream::SplitSink;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::feed::Feed;
use super::keepalive::{Due, Keepalive};
use super::outbox::Ready;
use super::reader::worded;
use super::{Ended, Opened, Parts, Shared};
use crate::hub::{Fate, Notice, Wakes};
use crate::protocol::close::Close;
use crate::protocol::message::{Delivery, DeviceSyncDelivery, NoticeStatus, Outgoing, Tag};
use crate::protocol::v1;
use crate::service::StoredBlob;
use crate::service::give_back::GiveBack;
use crate::socket::{Message, Socket, binary};

/// A frame may take the write timeout and a second for each of these.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// The writing half of a session.
pub(super) struct Writer<'a> {
    pub(super) sink: &'a mut SplitSink<Socket, Message>,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) opened: &'a Opened,
    pub(super) feed: Feed,
    /// What other devices of the client sent this one.
    pub(super) device_feed: Option<Feed>,
    /// Brings the notices.
    pub(super) wakes: Arc<Wakes>,
    pub(super) keepalive: Keepalive,
    /// Bytes of the last frame while it may not have left whole (a ping counts one), else zero.
    pub(super) unflushed: u64,
}

/// What comes next.
enum Next {
    Answer(Ready),
    Notice(Notice),
    Delivery(StoredBlob),
    DeviceSync(StoredBlob),
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
                Next::Notice(notice) => self.notify(notice).await,
                Next::Delivery(blob) => self.deliver(blob).await,
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
        if self.shared.state().may_deliver()
            && let Poll::Ready(blob) = self.feed.poll_next(context)
        {
            return Poll::Ready(Next::Delivery(blob));
        }
        // Device sync comes after the blobs that had waited, as v1 clients expect.
        if let Some(feed) = &mut self.device_feed
            && self.feed.is_caught_up()
            && self.shared.state().may_deliver()
            && let Poll::Ready(message) = feed.poll_next(context)
        {
            return Poll::Ready(Next::DeviceSync(message));
        }
        if self.unflushed > 0 {
            Poll::Ready(Next::Flush)
        } else {
            Poll::Pending
        }
    }

    async fn deliver(&mut self, blob: StoredBlob) -> Result<(), Ended> {
        // Noted before it is written: the acknowledgement may be read before this returns.
        self.shared.state().delivered(blob.id);
        let mailbox_as_spelt = Arc::clone(&self.opened.mailbox_as_spelt);
        let service = &self.parts.service;
        let (sender_id, body) = match service.give_back(&self.opened.mailbox, &blob.sealed) {
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
        if self.opened.tells_senders {
            self.parts.service.tell_delivered(&blob.id);
        }
        Ok(())
    }

    async fn deliver_device_sync(&mut self, message: StoredBlob) -> Result<(), Ended> {
        // Only a session with a device has a feed for one.
        let Some(device) = &self.opened.device else {
            return Ok(());
        };
        self.shared.state().delivered(message.id);
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
        let frame = v1::encode(outgoing, self.parts.clock.now());
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
            "the client does not take its answers",
        ))),
        Ok(Err(_)) => Err(Ended::Lost),
        Err(_) => Err(Ended::ByRelay(Close::Slow(
            "the client does not take what is sent",
        ))),
    }
}
