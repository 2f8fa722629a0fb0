//! How the memory engine takes a blob in, and how its sender takes it out again.

use super::MemoryStore;
use super::shard::{Row, Shard};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::StoreError;
use crate::store::model::Appended;
use crate::store::plan::leaving::Leaving;
use crate::store::plan::quota::Held;

impl MemoryStore {
    /// Takes the row in, or says why not.
    pub(in crate::store) fn take(
        &self,
        mailbox: MailboxHash,
        row: Row,
        (now, expired_by): (Timestamp, Timestamp),
    ) -> Result<Appended, StoreError> {
        let mut gone = Vec::new();
        let times = (now, expired_by);
        let mut offered = self.offer(mailbox, row, times, &mut gone)?;
        if let Offered::OwnerIsFull(row, owner) = offered {
            self.relieve(&owner, times)?;
            offered = self.offer(mailbox, *row, times, &mut gone)?;
        }
        for (leaving, rows) in gone {
            self.tell(leaving, &mailbox, &rows, now);
        }
        Ok(match offered {
            Offered::Done(appended) => appended,
            Offered::OwnerIsFull(..) => Appended::MailboxFull,
        })
    }

    /// Takes the row in, or says why not. Everything that decides happens under the shard's lock, so
    /// that of two senders only one gets the last place or the first use of an id. What leaves for it
    /// is added to `gone`.
    fn offer(
        &self,
        mailbox: MailboxHash,
        row: Row,
        (now, expired_by): (Timestamp, Timestamp),
        gone: &mut Vec<(Leaving, Vec<Row>)>,
    ) -> Result<Offered, StoreError> {
        let mut shard = self.shard(&mailbox)?;
        if let Some(known) = shard.find(&mailbox, &row.id) {
            let is_same = row.checksum == known.checksum;
            return Ok(self.repeated(is_same, known.expires_at));
        }
        if let Some(departed) = self.books().departures.recall(&(mailbox, row.id), now) {
            let is_same = row.checksum == departed.checksum;
            return Ok(self.repeated(is_same, departed.expires_at));
        }

        let (held, _) = held_without_replaced(&shard, &mailbox, &row);
        let is_mailbox_full = !self
            .quota
            .holder_admits(row.class, held, row.charged_bytes());
        if row.owner.is_none() && is_mailbox_full {
            let expired = shard.remove_expired_of(&mailbox, |_| true, expired_by);
            let leaving = Leaving::Expired;
            self.books().depart(leaving, mailbox, &expired, now);
            gone.push((leaving, expired));
        }
        let room = held_without_replaced(&shard, &mailbox, &row);
        // One lock for both: who looks at the sums sees the exchange or does not.
        let mut books = self.books();
        let key = match (books.admit(&self.quota, room, mailbox, &row), row.owner) {
            (Ok(key), _) => key,
            (Err(Appended::MailboxFull), Some(owner)) => {
                return Ok(Offered::OwnerIsFull(Box::new(row), owner.hash));
            }
            (Err(full), _) => return Ok(Offered::Done(full)),
        };
        let replaced = shard.of_topic(&mailbox, row.topic).map(|(key, _)| key);
        if let Some(replaced) = replaced.and_then(|key| shard.remove(&mailbox, key)) {
            let leaving = replaced.or_expired(Leaving::Replaced, now);
            let replaced = vec![replaced];
            books.depart(leaving, mailbox, &replaced, now);
            gone.push((leaving, replaced));
        }
        let expires_at = row.expires_at;
        shard.insert(mailbox, key, row);
        Ok(Offered::Done(Appended::Stored { expires_at }))
    }

    /// Takes a blob out for its sender.
    pub(in crate::store) fn withdraw(
        &self,
        mailbox: MailboxHash,
        id: &BlobId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut shard = self.shard(&mailbox)?;
        if !shard.find(&mailbox, id).is_some_and(Row::is_blob) {
            return Ok(());
        }
        if let Some(row) = shard.remove_id(&mailbox, id) {
            let leaving = row.or_expired(Leaving::Cancelled, now);
            let rows = [row];
            self.books().depart(leaving, mailbox, &rows, now);
            drop(shard);
            self.tell(leaving, &mailbox, &rows, now);
        }
        Ok(())
    }

    /// Takes away what has expired of a full owner. It lies in several shards, so this happens
    /// outside the one that something was offered to.
    fn relieve(
        &self,
        owner: &MailboxHash,
        (now, expired_by): (Timestamp, Timestamp),
    ) -> Result<(), StoreError> {
        let mailboxes = self.books().mailboxes_of(owner);
        let is_theirs = |row: &Row| row.owner.is_some_and(|of| of.hash == *owner);
        for mailbox in mailboxes {
            let mut shard = self.shard(&mailbox)?;
            let expired = shard.remove_expired_of(&mailbox, is_theirs, expired_by);
            self.books()
                .depart(Leaving::Expired, mailbox, &expired, now);
        }
        Ok(())
    }

    fn repeated(&self, is_same: bool, expires_at: Timestamp) -> Offered {
        if !is_same {
            return Offered::Done(Appended::IdReused);
        }
        self.metrics.duplicates_total.increment(1);
        Offered::Done(Appended::Duplicate { expires_at })
    }
}

/// What a mailbox holds beside the row that this one replaces, and the bytes of that.
fn held_without_replaced(shard: &Shard, mailbox: &MailboxHash, row: &Row) -> (Held, u64) {
    let mut held = shard.held(mailbox, row.class);
    let Some((_, replaced)) = shard.of_topic(mailbox, row.topic) else {
        return (held, 0);
    };
    let given_back = replaced.charged_bytes();
    if replaced.class == row.class {
        held.remove(given_back);
    }
    (held, given_back)
}

/// What became of a row that was offered to its mailbox.
enum Offered {
    Done(Appended),
    /// Its owner has too much for it; something may have expired.
    OwnerIsFull(Box<Row>, MailboxHash),
}
