//! Socket → state → service. Only a full answer lane, or a full commit queue, stops the reading.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::SplitStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;

use super::outbox::Owed;
use super::state::Step;
use super::{Ended, Opened, Parts, Shared};
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::protocol::close::Close;
use crate::protocol::message::{
    AccountRevoked, DeviceSync, Outgoing, Purge, RecoveryProof, RecoveryQuery, Refused, Submit, Tag,
};
use crate::protocol::v1;
use crate::service::device_sync::DeviceMessage;
use crate::service::give_back::GiveBack;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::submit::{NoticeTo, Submission, Submitted};
use crate::service::{Class, View};
use crate::socket::{Message, Socket};

/// Bytes that are no WebSocket.
const BROKEN: Close = Close::Protocol("the WebSocket frames are not as RFC 6455 has them");

/// A frame with a 64-byte signature has less than 1 KiB; delivered, each of its bytes takes up to 4.
const REVOKED_BYTES_MAX: usize = 64 * 1024;

/// The reading half of a session.
pub(super) struct Reader<'a> {
    pub(super) stream: &'a mut SplitStream<Socket>,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    pub(super) opened: &'a Opened,
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
            let received = receive(self.stream).await;
            self.shared.heard();
            let step = match received {
                Received::Sign => continue,
                Received::Over(Ended::ByRelay(close)) => {
                    self.shared.state().closing();
                    Step::Close(None, close)
                }
                Received::Over(ended) => return ended,
                Received::Frame(frame) => self.judge(&frame),
                Received::Text => {
                    let why = "this is a text message; protocol v1 speaks in binary ones";
                    self.shared
                        .state()
                        .on_frame(crate::protocol::message::Incoming::Garbage { why })
                }
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
        if frame.len() > bytes_max {
            return self
                .shared
                .state()
                .on_oversize(v1::tag_of(frame), bytes_max);
        }
        let incoming = v1::decode(frame);
        self.shared.state().on_frame(incoming)
    }

    async fn carry_out(&self, step: Step, read_at: Instant) {
        match step {
            Step::Submit(tag, submit) => match self.submit(&tag, submit).await {
                Ok(submitted) => self.shared.outbox.push(Owed::Commit {
                    tag,
                    submitted,
                    read_at,
                }),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::DeviceSync(tag, message) => match self.submit_device_sync(&tag, message).await {
                Ok(submitted) => self.shared.outbox.push(Owed::Commit {
                    tag,
                    submitted,
                    read_at,
                }),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::AcknowledgeDeviceSync { tag, id, charged } => {
                if let Err(refusal) = self.acknowledge_device_sync(id, charged).await {
                    self.refuse(Some(tag), refusal, read_at);
                }
            }
            Step::PutRecovery(tag, proof) => match self.put_recovery(proof).await {
                Ok(expires_at) => self.answer(Outgoing::RecoveryKept { tag, expires_at }, read_at),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::GetRecovery(tag, query) => match self.get_recovery(query).await {
                Ok(proofs) => self.answer(proofs, read_at),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::AccountRevoked(tag, revoked) => match self.revoke(&tag, revoked).await {
                Ok(submitted) => self.shared.outbox.push(Owed::Commit {
                    tag,
                    submitted,
                    read_at,
                }),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::Purge(tag, purge) => match self.purge(&tag, purge).await {
                Ok(purged) => self.answer(purged, read_at),
                Err(refusal) => self.refuse(Some(tag), refusal, read_at),
            },
            Step::Acknowledge { tag, id, charged } => {
                if let Err(refusal) = self.acknowledge(id, charged).await {
                    self.refuse(Some(tag), refusal, read_at);
                }
            }
            Step::Refuse(tag, refusal) => {
                // It is refused already; the charge only makes the next ones dearer.
                let refusal = self.charge().err().unwrap_or(refusal);
                self.refuse(tag, refusal, read_at);
            }
            Step::Ignore => {
                self.parts.metrics.messages_ignored_total.increment(1);
                // v1 clients expect no answer here, so a spent rate shows at their next request.
                drop(self.charge());
            }
            // The state lets only the first frame greet, and that was read before this loop.
            Step::Greet(_) => {}
            Step::Close(refusal, close) => {
                if let Some(refusal) = refusal {
                    self.refuse(None, refusal, read_at);
                }
                self.shared.outbox.push(Owed::Close(close));
                pending::<()>().await;
            }
        }
    }

    async fn submit(&self, tag: &Tag, submit: Submit) -> Result<Submitted, Refusal> {
        self.charge()?;
        let service = &self.parts.service;
        let id = service.v1_blob_id(
            tag.name(),
            &self.opened.client_id,
            &submit.recipient,
            &submit.body,
        );
        let Submit {
            recipient,
            sender_id,
            body,
            ..
        } = submit;
        let subscription = &self.opened.subscription;
        let submission = Submission {
            recipient,
            id,
            class: Class::SeenByV1,
            give_back: sender_id
                .filter(|_| service.v1_keeps_sender_id())
                .map(GiveBack::SenderId),
            notice: Some(NoticeTo {
                sender: subscription.mailbox,
                name: tag.name().into(),
            }),
            body,
        };
        service.submit(&subscription.client, submission).await
    }

    /// Word that an account is no more travels as a blob whose body is the frame; its sender gets
    /// no notice.
    async fn revoke(&self, tag: &Tag, revoked: AccountRevoked) -> Result<Submitted, Refusal> {
        self.charge()?;
        let AccountRevoked { recipient, frame } = revoked;
        if frame.len() > REVOKED_BYTES_MAX {
            return Err(Refusal::Invalid(
                "AccountRevoked is over 64 KiB; its signature has 64 bytes",
            ));
        }
        let service = &self.parts.service;
        let id = service.v1_blob_id(tag.name(), &self.opened.client_id, &recipient, &frame);
        let submission = Submission {
            recipient,
            id,
            class: Class::SeenByV1,
            give_back: Some(GiveBack::Frame(frame)),
            notice: None,
            body: Bytes::new(),
        };
        let client = &self.opened.subscription.client;
        service.submit(client, submission).await
    }

    async fn submit_device_sync(
        &self,
        tag: &Tag,
        message: DeviceSync,
    ) -> Result<Submitted, Refusal> {
        self.charge()?;
        if message.identity != self.opened.client_id {
            return Err(Refusal::Invalid(
                "identity_id is not the client_id of this connection",
            ));
        }
        let service = &self.parts.service;
        let DeviceSync {
            identity,
            target_device,
            sender_device,
            version,
            body,
        } = message;
        let id = service.v1_blob_id(tag.name(), &identity, &target_device, &body);
        let message = DeviceMessage {
            identity,
            target_device,
            sender_device,
            version,
            id,
            body,
        };
        let client = &self.opened.subscription.client;
        service.submit_device_message(client, message).await
    }

    async fn acknowledge_device_sync(&self, id: BlobId, charged: bool) -> Result<(), Refusal> {
        if charged {
            self.charge()?;
        }
        // Without a device nothing of the kind was delivered here.
        let Some(device) = &self.opened.device else {
            return Ok(());
        };
        let mailbox = device.subscription.mailbox;
        drop(self.parts.service.acknowledge(mailbox, vec![id]).await?);
        Ok(())
    }

    async fn put_recovery(
        &self,
        RecoveryProof { key_hash, proof }: RecoveryProof,
    ) -> Result<Timestamp, Refusal> {
        let (service, opened) = (&self.parts.service, self.opened);
        let client = &opened.subscription.client;
        service.charge_recovery(client)?;
        let proof = Proof { key_hash, proof };
        service
            .put_recovery(client, &opened.client_id, opened.is_proven, proof)
            .await
    }

    async fn get_recovery(&self, query: RecoveryQuery) -> Result<Outgoing, Refusal> {
        let service = &self.parts.service;
        service.charge_recovery(&self.opened.subscription.client)?;
        let frame_bytes_max = self.parts.settings.message_bytes_max;
        let found = service
            .get_recovery(&query.key_hashes, frame_bytes_max as u64)
            .await?;
        let mut proofs: Vec<_> = found
            .into_iter()
            .map(|Proof { key_hash, proof }| RecoveryProof { key_hash, proof })
            .collect();
        // v1 can not say that there is more; what does not fit is left out.
        proofs.truncate(v1::proofs_that_fit(&proofs, frame_bytes_max));
        Ok(Outgoing::RecoveryProofs { proofs })
    }

    async fn purge(&self, tag: &Tag, purge: Purge) -> Result<Outgoing, Refusal> {
        self.charge()?;
        let (service, opened) = (&self.parts.service, self.opened);
        let blobs_deleted = service.purge(opened.subscription.mailbox, View::V1).await?;
        self.shared.state().purged();
        let device_sync_deleted = match purge.device_sync {
            true => service.purge_devices(&opened.client_id).await?,
            false => 0,
        };
        let recovery_proofs_deleted = match &purge.recovery {
            Some(key_hash) => service.remove_recovery(&opened.client_id, key_hash).await?,
            None => 0,
        };
        // Who signed may give the id up; whoever comes next need not.
        if opened.is_proven {
            service.unpin(&opened.client_id).await?;
        }
        Ok(Outgoing::Purged {
            tag: tag.clone(),
            blobs_deleted,
            device_sync_deleted,
            recovery_proofs_deleted,
        })
    }

    async fn acknowledge(&self, id: BlobId, charged: bool) -> Result<(), Refusal> {
        if charged {
            self.charge()?;
        }
        if !charged && self.opened.tells_senders {
            self.parts.service.tell_acknowledged(&id);
        }
        // v1 acknowledgements are not answered: the deletion goes on without anybody waiting, and
        // should it fail, the blob comes again.
        drop(
            self.parts
                .service
                .acknowledge(self.opened.subscription.mailbox, vec![id])
                .await?,
        );
        Ok(())
    }

    fn charge(&self) -> Result<(), Refusal> {
        self.parts.service.charge(&self.opened.subscription.client)
    }

    fn answer(&self, answer: Outgoing, read_at: Instant) {
        let duration = &self.parts.metrics.message_duration_seconds;
        duration.record(read_at.elapsed());
        self.shared.outbox.push(Owed::Answer(answer));
    }

    fn refuse(&self, tag: Option<Tag>, refusal: Refusal, read_at: Instant) {
        self.parts
            .metrics
            .message_duration_seconds
            .record(read_at.elapsed());
        self.parts.service.count_refusal(&refusal);
        self.shared.outbox.push(Owed::Answer(Outgoing::Refused {
            tag,
            refused: worded(&refusal),
        }));
    }
}

/// A refusal in the words of the wire.
pub(super) fn worded(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        message: refusal.message(),
        retry_after: refusal.retry_after(),
    }
}
