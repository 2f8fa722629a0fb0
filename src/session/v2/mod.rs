//! What a v2 session does for its client: each request that the state machine lets through.
//!
//! The client is a `guest`. Two of its requests have files of their own: `subscribe`, `acknowledge`. What
//! comes from open mailboxes goes out by `deliver`, and each request is answered by a `reply`.

mod acknowledge;
mod deliver;
pub(super) mod guest;
mod reply;
mod subscribe;

use std::collections::HashSet;

pub(super) use self::deliver::caught_up_v2;
use self::guest::{Guest, tells};
use self::reply::{Reply, To};
use super::Parts;
use super::answers::{Answers, Asker as _};
use super::reader::{Heard, TEXT};
use super::state::{Charge, Said};
use super::window::Size;
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::close::Close;
use crate::protocol::message::{RecoveryProof, RecoveryQuery};
use crate::protocol::v2;
use crate::protocol::v2::message::{
    Done, FoundProof, PurgedMailbox, Submit, Withdrawal, WithdrawalKind,
};
use crate::protocol::v2::{Answer, Incoming, Request, Tag};
use crate::service::Class;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::submit::{Submission, Submitted, Terms};

impl Guest {
    /// Judges what the client has said, and does what it asks.
    pub(super) async fn hear(&self, heard: Heard, answers: Answers<'_>) {
        let (to, said) = match read(heard, answers.parts) {
            Read::Request { tag, request } => {
                let reply = self.reply(tag.into(), answers);
                if answers
                    .admits(self.said(&request, answers.parts), &reply)
                    .await
                {
                    self.serve(request, reply).await;
                }
                return;
            }
            Read::Other { to, said } => (to, said),
        };
        answers.admits(said, &self.reply(to, answers)).await;
    }

    fn reply<'a>(&'a self, to: To, answers: Answers<'a>) -> Reply<'a> {
        let guest = self;
        Reply { guest, to, answers }
    }

    /// What the state machine is told of a request.
    fn said(&self, request: &Request, parts: &Parts) -> Said {
        match request {
            Request::Submit(_) => Said::New(Charge::Request),
            Request::Subscribe(_) => Said::New(Charge::Later),
            Request::RecoveryStore(_) => Said::New(Charge::Recovery),
            Request::RecoveryQuery(_) => Said::Request(Charge::Recovery),
            Request::Hello(_) if self.is_first_hello() => Said::Request(Charge::Nothing),
            Request::Hello(_) | Request::Withdraw(_) | Request::Purge(_) | Request::Unpin(_) => {
                Said::Request(Charge::Request)
            }
            Request::Unsubscribe(_) | Request::Window { .. } | Request::Ping => {
                Said::Request(Charge::Nothing)
            }
            Request::Acknowledge(items) => match self.slots(items, parts) {
                Some(slots) => Said::Arrived(slots),
                None => Said::Refused(Refusal::Unauthorized),
            },
        }
    }

    /// Carries a request out that is paid for, and answers it.
    async fn serve(&self, request: Request, reply: Reply<'_>) {
        let (answers, parts) = (reply.answers, reply.answers.parts);
        match request {
            Request::Hello(introduce) => reply.done(self.introduce(introduce.as_ref(), parts)),
            Request::Submit(submit) => self.submit(submit, reply).await,
            Request::Subscribe(subscribe) => match self.subscribe(subscribe, parts).await {
                Ok((openings, to_begin)) => {
                    // Its openings are charged.
                    answers.shared.earn_all();
                    reply.opened(&Answer::Subscribed(openings), to_begin);
                }
                Err(refusal) => {
                    let is_over = refusal.is_of_failed_proofs();
                    reply.refuse(refusal);
                    if is_over {
                        answers.close(Close::TooManyFailedProofs).await;
                    }
                }
            },
            Request::Unsubscribe(mailboxes) => {
                let closed = self.unsubscribe(&mailboxes, answers);
                answers.shared.earn(closed.len());
                reply.closed(&Answer::Done(Done::Unsubscribed), closed);
            }
            Request::Window { blobs, bytes } => {
                let Size { blobs, bytes } = self.resize(Size { blobs, bytes }, answers);
                reply.answer(&Answer::Windowed { blobs, bytes });
            }
            Request::Acknowledge(blobs) => self.acknowledge(blobs, reply).await,
            Request::Withdraw(withdrawal) => self.withdraw(withdrawal, reply).await,
            Request::Purge(mailboxes) => {
                let purged = self.purge(mailboxes, answers).await;
                reply.done(purged.map(Answer::Purged));
            }
            Request::Unpin(mailbox) => {
                let unpinned = self.unpin(&mailbox, parts).await;
                reply.done(unpinned.map(|()| Answer::Done(Done::Unpinned)));
            }
            Request::RecoveryStore(proof) => {
                let kept = self.put_recovery(proof, parts).await;
                reply.done(kept.map(|expires_at| Answer::RecoveryKept {
                    expires_at: parts.clock.told(expires_at),
                }));
            }
            Request::RecoveryQuery(query) => reply.done(self.get_recovery(query, parts).await),
            Request::Ping => reply.answer(&Answer::Done(Done::Pong)),
        }
    }

    async fn submit(&self, submit: Submit, reply: Reply<'_>) {
        let parts = reply.answers.parts;
        if let Err(refusal) = self.may_submit(&submit, parts) {
            return reply.refuse(refusal);
        }
        if submit.terms.live_only {
            let service = &parts.service;
            let handed = service.hand(&submit.recipient, submit.id, submit.body);
            let handed = handed.await;
            // The recipients' sessions come first: they wait for a blob, and this client for nothing urgent.
            tokio::task::yield_now().await;
            return reply.done(handed.map(|()| Answer::Handed));
        }
        reply.stored(self.store(submit, parts).await);
    }

    fn may_submit(&self, submit: &Submit, parts: &Parts) -> Result<(), Refusal> {
        let terms = &submit.terms;
        let bytes_max = parts.settings.message_bytes_max;
        if submit.body.len() > bytes_max {
            return Err(Refusal::TooLarge { bytes_max });
        }
        if terms
            .relay
            .is_some_and(|relay| relay != *parts.service.relay_id())
        {
            return Err(Refusal::UnknownRelay);
        }
        let receipts = terms.receipt_to.as_ref();
        if receipts.is_some_and(|mailbox| self.opened(mailbox, parts).is_none()) {
            return Err(Refusal::Unauthorized);
        }
        Ok(())
    }

    async fn store(&self, submit: Submit, parts: &Parts) -> Result<Submitted, Refusal> {
        let Submit {
            recipient,
            id,
            terms,
            body,
        } = submit;
        let submission = Submission {
            recipient,
            id,
            class: match terms.v1_ok {
                true => Class::SeenByV1,
                false => Class::ProvenOnly,
            },
            sealed: None,
            notice: None,
            terms: Terms {
                ttl: terms.ttl,
                topic: terms.topic,
                receipt_to: terms.receipt_to,
            },
            body,
        };
        parts.service.submit(&self.client(), submission).await
    }

    /// The window that is in force from now on.
    fn resize(&self, size: Size, answers: Answers<'_>) -> Size {
        let granted = size.granted();
        answers.shared.state().resize(granted);
        answers.shared.unblocked.wake();
        granted
    }

    /// Closes those that are open; returns which.
    fn unsubscribe(&self, ids: &[MailboxId], answers: Answers<'_>) -> Vec<MailboxHash> {
        let mut closed = Vec::new();
        for id in ids {
            let mailbox = answers.parts.service.mailbox(id);
            // A frame may name tens of thousands, free of charge; closing looks through all that is
            // in flight, and at most 1,024 are open.
            if self.mailboxes.is_open(&mailbox) {
                self.close(&mailbox);
                closed.push(mailbox);
            }
        }
        closed
    }

    async fn withdraw(&self, withdrawal: Withdrawal, reply: Reply<'_>) {
        let id = withdrawal.id();
        let Withdrawal { mailbox, kind, .. } = withdrawal;
        let service = &reply.answers.parts.service;
        let handed_in = match kind {
            WithdrawalKind::Extend(ttl) => service
                .extend(&mailbox, id, ttl)
                .await
                .map(|pending| (Done::Extended, pending)),
            WithdrawalKind::Cancel => service
                .cancel(&mailbox, id)
                .await
                .map(|pending| (Done::Cancelled, pending)),
        };
        match handed_in {
            Err(refusal) => reply.refuse(refusal),
            Ok((done, pending)) => reply.written(async move {
                pending.await?;
                Ok(Answer::Done(done))
            }),
        }
    }

    async fn purge(
        &self,
        ids: Vec<MailboxId>,
        answers: Answers<'_>,
    ) -> Result<Vec<PurgedMailbox>, Refusal> {
        let parts = answers.parts;
        let mut seen = HashSet::new();
        let opened: Option<Vec<_>> = ids
            .into_iter()
            .filter(|id| seen.insert(*id))
            .map(|id| self.opened(&id, parts).map(|opened| (id, opened)))
            .collect();
        let opened = opened.ok_or(Refusal::Unauthorized)?;
        let mailboxes = opened
            .iter()
            .map(|(_, (mailbox, named))| (*mailbox, tells(*named)));
        let mailboxes: Vec<_> = mailboxes.collect();
        let service = &parts.service;
        let removed = service.purge_all(&self.client(), &mailboxes).await;
        // Also when it failed: some may be gone. Nothing is when it was not paid for.
        let is_begun = !matches!(removed, Err(Refusal::RateLimited { .. }));
        for (mailbox, _) in mailboxes.iter().filter(|_| is_begun) {
            self.inbox.drop_hints(mailbox);
            self.mailboxes.read_again(mailbox);
        }
        let removed = removed?;
        let hashes: Vec<_> = mailboxes.iter().map(|(mailbox, _)| *mailbox).collect();
        answers.shared.forget(&hashes);
        // A purge gives the mailboxes up; v1 may open them without a proof again.
        let ids: Vec<_> = opened.iter().map(|(id, _)| *id).collect();
        service.unpin(&ids).await?;
        let purged = opened
            .iter()
            .zip(removed)
            .map(|((id, _), removed)| PurgedMailbox {
                mailbox: *id,
                blobs: removed.blobs,
                receipts: removed.receipts,
            });
        Ok(purged.collect())
    }

    async fn unpin(&self, id: &MailboxId, parts: &Parts) -> Result<(), Refusal> {
        self.opened(id, parts).ok_or(Refusal::Unauthorized)?;
        parts.service.unpin(&[*id]).await
    }

    async fn put_recovery(
        &self,
        RecoveryProof { key_hash, proof }: RecoveryProof,
        parts: &Parts,
    ) -> Result<crate::clock::Timestamp, Refusal> {
        let (client, owner) = self.called();
        // Each id has one proof under a hash; without an opened mailbox there is no id.
        let owner = owner.ok_or(Refusal::Unauthorized)?;
        let proof = Proof { key_hash, proof };
        parts
            .service
            .put_recovery(&client, &owner, true, proof)
            .await
    }

    async fn get_recovery(&self, query: RecoveryQuery, parts: &Parts) -> Result<Answer, Refusal> {
        let service = &parts.service;
        let bytes_max = parts.settings.message_bytes_max as u64;
        let found = service.get_recovery(&query.key_hashes, bytes_max).await?;
        let plain = |(Proof { key_hash, proof }, stored_at)| FoundProof {
            key_hash,
            proof,
            stored_at: parts.clock.told(stored_at),
        };
        let mut proofs: Vec<_> = found.proofs.into_iter().map(plain).collect();
        let fit = v2::proofs_that_fit(&proofs, parts.settings.message_bytes_max);
        let is_cut = fit < proofs.len();
        proofs.truncate(fit);
        Ok(Answer::RecoveryFound {
            proofs,
            more: found.more || is_cut,
        })
    }
}

/// What was read, and what the state machine is told of anything but a request.
enum Read {
    Request { tag: Option<Tag>, request: Request },
    Other { to: To, said: Said },
}

fn read(heard: Heard, parts: &Parts) -> Read {
    let bytes_max = parts.settings.message_bytes_max;
    let incoming = match heard {
        Heard::Text => Incoming::Garbage { why: TEXT },
        // The bound is for the blob; what stands around it has room besides.
        Heard::Frame(frame) if frame.len() > bytes_max + v2::FRAME_BYTES_AROUND_A_BLOB => {
            let refusal = Refusal::TooLarge { bytes_max };
            let (to, said) = match v2::tag_of(&frame) {
                Some(tag) => (To::Request(tag), Said::Refused(refusal)),
                None => (To::Unread, Said::Garbage(refusal)),
            };
            return Read::Other { to, said };
        }
        Heard::Frame(frame) => v2::decode(&frame),
    };
    let (to, said) = match incoming {
        Incoming::Request { tag, request } => return Read::Request { tag, request },
        Incoming::Invalid { tag, why } => (tag.into(), Said::Refused(Refusal::Invalid(why))),
        Incoming::Unsupported { tag } => (tag.into(), Said::Refused(Refusal::Unsupported)),
        Incoming::Garbage { why } => (To::Unread, Said::Garbage(Refusal::Invalid(why))),
    };
    Read::Other { to, said }
}
