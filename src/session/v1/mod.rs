//! What a v1 session does for its client: each request that the state machine lets through.
//!
//! It begins with a handshake: `open`. What comes from its mailbox goes out by `deliver`, and each
//! request is answered by a `reply`.

mod deliver;
pub(super) mod open;
mod reply;

use bytes::Bytes;

use self::open::Opened;
use self::reply::Reply;
use super::Parts;
use super::answers::{Answers, Asker as _};
use super::reader::{Heard, TEXT};
use super::state::{Charge, Said};
use super::window::Slot;
use crate::ids::BlobId;
use crate::protocol::message::{RecoveryProof, RecoveryQuery};
use crate::protocol::v1::message::{AccountRevoked, DeviceSync, Purge, Submit};
use crate::protocol::v1::{self, Answer, Incoming, Request, Tag};
use crate::service::device_sync::DeviceMessage;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::sealed::Sealed;
use crate::service::submit::{NoticeTo, Submission, Submitted, Terms};
use crate::service::{Class, Opener, Tells, View};

/// A frame with a 64-byte signature has less than 1 KiB; delivered, each of its bytes takes up to 4.
const REVOKED_BYTES_MAX: usize = 64 * 1024;

/// The answer to a handshake that opened a mailbox.
pub(super) fn welcome(parts: &Parts) -> Bytes {
    v1::encode(None, &Answer::HandshakeAccepted, parts.clock.told_now())
}

impl Opened {
    /// Judges what the client has said, and does what it asks.
    pub(super) async fn hear(&self, heard: Heard, answers: Answers<'_>) {
        let (tag, said) = match read(heard, answers.parts) {
            Read::Request { tag, request } => {
                let reply = self.reply(Some(&tag), answers);
                if answers.admits(self.said(&request), &reply).await {
                    self.serve(request, &tag, reply).await;
                }
                return;
            }
            Read::Other { tag, said } => (tag, said),
        };
        let reply = self.reply(tag.as_ref(), answers);
        answers.admits(said, &reply).await;
    }

    fn reply<'a>(&'a self, tag: Option<&'a Tag>, answers: Answers<'a>) -> Reply<'a> {
        let opened = self;
        Reply {
            opened,
            tag,
            answers,
        }
    }

    /// What the state machine is told of a request.
    fn said(&self, request: &Request) -> Said {
        match request {
            Request::Submit(_) => Said::New(Charge::Request),
            Request::RecoveryStore(_) => Said::New(Charge::Recovery),
            Request::DeviceSync(_) | Request::AccountRevoked(_) | Request::Purge(_) => {
                Said::Request(Charge::Request)
            }
            Request::RecoveryQuery(_) => Said::Request(Charge::Recovery),
            Request::Acknowledge(id) | Request::DeviceSyncAcknowledge(id) => {
                Said::Arrived(vec![self.slot(*id)])
            }
        }
    }

    /// Where a blob that was delivered here is in flight.
    fn slot(&self, id: BlobId) -> Slot {
        (self.subscription.mailbox, id)
    }

    /// Carries a request out that is paid for, and answers it where v1 answers.
    async fn serve(&self, request: Request, tag: &Tag, reply: Reply<'_>) {
        let parts = reply.answers.parts;
        match request {
            Request::Submit(submit) => reply.stored(self.submit(parts, tag, submit).await),
            Request::DeviceSync(message) => {
                reply.stored(self.submit_device_sync(parts, tag, message).await);
            }
            Request::AccountRevoked(revoked) => {
                reply.stored(self.revoke(parts, tag, revoked).await);
            }
            Request::Acknowledge(id) => {
                if let Err(refusal) = self.acknowledge(id, reply.answers).await {
                    reply.refuse(refusal);
                }
            }
            Request::DeviceSyncAcknowledge(id) => {
                if let Err(refusal) = self.acknowledge_device_sync(id, reply.answers).await {
                    reply.refuse(refusal);
                }
            }
            Request::RecoveryStore(proof) => {
                let kept = self.put_recovery(parts, proof).await;
                reply.done(kept.map(|()| Answer::Stored));
            }
            Request::RecoveryQuery(query) => reply.done(self.get_recovery(parts, query).await),
            Request::Purge(purge) => reply.done(self.purge(purge, reply.answers).await),
        }
    }

    async fn submit(&self, parts: &Parts, tag: &Tag, submit: Submit) -> Result<Submitted, Refusal> {
        let service = &parts.service;
        let id = service.v1_blob_id(tag.name(), &self.client_id, &submit.recipient, &submit.body);
        let Submit {
            recipient,
            sender_id,
            body,
        } = submit;
        let subscription = &self.subscription;
        let submission = Submission {
            recipient,
            id,
            class: Class::SeenByV1,
            sealed: sender_id
                .filter(|_| service.v1_keeps_sender_id())
                .map(Sealed::SenderId),
            notice: Some(NoticeTo {
                sender: subscription.mailbox,
                name: tag.name().into(),
            }),
            terms: Terms::default(),
            body,
        };
        service.submit(&subscription.client, submission).await
    }

    /// Word that an account is no more travels as a blob whose body is the frame; its sender gets
    /// no notice.
    async fn revoke(
        &self,
        parts: &Parts,
        tag: &Tag,
        revoked: AccountRevoked,
    ) -> Result<Submitted, Refusal> {
        let AccountRevoked { recipient, frame } = revoked;
        if frame.len() > REVOKED_BYTES_MAX {
            return Err(Refusal::Invalid("AccountRevoked is larger than 64 KiB"));
        }
        let service = &parts.service;
        let id = service.v1_blob_id(tag.name(), &self.client_id, &recipient, &frame);
        let submission = Submission {
            recipient,
            id,
            class: Class::SeenByV1,
            sealed: Some(Sealed::Frame(frame)),
            notice: None,
            terms: Terms::default(),
            body: Bytes::new(),
        };
        let client = &self.subscription.client;
        service.submit(client, submission).await
    }

    async fn submit_device_sync(
        &self,
        parts: &Parts,
        tag: &Tag,
        message: DeviceSync,
    ) -> Result<Submitted, Refusal> {
        if message.identity != self.client_id {
            return Err(Refusal::Invalid(
                "identity_id differs from this connection's client_id",
            ));
        }
        let service = &parts.service;
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
        let client = &self.subscription.client;
        service.submit_device_message(client, message).await
    }

    async fn acknowledge_device_sync(
        &self,
        id: BlobId,
        answers: Answers<'_>,
    ) -> Result<(), Refusal> {
        let was_in_flight = answers.shared.state().acknowledged(self.slot(id));
        answers.shared.earn(usize::from(was_in_flight));
        // Without a device nothing of the kind was delivered here.
        let Some(device) = &self.device else {
            return Ok(());
        };
        let mailbox = device.subscription.mailbox;
        drop(
            answers
                .parts
                .service
                .acknowledge(mailbox, vec![id], seen(View::DeviceSync))
                .await?,
        );
        Ok(())
    }

    async fn put_recovery(
        &self,
        parts: &Parts,
        RecoveryProof { key_hash, proof }: RecoveryProof,
    ) -> Result<(), Refusal> {
        let (service, opened) = (&parts.service, self);
        let client = &opened.subscription.client;
        let proof = Proof { key_hash, proof };
        let owner = &opened.client_id;
        let kept = service.put_recovery(client, owner, opened.is_proven, proof);
        // v1 has no word for how long.
        kept.await.map(drop)
    }

    async fn get_recovery(&self, parts: &Parts, query: RecoveryQuery) -> Result<Answer, Refusal> {
        let service = &parts.service;
        let frame_bytes_max = parts.settings.message_bytes_max;
        let found = service
            .get_recovery(&query.key_hashes, frame_bytes_max as u64)
            .await?;
        let mut proofs: Vec<_> = found
            .proofs
            .into_iter()
            .map(|(Proof { key_hash, proof }, _)| RecoveryProof { key_hash, proof })
            .collect();
        // v1 cannot say that there is more; what does not fit is left out.
        proofs.truncate(v1::proofs_that_fit(&proofs, frame_bytes_max));
        Ok(Answer::RecoveryProofs(proofs))
    }

    async fn purge(&self, purge: Purge, answers: Answers<'_>) -> Result<Answer, Refusal> {
        let parts = answers.parts;
        let (service, opened) = (&parts.service, self);
        let mailbox = opened.subscription.mailbox;
        let purged = service.purge(mailbox, View::V1, Tells::Nobody).await;
        // What was read and not handed out is gone; some of it also when the purge failed.
        opened.inbox.drop_hints(&mailbox);
        opened.mailboxes.read_again(&mailbox);
        let purged = purged?;
        answers.shared.state().forget(&mailbox);
        let device_sync_deleted = match purge.device_sync {
            true => service.purge_devices(&opened.client_id).await?,
            false => 0,
        };
        let recovery_proofs_deleted = match &purge.recovery {
            Some(key_hash) => {
                let (owner, is_proven) = (&opened.client_id, opened.is_proven);
                service.remove_recovery(owner, is_proven, key_hash).await?
            }
            None => 0,
        };
        // A client that signed may give the id up; the next one need not sign.
        if opened.is_proven {
            service.unpin(&[opened.client_id]).await?;
        }
        Ok(Answer::Purged {
            blobs_deleted: purged.blobs,
            device_sync_deleted,
            recovery_proofs_deleted,
        })
    }

    async fn acknowledge(&self, id: BlobId, answers: Answers<'_>) -> Result<(), Refusal> {
        let service = &answers.parts.service;
        let was_in_flight = answers.shared.state().acknowledged(self.slot(id));
        answers.shared.earn(usize::from(was_in_flight));
        if was_in_flight && self.tells_senders {
            service.tell_acknowledged(&id);
        }
        // v1 acknowledgements are not answered: the deletion goes on without anybody waiting, and
        // should it fail, the blob comes again.
        drop(
            service
                .acknowledge(self.subscription.mailbox, vec![id], seen(View::V1))
                .await?,
        );
        Ok(())
    }
}

/// What was read, and what the state machine is told of anything but a request.
enum Read {
    Request { tag: Tag, request: Request },
    Other { tag: Option<Tag>, said: Said },
}

fn read(heard: Heard, parts: &Parts) -> Read {
    let bytes_max = parts.settings.message_bytes_max;
    let incoming = match heard {
        Heard::Text => Incoming::Garbage { why: TEXT },
        Heard::Frame(frame) if frame.len() > bytes_max => {
            let refusal = Refusal::TooLarge { bytes_max };
            let tag = v1::tag_of(&frame);
            let said = match tag {
                Some(_) => Said::Refused(refusal),
                None => Said::Garbage(refusal),
            };
            return Read::Other { tag, said };
        }
        Heard::Frame(frame) => v1::decode(&frame),
    };
    let (tag, said) = match incoming {
        Incoming::Request { tag, request } => return Read::Request { tag, request },
        Incoming::Invalid { tag, why } => (Some(tag), Said::Refused(Refusal::Invalid(why))),
        Incoming::Garbage { why } => (None, Said::Garbage(Refusal::Invalid(why))),
        // A second handshake is ignored as by the relays that v1 clients know.
        Incoming::Handshake(_) | Incoming::Ignored => (None, Said::Nothing),
    };
    Read::Other { tag, said }
}

/// A v1 session takes what it can see, and nobody gets a receipt of that.
fn seen(view: View) -> Opener {
    Opener {
        view,
        tells: Tells::Nobody,
    }
}
