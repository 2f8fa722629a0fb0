//! Hand a blob to who is there now: it is never stored.

use bytes::Bytes;

use super::Service;
use super::refusal::Refusal;
use crate::hub::LiveBlob;
use crate::ids::{BlobId, MailboxId};

impl Service {
    /// Hands a blob to every subscriber of the mailbox that lets senders know and has room for it.
    /// Refused when there is none. The request itself has been charged ([`Service::charge`]).
    pub async fn hand(&self, mailbox: &MailboxId, id: BlobId, body: Bytes) -> Result<(), Refusal> {
        let blob = LiveBlob {
            mailbox: self.parts.secret.mailbox(mailbox),
            id,
            handed_at: self.parts.clock.date(),
            body,
        };
        match self.parts.commons.hand(&blob).await {
            0 => Err(Refusal::NotConnected),
            _ => {
                self.parts.metrics.blobs_handed_total.increment(1);
                Ok(())
            }
        }
    }
}
