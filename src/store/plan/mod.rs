//! What one batch of writes comes to: rows in, rows out, departures, and an answer for each write.
//!
//! Pure: it sees what was read for the batch ([`Known`]) and changes nothing but the working sets,
//! which are dropped again if the transaction fails. Writes are folded in their order, so that a
//! write sees what the ones before it in the same batch did.

mod append;
mod leave;
pub(super) mod leaving;
pub(super) mod needs;
pub(super) mod pins;
pub mod quota;
pub(super) mod receipt;
mod receipts;
pub(super) mod recovery;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::commit::{Checksum, Outcome, Write};
use super::model::{Class, Envelope, OrderKey, Owner, RecoveryProof, RecoveryPut, Removed};
use super::sqlite::departures::{Departure, Departures};
use super::sqlite::working_set::{Entry, Size, WorkingSets, to_i64};
use super::tally::Happened;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};
use crate::secrets::Secret;
use leaving::Leaving;
use needs::receipt_to;
use pins::{KnownPins, PinPlan};
use quota::{HeldInAll, Quota};
use receipts::Due;
use recovery::{KnownProofs, ProofPlan};

/// What a plan goes by.
pub(in crate::store) struct Rules<'a> {
    pub(in crate::store) secret: &'a Secret,
    pub(in crate::store) quota: Quota,
    /// Whether the disk has room for new blobs.
    pub(in crate::store) has_room: bool,
    pub(in crate::store) departures: &'a Departures,
    /// How long a receipt lives.
    pub(in crate::store) receipt_ttl: Duration,
}

/// A row without its bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Header {
    pub(in crate::store) mailbox64: i64,
    pub(in crate::store) id64: i64,
    pub(in crate::store) mailbox: MailboxHash,
    pub(in crate::store) id: BlobId,
    pub(in crate::store) checksum: Checksum,
    pub(in crate::store) size: Size,
    pub(in crate::store) expires_at: Timestamp,
    /// Whose device sync message it is.
    pub(in crate::store) owner: Option<MailboxHash>,
    pub(in crate::store) topic: Option<Topic>,
    /// Where its sender hears what becomes of it.
    pub(in crate::store) receipt_to: Option<MailboxHash>,
    /// Whether its sender has been told that it was delivered.
    pub(in crate::store) is_delivered_told: bool,
}

impl Header {
    /// Of the row that this envelope becomes.
    pub(in crate::store) fn new(envelope: &Envelope, checksum: &Checksum, secret: &Secret) -> Self {
        Self {
            mailbox64: envelope.mailbox.prefix64(),
            id64: secret.id64(&envelope.id),
            mailbox: envelope.mailbox,
            id: envelope.id,
            checksum: *checksum,
            size: Size::new(envelope.sealed.len() + envelope.body.len(), envelope.class),
            expires_at: envelope.expires_at,
            owner: owner_of(envelope).map(|owner| owner.hash),
            topic: topic_of(envelope),
            receipt_to: receipt_to(envelope),
            is_delivered_told: false,
        }
    }

    /// Whether it came from a sender to this mailbox: no receipt, no device sync message.
    pub(in crate::store) fn is_blob(&self) -> bool {
        matches!(self.size.class(), Some(Class::SeenByV1 | Class::ProvenOnly))
    }

    /// How it leaves when somebody takes it away: nobody takes away what has expired.
    pub(in crate::store) fn or_expired(&self, leaving: Leaving, now: Timestamp) -> Leaving {
        match self.expires_at <= now {
            true => Leaving::Expired,
            false => leaving,
        }
    }

    pub(in crate::store) fn owner64(&self) -> Option<i64> {
        self.owner.map(|owner| owner.prefix64())
    }
}

/// What was read for a batch.
#[derive(Debug, Default)]
pub(in crate::store) struct Known {
    /// The rows that the batch may touch, by key.
    pub(in crate::store) headers: HashMap<i64, Header>,
    /// Rows that a reader found damaged and that are whole.
    pub(in crate::store) sound: HashSet<i64>,
    /// The rows that the batch may replace, by the prefixes of mailbox and topic.
    pub(in crate::store) topics: HashMap<(i64, i64), Vec<i64>>,
    /// The expired rows of mailboxes that the batch would fill.
    pub(in crate::store) expired: HashMap<i64, Vec<i64>>,
    /// The expired rows of owners that the batch would fill.
    pub(in crate::store) expired_of_owners: HashMap<i64, Vec<i64>>,
    pub(in crate::store) proofs: KnownProofs,
    pub(in crate::store) pins: KnownPins,
}

/// Where a row that is inserted comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Insert {
    /// It is what this write of the batch brings.
    Write(usize),
    /// It is this one of the plan's receipts.
    Receipt(usize),
}

/// What is to be done in one transaction.
#[derive(Debug)]
pub(in crate::store) struct Plan {
    /// The key of the first insert.
    pub(in crate::store) first_key: i64,
    /// For each key from the first: what it holds, unless that left again.
    pub(in crate::store) inserts: Vec<Option<Insert>>,
    pub(in crate::store) receipts: Vec<(Envelope, Checksum)>,
    pub(in crate::store) deletes: Vec<i64>,
    /// Rows that live longer, those that are inserted among them.
    pub(in crate::store) extended: HashMap<i64, Timestamp>,
    /// Rows whose sender is told that they were delivered, those that are inserted among them.
    pub(in crate::store) delivered: HashSet<i64>,
    pub(in crate::store) set_aside: Vec<i64>,
    pub(in crate::store) departures: Vec<Departure>,
    pub(in crate::store) proofs: ProofPlan,
    pub(in crate::store) pins: PinPlan,
    /// One for each write.
    pub(in crate::store) outcomes: Vec<Outcome>,
    pub(in crate::store) happened: Happened,
    /// What the relay holds afterwards.
    pub(in crate::store) held: HeldInAll,
    /// The mailboxes whose working sets were changed.
    pub(in crate::store) touched: HashSet<i64>,
    /// The owners of whom something came or went.
    pub(in crate::store) touched_owners: HashSet<i64>,
    /// Whether something must be written although there is nothing.
    pub(in crate::store) is_trial: bool,
    /// Whether a slice of housekeeping is due.
    pub(in crate::store) tidies: bool,
    /// The latest time that a write was handed in.
    pub(in crate::store) now: Timestamp,
    /// By when things may be forgotten for good: the epoch when no write says so.
    pub(in crate::store) expired_by: Timestamp,
}

impl Plan {
    /// The key after the last insert.
    pub(in crate::store) fn next_key(&self) -> i64 {
        self.first_key + to_i64(self.inserts.len() as u64)
    }

    /// The row that is inserted under each key, unless it left again.
    pub(in crate::store) fn rows<'a>(
        &'a self,
        batch: &[&'a Write],
    ) -> impl Iterator<Item = (i64, &'a Envelope, &'a Checksum)> {
        (self.first_key..)
            .zip(&self.inserts)
            .filter_map(|(key, insert)| {
                let (envelope, checksum) = match (*insert)? {
                    Insert::Receipt(index) => {
                        let (envelope, checksum) = self.receipts.get(index)?;
                        (envelope, checksum)
                    }
                    Insert::Write(index) => match batch.get(index)? {
                        Write::Append {
                            envelope, checksum, ..
                        } => (envelope, checksum),
                        _ => return None,
                    },
                };
                Some((key, envelope, checksum))
            })
    }

    /// Whether there is nothing to commit: repeats, and acknowledgements of what is gone.
    pub(in crate::store) fn is_empty(&self) -> bool {
        self.inserts.is_empty()
            && self.deletes.is_empty()
            && self.set_aside.is_empty()
            && self.extended.is_empty()
            && self.delivered.is_empty()
            && self.proofs.is_empty()
            && self.pins.changed.is_empty()
            && !self.is_trial
    }
}

/// The owner whose quota counts for this envelope.
pub(in crate::store) fn owner_of(envelope: &Envelope) -> Option<Owner> {
    envelope
        .owner
        .filter(|_| envelope.class == Class::DeviceSync)
}

/// The topic of which this envelope replaces the last blob.
pub(in crate::store) fn topic_of(envelope: &Envelope) -> Option<Topic> {
    envelope
        .topic
        .filter(|_| envelope.class != Class::DeviceSync)
}

/// Folds a batch. `first_key` is the first free key, `held` what the relay holds before.
pub(in crate::store) fn fold(
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
        due: Vec::new(),
        plan: Plan {
            first_key,
            inserts: Vec::new(),
            receipts: Vec::new(),
            deletes: Vec::new(),
            extended: HashMap::new(),
            delivered: HashSet::new(),
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
            expired_by: Timestamp::default(),
        },
    };
    for (index, write) in batch.iter().enumerate() {
        let outcome = folding.write(index, write);
        folding.plan.outcomes.push(outcome);
        // A write first, and then what is told of it: where there is room for one, it is the write's.
        folding.tell();
    }
    folding.plan.happened.vouchers = folding.plan.proofs.vouchers;
    folding.plan.happened.pins_evicted = folding.plan.pins.evicted;
    folding.plan
}

/// A batch on its way to a plan.
pub(in crate::store) struct Folding<'a> {
    pub(in crate::store) rules: &'a Rules<'a>,
    pub(in crate::store) known: Known,
    pub(in crate::store) sets: &'a mut WorkingSets,
    /// What left within this batch, as places in `plan.departures`.
    pub(in crate::store) left: HashMap<(i64, BlobId), usize>,
    /// What senders are still to be told of the write that is folded now.
    pub(in crate::store) due: Vec<Due>,
    pub(in crate::store) plan: Plan,
}

impl Folding<'_> {
    fn write(&mut self, index: usize, write: &Write) -> Outcome {
        match write {
            Write::Append {
                envelope,
                checksum,
                expired_by,
            } => {
                self.saw(envelope.stored_at);
                self.saw_expired(*expired_by);
                Outcome::Appended(self.append(index, (envelope, checksum), *expired_by))
            }
            Write::Acknowledge {
                mailbox,
                ids,
                by,
                now,
            } => {
                self.saw(*now);
                Outcome::Removed(self.acknowledge(mailbox, ids, *by, *now))
            }
            Write::Delivered { mailbox, ids, now } => {
                self.saw(*now);
                self.delivered(mailbox, ids, *now);
                Outcome::Written
            }
            Write::Extend {
                mailbox,
                id,
                expires_at,
                now,
            } => {
                self.saw(*now);
                self.extend((mailbox, id), *expires_at, *now);
                Outcome::Written
            }
            Write::Cancel { mailbox, id, now } => {
                self.saw(*now);
                self.cancel((mailbox, id), *now);
                Outcome::Written
            }
            Write::Remove { keys, cause, now } => {
                self.saw(*now);
                Outcome::Removed(self.remove(keys, cause, *now))
            }
            Write::Tidy { expired_by } => {
                self.saw(*expired_by);
                self.saw_expired(*expired_by);
                self.plan.tidies = true;
                let plan = &mut self.plan;
                plan.proofs.sweep(&mut self.known.proofs, &mut plan.held);
                Outcome::Tidied { more: false }
            }
            Write::RecoveryPut { proof, expired_by } => {
                Outcome::RecoveryPut(self.recovery_put(index, proof, *expired_by))
            }
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

    fn recovery_put(
        &mut self,
        index: usize,
        proof: &RecoveryProof,
        expired_by: Timestamp,
    ) -> RecoveryPut {
        if !self.rules.has_room {
            return RecoveryPut::RelayFull;
        }
        let plan = &mut self.plan;
        let known = &mut self.known.proofs;
        let quota = &self.rules.quota;
        let put = (index, proof, expired_by);
        plan.proofs.put(known, &mut plan.held, put, quota)
    }

    fn recovery_remove(&mut self, key_hash: &[u8; 32], owner: &MailboxHash) -> Removed {
        let plan = &mut self.plan;
        let known = &mut self.known.proofs;
        let blobs = plan.proofs.remove(known, &mut plan.held, key_hash, owner);
        Removed { blobs, receipts: 0 }
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

    fn saw_expired(&mut self, expired_by: Timestamp) {
        self.plan.expired_by = self.plan.expired_by.max(expired_by);
    }

    /// Gives a row the next place in the order.
    pub(in crate::store) fn come(&mut self, insert: Insert, header: Header) {
        let key = self.plan.next_key();
        self.plan.inserts.push(Some(insert));
        if let Some(topic) = header.topic {
            let place = (header.mailbox64, topic.prefix64());
            self.known.topics.entry(place).or_default().push(key);
        }
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

    /// The key of the blob with this id, told apart from others with the same prefix.
    pub(in crate::store) fn find(
        &self,
        mailbox: &MailboxHash,
        id: &BlobId,
        id64: i64,
    ) -> Option<i64> {
        let set = self.sets.peek(mailbox.prefix64())?;
        set.find(id64).find(|key| {
            self.known
                .headers
                .get(key)
                .is_some_and(|header| header.mailbox == *mailbox && header.id == *id)
        })
    }

    /// The row of this id.
    pub(in crate::store) fn look_up(
        &self,
        mailbox: &MailboxHash,
        id: &BlobId,
    ) -> Option<(i64, Header)> {
        let key = self.find(mailbox, id, self.rules.secret.id64(id))?;
        Some((key, *self.known.headers.get(&key)?))
    }
}

#[cfg(test)]
mod tests;
