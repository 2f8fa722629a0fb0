//! What the committer remembers of the owners of device sync messages: how much each has on all its
//! devices.
//!
//! Read from the index on an owner's first append and followed from then on. Kept by least recent
//! use and bounded in number; what was forgotten is read again.

use lru::LruCache;

use crate::clock::Timestamp;
use crate::store::plan::quota::Held;

/// Owners that are remembered: 100 bytes each with their place in the cache, 6 MiB in all.
const OWNERS_MAX: usize = 65_536;

/// What one owner has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Owned {
    pub(in crate::store) held: Held,
    /// Nothing of it expires before this moment.
    pub(in crate::store) earliest_expiry: Timestamp,
}

impl Default for Owned {
    fn default() -> Self {
        Self {
            held: Held::default(),
            earliest_expiry: Timestamp::from_millis(u64::MAX),
        }
    }
}

impl Owned {
    /// One message more.
    pub(in crate::store) fn add(&mut self, charged_bytes: u64, expires_from: Timestamp) {
        self.held.add(charged_bytes);
        self.earliest_expiry = self.earliest_expiry.min(expires_from);
    }
}

/// The owners used last, by the first 64 bits of their hash.
#[derive(Debug)]
pub(in crate::store) struct Owners(LruCache<i64, Owned>);

impl Default for Owners {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl Owners {
    /// What an owner has; this counts as use.
    pub(in crate::store) fn get(&mut self, owner64: i64) -> Option<Owned> {
        self.0.get(&owner64).copied()
    }

    /// What an owner has, nothing if that is not in memory.
    pub(in crate::store) fn peek(&self, owner64: i64) -> Owned {
        self.0.peek(&owner64).copied().unwrap_or_default()
    }

    pub(in crate::store) fn put(&mut self, owner64: i64, owned: Owned) {
        self.0.put(owner64, owned);
    }

    /// One message more, if the owner is in memory.
    pub(in crate::store) fn add(
        &mut self,
        owner64: i64,
        charged_bytes: u64,
        expires_at: Timestamp,
    ) {
        if let Some(owned) = self.0.peek_mut(&owner64) {
            owned.add(charged_bytes, expires_at);
        }
    }

    /// One message less, if the owner is in memory.
    pub(in crate::store) fn remove(&mut self, owner64: i64, charged_bytes: u64) {
        if let Some(owned) = self.0.peek_mut(&owner64) {
            owned.held.remove(charged_bytes);
        }
    }

    /// Says that nothing of the owner expires before `earliest`.
    pub(in crate::store) fn set_earliest_expiry(&mut self, owner64: i64, earliest: Timestamp) {
        if let Some(owned) = self.0.peek_mut(&owner64) {
            owned.earliest_expiry = earliest;
        }
    }

    /// Forgets these, of whom what is remembered may not be what is stored.
    pub(in crate::store) fn forget(&mut self, owners: impl IntoIterator<Item = i64>) {
        for owner64 in owners {
            self.0.pop(&owner64);
        }
    }

    /// Forgets all.
    pub(in crate::store) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets those used least recently until the rest is within the bound.
    pub(in crate::store) fn shrink(&mut self) {
        while self.0.len() > OWNERS_MAX {
            self.0.pop_lru();
        }
    }
}
