//! Everything of a mailbox or an owner is removed by a command.

use super::engine::KeysOf;
use super::model::{OrderKey, Removed, Tells, View};
use super::write::{Cause, Write};
use super::{Pending, SLICE_ROWS, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;

/// Removals that are written next: each with the place where it counts, and their rows.
#[derive(Default)]
struct Removing {
    writes: Vec<(usize, Write)>,
    rows: usize,
}

impl Store {
    /// Deletes everything of a mailbox that `view` can see and that was stored before this call;
    /// durable when it returns. Large mailboxes are emptied in slices between other writes.
    pub async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let purged = self.purge_all(&[(mailbox, tells)], view, now).await?;
        Ok(purged.first().copied().unwrap_or_default())
    }

    /// As [`Store::purge`], of several mailboxes, each named once; what was purged of each, in the order
    /// asked. Their rows are removed together, up to 256 in a commit, so many small mailboxes cost no
    /// more than one large one.
    pub async fn purge_all(
        &self,
        mailboxes: &[(MailboxHash, Tells)],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Removed>, StoreError> {
        let causes = mailboxes.iter().map(|(mailbox, tells)| {
            let cause = Cause::Purged {
                mailbox: *mailbox,
                view,
                tells: *tells,
            };
            (KeysOf::Mailbox(*mailbox, view), cause)
        });
        self.purge_slices(causes.collect(), now).await
    }

    /// Deletes every device sync message of this owner, on all its devices, that was stored before
    /// this call; durable when it returns.
    pub async fn purge_owner(
        &self,
        owner: MailboxHash,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let cause = (KeysOf::Owner(owner), Cause::OwnerPurged { owner });
        let purged = self.purge_slices(vec![cause], now).await?;
        Ok(purged.first().copied().unwrap_or_default())
    }

    async fn purge_slices(
        &self,
        causes: Vec<(KeysOf, Cause)>,
        now: Timestamp,
    ) -> Result<Vec<Removed>, StoreError> {
        let up_to = self.counted(self.pipeline.horizon().await)?;
        let mut purged = vec![Removed::default(); causes.len()];
        let mut removing = Removing::default();
        for (place, (of, cause)) in causes.into_iter().enumerate() {
            let mut after = OrderKey::START;
            loop {
                let keys = self.reads.keys(of, after, up_to, SLICE_ROWS);
                let keys = self.read(keys).await?;
                let Some(last) = keys.last().copied() else {
                    break;
                };
                after = last;
                removing.rows += keys.len();
                let remove = Write::Remove { keys, cause, now };
                removing.writes.push((place, remove));
                if removing.rows >= SLICE_ROWS as usize {
                    self.removed(&mut removing, &mut purged).await?;
                }
            }
        }
        self.removed(&mut removing, &mut purged).await?;
        Ok(purged)
    }

    /// Has these removed, and counts at each place what it removed. They are queued in one go, or the
    /// committer would begin with the first alone while the keys of the next are read.
    async fn removed(
        &self,
        removing: &mut Removing,
        purged: &mut [Removed],
    ) -> Result<(), StoreError> {
        let mut pending: Vec<(usize, Pending<Removed>)> = Vec::new();
        for (place, remove) in std::mem::take(removing).writes {
            pending.push((place, self.queue(remove).await?));
        }
        for (place, removed) in pending {
            let removed: Removed = self.counted(removed.await)?;
            purged[place].blobs += removed.blobs;
            purged[place].receipts += removed.receipts;
        }
        Ok(())
    }
}
