//! What a v1 session does for its client: each request that the state machine lets through.
//!
//! It begins with a handshake: `open`.

pub(super) mod open;

use bytes::Bytes;

use self::open::Opened;
use super::Parts;
use super::answers::{self, Answers};
use super::reader::{Heard, TEXT};
use super::state::{Charge, Said};
use super::window::Slot;
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::protocol::message::{
    AccountRevoked, DeviceSync, Incoming, Outgoing, Purge, RecoveryProof, RecoveryQuery, Request,
    Submit, Tag,
};
use crate::protocol::v1;
use crate::service::charge::Client;
use crate::service::device_sync::DeviceMessage;
use crate::service::give_back::GiveBack;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::submit::{NoticeTo, Submission, Submitted, Terms};
use crate::service::{Class, Opener, Tells, View};

/// A frame with a 64-byte signature has less than 1 KiB; delivered, each of its bytes takes up to 4.
const REVOKED_BYTES_MAX: usize = 64 * 1024;

/// The answer to a handshake that opened a mailbox.
pub(super) fn welcome(parts: &Parts) -> Bytes {
    v1::encode(&Outgoing::HandshakeAccepted, parts.clock.now())
}

impl Opened {
    /// Judges what the client has said, and does what it asks.
    pub(super) async fn hear(&self, heard: Heard, answers: Answers<'_>) {
        let (tag, said) = match read(heard, answers.parts) {
            Read::Request { tag, request } => {
                let asker = self.asker(Some(&tag), answers);
                if answers.admits(self.said(&request), &asker).await {
                    self.serve(tag, request, answers).await;
                }
                return;
            }
            Read::Other { tag, said } => (tag, said),
        };
        let asker = self.asker(tag.as_ref(), answers);
        answers.admits(said, &asker).await;
    }

    fn asker<'a>(&'a self, tag: Option<&'a Tag>, answers: Answers<'a>) -> Asker<'a> {
        Asker {
            client: &self.subscription.client,
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
            Request::Acknowledge(Some(id)) | Request::DeviceSyncAcknowledge(Some(id)) => {
                Said::Arrived(vec![self.slot(*id)])
            }
            // No blob has an id of another shape, and a second handshake is ignored as by the relays that
            // v1 clients know.
            _ => Said::Nothing,
        }
    }

    /// Where a blob that was delivered here is in flight.
    pub(super) fn slot(&self, id: BlobId) -> Slot {
        (self.subscription.mailbox, id)
    }

    /// Carries a request out that is paid for, and answers it where v1 answers.
    async fn serve(&self, tag: Tag, request: Request, answers: Answers<'_>) {
        let parts = answers.parts;
        match request {
            Request::Submit(submit) => {
                let outcome = self.submit(parts, &tag, submit).await;
                answers.stored(tag, outcome);
            }
            Request::DeviceSync(message) => {
                let outcome = self.submit_device_sync(parts, &tag, message).await;
                answers.stored(tag, outcome);
            }
            Request::AccountRevoked(revoked) => {
                let outcome = self.revoke(parts, &tag, revoked).await;
                answers.stored(tag, outcome);
            }
            Request::Acknowledge(Some(id)) => {
                if let Err(refusal) = self.acknowledge(answers, id).await {
                    answers.refuse(Some(tag), refusal);
                }
            }
            Request::DeviceSyncAcknowledge(Some(id)) => {
                if let Err(refusal) = self.acknowledge_device_sync(answers, id).await {
                    answers.refuse(Some(tag), refusal);
                }
            }
            Request::RecoveryStore(proof) => {
                let kept = self.put_recovery(parts, proof).await;
                let answer = kept.map(|expires_at| Outgoing::RecoveryKept {
                    tag: tag.clone(),
                    expires_at,
                });
                answers.done(tag, answer);
            }
            Request::RecoveryQuery(query) => {
                answers.done(tag, self.get_recovery(parts, query).await);
            }
            Request::Purge(purge) => {
                let purged = self.purge(answers, &tag, purge).await;
                answers.done(tag, purged);
            }
            // Judged as nothing; the rest is v2's.
            _ => {}
        }
    }

    async fn submit(&self, parts: &Parts, tag: &Tag, submit: Submit) -> Result<Submitted, Refusal> {
        let service = &parts.service;
        let id = service.v1_blob_id(tag.name(), &self.client_id, &submit.recipient, &submit.body);
        let Submit {
            recipient,
            sender_id,
            body,
            ..
        } = submit;
        let subscription = &self.subscription;
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
            return Err(Refusal::Invalid(
                "AccountRevoked is over 64 KiB; its signature has 64 bytes",
            ));
        }
        let service = &parts.service;
        let id = service.v1_blob_id(tag.name(), &self.client_id, &recipient, &frame);
        let submission = Submission {
            recipient,
            id,
            class: Class::SeenByV1,
            give_back: Some(GiveBack::Frame(frame)),
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
                "identity_id is not the client_id of this connection",
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
        answers: Answers<'_>,
        id: BlobId,
    ) -> Result<(), Refusal> {
        answers.shared.state().acknowledged(self.slot(id));
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
    ) -> Result<Timestamp, Refusal> {
        let (service, opened) = (&parts.service, self);
        let client = &opened.subscription.client;
        let proof = Proof { key_hash, proof };
        service
            .put_recovery(client, &opened.client_id, opened.is_proven, proof)
            .await
    }

    async fn get_recovery(&self, parts: &Parts, query: RecoveryQuery) -> Result<Outgoing, Refusal> {
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
        // v1 can not say that there is more; what does not fit is left out.
        proofs.truncate(v1::proofs_that_fit(&proofs, frame_bytes_max));
        Ok(Outgoing::RecoveryProofs { proofs })
    }

    async fn purge(
        &self,
        answers: Answers<'_>,
        tag: &Tag,
        purge: Purge,
    ) -> Result<Outgoing, Refusal> {
        let parts = answers.parts;
        let (service, opened) = (&parts.service, self);
        let mailbox = opened.subscription.mailbox;
        let purged = service.purge(mailbox, View::V1, Tells::Nobody).await;
        // What was read and not handed out is gone; some of it also when the purge failed.
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
        // Who signed may give the id up; whoever comes next need not.
        if opened.is_proven {
            service.unpin(&opened.client_id).await?;
        }
        Ok(Outgoing::Purged {
            tag: tag.clone(),
            blobs_deleted: purged.blobs,
            device_sync_deleted,
            recovery_proofs_deleted,
        })
    }

    async fn acknowledge(&self, answers: Answers<'_>, id: BlobId) -> Result<(), Refusal> {
        let service = &answers.parts.service;
        let was_in_flight = answers.shared.state().acknowledged(self.slot(id));
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
            return match v1::tag_of(&frame) {
                Some(tag) => Read::Other {
                    tag: Some(tag),
                    said: Said::Refused(refusal),
                },
                None => Read::Other {
                    tag: None,
                    said: Said::Garbage(refusal),
                },
            };
        }
        Heard::Frame(frame) => v1::decode(&frame),
    };
    let (tag, said) = match incoming {
        Incoming::Request { tag, request } => return Read::Request { tag, request },
        Incoming::Invalid { tag, why } => (Some(tag), Said::Refused(Refusal::Invalid(why))),
        Incoming::Garbage { why } => (None, Said::Garbage(Refusal::Invalid(why))),
        Incoming::Ignored => (None, Said::Nothing),
        Incoming::Unsupported { tag } => (Some(tag), Said::Refused(Refusal::Unsupported)),
    };
    Read::Other { tag, said }
}

/// The client, who asked under a name if that could be read.
struct Asker<'a> {
    client: &'a Client,
    tag: Option<&'a Tag>,
    answers: Answers<'a>,
}

impl answers::Asker for Asker<'_> {
    fn charge(&self, charge: Charge) -> Result<(), Refusal> {
        let service = &self.answers.parts.service;
        match charge {
            Charge::Nothing | Charge::Later => Ok(()),
            Charge::Request => service.charge(self.client),
            Charge::Recovery => service.charge_recovery(self.client),
        }
    }

    fn refuse(&self, refusal: Refusal) {
        self.answers.refuse(self.tag.cloned(), refusal);
    }
}

/// A v1 session takes what it can see, and nobody gets a receipt of that.
fn seen(view: View) -> Opener {
    Opener {
        view,
        tells: Tells::Nobody,
    }
}
