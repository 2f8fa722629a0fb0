//! What the memory engine counts over all mailboxes: order keys, sums, departures.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::SLICE;
use super::recovery::Proofs;
use super::shard::Row;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use crate::store::model::{Appended, Class, OrderKey, RecoveryProof, RecoveryPut, Usage};
use crate::store::plan::leaving::Leaving;
use crate::store::plan::quota::{Held, HeldInAll, Quota};
use crate::store::tally::{Happened, Ledger};

/// What is counted over all mailboxes. Under one lock, so that the sums hold whenever somebody
/// looks, and so that no gauge is overwritten by an older value.
pub(in crate::store) struct Books {
    ledger: Ledger,
    held: HeldInAll,
    last_key: OrderKey,
    owners: HashMap<MailboxHash, OwnerBook>,
    pub(in crate::store) departures: Departures,
    proofs: Proofs,
    metrics: Arc<Metrics>,
}

/// The device sync messages of one owner. One who has none is not kept.
#[derive(Default)]
struct OwnerBook {
    held: Held,
    /// How many wait in each of its mailboxes.
    mailboxes: HashMap<MailboxHash, u64>,
}

impl Books {
    pub(in crate::store) fn new(departures: Departures, metrics: Arc<Metrics>) -> Self {
        Self {
            ledger: Ledger::new(HeldInAll::default(), Arc::clone(&metrics)),
            held: HeldInAll::default(),
            last_key: OrderKey::START,
            owners: HashMap::new(),
            departures,
            proofs: Proofs::default(),
            metrics,
        }
    }

    pub(in crate::store) fn usage(&self) -> Usage {
        self.ledger.usage()
    }

    /// The largest key that was drawn.
    pub(in crate::store) fn last_key(&self) -> OrderKey {
        self.last_key
    }

    /// What an owner has in all its mailboxes.
    pub(in crate::store) fn held_by(&self, owner: &MailboxHash) -> Held {
        self.owners
            .get(owner)
            .map(|book| book.held)
            .unwrap_or_default()
    }

    /// The mailboxes in which something of this owner waits.
    pub(in crate::store) fn mailboxes_of(&self, owner: &MailboxHash) -> Vec<MailboxHash> {
        self.owners
            .get(owner)
            .map(|book| book.mailboxes.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Counts one row more and draws its key, if there is room beside what its mailbox has `held`
    /// in its class, or what its owner has. `given_back` are the bytes of the row that it replaces.
    pub(in crate::store) fn admit(
        &mut self,
        quota: &Quota,
        (held, given_back): (Held, u64),
        mailbox: MailboxHash,
        row: &Row,
    ) -> Result<OrderKey, Appended> {
        let charged_bytes = row.charged_bytes();
        let held = row.owner.map_or(held, |owner| self.held_by(&owner.hash));
        let bytes = self.held.bytes.saturating_sub(given_back);
        quota.admits(row.class, held, bytes, charged_bytes)?;
        if let Some(owner) = row.owner {
            let book = self.owners.entry(owner.hash).or_default();
            book.held.add(charged_bytes);
            *book.mailboxes.entry(mailbox).or_default() += 1;
        }
        let mut happened = Happened::default();
        happened.to(Some(row.class)).created = 1;
        self.held.add(Some(row.class), charged_bytes);
        self.ledger.count(happened, self.held);
        self.last_key.0 += 1;
        Ok(self.last_key)
    }

    /// A receipt found no room.
    pub(in crate::store) fn drop_receipt(&mut self) {
        let happened = Happened {
            receipts_dropped: 1,
            ..Happened::default()
        };
        self.ledger.count(happened, self.held);
    }

    /// Counts the rows as gone and remembers them.
    pub(in crate::store) fn depart(
        &mut self,
        leaving: Leaving,
        mailbox: MailboxHash,
        rows: &[Row],
        now: Timestamp,
    ) {
        if rows.is_empty() {
            return;
        }
        let mut happened = Happened::default();
        for row in rows {
            *leaving.count_in(happened.to(Some(row.class))) += 1;
            self.held.remove(Some(row.class), row.charged_bytes());
            self.leave_owner(mailbox, row);
        }
        self.ledger.count(happened, self.held);

        let mut forgotten_early = 0;
        // Nobody hands in a receipt, so none is handed in twice.
        for row in rows.iter().filter(|row| row.class != Class::Receipt) {
            forgotten_early += self.departures.remember(mailbox, row, now);
        }
        self.metrics
            .dedup_forgotten_total
            .increment(forgotten_early);
        self.show_departures(now);
    }

    fn leave_owner(&mut self, mailbox: MailboxHash, row: &Row) {
        let Some(owner) = row.owner else {
            return;
        };
        let Some(book) = self.owners.get_mut(&owner.hash) else {
            return;
        };
        book.held.remove(row.charged_bytes());
        if let Some(waiting) = book.mailboxes.get_mut(&mailbox) {
            *waiting -= 1;
            if *waiting == 0 {
                book.mailboxes.remove(&mailbox);
            }
        }
        if book.mailboxes.is_empty() {
            self.owners.remove(&owner.hash);
        }
    }

    pub(in crate::store) fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Keeps a recovery proof, if there is room.
    pub(in crate::store) fn recovery_put(
        &mut self,
        proof: &RecoveryProof,
        expired_by: Timestamp,
        quota: &Quota,
    ) -> RecoveryPut {
        let put = self.proofs.put(proof, expired_by, quota, &mut self.held);
        let happened = Happened {
            vouchers: u64::from(put == RecoveryPut::Stored),
            ..Happened::default()
        };
        self.ledger.count(happened, self.held);
        put
    }

    /// Deletes an owner's recovery proof; tells how many that were.
    pub(in crate::store) fn recovery_remove(
        &mut self,
        key_hash: &[u8; 32],
        owner: &MailboxHash,
    ) -> u64 {
        let removed = self.proofs.remove(key_hash, owner, &mut self.held);
        self.ledger.count(Happened::default(), self.held);
        removed
    }

    /// Deletes up to [`SLICE`] recovery proofs that had expired by then, and answers how many.
    pub(in crate::store) fn sweep_proofs(&mut self, expired_by: Timestamp) -> usize {
        let swept = self.proofs.sweep(SLICE, expired_by, &mut self.held);
        self.ledger.count(Happened::default(), self.held);
        swept
    }

    /// There are `pins` now, and so many went because there were too many.
    pub(in crate::store) fn count_pins(&mut self, pins: u64, evicted: u64) {
        self.held.pins = pins;
        let happened = Happened {
            pins_evicted: evicted,
            ..Happened::default()
        };
        self.ledger.count(happened, self.held);
    }

    /// Forgets up to [`SLICE`] departures whose time was over by then, and answers how many.
    pub(in crate::store) fn forget_slice(&mut self, expired_by: Timestamp) -> usize {
        let forgotten = self.departures.forget(SLICE, expired_by);
        self.show_departures(expired_by);
        forgotten
    }

    pub(in crate::store) fn show_departures(&self, now: Timestamp) {
        let remembered = self.departures.by_age.len() as f64;
        self.metrics.dedup_remembered.set(remembered);
        // Housekeeping by a clock that is not trusted tells no time.
        if now == Timestamp::default() {
            return;
        }
        let oldest = self.departures.by_age.first_key_value();
        let age = oldest.map_or(Duration::ZERO, |(_, (_, oldest))| now.since(oldest.left_at));
        self.metrics.dedup_memory_seconds.set(age.as_secs_f64());
    }
}

/// A blob within the relay.
pub(in crate::store) type Name = (MailboxHash, BlobId);

/// The blobs that left lately, so that a late repeat is not stored again.
pub(in crate::store) struct Departures {
    pub(in crate::store) dedup: Duration,
    pub(in crate::store) dedup_max: u64,
    /// Departures so far; numbers them.
    pub(in crate::store) count: u64,
    pub(in crate::store) by_name: HashMap<Name, u64>,
    pub(in crate::store) by_age: BTreeMap<u64, (Name, Departed)>,
}

/// What a repeat is compared with and answered.
#[derive(Clone, Copy)]
pub(in crate::store) struct Departed {
    pub(in crate::store) left_at: Timestamp,
    pub(in crate::store) checksum: [u8; 16],
    pub(in crate::store) expires_at: Timestamp,
}

impl Departures {
    pub(in crate::store) fn new(dedup: Duration, dedup_max: u64) -> Self {
        Self {
            dedup,
            dedup_max,
            count: 0,
            by_name: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    pub(in crate::store) fn recall(&self, name: &Name, now: Timestamp) -> Option<Departed> {
        let (_, departed) = self.by_age.get(self.by_name.get(name)?)?;
        self.is_remembered(departed, now).then_some(*departed)
    }

    /// Remembers one more. Answers how many were forgotten before their time to make room.
    pub(in crate::store) fn remember(
        &mut self,
        mailbox: MailboxHash,
        row: &Row,
        now: Timestamp,
    ) -> u64 {
        let name = (mailbox, row.id);
        let departed = Departed {
            left_at: now,
            checksum: row.checksum,
            expires_at: row.expires_at,
        };
        self.count += 1;
        // An earlier departure under the same name is one whose time was over.
        if let Some(earlier) = self.by_name.insert(name, self.count) {
            self.by_age.remove(&earlier);
        }
        self.by_age.insert(self.count, (name, departed));

        let mut forgotten_early = 0;
        while self.by_age.len() as u64 > self.dedup_max
            && let Some(oldest) = self.pop_oldest()
        {
            forgotten_early += u64::from(self.is_remembered(&oldest, now));
        }
        forgotten_early
    }

    /// Forgets up to `limit` whose time is over, the oldest first, and answers how many.
    pub(in crate::store) fn forget(&mut self, limit: usize, now: Timestamp) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && let Some((_, (_, oldest))) = self.by_age.first_key_value()
            && !self.is_remembered(oldest, now)
        {
            self.pop_oldest();
            forgotten += 1;
        }
        forgotten
    }

    pub(in crate::store) fn pop_oldest(&mut self) -> Option<Departed> {
        let (_, (name, departed)) = self.by_age.pop_first()?;
        self.by_name.remove(&name);
        Some(departed)
    }

    pub(in crate::store) fn is_remembered(&self, departed: &Departed, now: Timestamp) -> bool {
        now.since(departed.left_at) < self.dedup
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn row(body: &'static [u8]) -> Row {
        Row {
            id: BlobId::from_bytes([1; 16]),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            is_delivered_told: false,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::from_millis(9),
            checksum: [body[0]; 16],
            sealed: Bytes::new(),
            body: Bytes::from_static(body),
        }
    }

    /// Between two sweeps a blob may leave, be forgotten, be stored again and leave again.
    #[test]
    fn sweeping_away_an_old_departure_does_not_forget_a_new_one_of_the_same_name() {
        let hour = Duration::from_secs(3_600);
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let name = (mailbox, row(b"a").id);
        let mut departures = Departures::new(hour, 10);
        let first = Timestamp::from_millis(1);
        departures.remember(mailbox, &row(b"a"), first);
        let second = first.plus(2 * hour);
        assert!(departures.recall(&name, second).is_none());
        departures.remember(mailbox, &row(b"b"), second);
        departures.forget(SLICE, second);
        let recalled = departures.recall(&name, second).unwrap();
        assert_eq!(recalled.checksum, [b'b'; 16]);
        assert_eq!(departures.by_age.len(), 1);
        assert_eq!(departures.by_name.len(), 1);
    }
}
