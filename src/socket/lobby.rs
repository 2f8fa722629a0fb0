//! Connections that have not become a session yet.
//!
//! They are bounded. When there are too many, one must leave: the oldest of the address with the most
//! places, in the network with the most. So a flood of silent connections shows itself the door, and
//! neither they nor slow clients shut anybody out. When nobody has more than one, the oldest leaves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Counter;
use tokio_util::sync::CancellationToken;

use crate::limits::address::{Address, Network, Width};

/// The places.
pub(super) struct Lobby {
    max: usize,
    lobby_shown_out_total: Counter,
    /// Nothing awaits inside.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    by_arrival: BTreeMap<u64, (Address, CancellationToken)>,
    /// By address, and then by arrival.
    by_address: BTreeSet<(Address, u64)>,
    networks: Counts<Option<Network>>,
    addresses: HashMap<Option<Network>, Counts<Address>>,
}

/// How many each has, and who has the most.
struct Counts<K> {
    of: HashMap<K, usize>,
    ranked: BTreeSet<(usize, K)>,
}

/// A place in the lobby; given back by dropping it.
pub(super) struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    /// Cancelled when its owner must leave.
    pub(super) must_leave: CancellationToken,
}

impl Lobby {
    /// One with so many places, that counts whom it shows out.
    pub(super) fn new(max: usize, lobby_shown_out_total: Counter) -> Arc<Self> {
        Arc::new(Self {
            max,
            lobby_shown_out_total,
            waiting: Mutex::default(),
        })
    }

    /// A place for whoever is at `address`. There always is one; somebody else may have to leave.
    pub(super) fn enter(self: &Arc<Self>, address: Address) -> Place {
        let mut waiting = self.waiting();
        if waiting.by_arrival.len() >= self.max
            && let Some(number) = waiting.who_leaves()
        {
            waiting.leave(number);
            self.lobby_shown_out_total.increment(1);
        }
        let (number, must_leave) = waiting.enter(address);
        Place {
            lobby: Arc::clone(self),
            number,
            must_leave,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.waiting().leave(self.number);
    }
}

impl Waiting {
    fn enter(&mut self, address: Address) -> (u64, CancellationToken) {
        let number = self.next;
        self.next += 1;
        let must_leave = CancellationToken::new();
        self.by_arrival
            .insert(number, (address, must_leave.clone()));
        self.by_address.insert((address, number));
        let network = address.within(Width::Neighbours);
        self.networks.add(network);
        self.addresses.entry(network).or_default().add(address);
        (number, must_leave)
    }

    /// Tells this one to leave, if it is still there, and forgets it.
    fn leave(&mut self, number: u64) {
        let Some((address, must_leave)) = self.by_arrival.remove(&number) else {
            return;
        };
        must_leave.cancel();
        self.by_address.remove(&(address, number));
        let network = address.within(Width::Neighbours);
        self.networks.remove(network);
        if let Some(counts) = self.addresses.get_mut(&network) {
            counts.remove(address);
            if counts.of.is_empty() {
                self.addresses.remove(&network);
            }
        }
    }

    fn who_leaves(&self) -> Option<u64> {
        let oldest = self.by_arrival.keys().next().copied();
        let (of_network, network) = self.networks.most()?;
        if of_network == 1 {
            return oldest;
        }
        let (_, address) = self.addresses.get(&network)?.most()?;
        let mut of_address = self.by_address.range((address, 0)..);
        of_address.next().map(|(_, number)| *number).or(oldest)
    }
}

impl<K: Copy + Eq + Hash + Ord> Counts<K> {
    fn add(&mut self, whose: K) {
        self.change(whose, |count| count + 1);
    }

    fn remove(&mut self, whose: K) {
        self.change(whose, |count| count.saturating_sub(1));
    }

    fn change(&mut self, whose: K, change: impl Fn(usize) -> usize) {
        let before = self.of.get(&whose).copied().unwrap_or_default();
        self.ranked.remove(&(before, whose));
        match change(before) {
            0 => drop(self.of.remove(&whose)),
            after => {
                self.of.insert(whose, after);
                self.ranked.insert((after, whose));
            }
        }
    }

    fn most(&self) -> Option<(usize, K)> {
        self.ranked.last().copied()
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self {
            of: HashMap::new(),
            ranked: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    fn lobby(max: usize) -> Arc<Lobby> {
        Lobby::new(max, Counter::noop())
    }

    #[test]
    fn of_those_with_one_place_each_the_oldest_leaves() {
        let lobby = lobby(2);
        let first = lobby.enter(of("192.0.2.1"));
        drop(lobby.enter(of("198.51.100.1")));
        let third = lobby.enter(of("203.0.113.1"));
        assert!(!first.must_leave.is_cancelled());
        let _fourth = lobby.enter(of("192.0.3.1"));
        assert!(first.must_leave.is_cancelled() && !third.must_leave.is_cancelled());
    }

    #[test]
    fn the_oldest_of_whoever_has_the_most_places_leaves() {
        let lobby = lobby(10);
        let honest = lobby.enter(of("192.0.2.1"));
        let flood: Vec<_> = (0..1_000)
            .map(|_| lobby.enter(of("198.51.100.1")))
            .collect();
        assert!(!honest.must_leave.is_cancelled());
        let has_left = |one: &Place| one.must_leave.is_cancelled();
        assert!(flood[..991].iter().all(has_left), "the oldest first");
        assert!(!flood[991..].iter().any(has_left));
        let second = lobby.enter(of("192.0.2.2"));
        assert!(flood[991].must_leave.is_cancelled());
        drop((flood, honest, second));
        let waiting = lobby.waiting();
        assert!(waiting.by_address.is_empty() && waiting.addresses.is_empty());
        assert!(waiting.networks.of.is_empty() && waiting.networks.ranked.is_empty());
    }

    #[test]
    fn many_addresses_of_one_network_are_one_flood_and_its_neighbour_stays() {
        let lobby = lobby(10);
        let stranger = lobby.enter(of("192.0.2.1"));
        let neighbour = lobby.enter(of("2001:db8:0:ffff::1"));
        let flood: Vec<_> = (0..1_000)
            .map(|n| lobby.enter(of(&format!("2001:db8:0:{:x}::1", n % 4))))
            .collect();
        assert!(!stranger.must_leave.is_cancelled() && !neighbour.must_leave.is_cancelled());
        drop(flood);
    }
    #[test]
    fn a_network_with_one_place_for_each_of_many_addresses_is_one_flood() {
        let lobby = lobby(10);
        let stranger = lobby.enter(of("192.0.2.1"));
        let flood: Vec<_> = (0..1_000)
            .map(|n| lobby.enter(of(&format!("2001:db8:0:{n:x}::1"))))
            .collect();
        assert!(!stranger.must_leave.is_cancelled());
        drop(flood);
    }
}
