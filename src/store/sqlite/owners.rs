//! What the committer remembers of the owners of device sync messages: how much each has on all its
//! devices.
//!
//! Read from the index on an owner's first append and followed from then on. Kept by least recent
//! use and bounded in number; what was forgotten is read again.

use lru::LruCache;

use crate::clock::Timestamp;
use crate::store::engine::Account;

/// Owners that are remembered: 200 bytes each with their place in the cache, 13 MiB in all.
const OWNERS_MAX: usize = 65_536;

/// The owners used last, by the first 64 bits of their hash.
#[derive(Debug)]
pub(super) struct Owners(LruCache<i64, Account>);

impl Default for Owners {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl Owners {
    /// What an owner has; this counts as use.
    pub(super) fn get(&mut self, owner64: i64) -> Option<Account> {
        self.0.get(&owner64).copied()
    }

    pub(super) fn put(&mut self, owner64: i64, account: Account) {
        self.0.put(owner64, account);
    }

    /// Changes what an owner has, if that is in memory.
    pub(super) fn change(&mut self, owner64: i64, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.0.peek_mut(&owner64) {
            change(account);
        }
    }

    /// Says that nothing of the owner expires before `earliest`.
    pub(super) fn set_earliest_expiry(&mut self, owner64: i64, earliest: Timestamp) {
        self.change(owner64, |account| account.earliest_expiry = earliest);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets those used least recently until the rest is within the bound.
    pub(super) fn shrink(&mut self) {
        while self.0.len() > OWNERS_MAX {
            self.0.pop_lru();
        }
    }
}
