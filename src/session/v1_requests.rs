//! What a v1 session does for its client: each request that the state machine lets through.

use bytes::Bytes;

use super::Parts;
use super::answers::Answers;
use super::state::{ANY_MAILBOX, Step};
use super::v1_open::Opened;
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::protocol::message::{
    AccountRevoked, DeviceSync, Outgoing, Purge, RecoveryProof, RecoveryQuery, Submit, Tag,
};
use crate::protocol::v1;
use crate::service::device_sync::DeviceMessage;
use crate::service::give_back::GiveBack;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::submit::{NoticeTo, Submission, Submitted, Terms};
use crate::service::{Class, Opener, Tells, View};

/// A frame with a 64-byte signature has less than 1 KiB; delivered, each of its bytes takes up to 4.
const REVOKED_BYTES_MAX: usize = 64 * 1024;

impl Opened {
    /// Carries a request out, and answers it where v1 answers.
    pub(super) async fn carry_out(&self, step: Step, answers: Answers<'_>) {
        let parts = answers.parts;
        match step {
            Step::Submit(tag, submit) => {
                let outcome = self.submit(parts, &tag, submit).await;
                answers.stored(tag, outcome);
            }
            Step::DeviceSync(tag, message) => {
                let outcome = self.submit_device_sync(parts, &tag, message).await;
                answers.stored(tag, outcome);
            }
            Step::AccountRevoked(tag, revoked) => {
                let outcome = self.revoke(parts, &tag, revoked).await;
                answers.stored(tag, outcome);
            }
            Step::Acknowledge { tag, id, charged } => {
                if let Err(refusal) = self.acknowledge(parts, id, charged).await {
                    answers.refuse(Some(tag), refusal);
                }
            }
            Step::AcknowledgeDeviceSync { tag, id, charged } => {
                if let Err(refusal) = self.acknowledge_device_sync(parts, id, charged).await {
                    answers.refuse(Some(tag), refusal);
                }
            }
            Step::PutRecovery(tag, proof) => {
                let kept = self.put_recovery(parts, proof).await;
                let answer = kept.map(|expires_at| Outgoing::RecoveryKept {
                    tag: tag.clone(),
                    expires_at,
                });
                answers.done(tag, answer);
            }
            Step::GetRecovery(tag, query) => {
                answers.done(tag, self.get_recovery(parts, query).await);
            }
            Step::Purge(tag, purge) => {
                let purged = self.purge(answers, &tag, purge).await;
                answers.done(tag, purged);
            }
            // The first frame greets, and was read before; the rest is v2's, or the reader's.
            _ => {}
        }
    }

    /// Charges a request to the client.
    pub(super) fn charge(&self, parts: &Parts) -> Result<(), Refusal> {
        parts.service.charge(&self.subscription.client)
    }

    async fn submit(&self, parts: &Parts, tag: &Tag, submit: Submit) -> Result<Submitted, Refusal> {
        self.charge(parts)?;
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
        self.charge(parts)?;
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
        self.charge(parts)?;
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
        parts: &Parts,
        id: BlobId,
        charged: bool,
    ) -> Result<(), Refusal> {
        if charged {
            self.charge(parts)?;
        }
        // Without a device nothing of the kind was delivered here.
        let Some(device) = &self.device else {
            return Ok(());
        };
        let mailbox = device.subscription.mailbox;
        drop(
            parts
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
        service.charge_recovery(client)?;
        let proof = Proof { key_hash, proof };
        service
            .put_recovery(client, &opened.client_id, opened.is_proven, proof)
            .await
    }

    async fn get_recovery(&self, parts: &Parts, query: RecoveryQuery) -> Result<Outgoing, Refusal> {
        let service = &parts.service;
        service.charge_recovery(&self.subscription.client)?;
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
        self.charge(parts)?;
        let (service, opened) = (&parts.service, self);
        let mailbox = opened.subscription.mailbox;
        let purged = service.purge(mailbox, View::V1, Tells::Nobody).await;
        // What was read and not handed out is gone; some of it also when the purge failed.
        opened.mailboxes.read_again(&mailbox);
        let purged = purged?;
        answers.shared.state().forget(&ANY_MAILBOX);
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

    async fn acknowledge(&self, parts: &Parts, id: BlobId, charged: bool) -> Result<(), Refusal> {
        if charged {
            self.charge(parts)?;
        }
        if !charged && self.tells_senders {
            parts.service.tell_acknowledged(&id);
        }
        // v1 acknowledgements are not answered: the deletion goes on without anybody waiting, and
        // should it fail, the blob comes again.
        drop(
            parts
                .service
                .acknowledge(self.subscription.mailbox, vec![id], seen(View::V1))
                .await?,
        );
        Ok(())
    }
}

/// A v1 session takes what it can see, and nobody gets a receipt of that.
fn seen(view: View) -> Opener {
    Opener {
        view,
        tells: Tells::Nobody,
    }
}
