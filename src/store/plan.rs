//! What one batch of writes comes to: rows in, rows out, departures, and an answer for each write.
//!
//! Pure: it sees what was read for the batch ([`Known`]) and changes nothing but the working sets,
//! which are dropped again if the transaction fails. Writes are folded in their order, so that a
//! write sees what the ones before it in the same batch did.

use std::collections::{HashMap, HashSet};

use super::commit::{Cause, Checksum, Outcome, Write};
use super::departures::{Departure, Departures};
use super::model::{Appended, Envelope, OrderKey, Removed};
use super::quota::{Held, Quota};
use super::working_set::{Entry, Size, WorkingSets, to_i64};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;

/// What a plan goes by.
pub(super) struct Rules<'a> {
    pub(super) secret: &'a Secret,
    pub(super) quota: Quota,
    /// Whether the disk has room for new blobs.
    pub(super) has_room: bool,
    pub(super) departures: &'a Departures,
}

/// A row without its bodies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) mailbox64: i64,
    pub(super) id64: i64,
    pub(super) mailbox: MailboxHash,
    pub(super) id: BlobId,
    pub(super) checksum: Checksum,
    pub(super) size: Size,
    pub(super) expires_at: Timestamp,
}

/// What was read for a batch.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The rows that the batch may touch, by key.
    pub(super) headers: HashMap<i64, Header>,
    /// The expired rows of mailboxes that the batch would fill.
    pub(super) expired: HashMap<i64, Vec<i64>>,
}

/// How many blobs came and went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) created: u64,
    pub(super) duplicates: u64,
    pub(super) acknowledged: u64,
    pub(super) purged: u64,
    pub(super) expired: u64,
    pub(super) lost: u64,
}

/// What is to be done in one transaction.
#[derive(Debug)]
pub(super) struct Plan {
    /// The key of the first insert.
    pub(super) first_key: i64,
    /// For each key from the first: which write of the batch it holds, unless that left again.
    pub(super) inserts: Vec<Option<usize>>,
    pub(super) deletes: Vec<i64>,
    pub(super) set_aside: Vec<i64>,
    pub(super) departures: Vec<Departure>,
    /// One for each write.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) counts: Counts,
    /// What the relay holds afterwards.
    pub(super) held: Held,
    /// The mailboxes whose working sets were changed.
    pub(super) touched: HashSet<i64>,
    /// Whether something must be written although there is nothing.
    pub(super) is_trial: bool,
    /// Whether a slice of housekeeping is due.
    pub(super) tidies: bool,
    /// The latest time that a write was handed in.
    pub(super) now: Timestamp,
}

impl Plan {
    /// The key after the last insert.
    pub(super) fn next_key(&self) -> i64 {
        self.first_key + to_i64(self.inserts.len() as u64)
    }

    /// Whether there is nothing to commit: repeats, and acknowledgements of what is gone.
    pub(super) fn is_empty(&self) -> bool {
        self.inserts.is_empty()
            && self.deletes.is_empty()
            && self.set_aside.is_empty()
            && !self.is_trial
    }
}

/// The keys of the rows that may be what the batch is about, to be read before it is folded.
pub(super) fn rows_to_read(batch: &[&Write], sets: &WorkingSets, secret: &Secret) -> Vec<i64> {
    let mut keys = Vec::new();
    let mut find = |mailbox: &MailboxHash, id: &BlobId| {
        if let Some(set) = sets.peek(mailbox.prefix64()) {
            keys.extend(set.find(secret.id64(id)));
        }
    };
    for write in batch {
        match write {
            Write::Append { envelope, .. } => find(&envelope.mailbox, &envelope.id),
            Write::Acknowledge { mailbox, ids, .. } => ids.iter().for_each(|id| find(mailbox, id)),
            Write::Remove { .. } | Write::Tidy { .. } | Write::Trial | Write::Mark => {}
        }
    }
    for write in batch {
        if let Write::Remove { keys: rows, .. } = write {
            keys.extend(rows.iter().map(|key| key.0));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The mailboxes whose working set must be in memory before the batch is folded.
pub(super) fn mailboxes_to_read(batch: &[&Write], sets: &mut WorkingSets) -> Vec<i64> {
    let mut missing: Vec<_> = batch
        .iter()
        .filter_map(|write| match write {
            Write::Append { envelope, .. } => Some(envelope.mailbox.prefix64()),
            Write::Acknowledge { mailbox, ids, .. } if !ids.is_empty() => Some(mailbox.prefix64()),
            _ => None,
        })
        .filter(|mailbox64| sets.get(*mailbox64).is_none())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// The mailboxes that this batch would fill although something in them may have expired, each
/// with the time to look at.
pub(super) fn mailboxes_to_relieve(
    batch: &[&Write],
    sets: &WorkingSets,
    quota: &Quota,
) -> HashMap<i64, Timestamp> {
    let mut wanted: HashMap<_, (Held, u64)> = HashMap::new();
    let mut full = HashMap::new();
    for write in batch {
        let Write::Append { envelope, .. } = write else {
            continue;
        };
        let mailbox64 = envelope.mailbox.prefix64();
        let Some(set) = sets.peek(mailbox64) else {
            continue;
        };
        let (held, last) = wanted
            .entry((mailbox64, envelope.class as u8))
            .or_insert((set.held(envelope.class), 0));
        held.add(*last);
        *last = 0;
        let bytes = envelope.charged_bytes();
        let may_have_expired = set.earliest_expiry() <= envelope.stored_at;
        if may_have_expired && !quota.mailbox_admits(*held, bytes) {
            let latest = full.entry(mailbox64).or_insert(envelope.stored_at);
            *latest = envelope.stored_at.max(*latest);
        }
        *last = bytes;
    }
    full
}

/// Folds a batch. `first_key` is the first free key, `held` what the relay holds before.
pub(super) fn fold(
    batch: &[&Write],
    rules: &Rules<'_>,
    known: Known,
    sets: &mut WorkingSets,
    first_key: i64,
    held: Held,
) -> Plan {
    let mut folding = Folding {
        rules,
        known,
        sets,
        left: HashMap::new(),
        plan: Plan {
            first_key,
            inserts: Vec::new(),
            deletes: Vec::new(),
            set_aside: Vec::new(),
            departures: Vec::new(),
            outcomes: Vec::with_capacity(batch.len()),
            counts: Counts::default(),
            held,
            touched: HashSet::new(),
            is_trial: false,
            tidies: false,
            now: Timestamp::default(),
        },
    };
    for (index, write) in batch.iter().enumerate() {
        let outcome = folding.write(index, write);
        folding.plan.outcomes.push(outcome);
    }
    folding.plan
}

struct Folding<'a> {
    rules: &'a Rules<'a>,
    known: Known,
    sets: &'a mut WorkingSets,
    /// What left within this batch, as places in `plan.departures`.
    left: HashMap<(i64, BlobId), usize>,
    plan: Plan,
}

/// How a row leaves.
#[derive(Clone, Copy)]
enum Leaving {
    Acknowledged,
    Purged,
    Expired,
    Lost,
}

impl Folding<'_> {
    fn write(&mut self, index: usize, write: &Write) -> Outcome {
        match write {
            Write::Append { envelope, checksum } => {
                self.saw(envelope.stored_at);
                Outcome::Appended(self.append(index, envelope, checksum))
            }
            Write::Acknowledge { mailbox, ids, now } => {
                self.saw(*now);
                Outcome::Removed(self.acknowledge(mailbox, ids, *now))
            }
            Write::Remove { keys, cause, now } => {
                self.saw(*now);
                Outcome::Removed(self.remove(keys, cause, *now))
            }
            Write::Tidy { now } => {
                self.saw(*now);
                self.plan.tidies = true;
                Outcome::Tidied { more: false }
            }
            Write::Trial => {
                self.plan.is_trial = true;
                Outcome::Written
            }
            Write::Mark => Outcome::Marked(OrderKey(self.plan.next_key() - 1)),
        }
    }

    fn saw(&mut self, now: Timestamp) {
        self.plan.now = self.plan.now.max(now);
    }

    fn append(&mut self, index: usize, envelope: &Envelope, checksum: &Checksum) -> Appended {
        let mailbox64 = envelope.mailbox.prefix64();
        let id64 = self.rules.secret.id64(&envelope.id);
        if let Some((first, expires_at)) = self.first_of(envelope, id64) {
            if first != *checksum {
                return Appended::IdReused;
            }
            self.plan.counts.duplicates += 1;
            return Appended::Duplicate { expires_at };
        }
        if !self.rules.has_room {
            return Appended::RelayFull;
        }
        if let Err(refused) = self.admit(envelope) {
            return refused;
        }
        let key = self.plan.next_key();
        let header = Header {
            mailbox64,
            id64,
            mailbox: envelope.mailbox,
            id: envelope.id,
            checksum: *checksum,
            size: Size::new(envelope.sealed.len() + envelope.body.len(), envelope.class),
            expires_at: envelope.expires_at,
        };
        let entry = Entry {
            key,
            id64,
            size: header.size,
            expires_from: header.expires_at,
        };
        self.plan.inserts.push(Some(index));
        self.plan.held.add(header.size.charged_bytes());
        self.plan.counts.created += 1;
        self.plan.touched.insert(mailbox64);
        self.sets.insert(mailbox64, entry);
        self.known.headers.insert(key, header);
        Appended::Stored {
            expires_at: envelope.expires_at,
        }
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

    /// The key of the blob with this id, told apart from others with the same prefix.
    fn find(&self, mailbox: &MailboxHash, id: &BlobId, id64: i64) -> Option<i64> {
        let set = self.sets.peek(mailbox.prefix64())?;
        set.find(id64).find(|key| {
            self.known
                .headers
                .get(key)
                .is_some_and(|header| header.mailbox == *mailbox && header.id == *id)
        })
    }

    fn admit(&mut self, envelope: &Envelope) -> Result<(), Appended> {
        let refused = match self.quota_admits(envelope) {
            Err(refused @ Appended::MailboxFull) => refused,
            other => return other,
        };
        // What has expired in it makes room first.
        let Some(expired) = self.known.expired.remove(&envelope.mailbox.prefix64()) else {
            return Err(refused);
        };
        for key in expired {
            let row = self.known.headers.get(&key);
            if row.is_some_and(|row| row.expires_at <= envelope.stored_at) {
                self.leave(key, Leaving::Expired, envelope.stored_at);
            }
        }
        self.quota_admits(envelope)
    }

    fn quota_admits(&self, envelope: &Envelope) -> Result<(), Appended> {
        let mailbox = self
            .sets
            .peek(envelope.mailbox.prefix64())
            .map(|set| set.held(envelope.class))
            .unwrap_or_default();
        self.rules
            .quota
            .admits(mailbox, self.plan.held.bytes, envelope.charged_bytes())
    }

    fn acknowledge(&mut self, mailbox: &MailboxHash, ids: &[BlobId], now: Timestamp) -> Removed {
        let mut removed = Removed::default();
        for id in ids {
            let id64 = self.rules.secret.id64(id);
            if let Some(key) = self.find(mailbox, id, id64)
                && self.leave(key, Leaving::Acknowledged, now)
            {
                removed.blobs += 1;
            }
        }
        removed
    }

    fn remove(&mut self, keys: &[OrderKey], cause: &Cause, now: Timestamp) -> Removed {
        let mut removed = Removed::default();
        for key in keys {
            let Some(header) = self.known.headers.get(&key.0) else {
                continue;
            };
            let leaving = match cause {
                Cause::Corrupt => Leaving::Lost,
                Cause::Expired if header.expires_at <= now => Leaving::Expired,
                Cause::Purged { mailbox, view }
                    if header.mailbox == *mailbox
                        && header.size.class().is_some_and(|class| view.shows(class)) =>
                {
                    Leaving::Purged
                }
                Cause::Expired | Cause::Purged { .. } => continue,
            };
            removed.blobs += u64::from(self.leave(key.0, leaving, now));
        }
        removed
    }

    /// Takes a row out; `false` when it is not there (any more).
    fn leave(&mut self, key: i64, leaving: Leaving, now: Timestamp) -> bool {
        let Some(header) = self.known.headers.remove(&key) else {
            return false;
        };
        self.sets
            .remove(header.mailbox64, key, header.id64, header.size);
        self.plan.touched.insert(header.mailbox64);
        self.plan.held.remove(header.size.charged_bytes());
        let is_lost = matches!(leaving, Leaving::Lost);
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
        let counts = &mut self.plan.counts;
        *match leaving {
            Leaving::Acknowledged => &mut counts.acknowledged,
            Leaving::Purged => &mut counts.purged,
            Leaving::Expired => &mut counts.expired,
            Leaving::Lost => &mut counts.lost,
        } += 1;
        if !is_lost && !self.rules.departures.is_off() {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::store::model::{Class, View};
    use crate::store::working_set::WorkingSet;

    /// Rows in memory and everything that a plan needs, instead of a database.
    struct Engine {
        secret: Secret,
        quota: Quota,
        sets: WorkingSets,
        departures: Departures,
        rows: HashMap<i64, Header>,
        next_key: i64,
        held: Held,
        has_room: bool,
    }

    impl Engine {
        fn new(mailbox_blobs_max: u64) -> Self {
            Self {
                secret: Secret::from_bytes([1; 32]),
                quota: Quota {
                    mailbox_blobs_max,
                    mailbox_bytes_max: 0,
                    relay_bytes_max: 0,
                },
                sets: WorkingSets::new(1 << 20),
                departures: Departures::new(Duration::from_millis(1000), 0),
                rows: HashMap::new(),
                next_key: 1,
                held: Held::default(),
                has_room: true,
            }
        }

        fn run(&mut self, batch: &[Write]) -> Plan {
            let batch: Vec<_> = batch.iter().collect();
            for mailbox64 in mailboxes_to_read(&batch, &mut self.sets) {
                let mut set = WorkingSet::default();
                for (key, row) in self.rows.iter().filter(|row| row.1.mailbox64 == mailbox64) {
                    set.insert(Entry {
                        key: *key,
                        id64: row.id64,
                        size: row.size,
                        expires_from: row.expires_at,
                    });
                }
                self.sets.put(mailbox64, set);
            }
            let mut known = Known::default();
            for key in rows_to_read(&batch, &self.sets, &self.secret) {
                if let Some(row) = self.rows.get(&key) {
                    known.headers.insert(key, *row);
                }
            }
            for (mailbox64, now) in mailboxes_to_relieve(&batch, &self.sets, &self.quota) {
                let expired: Vec<_> = self
                    .rows
                    .iter()
                    .filter(|(_, row)| row.mailbox64 == mailbox64 && row.expires_at <= now)
                    .collect();
                known
                    .headers
                    .extend(expired.iter().map(|(k, r)| (**k, **r)));
                let keys = expired.iter().map(|(key, _)| **key).collect();
                known.expired.insert(mailbox64, keys);
            }
            let rules = Rules {
                secret: &self.secret,
                quota: self.quota,
                has_room: self.has_room,
                departures: &self.departures,
            };
            let plan = fold(
                &batch,
                &rules,
                known,
                &mut self.sets,
                self.next_key,
                self.held,
            );
            self.apply(&batch, &plan);
            plan
        }

        fn apply(&mut self, batch: &[&Write], plan: &Plan) {
            for (key, write) in (plan.first_key..).zip(&plan.inserts) {
                if let Some(Write::Append { envelope, checksum }) = write.map(|i| batch[i]) {
                    let header = Header {
                        mailbox64: envelope.mailbox.prefix64(),
                        id64: self.secret.id64(&envelope.id),
                        mailbox: envelope.mailbox,
                        id: envelope.id,
                        checksum: *checksum,
                        size: Size::new(envelope.body.len(), envelope.class),
                        expires_at: envelope.expires_at,
                    };
                    assert!(self.rows.insert(key, header).is_none(), "a key twice");
                }
            }
            for key in plan.deletes.iter().chain(&plan.set_aside) {
                assert!(self.rows.remove(key).is_some(), "deleted what is not there");
            }
            self.departures.remember(&plan.departures);
            self.departures.forget(plan.now);
            self.next_key = plan.next_key();
            self.held = plan.held;
            assert_eq!(self.held.blobs, self.rows.len() as u64);
            let bytes: u64 = self.rows.values().map(|row| row.size.charged_bytes()).sum();
            assert_eq!(self.held.bytes, bytes);
        }
    }

    fn mailbox(number: u8) -> MailboxHash {
        MailboxHash::from_bytes([number; 32])
    }

    fn blob(number: u8) -> BlobId {
        BlobId::from_bytes([number; 16])
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn append(to: u8, id: u8, checksum: u8, now: u64) -> Write {
        Write::Append {
            envelope: Envelope {
                mailbox: mailbox(to),
                id: blob(id),
                class: Class::SeenByV1,
                stored_at: at(now),
                expires_at: at(now + 500),
                sealed: bytes::Bytes::new(),
                body: bytes::Bytes::from_static(b"body"),
            },
            checksum: [checksum; 16],
        }
    }

    fn acknowledge(of: u8, ids: &[u8], now: u64) -> Write {
        Write::Acknowledge {
            mailbox: mailbox(of),
            ids: ids.iter().copied().map(blob).collect(),
            now: at(now),
        }
    }

    fn stored(now: u64) -> Outcome {
        Outcome::Appended(Appended::Stored {
            expires_at: at(now + 500),
        })
    }

    fn duplicate(first: u64) -> Outcome {
        Outcome::Appended(Appended::Duplicate {
            expires_at: at(first + 500),
        })
    }

    fn removed(blobs: u64) -> Outcome {
        Outcome::Removed(Removed { blobs })
    }

    const REUSED: Outcome = Outcome::Appended(Appended::IdReused);
    const FULL: Outcome = Outcome::Appended(Appended::MailboxFull);

    #[test]
    fn a_repeat_within_one_batch_is_a_duplicate_and_another_blob_under_its_id_is_refused() {
        let mut engine = Engine::new(0);
        let plan = engine.run(&[
            append(1, 1, 1, 0),
            append(1, 1, 1, 5),
            append(1, 1, 2, 6),
            append(2, 1, 2, 7),
        ]);
        assert_eq!(plan.outcomes, [stored(0), duplicate(0), REUSED, stored(7)]);
        assert_eq!((plan.counts.created, plan.counts.duplicates), (2, 1));
        assert_eq!(engine.rows.len(), 2);
    }

    #[test]
    fn what_comes_and_leaves_within_one_batch_is_not_written_but_remembered() {
        let mut engine = Engine::new(0);
        let plan = engine.run(&[
            append(1, 1, 1, 0),
            acknowledge(1, &[1, 1, 9], 1),
            append(1, 1, 1, 2),
            append(1, 1, 2, 2),
        ]);
        assert_eq!(plan.outcomes, [stored(0), removed(1), duplicate(0), REUSED]);
        assert_eq!(plan.inserts, [None]);
        assert_eq!((plan.deletes.len(), plan.departures.len()), (0, 1));
        let plan = engine.run(&[append(1, 1, 1, 900)]);
        assert_eq!(plan.outcomes, [duplicate(0)]);
        assert!(plan.is_empty());
    }

    #[test]
    fn a_departed_id_is_free_again_after_its_time() {
        let mut engine = Engine::new(0);
        engine.run(&[append(1, 1, 1, 0)]);
        engine.run(&[acknowledge(1, &[1], 100)]);
        let plan = engine.run(&[append(1, 1, 2, 1099), append(1, 1, 2, 1100)]);
        assert_eq!(plan.outcomes, [REUSED, stored(1100)]);
    }

    #[test]
    fn what_was_set_aside_as_corrupt_may_be_sent_again() {
        let mut engine = Engine::new(0);
        engine.run(&[append(1, 1, 1, 0)]);
        let set_aside = Write::Remove {
            keys: vec![OrderKey(1), OrderKey(77)],
            cause: Cause::Corrupt,
            now: at(1),
        };
        let plan = engine.run(&[set_aside, append(1, 1, 1, 1)]);
        assert_eq!(plan.outcomes, [removed(1), stored(1)]);
        assert_eq!(plan.set_aside, [1]);
        assert_eq!(plan.counts.lost, 1);
        assert_eq!(plan.first_key, 2, "no key is used twice");
    }

    #[test]
    fn the_quota_counts_what_the_batch_has_stored_so_far() {
        let mut engine = Engine::new(2);
        let plan = engine.run(&[
            append(1, 1, 1, 0),
            append(1, 2, 1, 0),
            append(1, 3, 1, 0),
            acknowledge(1, &[1], 1),
            append(1, 4, 1, 2),
        ]);
        assert_eq!(
            plan.outcomes,
            [stored(0), stored(0), FULL, removed(1), stored(2)]
        );
    }

    #[test]
    fn the_relays_bound_holds_within_a_batch() {
        let mut engine = Engine::new(0);
        engine.quota.relay_bytes_max = 2 * 260;
        let plan = engine.run(&[append(1, 1, 1, 0), append(2, 1, 1, 0), append(3, 1, 1, 0)]);
        let full = Outcome::Appended(Appended::RelayFull);
        assert_eq!(plan.outcomes, [stored(0), stored(0), full]);
    }

    #[test]
    fn a_full_mailbox_loses_its_expired_rows_first() {
        let mut engine = Engine::new(2);
        engine.run(&[append(1, 1, 1, 0), append(1, 2, 1, 400)]);
        let plan = engine.run(&[append(1, 3, 1, 499)]);
        assert_eq!(plan.outcomes, [FULL]);
        let plan = engine.run(&[append(1, 3, 1, 500), append(1, 4, 1, 500)]);
        assert_eq!(plan.outcomes, [stored(500), FULL]);
        assert_eq!((plan.counts.expired, plan.deletes.len()), (1, 1));
    }

    #[test]
    fn a_nearly_full_disk_refuses_new_blobs_and_nothing_else() {
        let mut engine = Engine::new(0);
        engine.run(&[append(1, 1, 1, 0)]);
        engine.has_room = false;
        let plan = engine.run(&[
            append(1, 1, 1, 1),
            append(1, 2, 1, 1),
            acknowledge(1, &[1], 1),
        ]);
        let full = Outcome::Appended(Appended::RelayFull);
        assert_eq!(plan.outcomes, [duplicate(0), full, removed(1)]);
    }

    #[test]
    fn a_purge_takes_only_what_its_view_shows_and_the_sweep_only_what_has_expired() {
        let mut engine = Engine::new(0);
        let mut hidden = append(1, 2, 1, 0);
        if let Write::Append { envelope, .. } = &mut hidden {
            envelope.class = Class::ProvenOnly;
        }
        engine.run(&[append(1, 1, 1, 0), hidden, append(2, 1, 1, 0)]);
        let all = vec![OrderKey(1), OrderKey(2), OrderKey(3)];
        let remove = |cause, now| Write::Remove {
            keys: all.clone(),
            cause,
            now: at(now),
        };
        let view = View::V1;
        let purge = Cause::Purged {
            mailbox: mailbox(1),
            view,
        };
        let plan = engine.run(&[remove(purge, 1), remove(Cause::Expired, 499)]);
        assert_eq!(plan.outcomes, [removed(1), removed(0)]);
        let plan = engine.run(&[remove(Cause::Expired, 500)]);
        assert_eq!(plan.outcomes, [removed(2)]);
        assert_eq!(plan.counts.expired, 2);
    }

    /// The promises about one blob in a few lines, without batches, keys or sets.
    #[derive(Default)]
    struct Model {
        stored: HashMap<(u8, u8), (u8, u64)>,
        left: HashMap<(u8, u8), (u8, u64, u64)>,
    }

    impl Model {
        fn append(&mut self, to: u8, id: u8, checksum: u8, now: u64, max: usize) -> Outcome {
            let left = self.left.get(&(to, id)).filter(|left| left.2 + 1000 > now);
            let first = self.stored.get(&(to, id)).copied();
            if let Some((kept, first)) = first.or(left.map(|left| (left.0, left.1))) {
                return if kept == checksum {
                    duplicate(first)
                } else {
                    REUSED
                };
            }
            if self.count(to) >= max {
                let expired: Vec<_> = self
                    .stored
                    .iter()
                    .filter(|(key, blob)| key.0 == to && blob.1 + 500 <= now)
                    .map(|(key, blob)| (*key, *blob))
                    .collect();
                for (key, (checksum, first)) in expired {
                    self.stored.remove(&key);
                    self.left.insert(key, (checksum, first, now));
                }
            }
            if self.count(to) >= max {
                return FULL;
            }
            self.stored.insert((to, id), (checksum, now));
            stored(now)
        }

        fn count(&self, to: u8) -> usize {
            self.stored.keys().filter(|key| key.0 == to).count()
        }

        fn acknowledge(&mut self, of: u8, id: u8, now: u64) -> Outcome {
            let Some((checksum, first)) = self.stored.remove(&(of, id)) else {
                return removed(0);
            };
            self.left.insert((of, id), (checksum, first, now));
            removed(1)
        }
    }

    proptest! {
        #[test]
        fn batches_answer_as_if_each_write_came_alone(
            steps in prop::collection::vec(
                (0u8..3, 0u8..6, 0u8..2, prop::bool::weighted(0.3), 0u64..200, prop::bool::ANY),
                1..80,
            )
        ) {
            let mut engine = Engine::new(3);
            let mut model = Model::default();
            let (mut batch, mut expected) = (Vec::new(), Vec::new());
            let mut now = 0;
            for (to, id, checksum, is_acknowledgement, pause, ends_batch) in steps {
                if batch.is_empty() {
                    now += pause;
                }
                if is_acknowledgement {
                    batch.push(acknowledge(to, &[id], now));
                    expected.push(model.acknowledge(to, id, now));
                } else {
                    batch.push(append(to, id, checksum, now));
                    expected.push(model.append(to, id, checksum, now, 3));
                }
                if ends_batch {
                    prop_assert_eq!(&engine.run(&batch).outcomes, &expected);
                    batch.clear();
                    expected.clear();
                    prop_assert_eq!(engine.rows.len(), model.stored.len());
                }
            }
        }
    }
}
