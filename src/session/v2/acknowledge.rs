//! A v2 client acknowledges what has arrived: blobs and receipts of several mailboxes at once.

use std::collections::HashMap;

use super::guest::{Guest, tells};
use super::reply::Reply;
use crate::ids::{BlobId, MailboxHash, MailboxId};
use crate::protocol::v2::Answer;
use crate::protocol::v2::message::Done;
use crate::service::refusal::Refusal;
use crate::service::{Opener, Pending, Removed, View};
use crate::session::Parts;
use crate::session::answers::{Answers, Asker as _};
use crate::session::mailboxes::Named;
use crate::session::window::Slot;

impl Guest {
    /// Where these blobs would be in flight; `None` when one of their mailboxes is not open.
    pub(super) fn slots(&self, items: &[(MailboxId, BlobId)], parts: &Parts) -> Option<Vec<Slot>> {
        let mut hashes = HashMap::new();
        let slot_of = |(mailbox, id): &(MailboxId, BlobId)| {
            let hash = hashes
                .entry(*mailbox)
                .or_insert_with(|| self.opened(mailbox, parts).map(|(hash, _)| hash));
            Some(((*hash)?, *id))
        };
        items.iter().map(slot_of).collect()
    }

    pub(super) async fn acknowledge(&self, blobs: Vec<(MailboxId, BlobId)>, reply: Reply<'_>) {
        match self.hand_in_acknowledged(blobs, reply.answers).await {
            Err(refusal) => reply.refuse(refusal),
            Ok(pending) => reply.written(async move {
                for removed in pending {
                    removed.await?;
                }
                Ok(Answer::Done(Done::Acknowledged))
            }),
        }
    }

    /// The slots come back with what the store has taken: nothing of a refused request is done.
    async fn hand_in_acknowledged(
        &self,
        blobs: Vec<(MailboxId, BlobId)>,
        answers: Answers<'_>,
    ) -> Result<Vec<Pending<Removed>>, Refusal> {
        let parts = answers.parts;
        let mut by_mailbox: HashMap<MailboxId, Vec<BlobId>> = HashMap::new();
        for (mailbox, id) in blobs {
            by_mailbox.entry(mailbox).or_default().push(id);
        }
        let opened: Option<Vec<_>> = by_mailbox
            .into_iter()
            .map(|(mailbox, ids)| self.opened(&mailbox, parts).map(|opened| (opened, ids)))
            .collect();
        let opened = opened.ok_or(Refusal::Unauthorized)?;
        let mut pending = Vec::with_capacity(opened.len());
        for ((mailbox, named), mut ids) in opened {
            ids.sort_unstable();
            ids.dedup();
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
            let was_in_flight = answers.shared.state().acknowledged((mailbox, *id));
            answers.shared.earn(usize::from(was_in_flight));
            if was_in_flight && named.tells_senders {
                answers.parts.service.tell_acknowledged(id);
            }
        }
        answers.shared.slots_came_back();
    }
}
