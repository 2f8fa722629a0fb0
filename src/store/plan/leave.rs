//! Folding what takes rows out of a batch's mailboxes, or lets them live longer.

use super::known::{Departed, Holder, Name};
use super::leaving::Leaving;
use super::receipts::Due;
use super::{Departure, Folding};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Class, Opener, OrderKey, Removed, Tells};
use crate::store::write::Cause;

impl Folding<'_> {
    /// Takes out what its recipient has, of what it may see.
    pub(super) fn acknowledge(
        &mut self,
        mailbox: &MailboxHash,
        ids: &[BlobId],
        by: Opener,
        now: Timestamp,
    ) -> Removed {
        let mut removed = Removed::default();
        for id in ids {
            if let Some((key, header)) = self.look_up(&(*mailbox, *id))
                && by.view.shows(header.class)
                && self.leave(key, Leaving::Acknowledged(by.tells), now)
            {
                removed.add(header.class);
            }
        }
        removed
    }

    /// Lets a blob live longer, unless it has expired.
    pub(super) fn extend(&mut self, name: Name, expires_at: Timestamp, now: Timestamp) {
        if let Some((key, mut header)) = self.look_up(&name)
            && header.is_blob()
            && header.expires_at > now
            && header.expires_at < expires_at
        {
            header.expires_at = expires_at;
            self.rows.insert(key, Some(header));
            if !self.is_new(key) {
                self.plan.extended.insert(key, (header.mailbox, expires_at));
            }
        }
    }

    /// Takes out a blob for its sender.
    pub(super) fn cancel(&mut self, name: Name, now: Timestamp) {
        if let Some((key, header)) = self.look_up(&name)
            && header.is_blob()
        {
            self.leave(key, header.or_expired(Leaving::Cancelled, now), now);
        }
    }

    /// Takes out rows for a cause that holds for each of them.
    pub(super) fn remove(&mut self, keys: &[OrderKey], cause: &Cause, now: Timestamp) -> Removed {
        let mut removed = Removed::default();
        for key in keys {
            let Some(header) = self.row(*key) else {
                continue;
            };
            let leaving = match cause {
                Cause::Corrupt if self.known.sound.contains(key) => continue,
                Cause::Corrupt => Leaving::Lost,
                Cause::Expired if header.expires_at <= now => Leaving::Expired,
                Cause::Purged {
                    mailbox,
                    view,
                    tells,
                } if header.mailbox == *mailbox && view.shows(header.class) => {
                    header.or_expired(Leaving::Purged(*tells), now)
                }
                Cause::OwnerPurged { owner } if header.owner == Some(*owner) => {
                    header.or_expired(Leaving::Purged(Tells::Nobody), now)
                }
                Cause::Expired | Cause::Purged { .. } | Cause::OwnerPurged { .. } => continue,
            };
            if self.leave(*key, leaving, now) {
                removed.add(header.class);
            }
        }
        removed
    }

    /// Takes a row out; `false` when it is not there (any more).
    pub(super) fn leave(&mut self, key: OrderKey, leaving: Leaving, now: Timestamp) -> bool {
        let Some(header) = self.row(key) else {
            return false;
        };
        self.rows.insert(key, None);
        self.names.insert(header.name(), None);
        if let Some(topic) = header.topic {
            self.topics.insert((header.mailbox, topic), None);
        }
        let charged_bytes = header.charged_bytes();
        self.held.remove(header.class, charged_bytes);
        let holders = [
            Some(Holder::Mailbox(header.mailbox)),
            header.owner.map(Holder::Owner),
        ];
        for holder in holders.into_iter().flatten() {
            // An account that nobody asked for decides nothing.
            if self.accounts.contains_key(&holder) || self.known.accounts.contains_key(&holder) {
                self.account_mut(holder).remove(header.class, charged_bytes);
            }
        }
        self.plan.extended.remove(&key);
        self.plan.delivered.remove(&key);
        let is_lost = leaving == Leaving::Lost;
        if !self.is_new(key) {
            let list = match is_lost {
                true => &mut self.plan.set_aside,
                false => &mut self.plan.deletes,
            };
            list.push((key, header));
        }
        *leaving.count_in(self.plan.happened.to(header.class)) += 1;
        self.due.extend(Due::of(header, leaving, self.dated(now)));
        // Nobody hands in a receipt, so none is handed in twice.
        let is_remembered = !is_lost && header.class != Class::Receipt;
        if is_remembered && !self.rules.dedup.is_zero() {
            let place = self.plan.departures.len();
            self.left.insert(header.name(), place);
            self.plan.departures.push(Departure {
                mailbox: header.mailbox,
                id: header.id,
                departed: Departed {
                    left_at: self.dated(now),
                    checksum: header.checksum,
                    expires_at: header.expires_at,
                },
            });
        }
        true
    }
}
