//! What the committer remembers of a mailbox: how much it holds and which key belongs to which id.
//!
//! A mailbox's index entries are read once, on its first append or acknowledgement, and followed
//! from then on. Duplicates and quotas are so decided without a query. The sets are kept by least
//! recent use within a bound of bytes; what was forgotten is read again.
//!
//! Sets go by the first 64 bits of the mailbox hash. Two mailboxes that share them (by chance, one
//! pair in 2^64) would share a quota; their blobs are still told apart by the full hash in the row.

use std::collections::HashMap;

use lru::LruCache;

use super::owners::Owners;
use crate::clock::Timestamp;
use crate::store::model::{Class, charged_bytes};
use crate::store::plan::quota::{Held, held_beside};

/// Bytes that all sets together may take: about 2,000,000 entries.
pub(in crate::store) const WORKING_SETS_BYTES_MAX: u64 = 64 << 20;

/// A set beside its entries: the struct, its place in the cache, the allocations.
const SET_BYTES: u64 = 256;

/// An entry in a hash table with its control byte, (8 + 8 + 1) × 8/7 for the load factor.
pub(in crate::store) const ENTRY_BYTES: u64 = 20;

/// Blobs expire by slots of this many milliseconds in the index: 600 s.
const EXPIRY_SLOT_MILLIS: u64 = 600_000;

/// The slot that `at` falls into.
pub(in crate::store) fn expiry_slot(at: Timestamp) -> i64 {
    to_i64(at.millis() / EXPIRY_SLOT_MILLIS)
}

/// The first moment of a slot.
pub(in crate::store) fn slot_start(slot: i64) -> Timestamp {
    Timestamp::from_millis(to_u64(slot).saturating_mul(EXPIRY_SLOT_MILLIS))
}

/// A number as SQL has it; the largest there is instead of an overflow.
pub(in crate::store) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that is never negative in a sound database; zero for one that is.
pub(in crate::store) fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The `size` column: bytes × 4 + class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Size(pub(in crate::store) i64);

impl Size {
    pub(in crate::store) fn new(bytes: usize, class: Class) -> Self {
        Self(to_i64(bytes as u64 * 4 + u64::from(class as u8)))
    }

    pub(in crate::store) fn bytes(self) -> u64 {
        to_u64(self.0) / 4
    }

    /// The class's number, one of four.
    fn class_number(self) -> u8 {
        (to_u64(self.0) % 4) as u8
    }

    /// The class, unless a later build wrote it.
    pub(in crate::store) fn class(self) -> Option<Class> {
        Class::from_number(self.class_number())
    }

    /// What it counts against quotas.
    pub(in crate::store) fn charged_bytes(self) -> u64 {
        charged_bytes(usize::try_from(self.bytes()).unwrap_or(usize::MAX))
    }
}

/// One blob as its mailbox's set knows it.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Entry {
    pub(in crate::store) key: i64,
    pub(in crate::store) id64: i64,
    pub(in crate::store) size: Size,
    /// Not later than its expiry.
    pub(in crate::store) expires_from: Timestamp,
}

/// What one mailbox holds.
#[derive(Debug)]
pub(in crate::store) struct WorkingSet {
    held: [Held; Class::NUMBERS],
    /// No blob expires before this moment.
    earliest_expiry: Timestamp,
    keys: HashMap<i64, i64>,
    /// Further (id64, key) where id64 is in `keys` already: as good as always empty.
    twins: Vec<(i64, i64)>,
}

impl Default for WorkingSet {
    fn default() -> Self {
        Self {
            held: [Held::default(); Class::NUMBERS],
            earliest_expiry: Timestamp::from_millis(u64::MAX),
            keys: HashMap::new(),
            twins: Vec::new(),
        }
    }
}

impl WorkingSet {
    /// What it holds that counts against the quota of this class.
    pub(in crate::store) fn held(&self, class: Class) -> Held {
        held_beside(class, &self.held)
    }

    /// No blob of it expires before this moment.
    pub(in crate::store) fn earliest_expiry(&self) -> Timestamp {
        self.earliest_expiry
    }

    /// The keys of the blobs that may have the id with this prefix.
    pub(in crate::store) fn find(&self, id64: i64) -> impl Iterator<Item = i64> {
        let twins = self.twins.iter().filter(move |twin| twin.0 == id64);
        let first = self.keys.get(&id64).copied();
        first.into_iter().chain(twins.map(|twin| twin.1))
    }

    pub(in crate::store) fn insert(&mut self, entry: Entry) {
        self.held[usize::from(entry.size.class_number())].add(entry.size.charged_bytes());
        self.earliest_expiry = self.earliest_expiry.min(entry.expires_from);
        if let Some(other) = self.keys.insert(entry.id64, entry.key) {
            self.twins.push((entry.id64, other));
        }
    }

    fn remove(&mut self, key: i64, id64: i64, size: Size) {
        self.held[usize::from(size.class_number())].remove(size.charged_bytes());
        let twins = self.twins.len();
        self.twins.retain(|twin| *twin != (id64, key));
        if self.twins.len() < twins || self.keys.get(&id64) != Some(&key) {
            return;
        }
        match self.twins.iter().position(|twin| twin.0 == id64) {
            Some(place) => {
                let (_, other) = self.twins.swap_remove(place);
                self.keys.insert(id64, other);
            }
            None => {
                self.keys.remove(&id64);
            }
        }
    }

    /// Its memory, estimated.
    pub(in crate::store) fn bytes(&self) -> u64 {
        SET_BYTES + (self.keys.capacity() + self.twins.capacity()) as u64 * ENTRY_BYTES
    }
}

/// The working sets of the mailboxes used last, within a bound of bytes.
#[derive(Debug)]
pub(in crate::store) struct WorkingSets {
    /// What the same batches need to know of owners.
    pub(in crate::store) owners: Owners,
    sets: LruCache<i64, WorkingSet>,
    bytes: u64,
    bytes_max: u64,
}

impl WorkingSets {
    pub(in crate::store) fn new(bytes_max: u64) -> Self {
        Self {
            owners: Owners::default(),
            sets: LruCache::unbounded(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(in crate::store) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(in crate::store) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The set of a mailbox, which counts as used now.
    pub(in crate::store) fn get(&mut self, mailbox64: i64) -> Option<&WorkingSet> {
        self.sets.get(&mailbox64)
    }

    /// The set of a mailbox, whose use this is not.
    pub(in crate::store) fn peek(&self, mailbox64: i64) -> Option<&WorkingSet> {
        self.sets.peek(&mailbox64)
    }

    pub(in crate::store) fn put(&mut self, mailbox64: i64, set: WorkingSet) {
        self.bytes += set.bytes();
        if let Some(old) = self.sets.put(mailbox64, set) {
            self.bytes -= old.bytes();
        }
    }

    /// Adds a blob to the set of its mailbox, if that is in memory.
    pub(in crate::store) fn insert(&mut self, mailbox64: i64, entry: Entry) {
        self.change(mailbox64, |set| set.insert(entry));
    }

    /// Takes a blob out of the set of its mailbox, if that is in memory.
    pub(in crate::store) fn remove(&mut self, mailbox64: i64, key: i64, id64: i64, size: Size) {
        self.change(mailbox64, |set| set.remove(key, id64, size));
    }

    /// Says that no blob of the mailbox expires before `earliest`.
    pub(in crate::store) fn set_earliest_expiry(&mut self, mailbox64: i64, earliest: Timestamp) {
        self.change(mailbox64, |set| set.earliest_expiry = earliest);
    }

    fn change(&mut self, mailbox64: i64, change: impl FnOnce(&mut WorkingSet)) {
        if let Some(set) = self.sets.peek_mut(&mailbox64) {
            let before = set.bytes();
            change(set);
            self.bytes = self.bytes + set.bytes() - before;
        }
    }

    /// Forgets these, whose content may not be what is stored.
    pub(in crate::store) fn forget(&mut self, mailboxes: impl IntoIterator<Item = i64>) {
        for mailbox64 in mailboxes {
            if let Some(set) = self.sets.pop(&mailbox64) {
                self.bytes -= set.bytes();
            }
        }
    }

    /// Forgets all.
    pub(in crate::store) fn clear(&mut self) {
        self.owners.clear();
        self.sets.clear();
        self.bytes = 0;
    }

    /// Forgets those used least recently until the rest is within the bound.
    pub(in crate::store) fn shrink(&mut self) {
        self.owners.shrink();
        while self.bytes > self.bytes_max
            && let Some((_, set)) = self.sets.pop_lru()
        {
            self.bytes -= set.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: i64, id64: i64, bytes: usize) -> Entry {
        Entry {
            key,
            id64,
            size: Size::new(bytes, Class::ProvenOnly),
            expires_from: Timestamp::from_millis(1000 + key as u64),
        }
    }

    #[test]
    fn a_size_carries_bytes_and_class() {
        let size = Size::new(1000, Class::ProvenOnly);
        assert_eq!((size.0, size.bytes()), (4001, 1000));
        assert_eq!(size.class(), Some(Class::ProvenOnly));
        assert_eq!(size.charged_bytes(), 1256);
        assert_eq!(Size(4002).class(), Some(Class::Receipt));
    }

    #[test]
    fn ids_with_the_same_prefix_are_all_found_and_leave_one_by_one() {
        let mut sets = WorkingSets::new(1 << 20);
        sets.put(1, WorkingSet::default());
        for key in 1..=3 {
            sets.insert(1, entry(key, 7, 0));
        }
        let found = |sets: &WorkingSets| {
            let mut keys: Vec<_> = sets.peek(1).unwrap().find(7).collect();
            keys.sort_unstable();
            keys
        };
        assert_eq!(found(&sets), [1, 2, 3]);
        sets.remove(1, 3, 7, entry(3, 7, 0).size);
        assert_eq!(found(&sets), [1, 2]);
        sets.remove(1, 1, 7, entry(1, 7, 0).size);
        assert_eq!(found(&sets), [2]);
        sets.remove(1, 2, 7, entry(2, 7, 0).size);
        assert!(found(&sets).is_empty());
        assert_eq!(
            sets.peek(1).unwrap().held(Class::ProvenOnly),
            Held::default()
        );
    }

    #[test]
    fn what_is_held_is_counted_by_class() {
        let mut set = WorkingSet::default();
        set.insert(entry(1, 1, 44));
        let held = Held {
            blobs: 1,
            bytes: 300,
        };
        assert_eq!(set.held(Class::ProvenOnly), held);
        assert_eq!(set.held(Class::SeenByV1), Held::default());
        assert_eq!(set.earliest_expiry(), Timestamp::from_millis(1001));
    }

    #[test]
    fn the_sets_used_least_recently_go_first_and_the_bytes_add_up() {
        let mut sets = WorkingSets::new(3 * SET_BYTES);
        for mailbox64 in 1..=4 {
            sets.put(mailbox64, WorkingSet::default());
        }
        sets.get(1);
        sets.shrink();
        assert!(sets.peek(2).is_none());
        assert!(sets.peek(1).is_some());
        assert_eq!(sets.bytes(), 3 * SET_BYTES);
        sets.insert(1, entry(1, 1, 0));
        sets.forget([1, 3, 4, 5]);
        assert_eq!(sets.bytes(), 0);
    }
}
