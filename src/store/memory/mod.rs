//! The engine that keeps everything in memory: the same rules and the same pipeline as a database,
//! over maps. What it keeps survives everything but the end of the process.
//!
//! `rows` has the maps of rows and how they are read; this file answers the committer and the
//! sessions. One lock is over all of it: the committer changes a batch at a time, readers share it.

mod rows;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::HashMap;

use super::StoreError;
use super::departures::Departures;
use super::engine::{
    Asked, CommitError, Engine, ExpiryCursor, HeldInAll, KeysOf, Known, KnownNonces, KnownPins,
    KnownProofs, Opened, Pin, Plan, Reads, SWEPT_PROOFS_MAX, Slot, TookPlace, Write, is_nonce_over,
};
use super::model::{
    BacklogCursor, Holding, OrderKey, Page, PageBounds, RecoveryPage, RecoveryProof, View,
};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::metrics::Metrics;
use rows::{Row, Rows};

/// What [`open`] opens.
pub struct MemoryOptions {
    /// How long a departed blob is remembered.
    pub dedup: Duration,
    /// How many departed blobs are remembered; zero for no bound.
    pub dedup_max: u64,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

/// An empty database in memory.
pub fn open(options: MemoryOptions) -> Opened {
    let state = Arc::<RwLock<State>>::default();
    Opened {
        engine: Box::new(Writer {
            state: Arc::clone(&state),
            departures: Departures::new(options.dedup, options.dedup_max, options.metrics),
            nonces: Nonces::default(),
        }),
        reads: Arc::new(MemoryReads { state }),
        held: HeldInAll::default(),
        others: None,
    }
}

/// What is kept.
#[derive(Default)]
struct State {
    rows: Rows,
    /// By number.
    proofs: BTreeMap<i64, RecoveryProof>,
    proof_expiries: BTreeSet<(Timestamp, i64)>,
    proofs_by_key: HashMap<[u8; 32], Vec<i64>>,
    pins: HashMap<MailboxHash, Pin>,
    pins_by_use: BTreeSet<(Timestamp, MailboxHash)>,
    held: HeldInAll,
    last_key: i64,
}

impl State {
    fn slots(&self, key_hash: &[u8; 32]) -> Vec<Slot> {
        let numbers = self.proofs_by_key.get(key_hash);
        let slots = numbers.into_iter().flatten();
        slots
            .filter_map(|number| Some(Slot::new(*number, self.proofs.get(number)?)))
            .collect()
    }

    fn known_proofs(&self, asked: &Asked) -> KnownProofs {
        let last = self.proofs.last_key_value();
        let mut known = KnownProofs {
            next_number: last.map_or(1, |(number, _)| number + 1),
            ..KnownProofs::default()
        };
        for key_hash in &asked.proofs {
            known.slots.insert(*key_hash, self.slots(key_hash));
        }
        let Some(expired_by) = asked.expired_proofs else {
            return known;
        };
        let over = self.proof_expiries.iter().take(SWEPT_PROOFS_MAX);
        for (_, number) in over.take_while(|(expires_at, _)| *expires_at <= expired_by) {
            if let Some(proof) = self.proofs.get(number) {
                known.expired.push((proof.key_hash, *number));
                let slots = || self.slots(&proof.key_hash);
                known.slots.entry(proof.key_hash).or_insert_with(slots);
            }
        }
        known
    }

    fn known_pins(&self, asked: &Asked) -> KnownPins {
        let pins = asked.pins.iter();
        let mut known = KnownPins {
            pins: pins
                .filter_map(|mailbox| Some((*mailbox, *self.pins.get(mailbox)?)))
                .collect(),
            ..KnownPins::default()
        };
        let wanted = usize::try_from(asked.pins_to_go).unwrap_or(usize::MAX);
        if wanted > 0 {
            let by = asked.pins_over_by.unwrap_or_default();
            let old = self
                .pins_by_use
                .iter()
                .take_while(|(last_used, _)| *last_used <= by);
            known.to_go = old.take(wanted).map(|(_, mailbox)| *mailbox).collect();
        }
        known
    }

    fn apply(&mut self, batch: &[&Write], plan: &Plan) {
        // What goes makes way: a receipt may come under the id of one that goes.
        for (key, header) in plan.deletes.iter().chain(&plan.set_aside) {
            self.rows.remove(&header.mailbox, *key);
        }
        for row in plan.new_rows(batch) {
            self.rows.insert(row.key, Row::new(&row));
        }
        for (key, (_, expires_at)) in &plan.extended {
            self.rows.extend(*key, *expires_at);
        }
        for key in plan.delivered.keys() {
            self.rows.mark_delivered(*key);
        }
        for number in &plan.proofs.deletes {
            self.remove_proof(*number);
        }
        for (number, proof) in plan.new_proofs(batch) {
            self.insert_proof(number, proof);
        }
        for (mailbox, pin) in &plan.pins.changed {
            self.set_pin(*mailbox, *pin);
        }
        self.held = plan.change.applied_to(self.held);
        self.last_key = plan.next_key - 1;
    }

    fn insert_proof(&mut self, number: i64, mut proof: RecoveryProof) {
        // A copy: the bytes may be a small part of a large read buffer that they would keep alive.
        proof.sealed_proof = bytes::Bytes::copy_from_slice(&proof.sealed_proof);
        self.proof_expiries.insert((proof.expires_at, number));
        let numbers = self.proofs_by_key.entry(proof.key_hash).or_default();
        numbers.push(number);
        self.proofs.insert(number, proof);
    }

    fn remove_proof(&mut self, number: i64) {
        let Some(proof) = self.proofs.remove(&number) else {
            return;
        };
        self.proof_expiries.remove(&(proof.expires_at, number));
        if let Some(numbers) = self.proofs_by_key.get_mut(&proof.key_hash) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.proofs_by_key.remove(&proof.key_hash);
            }
        }
    }

    fn set_pin(&mut self, mailbox: MailboxHash, pin: Option<Pin>) {
        let before = match pin {
            Some(pin) => {
                self.pins_by_use.insert((pin.last_used, mailbox));
                self.pins.insert(mailbox, pin)
            }
            None => self.pins.remove(&mailbox),
        };
        if let Some(before) = before
            && Some(before) != pin
        {
            self.pins_by_use.remove(&(before.last_used, mailbox));
        }
    }
}

/// The nonces that are remembered.
#[derive(Default)]
struct Nonces {
    burnt: HashMap<[u8; 32], Timestamp>,
    /// In the order in which they are forgotten.
    order: VecDeque<(Timestamp, [u8; 32])>,
}

impl Nonces {
    fn answer(&self, asked: &[[u8; 32]]) -> KnownNonces {
        let burnt = asked
            .iter()
            .filter_map(|nonce| Some((*nonce, *self.burnt.get(nonce)?)));
        KnownNonces {
            burnt: burnt.collect(),
            count: self.burnt.len() as u64,
        }
    }

    fn forget(&mut self, forget_by: Timestamp) {
        while let Some((burnt_at, nonce)) = self.order.front().copied()
            && is_nonce_over(burnt_at, forget_by)
        {
            self.order.pop_front();
            // It may have been burnt again since.
            if self.burnt.get(&nonce) == Some(&burnt_at) {
                self.burnt.remove(&nonce);
            }
        }
    }
}

/// The committer's side.
struct Writer {
    state: Arc<RwLock<State>>,
    departures: Departures,
    nonces: Nonces,
}

#[async_trait]
impl Engine for Writer {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        let state = read(&self.state);
        let mut known = Known {
            next_key: state.last_key + 1,
            held: state.held,
            has_room: true,
            // Memory is not checked for bit rot.
            sound: asked.doubtful.iter().copied().collect(),
            departed: self.departures.find_all(&asked.departed),
            proofs: state.known_proofs(asked),
            pins: state.known_pins(asked),
            nonces: self.nonces.answer(&asked.nonces),
            ..Known::default()
        };
        let by_name = asked.names.iter();
        let by_name = by_name.filter_map(|(mailbox, id)| state.rows.key_of(mailbox, id));
        let by_topic = asked.topics.iter();
        let by_topic = by_topic.filter_map(|(mailbox, topic)| state.rows.of_topic(mailbox, topic));
        for key in by_name.chain(by_topic).chain(asked.keys.iter().copied()) {
            let header = state.rows.header(key);
            known.rows.extend(header.map(|header| (key, header)));
        }
        for holder in &asked.holders {
            known.accounts.insert(*holder, state.rows.account(holder));
        }
        for (holder, expired_by) in &asked.expired {
            let keys = state.rows.expired_of(holder, *expired_by);
            for key in &keys {
                let header = state.rows.header(*key);
                known.rows.extend(header.map(|header| (*key, header)));
            }
            known.expired.insert(*holder, keys);
        }
        Ok(known)
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        self.departures.forget(plan.forget_by, plan.now);
        if plan.is_empty() {
            return Ok(());
        }
        write(&self.state).apply(batch, plan);
        self.departures.remember(&plan.departures);
        self.nonces.forget(plan.forget_by);
        for (nonce, burnt_at) in &plan.nonces.burnt {
            self.nonces.burnt.insert(*nonce, *burnt_at);
            self.nonces.order.push_back((*burnt_at, *nonce));
        }
        self.departures.forget(plan.forget_by, plan.now);
        Ok(())
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        Ok(TookPlace::No)
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        self.departures.forget(expired_by, expired_by);
        self.nonces.forget(expired_by);
        Ok(false)
    }

    async fn close(&mut self) {}
}

/// The sessions' side.
struct MemoryReads {
    state: Arc<RwLock<State>>,
}

#[async_trait]
impl Reads for MemoryReads {
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        let state = read(&self.state);
        Ok(state.rows.page(&mailbox, view, after, bounds, now))
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        Ok(read(&self.state).rows.backlog(&mailbox, after, bounds, now))
    }

    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let state = read(&self.state);
        let holding = |mailbox| state.rows.holding(mailbox, view, now);
        Ok(mailboxes.iter().map(holding).collect())
    }

    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        let state = read(&self.state);
        let numbers = key_hashes.iter();
        let numbers = numbers.filter_map(|key| state.proofs_by_key.get(key));
        let mut numbers: Vec<_> = numbers.flatten().collect();
        numbers.sort_unstable_by_key(|number| std::cmp::Reverse(**number));
        let found = numbers.iter().filter_map(|number| state.proofs.get(number));
        let found = found.filter(|proof| proof.expires_at > now).cloned();
        Ok(RecoveryPage::of(found, bytes_max))
    }

    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError> {
        let state = read(&self.state);
        let pin = |mailbox| state.pins.get(mailbox).copied();
        Ok(mailboxes.iter().map(pin).collect())
    }

    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError> {
        Ok(read(&self.state)
            .rows
            .keys(of, after, up_to, limit as usize))
    }

    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        let limit = limit as usize;
        let rows = &read(&self.state).rows;
        let mut keys = rows.expired(limit.saturating_add(1), expired_by);
        let more = keys.len() > limit;
        keys.truncate(limit);
        Ok((keys, more))
    }

    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError> {
        let rows = &read(&self.state).rows;
        Ok(rows.expired_asking(from, limit as usize, expired_by))
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(read(&self.state).rows.next_expiry())
    }

    async fn horizon(&self) -> Result<OrderKey, StoreError> {
        Ok(OrderKey(read(&self.state).last_key))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// The maps stay consistent at every step, so a panic elsewhere does not spoil them.
fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    state.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
