//! Folding an append: whether it is known, whether it finds room, and what makes room for it.

use super::known::{Header, Holder};
use super::leaving::Leaving;
use super::{Folding, Source, topic_of};
use crate::clock::Timestamp;
use crate::store::model::{Appended, Envelope, OrderKey};
use crate::store::write::Checksum;

impl Folding<'_> {
    /// Takes a blob in, or says why not.
    pub(super) fn append(
        &mut self,
        index: usize,
        (envelope, checksum): (&Envelope, &Checksum),
        expired_by: Timestamp,
    ) -> Appended {
        if let Some((first, expires_at)) = self.first_of(envelope) {
            if first != *checksum && !self.is_repeat(&first, envelope) {
                return Appended::IdReused;
            }
            self.plan.happened.duplicates += 1;
            return Appended::Duplicate { expires_at };
        }
        if !self.known.has_room {
            return Appended::RelayFull;
        }
        if let Err(refused) = self.admit(envelope, expired_by) {
            return refused;
        }
        if let Some((key, replaced)) = self.replaced_by(envelope) {
            let now = self.handed_in_at(envelope);
            self.leave(key, replaced.or_expired(Leaving::Replaced, now), now);
        }
        self.come(Source::Write(index), Header::new(envelope, checksum));
        Appended::Stored {
            expires_at: envelope.expires_at,
        }
    }

    /// Whether this was the envelope's checksum for an older release.
    fn is_repeat(&self, first: &Checksum, envelope: &Envelope) -> bool {
        let name = (&envelope.mailbox, &envelope.id);
        let secret = &self.rules.secret;
        secret.is_checksum(first, name, &envelope.body)
    }

    /// By when it is judged what is over; it is dated later while a stop is not confirmed.
    fn handed_in_at(&self, envelope: &Envelope) -> Timestamp {
        envelope.stored_at.minus(self.unconfirmed)
    }

    /// The row that this envelope replaces.
    fn replaced_by(&self, envelope: &Envelope) -> Option<(OrderKey, Header)> {
        let place = (envelope.mailbox, topic_of(envelope)?);
        let key = match self.topics.get(&place) {
            Some(key) => (*key)?,
            None => *self.learnt.topics.get(&place)?,
        };
        Some((key, self.row(key)?))
    }

    /// The checksum and the expiry of the blob that has or had this id in this mailbox.
    fn first_of(&self, envelope: &Envelope) -> Option<(Checksum, Timestamp)> {
        let name = (envelope.mailbox, envelope.id);
        if let Some((_, header)) = self.look_up(&name) {
            return Some((header.checksum, header.expires_at));
        }
        let just_left = self
            .left
            .get(&name)
            .and_then(|place| self.plan.departures.get(*place))
            .map(|departure| departure.departed);
        let remembered = || {
            let departed = self.known.departed.get(&name).copied();
            let now = self.handed_in_at(envelope);
            let is_over = |at: Timestamp| at.plus(self.rules.dedup) <= now;
            departed.filter(|departed| !is_over(departed.left_at))
        };
        let departed = just_left.or_else(remembered)?;
        Some((departed.checksum, departed.expires_at))
    }

    fn admit(&mut self, envelope: &Envelope, expired_by: Timestamp) -> Result<(), Appended> {
        let refused = match self.quota_admits(envelope) {
            Err(refused @ Appended::MailboxFull) => refused,
            other => return other,
        };
        // What has expired in it makes room first, if the time is to be trusted with that.
        let holder = Holder::of(envelope);
        if self.account(holder).earliest_expiry > expired_by || !self.relieved.insert(holder) {
            return Err(refused);
        }
        let Some(expired) = self.known.expired.get(&holder) else {
            self.asks.expired.push((holder, expired_by));
            return Err(refused);
        };
        for key in expired {
            let row = self.row(*key);
            if row.is_some_and(|row| row.expires_at <= expired_by) {
                self.leave(*key, Leaving::Expired, self.handed_in_at(envelope));
            }
        }
        self.quota_admits(envelope)
    }

    fn quota_admits(&mut self, envelope: &Envelope) -> Result<(), Appended> {
        let mut relay_bytes = self.held.bytes;
        let mut held = self.account(Holder::of(envelope)).held(envelope.class);
        // What it replaces makes room for it.
        if let Some((_, replaced)) = self.replaced_by(envelope) {
            let given_back = replaced.charged_bytes();
            relay_bytes = relay_bytes.saturating_sub(given_back);
            if replaced.class == envelope.class {
                held.remove(given_back);
            }
        }
        let quota = &self.rules.quota;
        quota.admits(envelope.class, held, relay_bytes, envelope.charged_bytes())
    }
}
