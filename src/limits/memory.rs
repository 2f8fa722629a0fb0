//! What the limiters remember of their clients, within a fixed amount of memory.
//!
//! All budgets share this one map, so the bound holds for all of them together. A client whose
//! bucket is full again is forgotten. While there is no room, those that are not yet known share
//! buckets: only a flood from many thousands of addresses gets there, and then newcomers are limited
//! together by chance, instead of not at all. A client that is known keeps its own bucket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::nanos::Nanos;
use governor::state::StateStore;

use super::address::Width;
use super::table::Budget;

/// Clients, addresses and networks remembered at once, over all budgets. An entry is 8 bytes of key, 8
/// of state and 1 of the map. With all shared buckets in use a shard holds (1,000,000 + 13 × 3 ×
/// 16,384) / 64 = 25,609 entries in 32,768 slots: 64 × 32,768 × 17 bytes = 36 MB at the most, however
/// many clients come.
pub const CLIENTS_MAX: usize = 1_000_000;

/// Buckets of each budget and width that newcomers share while there is no room for their own.
const SHARED_BUCKETS: u64 = 16_384;

const SHARDS: usize = 64;

/// Tells own buckets from shared ones, whose keys are small numbers.
const OWN: u64 = 1 << 63;

/// Which bucket of which budget. A keyed hash: two clients share one with a chance of 2⁻⁶³.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateKey {
    budget: Budget,
    width: Width,
    hash: u64,
}

impl RateKey {
    /// The bucket of `budget` with this hash, in which the budget and the width take part.
    pub(super) fn new(budget: Budget, width: Width, hash: u64) -> Self {
        Self {
            budget,
            width,
            hash,
        }
    }

    /// How wide the network is whose bucket it is.
    pub(super) fn width(self) -> Width {
        self.width
    }

    pub(super) fn budget(self) -> Budget {
        self.budget
    }

    fn own(self) -> u64 {
        self.hash | OWN
    }

    fn shared(self) -> u64 {
        let row = self.budget as u64 * Width::ALL.len() as u64 + self.width as u64;
        row * SHARED_BUCKETS + self.hash % SHARED_BUCKETS
    }
}

/// The map. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Map>);

#[derive(Debug)]
struct Map {
    /// Nothing awaits inside.
    shards: Vec<Mutex<HashMap<u64, Nanos>>>,
    /// Own buckets, over all shards.
    clients: AtomicUsize,
    clients_max: usize,
}

impl Memory {
    pub(super) fn new(clients_max: usize) -> Self {
        Self(Arc::new(Map {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            clients: AtomicUsize::new(0),
            clients_max,
        }))
    }

    /// Clients that have a bucket of their own.
    pub(super) fn clients(&self) -> usize {
        self.0.clients.load(Ordering::Relaxed)
    }

    /// Forgets every bucket that is full again `now`, counted as the limiters count.
    pub(super) fn tidy(&self, now: Nanos) {
        for shard in &self.0.shards {
            let mut buckets = lock(shard);
            let mut forgotten = 0;
            buckets.retain(|key, state| {
                let stays = *state > now;
                forgotten += usize::from(!stays && key & OWN != 0);
                stays
            });
            self.0.clients.fetch_sub(forgotten, Ordering::Relaxed);
            // Not at every small ebb: the next flow would have to grow the map again.
            if buckets.capacity() > 4 * buckets.len() + 256 {
                buckets.shrink_to_fit();
            }
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Nanos>> {
        lock(&self.0.shards[key as usize % SHARDS])
    }

    /// Room for one more client, if there is some.
    fn reserve(&self) -> bool {
        let clients = &self.0.clients;
        let is_over = clients.fetch_add(1, Ordering::Relaxed) >= self.0.clients_max;
        if is_over {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
        !is_over
    }
}

impl Memory {
    /// The state of a bucket that is not full.
    pub(super) fn state(&self, key: &RateKey) -> Option<Nanos> {
        let own = self.shard(key.own()).get(&key.own()).copied();
        own.or_else(|| self.shard(key.shared()).get(&key.shared()).copied())
    }
}

impl StateStore for Memory {
    type Key = RateKey;

    fn measure_and_replace<T, F, E>(&self, key: &RateKey, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut buckets = self.shard(key.own());
        if let Some(state) = buckets.get_mut(&key.own()) {
            let (outcome, next) = measure(Some(*state))?;
            *state = next;
            return Ok(outcome);
        }
        if self.reserve() {
            let measured = measure(None);
            match &measured {
                Ok((_, next)) => drop(buckets.insert(key.own(), *next)),
                Err(_) => drop(self.0.clients.fetch_sub(1, Ordering::Relaxed)),
            }
            return measured.map(|(outcome, _)| outcome);
        }
        drop(buckets);
        let mut buckets = self.shard(key.shared());
        let (outcome, next) = measure(buckets.get(&key.shared()).copied())?;
        buckets.insert(key.shared(), next);
        Ok(outcome)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::table::TABLE;

    /// Sets the bucket to `state` and returns what was in it.
    fn replace(memory: &Memory, hash: u64, state: u64) -> Option<u64> {
        replace_in(
            &RateKey::new(Budget::Client, Width::Address, hash),
            memory,
            state,
        )
    }

    fn replace_in(key: &RateKey, memory: &Memory, state: u64) -> Option<u64> {
        let replaced: Result<_, ()> = memory
            .measure_and_replace(key, |before| Ok((before.map(u64::from), Nanos::new(state))));
        replaced.unwrap()
    }

    #[test]
    fn who_is_known_keeps_a_bucket_and_newcomers_share_when_there_is_no_room() {
        let memory = Memory::new(2);
        assert_eq!(replace(&memory, 1, 10), None);
        assert_eq!(replace(&memory, 2, 20), None);
        assert_eq!(replace(&memory, 3, 30), None, "the first in a shared one");
        assert_eq!(replace(&memory, 3 + SHARED_BUCKETS, 40), Some(30));
        assert_eq!(replace(&memory, 1, 11), Some(10));
        assert_eq!(memory.clients(), 2);

        memory.tidy(Nanos::new(15));
        assert_eq!(memory.clients(), 1, "the first is forgotten");
        assert_eq!(replace(&memory, 3, 31), None, "now it has its own");
        assert_eq!(memory.clients(), 2);
    }

    #[test]
    fn a_refused_newcomer_takes_no_room() {
        let memory = Memory::new(1);
        let key = RateKey::new(Budget::Client, Width::Address, 1);
        let refused: Result<(), _> = memory.measure_and_replace(&key, |_| Err("no"));
        assert_eq!(refused, Err("no"));
        assert_eq!(memory.clients(), 0);
    }

    #[test]
    fn a_million_clients_and_a_flood_stay_within_the_stated_bytes() {
        let memory = Memory::new(CLIENTS_MAX);
        let spread = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for number in 0..CLIENTS_MAX as u64 {
            replace(&memory, spread(number), u64::MAX);
        }
        // Newcomers in every shared bucket of every budget and width.
        for (row, width) in TABLE
            .iter()
            .flat_map(|row| Width::ALL.map(|width| (row, width)))
        {
            for number in 0..SHARED_BUCKETS {
                let key = RateKey::new(row.budget, width, spread(number + (1 << 32)));
                replace_in(&key, &memory, u64::MAX);
            }
        }
        assert_eq!(memory.clients(), CLIENTS_MAX);
        // A map of `capacity` has 8/7 of that in slots, 17 bytes each.
        let shards = memory.0.shards.iter();
        let slots: usize = shards.map(|shard| lock(shard).capacity() * 8 / 7).sum();
        assert!(slots * 17 <= 36_000_000, "{slots} slots");

        memory.tidy(Nanos::new(u64::MAX));
        let left: usize = memory.0.shards.iter().map(|s| lock(s).capacity()).sum();
        assert_eq!((memory.clients(), left), (0, 0), "and all of it goes back");
    }
}
