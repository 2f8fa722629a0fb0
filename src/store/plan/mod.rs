//! What one batch of writes comes to: rows in, rows out, departures, and an answer for each write.
//!
//! The storage rules stand here once, for every engine. A fold is pure: answers of the engine in
//! ([`Known`]), deltas out ([`Plan`]). Writes are folded in their order, so that a write sees what
//! the ones before it in the same batch did. A fold that finds it must know more says what it asks.
//! Reading order: `known` (questions and answers), `deltas` (the plan), `append` (what comes), `leave` (what
//! goes or lives longer), `leaving` (how a row leaves), `receipts` (what senders are told of that), `quota`,
//! `pins`, `recovery`, `nonces` (rules of their own), `change` (what is counted).

mod append;
pub(super) mod change;
mod deltas;
pub(super) mod known;
mod leave;
pub(super) mod leaving;
pub(super) mod nonces;
pub(super) mod pins;
pub mod quota;
mod receipts;
pub(super) mod recovery;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _, HashSet};

use super::model::{Class, Envelope, OrderKey, Owner, RecoveryProof, RecoveryPut, Removed};
use super::write::{Outcome, Write};
use crate::clock::{Clock, Timestamp};
use crate::ids::{MailboxHash, Topic};
use crate::secrets::Secret;
use change::Change;
pub use deltas::{Departure, NewRow, Plan};
use deltas::{Insert, Source};
use known::{Account, Asked, Header, Holder, Known, Learnt, Name};
use pins::KnownPins;
use quota::{HeldInAll, Quota};
use receipts::Due;
use recovery::KnownProofs;

/// Rows that one plan changes, at the most, unless it is the plan of a single write.
pub(super) const PLAN_ROWS_MAX: usize = 2_048;

/// Full holders that one plan relieves, at the most: each of them may lose
/// [`known::RELIEF_ROWS_MAX`] rows.
pub(super) const RELIEFS_MAX: usize = PLAN_ROWS_MAX / known::RELIEF_ROWS_MAX;

/// What a plan goes by.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Names receipts and keys checksums.
    pub secret: Secret,
    /// Bounds of mailboxes and of the relay.
    pub quota: Quota,
    /// How long a departed blob is remembered; zero remembers none.
    pub dedup: Duration,
    /// How long a receipt lives.
    pub receipt_ttl: Duration,
    /// Says how much later than writes are judged new things are dated ([`Clock::date`]).
    pub clock: Clock,
}

/// The owner whose quota counts for this envelope.
pub(super) fn owner_of(envelope: &Envelope) -> Option<Owner> {
    envelope
        .owner
        .filter(|_| envelope.class == Class::DeviceSync)
}

/// The topic of which this envelope replaces the last blob.
pub(super) fn topic_of(envelope: &Envelope) -> Option<Topic> {
    envelope
        .topic
        .filter(|_| envelope.class != Class::DeviceSync)
}

/// Where the receipts for this envelope go, if it asks for any.
pub(super) fn receipt_to(envelope: &Envelope) -> Option<MailboxHash> {
    envelope
        .receipt_to
        .filter(|_| envelope.class != Class::DeviceSync)
}

/// What a fold comes to.
#[derive(Debug)]
pub(super) enum Folded {
    /// This is to be done.
    Plan(Box<Plan>),
    /// More must be known first.
    Asks(Box<Asked>),
}

/// Folds a batch with what is known.
pub(super) fn fold(batch: &[&Write], rules: &Rules, learnt: &Learnt) -> Folded {
    let mut folding = Folding::new(batch, rules, learnt);
    for (index, write) in batch.iter().enumerate() {
        let outcome = folding.write(index, write);
        folding.plan.outcomes.push(outcome);
        // A write first, and then what is told of it: where there is room for one, it is the write's.
        folding.tell();
    }
    folding.end()
}

/// A batch on its way to a plan. What it changes lies over what is known.
struct Folding<'a> {
    rules: &'a Rules,
    known: &'a Known,
    learnt: &'a Learnt,
    batch: &'a [&'a Write],
    rows: HashMap<OrderKey, Option<Header>>,
    names: HashMap<Name, Option<OrderKey>>,
    topics: HashMap<(MailboxHash, Topic), Option<OrderKey>>,
    accounts: HashMap<Holder, Account>,
    known_proofs: KnownProofs,
    known_pins: KnownPins,
    held: HeldInAll,
    /// Whose expired rows have left.
    relieved: HashSet<Holder>,
    /// What left within this batch, as places in `plan.departures`.
    left: HashMap<Name, usize>,
    /// What senders are still to be told of the write that is folded now.
    due: Vec<Due>,
    asks: Asked,
    first_key: i64,
    /// A stop that is not confirmed: what is new is dated as if it were.
    unconfirmed: Duration,
    plan: Plan,
}

impl<'a> Folding<'a> {
    fn new(batch: &'a [&'a Write], rules: &'a Rules, learnt: &'a Learnt) -> Self {
        let known = &learnt.known;
        Self {
            rules,
            known,
            learnt,
            batch,
            rows: HashMap::with_capacity(batch.len()),
            names: HashMap::with_capacity(batch.len()),
            topics: HashMap::default(),
            accounts: HashMap::with_capacity(batch.len()),
            known_proofs: known.proofs.clone(),
            known_pins: known.pins.clone(),
            held: known.held,
            relieved: HashSet::default(),
            left: HashMap::default(),
            due: Vec::new(),
            asks: Asked::default(),
            first_key: known.next_key,
            unconfirmed: rules.clock.unconfirmed(),
            plan: Plan {
                next_key: known.next_key,
                outcomes: Vec::with_capacity(batch.len()),
                ..Plan::default()
            },
        }
    }

    /// What is new is dated so when it happens `now`.
    fn dated(&self, now: Timestamp) -> Timestamp {
        now.plus(self.unconfirmed)
    }

    fn write(&mut self, index: usize, write: &Write) -> Outcome {
        if let Some(now) = write.now() {
            self.plan.now = self.plan.now.max(now);
        }
        if let Some(expired_by) = write.expired_by() {
            self.plan.forget_by = self.plan.forget_by.max(expired_by);
        }
        match write {
            Write::Append {
                envelope,
                checksum,
                expired_by,
            } => Outcome::Appended(self.append(index, (envelope, checksum), *expired_by)),
            Write::Acknowledge {
                mailbox,
                ids,
                by,
                now,
            } => Outcome::Removed(self.acknowledge(mailbox, ids, *by, *now)),
            Write::Delivered { mailbox, ids, now } => {
                self.delivered(mailbox, ids, *now);
                Outcome::Written
            }
            Write::Extend {
                mailbox,
                id,
                expires_at,
                now,
            } => {
                self.extend((*mailbox, *id), *expires_at, *now);
                Outcome::Written
            }
            Write::Cancel { mailbox, id, now } => {
                self.cancel((*mailbox, *id), *now);
                Outcome::Written
            }
            Write::Remove { keys, cause, now } => Outcome::Removed(self.remove(keys, cause, *now)),
            Write::RecoveryPut { proof, expired_by } => {
                Outcome::RecoveryPut(self.recovery_put(index, proof, *expired_by))
            }
            Write::RecoveryRemove { key_hash, owner } => {
                Outcome::Removed(self.recovery_remove(key_hash, owner))
            }
            Write::ExpireProofs { .. } => Outcome::Removed(self.expire_proofs()),
            Write::Pin {
                mailboxes,
                over_by,
                now,
            } => self.pin(mailboxes, *over_by, *now),
            Write::Unpin { mailboxes } => self.unpin(mailboxes),
            Write::Burn {
                nonce,
                expired_by,
                now,
            } => {
                let times = (*expired_by, *now);
                let burnt = self.plan.nonces.burn(&self.known.nonces, nonce, times);
                Outcome::Burnt(burnt)
            }
            Write::Trial => {
                self.plan.is_trial = true;
                Outcome::Written
            }
        }
    }

    fn recovery_put(
        &mut self,
        index: usize,
        proof: &RecoveryProof,
        expired_by: Timestamp,
    ) -> RecoveryPut {
        if !self.known.has_room {
            return RecoveryPut::RelayFull;
        }
        let quota = &self.rules.quota;
        let proofs = &mut self.plan.proofs;
        proofs.put(
            &mut self.known_proofs,
            &mut self.held,
            (index, proof, expired_by),
            quota,
        )
    }

    fn recovery_remove(&mut self, key_hash: &[u8; 32], owner: &MailboxHash) -> Removed {
        let proofs = &mut self.plan.proofs;
        let blobs = proofs.remove(&mut self.known_proofs, &mut self.held, key_hash, owner);
        Removed { blobs, receipts: 0 }
    }

    fn expire_proofs(&mut self) -> Removed {
        let proofs = &mut self.plan.proofs;
        let blobs = proofs.sweep(&mut self.known_proofs, &mut self.held);
        Removed { blobs, receipts: 0 }
    }

    fn pin(&mut self, mailboxes: &[MailboxHash], over_by: Timestamp, now: Timestamp) -> Outcome {
        if !self.learnt.is_told_to_go {
            let quota = &self.rules.quota;
            // What the batch has unpinned so far it may pin again.
            let held = self.known.held;
            let to_go = pins::how_many_may_go(&self.known_pins, self.batch, held, quota);
            // Nothing is asked when none has to go: each question is another round.
            if to_go > 0 {
                self.asks.pins_to_go = self.asks.pins_to_go.max(to_go);
                // Of several the earliest, by which they are over for all.
                let asked = self.asks.pins_over_by;
                let earlier = asked.map_or(over_by, |asked| asked.min(over_by));
                self.asks.pins_over_by = Some(earlier);
            }
        }
        let quota = &self.rules.quota;
        let are_pinned = mailboxes.iter().map(|mailbox| {
            let pins = &mut self.plan.pins;
            pins.pin(&mut self.known_pins, &mut self.held, (*mailbox, now), quota)
        });
        Outcome::Pinned(are_pinned.collect())
    }

    fn unpin(&mut self, mailboxes: &[MailboxHash]) -> Outcome {
        for mailbox in mailboxes {
            let pins = &mut self.plan.pins;
            pins.unpin(&self.known_pins, &mut self.held, mailbox);
        }
        Outcome::Written
    }

    /// Gives a row the next place in the order.
    fn come(&mut self, source: Source, header: Header) {
        let key = OrderKey(self.plan.next_key);
        self.plan.next_key += 1;
        let charged_bytes = header.charged_bytes();
        self.held.add(header.class, charged_bytes);
        self.plan.happened.to(header.class).created += 1;
        let mut add_to = |holder: Holder| {
            let account = self.account_mut(holder);
            account.add(header.class, charged_bytes, header.expires_at);
            std::mem::replace(&mut account.last_key, key)
        };
        let previous = add_to(Holder::Mailbox(header.mailbox));
        if let Some(owner) = header.owner {
            add_to(Holder::Owner(owner));
        }
        self.plan.inserts.push(Insert {
            key,
            previous,
            source,
            expires_at: header.expires_at,
            is_delivered_told: false,
        });
        if let Some(topic) = header.topic {
            self.topics.insert((header.mailbox, topic), Some(key));
        }
        self.names.insert(header.name(), Some(key));
        self.rows.insert(key, Some(header));
    }

    /// What a holder has by now. Asked for, when it is not known.
    fn account(&mut self, holder: Holder) -> Account {
        *self.account_mut(holder)
    }

    fn account_mut(&mut self, holder: Holder) -> &mut Account {
        self.accounts.entry(holder).or_insert_with(|| {
            let known = self.known.accounts.get(&holder);
            if known.is_none() {
                self.asks.holders.push(holder);
            }
            known.copied().unwrap_or_default()
        })
    }

    /// The key of the row with this name.
    fn key_of(&self, name: &Name) -> Option<OrderKey> {
        match self.names.get(name) {
            Some(key) => *key,
            None => self.learnt.names.get(name).copied(),
        }
    }

    /// A row, unless it has left.
    fn row(&self, key: OrderKey) -> Option<Header> {
        match self.rows.get(&key) {
            Some(header) => *header,
            None => self.known.rows.get(&key).copied(),
        }
    }

    /// The row of this name.
    fn look_up(&self, name: &Name) -> Option<(OrderKey, Header)> {
        let key = self.key_of(name)?;
        Some((key, self.row(key)?))
    }

    /// Whether a row came within this batch. One that another instance has stored since it began has a
    /// larger key than any of the batch.
    fn is_new(&self, key: OrderKey) -> bool {
        (self.first_key..self.plan.next_key).contains(&key.0)
    }

    fn end(mut self) -> Folded {
        if !self.asks.is_empty() {
            self.asks.tidy();
            self.asks.is_smallest = self.learnt.is_smallest;
            return Folded::Asks(Box::new(self.asks));
        }
        let rows = &self.rows;
        // Rows that came and left are not written; the others as they are to be.
        self.plan.inserts.retain_mut(|insert| {
            let Some(Some(header)) = rows.get(&insert.key) else {
                return false;
            };
            insert.expires_at = header.expires_at;
            insert.is_delivered_told = header.is_delivered_told;
            true
        });
        self.plan.change = Change::between(self.known.held, self.held);
        self.plan.happened.vouchers = self.plan.proofs.vouchers;
        self.plan.happened.pins_evicted = self.plan.pins.evicted;
        Folded::Plan(Box::new(self.plan))
    }
}

#[cfg(test)]
mod tests;
