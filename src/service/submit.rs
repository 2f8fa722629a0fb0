//! Accept a blob: store it, and say so only when it is durable.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::Service;
use super::charge::{Client, Room};
use super::refusal::Refusal;
use super::sealed::Sealed;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, MailboxId};
use crate::store::Pending;
use crate::store::model::{Appended, Class, Envelope};

/// A blob that a client hands in.
#[derive(Debug)]
pub struct Submission {
    /// Whose mailbox.
    pub recipient: MailboxId,
    /// Its id within the mailbox.
    pub id: BlobId,
    /// Who may see it.
    pub class: Class,
    /// What is delivered beside it.
    pub sealed: Option<Sealed>,
    /// Who is told what becomes of it, and under which name.
    pub notice: Option<NoticeTo>,
    /// What its sender asks beside storing it; v1 asks nothing.
    pub terms: Terms,
    /// The blob.
    pub body: Bytes,
}

/// What a sender may ask beside storing a blob.
#[derive(Default)]
pub struct Terms {
    /// How long it shall be kept; `None` for as long as the relay keeps blobs.
    pub ttl: Option<Duration>,
    /// It replaces the unacknowledged blob of the same mailbox and topic.
    pub topic: Option<[u8; 32]>,
    /// The sender's mailbox for its receipts, which the caller has seen to be open.
    pub receipt_to: Option<MailboxId>,
}

impl std::fmt::Debug for Terms {
    // Topics and receipt mailboxes tell who has to do with whom.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Terms(…)")
    }
}

/// Where notices of a blob go to.
#[derive(Clone)]
pub struct NoticeTo {
    /// The sender's mailbox.
    pub sender: MailboxHash,
    /// The sender's own name for the submit.
    pub name: Box<str>,
}

impl std::fmt::Debug for NoticeTo {
    // A client may call its submits anything.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoticeTo(…)")
    }
}

/// What a sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// From then on it is not delivered any more.
    pub expires_at: Timestamp,
    /// It was stored before; nothing was added.
    pub duplicate: bool,
}

/// A submission that has its place in the order; resolves when it is durable or refused.
#[derive(Debug)]
pub struct Submitted {
    appended: Pending<Appended>,
    room: Room,
}

impl Service {
    /// The id of a v1 submit, which makes a repeat of the same bytes a duplicate.
    pub fn v1_blob_id(
        &self,
        message_id: &str,
        from: &MailboxId,
        to: &MailboxId,
        body: &[u8],
    ) -> BlobId {
        self.parts.secret.v1_blob_id(message_id, from, to, body)
    }

    /// Puts a blob in the queue of the next commit. Waits while that queue is full, which is how a
    /// slow disk slows its senders. The recipient is woken by the committer.
    ///
    /// The request itself has been charged ([`Service::charge`]); here the room is, and it is given
    /// back when the blob is not stored.
    pub async fn submit(
        &self,
        client: &Client,
        submission: Submission,
    ) -> Result<Submitted, Refusal> {
        let stored_at = self.parts.clock.date();
        let (secret, terms) = (&self.parts.secret, &submission.terms);
        let ttl = self.ttl(terms)?;
        let recipient = &submission.recipient;
        let sealed = submission
            .sealed
            .map(|kept| kept.seal(&self.parts.secret, recipient));
        let envelope = Envelope {
            mailbox: self.parts.secret.mailbox(recipient),
            id: submission.id,
            class: submission.class,
            owner: None,
            topic: terms.topic.map(|topic| secret.topic(recipient, &topic)),
            receipt_to: terms.receipt_to.map(|mailbox| secret.mailbox(&mailbox)),
            stored_at,
            expires_at: stored_at.plus(ttl),
            sealed: sealed.unwrap_or_default(),
            body: submission.body,
        };
        let room = self.charge_room(client, &envelope)?;
        if let Some(NoticeTo { sender, name }) = submission.notice {
            let commons = &self.parts.commons;
            commons.await_fate(envelope.id, sender, &name);
        }
        self.hand_in(envelope, room).await
    }

    /// How long a blob on these terms is kept.
    fn ttl(&self, terms: &Terms) -> Result<Duration, Refusal> {
        let ttl = terms.ttl.unwrap_or(self.parts.blob_ttl);
        // "Collected within its time or not" is what a receipt of a short-lived blob would tell.
        let too_short = terms.receipt_to.is_some() && ttl < self.parts.receipt_min_ttl;
        if ttl > self.parts.blob_ttl || too_short {
            return Err(Refusal::TtlOutOfRange {
                ttl_max: self.parts.blob_ttl,
                receipt_ttl_min: self.parts.receipt_min_ttl,
            });
        }
        Ok(ttl)
    }

    /// Hands an envelope to the store; its room goes back when the store does not take it.
    pub(super) async fn hand_in(
        &self,
        envelope: Envelope,
        room: Room,
    ) -> Result<Submitted, Refusal> {
        let expired_by = self.expired_by();
        match self.parts.store.append(envelope, expired_by).await {
            Ok(appended) => Ok(Submitted { appended, room }),
            Err(error) => {
                room.give_back();
                Err(error.into())
            }
        }
    }
}

impl Future for Submitted {
    type Output = Result<Stored, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let appended = ready!(Pin::new(&mut self.appended).poll(context));
        if !matches!(appended, Ok(Appended::Stored { .. })) {
            self.room.give_back();
        }
        Poll::Ready(match appended? {
            Appended::Stored { expires_at } => Ok(Stored {
                expires_at,
                duplicate: false,
            }),
            Appended::Duplicate { expires_at } => Ok(Stored {
                expires_at,
                duplicate: true,
            }),
            Appended::IdReused => Err(Refusal::IdReused),
            Appended::MailboxFull => Err(Refusal::MailboxFull),
            Appended::RelayFull => Err(Refusal::RelayFull),
        })
    }
}
