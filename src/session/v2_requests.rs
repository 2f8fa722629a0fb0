//! What a v2 session does for its client: each request that the state machine lets through.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::answers::Answers;
use super::mailboxes::{Mailboxes, Named};
use super::state::Step;
use super::{Parts, Shared};
use crate::hub::Wakes;
use crate::ids::{BlobId, ConnectionId, MailboxHash, MailboxId};
use crate::protocol::close::Close;
use crate::protocol::message::{Done, Outgoing, RecoveryProof, RecoveryQuery, Submit, Tag};
use crate::protocol::message_v2::{
    FoundProof, Limits, PurgedMailbox, Welcome, Withdrawal, WithdrawalKind,
};
use crate::protocol::{proof, v2};
use crate::service::charge::Client;
use crate::service::recovery::Proof;
use crate::service::refusal::Refusal;
use crate::service::submit::{Submission, Submitted, Terms};
use crate::service::{Class, Opener, Tells, View};
use crate::session::{mailboxes, window};

/// What a v2 session knows of its client.
pub(super) struct Guest {
    pub(super) connection: ConnectionId,
    pub(super) address: IpAddr,
    /// This connection's own; part of what keys sign.
    pub(super) challenge: [u8; 32],
    pub(super) wakes: Arc<Wakes>,
    pub(super) mailboxes: Arc<Mailboxes>,
    /// Whom requests are charged to, and the first mailbox that was opened: the client's name from
    /// then on. Nothing awaits inside.
    name: Mutex<(Client, Option<MailboxId>)>,
}

impl Guest {
    pub(super) fn new(address: IpAddr, wakes: Arc<Wakes>, parts: &Parts) -> Self {
        // Until it has opened a mailbox, a connection is a client of its own.
        let nobody = MailboxHash::from_bytes(rand::random());
        Self {
            connection: ConnectionId::next(),
            address,
            challenge: rand::random(),
            wakes,
            mailboxes: Arc::default(),
            name: Mutex::new((parts.service.client(&nobody, address), None)),
        }
    }

    /// Carries a request out, and answers it.
    pub(super) async fn carry_out(&self, step: Step, answers: Answers<'_>) {
        let parts = answers.parts;
        match step {
            Step::Submit(tag, submit) => self.submit(tag, submit, answers).await,
            Step::Subscribe(tag, subscribe) => match self.subscribe(subscribe, parts).await {
                Ok((openings, to_begin)) => {
                    let answer = Outgoing::Subscribed { tag, openings };
                    answers.opened(answer, to_begin);
                }
                Err(refusal) => {
                    let is_over = refusal.is_of_failed_proofs();
                    answers.refuse(Some(tag), refusal);
                    if is_over {
                        answers.close(Close::TooManyFailedProofs).await;
                    }
                }
            },
            Step::Unsubscribe(tag, mailboxes) => {
                self.unsubscribe(&mailboxes, answers);
                done(tag, Done::Unsubscribed, answers);
            }
            Step::Windowed(tag, size) => {
                answers.shared.unblocked.wake();
                answers.answer(Outgoing::Windowed {
                    tag,
                    blobs: size.blobs,
                    bytes: size.bytes,
                });
            }
            Step::AcknowledgeEach(tag, blobs) => self.acknowledge(tag, blobs, answers).await,
            Step::Withdraw(tag, withdrawal) => self.withdraw(tag, withdrawal, answers).await,
            Step::PurgeMailboxes(tag, mailboxes) => {
                let purged = self.purge(mailboxes, answers).await;
                let name = tag.clone();
                let answer = purged.map(|mailboxes| Outgoing::PurgedMailboxes { tag, mailboxes });
                answers.done(name, answer);
            }
            Step::Unpin(tag, mailbox) => match self.unpin(&mailbox, parts).await {
                Ok(()) => done(tag, Done::Unpinned, answers),
                Err(refusal) => answers.refuse(Some(tag), refusal),
            },
            Step::PutRecovery(tag, proof) => {
                let kept = self.put_recovery(proof, parts).await;
                let name = tag.clone();
                let answer = kept.map(|expires_at| Outgoing::RecoveryKept { tag, expires_at });
                answers.done(name, answer);
            }
            Step::GetRecovery(tag, query) => {
                let found = self.get_recovery(tag.clone(), query, parts).await;
                answers.done(tag, found);
            }
            Step::Welcome(tag) => match self.charge(parts) {
                Ok(()) => answers.answer(self.welcome(Some(tag), parts)),
                Err(refusal) => answers.refuse(Some(tag), refusal),
            },
            Step::Ping(tag) => done(tag, Done::Pong, answers),
            // The rest is v1's, or the reader's.
            _ => {}
        }
    }

    /// Charges a request to the client.
    pub(super) fn charge(&self, parts: &Parts) -> Result<(), Refusal> {
        parts.service.charge(&self.client())
    }

    /// The welcome, as the first frame (without a `tag`) or as an answer.
    pub(super) fn welcome(&self, tag: Option<Tag>, parts: &Parts) -> Outgoing {
        let v2 = &parts.settings.v2;
        let welcome = Box::new(Welcome {
            relay_id: *parts.service.relay_id(),
            server_version: env!("CARGO_PKG_VERSION").into(),
            challenge: self.challenge,
            limits: Limits {
                blob_bytes_max: parts.settings.message_bytes_max as u64,
                submits_per_minute: v2.submits_per_minute,
                ttl_default: v2.ttl_max,
                ttl_max: v2.ttl_max,
                mailboxes_max: mailboxes::MAILBOXES_MAX as u32,
                window_default: (window::DEFAULT.blobs, window::DEFAULT.bytes),
                window_max: (window::MAX.blobs, window::MAX.bytes),
                mailbox_blobs_max: v2.mailbox_blobs_max,
                mailbox_bytes_max: v2.mailbox_bytes_max,
            },
            keepalive: parts.settings.keepalive,
            features: Vec::new(),
        });
        Outgoing::Welcome { tag, welcome }
    }

    /// An open mailbox by the name that clients give it.
    pub(super) fn opened(&self, id: &MailboxId, parts: &Parts) -> Option<(MailboxHash, Named)> {
        let mailbox = parts.service.mailbox(id);
        Some((mailbox, self.mailboxes.named(&mailbox)?))
    }

    /// The first mailbox that is opened names the client from then on.
    pub(super) fn is_called(&self, id: MailboxId, client: Client) {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if name.1.is_none() {
            *name = (client, Some(id));
        }
    }

    fn client(&self) -> Client {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    async fn submit(&self, tag: Tag, submit: Submit, answers: Answers<'_>) {
        let (parts, terms) = (answers.parts, &submit.terms);
        if let Err(refusal) = self.may_submit(&submit, parts) {
            return answers.refuse(Some(tag), refusal);
        }
        if terms.live_only {
            let id = submit
                .id
                .unwrap_or_else(|| BlobId::from_bytes(rand::random()));
            let handed = parts.service.hand(&submit.recipient, id, submit.body);
            let answer = handed.map(|()| Outgoing::Handed { tag: tag.clone() });
            return answers.done(tag, answer);
        }
        let outcome = self.store(submit, parts).await;
        answers.stored(tag, outcome);
    }

    fn may_submit(&self, submit: &Submit, parts: &Parts) -> Result<(), Refusal> {
        self.charge(parts)?;
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
            ..
        } = submit;
        let id = id.ok_or(Refusal::Invalid("a blob id must have 16 bytes"))?;
        let submission = Submission {
            recipient,
            id,
            class: match terms.v1_ok {
                true => Class::SeenByV1,
                false => Class::ProvenOnly,
            },
            give_back: None,
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

    fn unsubscribe(&self, ids: &[MailboxId], answers: Answers<'_>) {
        for id in ids {
            let mailbox = answers.parts.service.mailbox(id);
            // A frame may name tens of thousands, free of charge; closing looks through all that is
            // in flight, and at most 1,024 are open.
            if self.mailboxes.is_open(&mailbox) {
                self.close(&mailbox);
                answers.shared.state().forget(&mailbox);
            }
        }
        answers.shared.slots_came_back();
    }

    async fn acknowledge(&self, tag: Tag, blobs: Vec<(MailboxId, BlobId)>, answers: Answers<'_>) {
        match self.hand_in_acknowledged(blobs, answers).await {
            Err(refusal) if tag.number() != 0 => answers.refuse(Some(tag), refusal),
            Err(refusal) => answers.parts.service.count_refusal(&refusal),
            // The deletions go on without anybody waiting for them.
            Ok(_) if tag.number() == 0 => {}
            Ok(pending) => {
                let answer = Outgoing::Done {
                    tag: tag.clone(),
                    done: Done::Acknowledged,
                };
                answers.written(tag, answer, async move {
                    for removed in pending {
                        removed.await?;
                    }
                    Ok(())
                });
            }
        }
    }

    /// What was delivered here is free; one that is not makes the request cost as much as any. The
    /// slots come back with what the store has taken: nothing of a refused request is done.
    async fn hand_in_acknowledged(
        &self,
        blobs: Vec<(MailboxId, BlobId)>,
        answers: Answers<'_>,
    ) -> Result<Vec<crate::service::Pending<crate::service::Removed>>, Refusal> {
        let (parts, shared) = (answers.parts, answers.shared);
        let mut by_mailbox: HashMap<MailboxId, Vec<BlobId>> = HashMap::new();
        for (mailbox, id) in blobs {
            by_mailbox.entry(mailbox).or_default().push(id);
        }
        // What is in flight is free once, however often it is named.
        for ids in by_mailbox.values_mut() {
            ids.sort_unstable();
            ids.dedup();
        }
        let opened: Option<Vec<_>> = by_mailbox
            .into_iter()
            .map(|(mailbox, ids)| self.opened(&mailbox, parts).map(|opened| (opened, ids)))
            .collect();
        let is_free = opened.as_ref().is_some_and(|opened| {
            let state = shared.state();
            opened.iter().all(|((mailbox, _), ids)| {
                let mut ids = ids.iter();
                ids.all(|id| state.is_in_flight(*mailbox, *id))
            })
        });
        if !is_free {
            self.charge(parts)?;
        }
        let opened = opened.ok_or(Refusal::Unauthorized)?;
        let mut pending = Vec::with_capacity(opened.len());
        for ((mailbox, named), ids) in opened {
            let by = Opener {
                view: View::Proven,
                tells: tells(named),
            };
            let removed = parts.service.acknowledge(mailbox, ids.clone(), by).await?;
            pending.push(removed);
            self.have_arrived((mailbox, named), &ids, answers);
        }
        Ok(pending)
    }

    /// The slots of what was delivered here come back, and v1 senders hear of it.
    fn have_arrived(
        &self,
        (mailbox, named): (MailboxHash, Named),
        ids: &[BlobId],
        answers: Answers<'_>,
    ) {
        for id in ids {
            let was_in_flight = answers.shared.state().acknowledged(mailbox, *id);
            if was_in_flight && named.tells_senders {
                answers.parts.service.tell_acknowledged(id);
            }
        }
        answers.shared.slots_came_back();
    }

    async fn withdraw(&self, tag: Tag, withdrawal: Withdrawal, answers: Answers<'_>) {
        let parts = answers.parts;
        let Withdrawal {
            mailbox,
            secret,
            kind,
        } = withdrawal;
        let id = proof::v2_blob_id(&mailbox, &secret);
        let service = &parts.service;
        let handed_in = match (self.charge(parts), kind) {
            (Err(refusal), _) => Err(refusal),
            (Ok(()), WithdrawalKind::Extend(ttl)) => service
                .extend(&mailbox, id, ttl)
                .await
                .map(|pending| (Done::Extended, pending)),
            (Ok(()), WithdrawalKind::Cancel) => service
                .cancel(&mailbox, id)
                .await
                .map(|pending| (Done::Cancelled, pending)),
        };
        match handed_in {
            Err(refusal) => answers.refuse(Some(tag), refusal),
            Ok((done, pending)) => {
                let answer = Outgoing::Done {
                    tag: tag.clone(),
                    done,
                };
                answers.written(tag, answer, async move { Ok(pending.await?) });
            }
        }
    }

    async fn purge(
        &self,
        ids: Vec<MailboxId>,
        answers: Answers<'_>,
    ) -> Result<Vec<PurgedMailbox>, Refusal> {
        let parts = answers.parts;
        self.charge(parts)?;
        // Each is a write of its own, so naming one often must not be cheap.
        let mut seen = HashSet::new();
        let opened: Option<Vec<_>> = ids
            .into_iter()
            .filter(|id| seen.insert(*id))
            .map(|id| self.opened(&id, parts).map(|opened| (id, opened)))
            .collect();
        let mut purged = Vec::new();
        for (id, (mailbox, named)) in opened.ok_or(Refusal::Unauthorized)? {
            let service = &parts.service;
            let removed = service.purge(mailbox, View::Proven, tells(named)).await;
            // Also when it failed: some may be gone.
            self.mailboxes.read_again(&mailbox);
            let removed = removed?;
            answers.shared.state().forget(&mailbox);
            answers.shared.slots_came_back();
            // Whoever purges a mailbox gives it up; v1 may open it without a proof again.
            if named.is_by_key {
                service.unpin(&id).await?;
            }
            purged.push(PurgedMailbox {
                mailbox: id,
                blobs: removed.blobs,
                receipts: removed.receipts,
            });
        }
        Ok(purged)
    }

    async fn unpin(&self, id: &MailboxId, parts: &Parts) -> Result<(), Refusal> {
        self.charge(parts)?;
        let opened = self.opened(id, parts);
        opened
            .filter(|(_, named)| named.is_by_key)
            .ok_or(Refusal::Unauthorized)?;
        parts.service.unpin(id).await
    }

    async fn put_recovery(
        &self,
        RecoveryProof { key_hash, proof }: RecoveryProof,
        parts: &Parts,
    ) -> Result<crate::clock::Timestamp, Refusal> {
        let (client, owner) = *self.name.lock().unwrap_or_else(PoisonError::into_inner);
        parts.service.charge_recovery(&client)?;
        // Each id has one proof under a hash; without an opened mailbox there is no id.
        let owner = owner.ok_or(Refusal::Unauthorized)?;
        let proof = Proof { key_hash, proof };
        parts
            .service
            .put_recovery(&client, &owner, true, proof)
            .await
    }

    async fn get_recovery(
        &self,
        tag: Tag,
        query: RecoveryQuery,
        parts: &Parts,
    ) -> Result<Outgoing, Refusal> {
        let service = &parts.service;
        service.charge_recovery(&self.client())?;
        let bytes_max = parts.settings.message_bytes_max as u64;
        let found = service.get_recovery(&query.key_hashes, bytes_max).await?;
        let plain = |(Proof { key_hash, proof }, stored_at)| FoundProof {
            key_hash,
            proof,
            stored_at,
        };
        let mut proofs: Vec<_> = found.proofs.into_iter().map(plain).collect();
        let fit = v2::proofs_that_fit(&proofs, parts.settings.message_bytes_max);
        let is_cut = fit < proofs.len();
        proofs.truncate(fit);
        Ok(Outgoing::RecoveryFound {
            tag,
            proofs,
            more: found.more || query.is_cut || is_cut,
        })
    }
}

/// Whether senders hear of what becomes of this mailbox's blobs.
pub(super) fn tells(named: Named) -> Tells {
    match named.tells_senders {
        true => Tells::Senders,
        false => Tells::Nobody,
    }
}

/// An answer that says only that it is done; none where none is wanted.
fn done(tag: Tag, done: Done, answers: Answers<'_>) {
    if tag.number() != 0 {
        answers.answer(Outgoing::Done { tag, done });
    }
}

impl Shared {
    /// Room in the window may let the next blob go, or a draining session end.
    pub(super) fn slots_came_back(&self) {
        self.unblocked.wake();
        self.settled.notify_one();
    }
}
