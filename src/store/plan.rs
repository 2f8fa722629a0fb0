//! What one batch of writes comes to: rows in, rows out, departures, and an answer for each write.
//!
//! Pure: it sees what was read for the batch ([`Known`]) and changes nothing but the working sets,
//! which are dropped again if the transaction fails. Writes are folded in their order, so that a
//! write sees what the ones before it in the same batch did.

use std::collections::{HashMap, HashSet};

use super::commit::{Cause, Checksum, Outcome, Write};
use super::departures::{Departure, Departures};
use super::model::{
    Appended, Class, Envelope, OrderKey, Owner, RecoveryProof, RecoveryPut, Removed,
};
use super::pins::{KnownPins, PinPlan};
use super::quota::{Held, HeldInAll, Quota};
use super::recovery::{KnownProofs, ProofPlan};
use super::tally::Happened;
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
    /// Whose device sync message it is.
    pub(super) owner: Option<MailboxHash>,
}

impl Header {
    pub(super) fn owner64(&self) -> Option<i64> {
        self.owner.map(|owner| owner.prefix64())
    }
}

/// What was read for a batch.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The rows that the batch may touch, by key.
    pub(super) headers: HashMap<i64, Header>,
    /// The expired rows of mailboxes that the batch would fill.
    pub(super) expired: HashMap<i64, Vec<i64>>,
    /// The expired rows of owners that the batch would fill.
    pub(super) expired_of_owners: HashMap<i64, Vec<i64>>,
    pub(super) proofs: KnownProofs,
    pub(super) pins: KnownPins,
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
    pub(super) proofs: ProofPlan,
    pub(super) pins: PinPlan,
    /// One for each write.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) happened: Happened,
    /// What the relay holds afterwards.
    pub(super) held: HeldInAll,
    /// The mailboxes whose working sets were changed.
    pub(super) touched: HashSet<i64>,
    /// The owners of whom something came or went.
    pub(super) touched_owners: HashSet<i64>,
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
            && self.proofs.is_empty()
            && self.pins.changed.is_empty()
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
            _ => {}
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
        if owner_of(envelope).is_some() {
            continue;
        }
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
        if may_have_expired && !quota.holder_admits(envelope.class, *held, bytes) {
            let latest = full.entry(mailbox64).or_insert(envelope.stored_at);
            *latest = envelope.stored_at.max(*latest);
        }
        *last = bytes;
    }
    full
}

/// The owner whose quota counts for this envelope.
pub(super) fn owner_of(envelope: &Envelope) -> Option<Owner> {
    envelope
        .owner
        .filter(|_| envelope.class == Class::DeviceSync)
}

/// The owners to whom the batch brings something.
pub(super) fn owners_of(batch: &[&Write]) -> HashSet<i64> {
    let owners = batch.iter().filter_map(|write| match write {
        Write::Append { envelope, .. } => owner_of(envelope),
        _ => None,
    });
    owners.map(|owner| owner.hash.prefix64()).collect()
}

/// The owners that this batch may fill although something of theirs may have expired, each with
/// the time to look at.
pub(super) fn owners_to_relieve(
    batch: &[&Write],
    sets: &WorkingSets,
    quota: &Quota,
) -> HashMap<i64, Timestamp> {
    let mut wanted: HashMap<_, Held> = HashMap::new();
    let mut full = HashMap::new();
    for write in batch {
        let Write::Append { envelope, .. } = write else {
            continue;
        };
        let Some(owner) = owner_of(envelope) else {
            continue;
        };
        let owner64 = owner.hash.prefix64();
        let owned = sets.owners.peek(owner64);
        let held = wanted.entry(owner64).or_insert(owned.held);
        let bytes = envelope.charged_bytes();
        let may_have_expired = owned.earliest_expiry <= envelope.stored_at;
        if may_have_expired && !quota.holder_admits(envelope.class, *held, bytes) {
            let latest = full.entry(owner64).or_insert(envelope.stored_at);
            *latest = envelope.stored_at.max(*latest);
        }
        held.add(bytes);
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
    held: HeldInAll,
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
            proofs: ProofPlan::default(),
            pins: PinPlan::default(),
            outcomes: Vec::with_capacity(batch.len()),
            happened: Happened::default(),
            held,
            touched: HashSet::new(),
            touched_owners: HashSet::new(),
            is_trial: false,
            tidies: false,
            now: Timestamp::default(),
        },
    };
    for (index, write) in batch.iter().enumerate() {
        let outcome = folding.write(index, write);
        folding.plan.outcomes.push(outcome);
    }
    folding.plan.happened.vouchers = folding.plan.proofs.vouchers;
    folding.plan.happened.pins_evicted = folding.plan.pins.evicted;
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
                let plan = &mut self.plan;
                plan.proofs.sweep(&mut self.known.proofs, &mut plan.held);
                Outcome::Tidied { more: false }
            }
            Write::RecoveryPut(proof) => Outcome::RecoveryPut(self.recovery_put(index, proof)),
            Write::RecoveryRemove { key_hash, owner } => {
                Outcome::Removed(self.recovery_remove(key_hash, owner))
            }
            Write::Pin { mailbox, now } => self.pin(*mailbox, *now),
            Write::Unpin { mailbox } => self.unpin(mailbox),
            Write::Trial => {
                self.plan.is_trial = true;
                Outcome::Written
            }
            Write::Mark => Outcome::Marked(OrderKey(self.plan.next_key() - 1)),
        }
    }

    fn recovery_put(&mut self, index: usize, proof: &RecoveryProof) -> RecoveryPut {
        if !self.rules.has_room {
            return RecoveryPut::RelayFull;
        }
        let plan = &mut self.plan;
        let known = &mut self.known.proofs;
        let quota = &self.rules.quota;
        plan.proofs
            .put(known, &mut plan.held, (index, proof), quota)
    }

    fn recovery_remove(&mut self, key_hash: &[u8; 32], owner: &MailboxHash) -> Removed {
        let plan = &mut self.plan;
        let known = &mut self.known.proofs;
        let blobs = plan.proofs.remove(known, &mut plan.held, key_hash, owner);
        Removed { blobs }
    }

    fn pin(&mut self, mailbox: MailboxHash, now: Timestamp) -> Outcome {
        let plan = &mut self.plan;
        let known = &mut self.known.pins;
        let quota = &self.rules.quota;
        plan.pins.pin(known, &mut plan.held, (mailbox, now), quota);
        Outcome::Written
    }

    fn unpin(&mut self, mailbox: &MailboxHash) -> Outcome {
        let plan = &mut self.plan;
        plan.pins.unpin(&self.known.pins, &mut plan.held, mailbox);
        Outcome::Written
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
            self.plan.happened.duplicates += 1;
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
            owner: owner_of(envelope).map(|owner| owner.hash),
        };
        self.plan.inserts.push(Some(index));
        self.come(key, header);
        Appended::Stored {
            expires_at: envelope.expires_at,
        }
    }

    fn come(&mut self, key: i64, header: Header) {
        let charged_bytes = header.size.charged_bytes();
        let class = header.size.class();
        self.plan.held.add(class, charged_bytes);
        self.plan.happened.to(class).created += 1;
        self.plan.touched.insert(header.mailbox64);
        if let Some(owner64) = header.owner64() {
            self.plan.touched_owners.insert(owner64);
            let owners = &mut self.sets.owners;
            owners.add(owner64, charged_bytes, header.expires_at);
        }
        let entry = Entry {
            key,
            id64: header.id64,
            size: header.size,
            expires_from: header.expires_at,
        };
        self.sets.insert(header.mailbox64, entry);
        self.known.headers.insert(key, header);
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
        let expired = match owner_of(envelope) {
            Some(owner) => {
                let owner64 = owner.hash.prefix64();
                self.known.expired_of_owners.remove(&owner64)
            }
            None => self.known.expired.remove(&envelope.mailbox.prefix64()),
        };
        let Some(expired) = expired else {
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
        let held = match owner_of(envelope) {
            Some(owner) => self.sets.owners.peek(owner.hash.prefix64()).held,
            None => self
                .sets
                .peek(envelope.mailbox.prefix64())
                .map(|set| set.held(envelope.class))
                .unwrap_or_default(),
        };
        self.rules.quota.admits(
            envelope.class,
            held,
            self.plan.held.bytes,
            envelope.charged_bytes(),
        )
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
                Cause::OwnerPurged { owner } if header.owner == Some(*owner) => Leaving::Purged,
                Cause::Expired | Cause::Purged { .. } | Cause::OwnerPurged { .. } => continue,
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
        let class = header.size.class();
        let charged_bytes = header.size.charged_bytes();
        self.plan.held.remove(class, charged_bytes);
        if let Some(owner64) = header.owner64() {
            self.plan.touched_owners.insert(owner64);
            self.sets.owners.remove(owner64, charged_bytes);
        }
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
        let counts = self.plan.happened.to(class);
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
#[path = "plan_tests.rs"]
mod tests;
