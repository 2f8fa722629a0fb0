//! Folding what takes rows out of a batch's mailboxes, or lets them live longer.

use super::Folding;
use super::leaving::Leaving;
use super::receipts::Due;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::commit::Cause;
use crate::store::model::{Class, Opener, OrderKey, Removed, Tells};
use crate::store::sqlite::departures::Departure;

impl Folding<'_> {
    /// Takes out what its recipient has, of what it may see.
    pub(in crate::store) fn acknowledge(
        &mut self,
        mailbox: &MailboxHash,
        ids: &[BlobId],
        by: Opener,
        now: Timestamp,
    ) -> Removed {
        let mut removed = Removed::default();
        for id in ids {
            if let Some((key, header)) = self.look_up(mailbox, id)
                && header
                    .size
                    .class()
                    .is_some_and(|class| by.view.shows(class))
                && self.leave(key, Leaving::Acknowledged(by.tells), now)
            {
                removed.add(header.size.class());
            }
        }
        removed
    }

    /// Lets a blob live longer, unless it has expired.
    pub(in crate::store) fn extend(
        &mut self,
        (mailbox, id): (&MailboxHash, &BlobId),
        expires_at: Timestamp,
        now: Timestamp,
    ) {
        if let Some((key, mut header)) = self.look_up(mailbox, id)
            && header.is_blob()
            && header.expires_at > now
            && header.expires_at < expires_at
        {
            header.expires_at = expires_at;
            self.known.headers.insert(key, header);
            self.plan.extended.insert(key, expires_at);
        }
    }

    /// Takes out a blob for its sender.
    pub(in crate::store) fn cancel(
        &mut self,
        (mailbox, id): (&MailboxHash, &BlobId),
        now: Timestamp,
    ) {
        if let Some((key, header)) = self.look_up(mailbox, id)
            && header.is_blob()
        {
            self.leave(key, header.or_expired(Leaving::Cancelled, now), now);
        }
    }

    /// Takes out rows for a cause that holds for each of them.
    pub(in crate::store) fn remove(
        &mut self,
        keys: &[OrderKey],
        cause: &Cause,
        now: Timestamp,
    ) -> Removed {
        let mut removed = Removed::default();
        for key in keys {
            let Some(header) = self.known.headers.get(&key.0) else {
                continue;
            };
            let leaving = match cause {
                Cause::Corrupt if self.known.sound.contains(&key.0) => continue,
                Cause::Corrupt => Leaving::Lost,
                Cause::Expired if header.expires_at <= now => Leaving::Expired,
                Cause::Purged {
                    mailbox,
                    view,
                    tells,
                } if header.mailbox == *mailbox
                    && header.size.class().is_some_and(|class| view.shows(class)) =>
                {
                    header.or_expired(Leaving::Purged(*tells), now)
                }
                Cause::OwnerPurged { owner } if header.owner == Some(*owner) => {
                    header.or_expired(Leaving::Purged(Tells::Nobody), now)
                }
                Cause::Expired | Cause::Purged { .. } | Cause::OwnerPurged { .. } => continue,
            };
            let class = header.size.class();
            if self.leave(key.0, leaving, now) {
                removed.add(class);
            }
        }
        removed
    }

    /// Takes a row out; `false` when it is not there (any more).
    pub(in crate::store) fn leave(&mut self, key: i64, leaving: Leaving, now: Timestamp) -> bool {
        let Some(header) = self.known.headers.remove(&key) else {
            return false;
        };
        self.sets
            .remove(header.mailbox64, key, header.id64, header.size);
        self.plan.touched.insert(header.mailbox64);
        let class = header.size.class();
        let charged_bytes = header.size.charged_bytes();
        self.plan.held.remove(class, charged_bytes);
        if let Some(owner64) = header.owner64() {
            self.plan.touched_owners.insert(owner64);
            self.sets.owners.remove(owner64, charged_bytes);
        }
        self.plan.extended.remove(&key);
        self.plan.delivered.remove(&key);
        let is_lost = leaving == Leaving::Lost;
        match usize::try_from(key - self.plan.first_key) {
            // Came in this very batch: it is not written at all.
            Ok(place) => {
                if let Some(insert) = self.plan.inserts.get_mut(place) {
                    *insert = None;
                }
            }
            Err(_) if is_lost => self.plan.set_aside.push(key),
            Err(_) => self.plan.deletes.push(key),
        }
        let counts = self.plan.happened.to(class);
        *leaving.count_in(counts) += 1;
        self.due.extend(Due::of(header, leaving, now));
        // Nobody hands in a receipt, so none is handed in twice.
        let is_remembered = !is_lost && class != Some(Class::Receipt);
        if is_remembered && !self.rules.departures.is_off() {
            self.left
                .insert((header.mailbox64, header.id), self.plan.departures.len());
            self.plan.departures.push(Departure {
                left_at: now,
                mailbox64: header.mailbox64,
                id: header.id,
                checksum: header.checksum,
                expires_at: header.expires_at,
            });
        }
        true
    }
}
