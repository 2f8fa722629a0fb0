//! How many sessions at once, in all and per address, and how many new ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::address::{Address, Width};
use super::budgets::{Budgets, Spent};
use super::holdings::{Denied, Holdings};
use super::table::Budget;
use crate::config::Config;
use crate::metrics::{Metrics, Shared};

/// Permits for sessions.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Nothing awaits inside.
    open: Arc<Mutex<Holdings>>,
    budgets: Arc<Budgets>,
    metrics: Arc<Metrics>,
}

/// The right to one session; given back by dropping it.
#[derive(Debug)]
pub struct ConnectionPermit {
    open: Arc<Mutex<Holdings>>,
    address: Address,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// The relay has as many as it may (`RELAY_MAX_CONNECTIONS`).
    FullHouse,
    /// The address has as many as it may (`RELAY_MAX_CONNECTIONS_PER_ADDRESS`).
    AddressFull,
    /// The networks around the address have as many as they may together.
    NetworkFull,
    /// The relay is nearly full, and this address or its network holds more than others.
    NearlyFull,
    /// The address begins too many (`RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN`); it may come back
    /// after this time.
    TooMany(Duration),
}

impl From<Denied> for TurnedAway {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Empty => Self::FullHouse,
            Denied::Share(Width::Address) => Self::AddressFull,
            Denied::Share(_) => Self::NetworkFull,
            Denied::Scarce => Self::NearlyFull,
        }
    }
}

impl Connections {
    /// As many as the settings say; zero for no limit.
    pub fn new(config: &Config, budgets: Arc<Budgets>, metrics: Arc<Metrics>) -> Self {
        let total = u64::from(config.connections_max);
        let per_address = u64::from(config.connections_per_address_max);
        Self {
            open: Arc::new(Mutex::new(Holdings::new(total, per_address))),
            budgets,
            metrics,
        }
    }

    /// A permit for a session of `address`. Only one that finds room is charged as a new one.
    pub fn admit(&self, address: Address) -> Result<ConnectionPermit, TurnedAway> {
        let taken = open(&self.open).take(address, 1);
        taken.map_err(|denied| self.turned_away(denied, address))?;
        let permit = ConnectionPermit {
            open: Arc::clone(&self.open),
            address,
        };
        let new = self.budgets.of_networks(Budget::Connections, address, 1);
        self.budgets
            .take(&new, address)
            .map_err(|Spent { retry_after, .. }| TurnedAway::TooMany(retry_after))?;
        Ok(permit)
    }

    fn turned_away(&self, denied: Denied, address: Address) -> TurnedAway {
        let refusals = self
            .metrics
            .share_refusals(Shared::Connections, denied.why());
        refusals.increment(1);
        if denied == Denied::Share(Width::Address) {
            self.budgets
                .hint_at_proxy("RELAY_MAX_CONNECTIONS_PER_ADDRESS", address);
        }
        denied.into()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        open(&self.open).give_back(self.address, 1);
    }
}

fn open(holdings: &Mutex<Holdings>) -> MutexGuard<'_, Holdings> {
    holdings.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn connections(in_all: u32, per_address: u32, per_min: u32) -> Connections {
        let config = Config {
            connections_max: in_all,
            connections_per_address_max: per_address,
            connections_per_address_per_min: per_min,
            ..Config::default()
        };
        let metrics = Arc::new(Metrics::new());
        let budgets = Budgets::new(&config, Clock::system(), &metrics);
        Connections::new(&config, Arc::new(budgets), metrics)
    }

    /// One of another network each.
    fn address(network: u8) -> Address {
        Address::of([192, 0, network, 1].into())
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
        assert!(open(&connections.open).held() == 0);
    }

    #[test]
    fn neighbours_share_four_times_what_an_address_has() {
        let connections = connections(100, 2, 0);
        let neighbour = |last| Address::of([192, 0, 2, last].into());
        let permits: Vec<_> = (1..=4)
            .flat_map(|last| [last, last])
            .map(|last| connections.admit(neighbour(last)).unwrap())
            .collect();
        let neighbour = connections.admit(neighbour(5)).unwrap_err();
        assert_eq!(neighbour, TurnedAway::NetworkFull);
        let _stranger = connections
            .admit(Address::of([192, 0, 3, 1].into()))
            .unwrap();
        let text = connections.metrics.render();
        let series = "relay_share_refusals_total{of=\"connections\",why=\"network\"} 1";
        assert!(text.contains(series), "{text}");
        drop(permits);
    }

    #[test]
    fn one_turned_away_for_its_haste_holds_no_slot() {
        let connections = connections(4, 2, 1);
        drop(connections.admit(address(1)).unwrap());
        for _ in 0..10 {
            let hasty = connections.admit(address(1)).unwrap_err();
            assert!(matches!(hasty, TurnedAway::TooMany(_)), "{hasty:?}");
        }
        assert!(open(&connections.open).held() == 0);
    }
}
