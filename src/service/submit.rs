//! Accept a blob: store it, and say so only when it is durable.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Service;
use super::refusal::Refusal;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
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
    /// The blob.
    pub body: Bytes,
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
pub struct Submitted(Pending<Appended>);

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
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, Refusal> {
        let stored_at = self.parts.clock.now();
        let envelope = Envelope {
            mailbox: self.parts.secret.mailbox(&submission.recipient),
            id: submission.id,
            class: submission.class,
            owner: None,
            stored_at,
            expires_at: stored_at.plus(self.parts.blob_ttl),
            sealed: Bytes::new(),
            body: submission.body,
        };
        Ok(Submitted(self.parts.store.append(envelope).await?))
    }
}

impl Future for Submitted {
    type Output = Result<Stored, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let appended = ready!(Pin::new(&mut self.0).poll(context))?;
        Poll::Ready(match appended {
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
