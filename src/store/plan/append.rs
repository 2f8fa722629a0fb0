//! Folding an append: whether it is known, whether it finds room, and what makes room for it.

use super::leaving::Leaving;
use super::{Folding, Header, Insert, owner_of, topic_of};
use crate::clock::Timestamp;
use crate::store::commit::Checksum;
use crate::store::model::{Appended, Envelope};

impl Folding<'_> {
    /// Takes a blob in, or says why not.
    pub(in crate::store) fn append(
        &mut self,
        index: usize,
        (envelope, checksum): (&Envelope, &Checksum),
        expired_by: Timestamp,
    ) -> Appended {
        let header = Header::new(envelope, checksum, self.rules.secret);
        if let Some((first, expires_at)) = self.first_of(envelope, header.id64) {
            if first != *checksum {
                return Appended::IdReused;
            }
            self.plan.happened.duplicates += 1;
            return Appended::Duplicate { expires_at };
        }
        if !self.rules.has_room {
            return Appended::RelayFull;
        }
        if let Err(refused) = self.admit(envelope, expired_by) {
            return refused;
        }
        if let Some((key, replaced)) = self.replaced_by(envelope) {
            let now = envelope.stored_at;
            self.leave(key, replaced.or_expired(Leaving::Replaced, now), now);
        }
        self.come(Insert::Write(index), header);
        Appended::Stored {
            expires_at: envelope.expires_at,
        }
    }

    /// The row that this envelope replaces.
    fn replaced_by(&self, envelope: &Envelope) -> Option<(i64, Header)> {
        let place = (envelope.mailbox.prefix64(), topic_of(envelope)?.prefix64());
        let keys = self.known.topics.get(&place)?;
        keys.iter().find_map(|key| {
            let header = self.known.headers.get(key)?;
            (header.mailbox == envelope.mailbox).then_some((*key, *header))
        })
    }

    /// The checksum and the expiry of the blob that has or had this id in this mailbox.
    fn first_of(&self, envelope: &Envelope, id64: i64) -> Option<(Checksum, Timestamp)> {
        let mailbox64 = envelope.mailbox.prefix64();
        if let Some(key) = self.find(&envelope.mailbox, &envelope.id, id64) {
            let header = self.known.headers.get(&key)?;
            return Some((header.checksum, header.expires_at));
        }
        let just_left = self
            .left
            .get(&(mailbox64, envelope.id))
            .and_then(|place| self.plan.departures.get(*place));
        just_left
            .or_else(|| {
                self.rules
                    .departures
                    .find(mailbox64, &envelope.id, envelope.stored_at)
            })
            .map(|departure| (departure.checksum, departure.expires_at))
    }

    fn admit(&mut self, envelope: &Envelope, expired_by: Timestamp) -> Result<(), Appended> {
        let refused = match self.quota_admits(envelope) {
            Err(refused @ Appended::MailboxFull) => refused,
            other => return other,
        };
        // What has expired in it makes room first. Another write of the batch may trust a later time.
        let (holder64, of_holder) = match owner_of(envelope) {
            Some(owner) => (owner.hash.prefix64(), &mut self.known.expired_of_owners),
            None => (envelope.mailbox.prefix64(), &mut self.known.expired),
        };
        let Some(keys) = of_holder.get_mut(&holder64) else {
            return Err(refused);
        };
        let headers = &self.known.headers;
        let is_expired = |key: &mut i64| {
            let row = headers.get(key);
            row.is_some_and(|row| row.expires_at <= expired_by)
        };
        let expired: Vec<i64> = keys.extract_if(.., is_expired).collect();
        for key in expired {
            self.leave(key, Leaving::Expired, envelope.stored_at);
        }
        self.quota_admits(envelope)
    }

    fn quota_admits(&self, envelope: &Envelope) -> Result<(), Appended> {
        let mut relay_bytes = self.plan.held.bytes;
        let mut held = match owner_of(envelope) {
            Some(owner) => self.sets.owners.peek(owner.hash.prefix64()).held,
            None => self
                .sets
                .peek(envelope.mailbox.prefix64())
                .map(|set| set.held(envelope.class))
                .unwrap_or_default(),
        };
        // What it replaces makes room for it.
        if let Some((_, replaced)) = self.replaced_by(envelope) {
            let given_back = replaced.size.charged_bytes();
            relay_bytes = relay_bytes.saturating_sub(given_back);
            if replaced.size.class() == Some(envelope.class) {
                held.remove(given_back);
            }
        }
        let charged_bytes = envelope.charged_bytes();
        let quota = &self.rules.quota;
        quota.admits(envelope.class, held, relay_bytes, charged_bytes)
    }
}
