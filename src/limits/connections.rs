//! How many sessions at once, in all and per address, and how many new ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::address::Address;
use super::budgets::{Budgets, Spent};
use super::table::Budget;
use crate::config::Config;

/// Permits for sessions.
#[derive(Debug, Clone)]
pub struct Connections {
    house: Arc<Semaphore>,
    /// Absent without a limit per address.
    slots: Option<Arc<Slots>>,
    budgets: Arc<Budgets>,
}

/// The right to one session; given back by dropping it.
#[derive(Debug)]
pub struct ConnectionPermit {
    #[expect(dead_code, reason = "held for its drop")]
    house: OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held for its drop")]
    slot: Option<Slot>,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// The relay has as many as it may (`RELAY_MAX_CONNECTIONS`).
    FullHouse,
    /// The address has as many as it may (`RELAY_MAX_CONNECTIONS_PER_ADDRESS`).
    AddressFull,
    /// The address begins too many (`RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN`); it may come back
    /// after this time.
    TooMany(Duration),
}

impl Connections {
    /// As many as the settings say; zero for no limit.
    pub fn new(config: &Config, budgets: Arc<Budgets>) -> Self {
        let permits = match config.connections_max {
            0 => Semaphore::MAX_PERMITS,
            max => max as usize,
        };
        let max = config.connections_per_address_max;
        Self {
            house: Arc::new(Semaphore::new(permits)),
            slots: (max > 0).then(|| Arc::new(Slots::new(max))),
            budgets,
        }
    }

    /// A permit for a session of `address`. Only one that finds room is charged as a new one.
    pub fn admit(&self, address: Address) -> Result<ConnectionPermit, TurnedAway> {
        let house = Arc::clone(&self.house)
            .try_acquire_owned()
            .map_err(|_| TurnedAway::FullHouse)?;
        let slot = match &self.slots {
            Some(slots) => Some(slots.take(address).ok_or_else(|| {
                self.budgets
                    .hint_at_proxy("RELAY_MAX_CONNECTIONS_PER_ADDRESS", address);
                TurnedAway::AddressFull
            })?),
            None => None,
        };
        let new = self.budgets.key(Budget::Connections, address).costs(1);
        self.budgets
            .take(&[new], address)
            .map_err(|Spent { retry_after, .. }| TurnedAway::TooMany(retry_after))?;
        Ok(ConnectionPermit { house, slot })
    }
}

/// Sessions by address. Addresses without one are not in the map, so it is as small as the house.
#[derive(Debug)]
struct Slots {
    max: u32,
    /// Nothing awaits inside.
    taken: Mutex<HashMap<Address, u32>>,
}

/// One of an address's slots; given back by dropping it.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    address: Address,
}

impl Slots {
    fn new(max: u32) -> Self {
        Self {
            max,
            taken: Mutex::default(),
        }
    }

    fn take(self: &Arc<Self>, address: Address) -> Option<Slot> {
        let mut taken = self.taken();
        let of_address = taken.get(&address).copied().unwrap_or_default();
        if of_address >= self.max {
            return None;
        }
        taken.insert(address, of_address + 1);
        Some(Slot {
            slots: Arc::clone(self),
            address,
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Address, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        match taken.get_mut(&self.address) {
            Some(of_address) if *of_address > 1 => *of_address -= 1,
            _ => drop(taken.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    fn connections(in_all: u32, per_address: u32, per_min: u32) -> Connections {
        let config = Config {
            connections_max: in_all,
            connections_per_address_max: per_address,
            connections_per_address_per_min: per_min,
            ..Config::default()
        };
        let budgets = Budgets::new(&config, Clock::system(), &Metrics::new());
        Connections::new(&config, Arc::new(budgets))
    }

    fn address(last: u8) -> Address {
        Address::of([192, 0, 2, last].into())
    }

    #[test]
    fn one_address_can_not_take_the_house_and_gives_its_slots_back() {
        let connections = connections(4, 2, 0);
        let first = connections.admit(address(1)).unwrap();
        let _second = connections.admit(address(1)).unwrap();
        let third = connections.admit(address(1)).unwrap_err();
        assert_eq!(third, TurnedAway::AddressFull);
        let _stranger = connections.admit(address(2)).unwrap();
        drop(first);
        let _again = connections.admit(address(1)).unwrap();
        let _last = connections.admit(address(3)).unwrap();
        let full = connections.admit(address(4)).unwrap_err();
        assert_eq!(full, TurnedAway::FullHouse);
    }

    #[test]
    fn an_address_without_sessions_is_forgotten() {
        let connections = connections(4, 2, 0);
        drop((
            connections.admit(address(1)).unwrap(),
            connections.admit(address(1)).unwrap(),
        ));
        assert!(connections.slots.unwrap().taken().is_empty());
    }

    #[test]
    fn one_turned_away_for_its_haste_holds_no_slot() {
        let connections = connections(4, 2, 1);
        drop(connections.admit(address(1)).unwrap());
        for _ in 0..10 {
            let hasty = connections.admit(address(1)).unwrap_err();
            assert!(matches!(hasty, TurnedAway::TooMany(_)), "{hasty:?}");
        }
        assert!(connections.slots.unwrap().taken().is_empty());
        assert_eq!(connections.house.available_permits(), 4);
    }
}
