//! What the committer remembers of a mailbox: how much it holds and which key belongs to which id.
//!
//! A mailbox's index entries are read once, on its first append or acknowledgement, and followed
//! from then on. Duplicates and quotas are so decided without a query. The sets are kept by least
//! recent use within a bound of bytes; what was forgotten is read again.
//!
//! Sets go by the first 64 bits of the mailbox hash. Two mailboxes that share them (by chance, one
//! pair in 2^64) would share a quota; their blobs are still told apart by the full hash in the row.

use foldhash::HashMap;
use lru::LruCache;

use super::columns::Size;
use super::owners::Owners;
use crate::clock::Timestamp;
use crate::store::engine::Account;
use crate::store::model::OrderKey;

/// Bytes that all sets together may take: about 2,000,000 entries.
pub(super) const WORKING_SETS_BYTES_MAX: u64 = 64 << 20;

/// A set beside its entries: the struct, its place in the cache, the allocations.
const SET_BYTES: u64 = 256;

/// An entry in a hash table with its control byte, (8 + 8 + 1) × 8/7 for the load factor.
pub(super) const ENTRY_BYTES: u64 = 20;

/// One blob as its mailbox's set knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: i64,
    pub(super) id64: i64,
    pub(super) size: Size,
    /// Not later than its expiry.
    pub(super) expires_from: Timestamp,
}

/// What one mailbox holds.
#[derive(Debug, Default)]
pub(super) struct WorkingSet {
    account: Account,
    keys: HashMap<i64, i64>,
    /// Further (id64, key) where id64 is in `keys` already: as good as always empty.
    twins: Vec<(i64, i64)>,
}

impl WorkingSet {
    pub(super) fn account(&self) -> Account {
        self.account
    }

    /// The keys of the blobs that may have the id with this prefix.
    pub(super) fn find(&self, id64: i64) -> impl Iterator<Item = i64> {
        let twins = self.twins.iter().filter(move |twin| twin.0 == id64);
        let first = self.keys.get(&id64).copied();
        first.into_iter().chain(twins.map(|twin| twin.1))
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let size = entry.size;
        let account = &mut self.account;
        account.add(size.class(), size.charged_bytes(), entry.expires_from);
        account.last_key = account.last_key.max(OrderKey(entry.key));
        if let Some(other) = self.keys.insert(entry.id64, entry.key) {
            self.twins.push((entry.id64, other));
        }
    }

    fn remove(&mut self, key: i64, id64: i64, size: Size) {
        self.account.remove(size.class(), size.charged_bytes());
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
    pub(super) fn bytes(&self) -> u64 {
        SET_BYTES + (self.keys.capacity() + self.twins.capacity()) as u64 * ENTRY_BYTES
    }
}

/// The working sets of the mailboxes used last, within a bound of bytes.
#[derive(Debug)]
pub(super) struct WorkingSets {
    /// What the same batches need to know of owners.
    pub(super) owners: Owners,
    sets: LruCache<i64, WorkingSet>,
    bytes: u64,
    bytes_max: u64,
}

impl WorkingSets {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            owners: Owners::default(),
            sets: LruCache::unbounded(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The set of a mailbox, which counts as used now.
    pub(super) fn get(&mut self, mailbox64: i64) -> Option<&WorkingSet> {
        self.sets.get(&mailbox64)
    }

    /// The set of a mailbox, whose use this is not.
    pub(super) fn peek(&self, mailbox64: i64) -> Option<&WorkingSet> {
        self.sets.peek(&mailbox64)
    }

    pub(super) fn put(&mut self, mailbox64: i64, set: WorkingSet) {
        self.bytes += set.bytes();
        if let Some(old) = self.sets.put(mailbox64, set) {
            self.bytes -= old.bytes();
        }
    }

    /// Adds a blob to the set of its mailbox, if that is in memory.
    pub(super) fn insert(&mut self, mailbox64: i64, entry: Entry) {
        self.change(mailbox64, |set| set.insert(entry));
    }

    /// Takes a blob out of the set of its mailbox, if that is in memory.
    pub(super) fn remove(&mut self, mailbox64: i64, key: i64, id64: i64, size: Size) {
        self.change(mailbox64, |set| set.remove(key, id64, size));
    }

    /// Says that no blob of the mailbox expires before `earliest`.
    pub(super) fn set_earliest_expiry(&mut self, mailbox64: i64, earliest: Timestamp) {
        self.change(mailbox64, |set| set.account.earliest_expiry = earliest);
    }

    fn change(&mut self, mailbox64: i64, change: impl FnOnce(&mut WorkingSet)) {
        if let Some(set) = self.sets.peek_mut(&mailbox64) {
            let before = set.bytes();
            change(set);
            self.bytes = self.bytes + set.bytes() - before;
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.owners.clear();
        self.sets.clear();
        self.bytes = 0;
    }

    /// Forgets those used least recently until the rest is within the bound.
    pub(super) fn shrink(&mut self) {
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
    use crate::store::engine::Held;
    use crate::store::model::Class;

    fn entry(key: i64, id64: i64, bytes: usize) -> Entry {
        Entry {
            key,
            id64,
            size: Size::new(bytes, Class::ProvenOnly),
            expires_from: Timestamp::from_millis(1000 + key as u64),
        }
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
        let held = sets.peek(1).unwrap().account().held;
        assert_eq!(held[Class::ProvenOnly as usize], Held::default());
    }

    #[test]
    fn what_is_held_is_counted_by_class() {
        let mut set = WorkingSet::default();
        set.insert(entry(1, 1, 44));
        let held = Held {
            blobs: 1,
            bytes: 300,
        };
        let account = set.account();
        assert_eq!(account.held[Class::ProvenOnly as usize], held);
        assert_eq!(account.held[Class::SeenByV1 as usize], Held::default());
        assert_eq!(account.earliest_expiry, Timestamp::from_millis(1001));
        assert_eq!(account.last_key, OrderKey(1));
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
        sets.clear();
        assert_eq!(sets.bytes(), 0);
    }
}
