//! Who holds how much of something of which there is only so much: connections, memory.
//!
//! Each address has a share, and so have the wider networks around it, so that a customer with many
//! addresses is still one customer. When three quarters are taken, the shares shrink with what is left:
//! the rest goes to those who hold little, and the last of it to those who hold nothing.

use std::collections::HashMap;

use super::address::{Address, Network, Width};
use crate::metrics::Why;

/// With less than this part left, shares shrink.
const SCARCE_BELOW: u64 = 4;

/// Of all that networks wider than an address may hold: one part in this.
const WIDE_AT_MOST: u64 = 2;

/// What is held, in all and by each network. Networks that hold nothing are not in the map.
#[derive(Debug)]
pub struct Holdings {
    total: Option<u64>,
    per_address: Option<u64>,
    held: u64,
    by_network: HashMap<Network, u64>,
}

/// Why somebody may not have more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is not as much left.
    Empty,
    /// The network of this width holds its share.
    Share(Width),
    /// It would be within the share, but little is left, and others hold less.
    Scarce,
}

impl Denied {
    /// The word for it in `relay_share_refusals_total`.
    pub fn why(self) -> Why {
        match self {
            Self::Empty => Why::Full,
            Self::Share(Width::Address) => Why::Address,
            Self::Share(_) => Why::Network,
            Self::Scarce => Why::Scarce,
        }
    }
}

impl Holdings {
    /// Of `total`, one address may hold `per_address`. Zero is without a bound.
    pub fn new(total: u64, per_address: u64) -> Self {
        Self {
            total: (total > 0).then_some(total),
            per_address: (per_address > 0).then_some(per_address),
            held: 0,
            by_network: HashMap::new(),
        }
    }

    /// Takes `amount` for `address`, or nothing and says why.
    pub fn take(&mut self, address: Address, amount: u64) -> Result<(), Denied> {
        if self.left().is_some_and(|left| left < amount) {
            return Err(Denied::Empty);
        }
        for network in address.networks() {
            self.may_take(network, amount)?;
        }
        self.take_over(address, amount);
        Ok(())
    }

    /// Takes `amount` for `address` over every bound.
    pub fn take_over(&mut self, address: Address, amount: u64) {
        self.held += amount;
        if self.per_address.is_some() {
            for network in address.networks() {
                *self.by_network.entry(network).or_default() += amount;
            }
        }
    }

    /// Puts back what was taken.
    pub fn give_back(&mut self, address: Address, amount: u64) {
        self.held -= amount;
        if self.per_address.is_none() {
            return;
        }
        for network in address.networks() {
            if let Some(held) = self.by_network.get_mut(&network) {
                *held -= amount;
                if *held == 0 {
                    self.by_network.remove(&network);
                }
            }
        }
    }

    /// What is held in all.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// How much is left; `None` without a bound.
    fn left(&self) -> Option<u64> {
        self.total.map(|total| total.saturating_sub(self.held))
    }

    fn may_take(&self, network: Network, amount: u64) -> Result<(), Denied> {
        let Some(share) = self.share(network.width()) else {
            return Ok(());
        };
        let held = self.by_network.get(&network).copied().unwrap_or_default();
        // A first piece is for everybody, however small the share.
        if held == 0 {
            return Ok(());
        }
        if held + amount > share {
            return Err(Denied::Share(network.width()));
        }
        match held + amount > self.shrunk(share) {
            true => Err(Denied::Scarce),
            false => Ok(()),
        }
    }

    /// What a network of this width may hold. An operator who gives one address all that there is wants
    /// no shares at all.
    fn share(&self, width: Width) -> Option<u64> {
        let share = self.per_address?;
        let Some(total) = self.total else {
            return Some(share.saturating_mul(width.factor()));
        };
        let wide = share
            .saturating_mul(width.factor())
            .min(total / WIDE_AT_MOST);
        (share < total).then_some(wide.max(share))
    }

    /// A share by what is left: all of it down to a quarter, and then in proportion.
    fn shrunk(&self, share: u64) -> u64 {
        match (self.total, self.left()) {
            (Some(total), Some(left)) => shrunk(share, left, total),
            _ => share,
        }
    }
}

/// `share` of something of which `left` of `total` is left: all of it down to a quarter, and then in
/// proportion.
pub fn shrunk(share: u64, left: u64, total: u64) -> u64 {
    let (share, left) = (u128::from(share), u128::from(left));
    let scaled = share * left * u128::from(SCARCE_BELOW) / u128::from(total.max(1));
    u64::try_from(scaled.min(share)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    /// How many of one each `addresses` get, taking turns, until none gets any more.
    fn taken_by(holdings: &mut Holdings, addresses: &[Address]) -> u64 {
        let before = holdings.held();
        loop {
            let took = addresses
                .iter()
                .filter(|address| holdings.take(**address, 1).is_ok())
                .count();
            if took == 0 {
                return holdings.held() - before;
            }
        }
    }

    #[test]
    fn a_customer_with_many_addresses_is_one_customer() {
        // The defaults for connections.
        let mut holdings = Holdings::new(1_000, 100);
        let of_56: Vec<_> = (0..25)
            .map(|n| of(&format!("2001:db8:0:{n:x}::1")))
            .collect();
        assert_eq!(taken_by(&mut holdings, &of_56[..1]), 100);
        assert_eq!(taken_by(&mut holdings, &of_56), 100, "200 of a /56");
        let of_48: Vec<_> = (1..200)
            .map(|n| of(&format!("2001:db8:0:{n:x}00::1")))
            .collect();
        assert_eq!(taken_by(&mut holdings, &of_48), 200, "400 of a /48");
        let of_24: Vec<_> = (0..200).map(|n| of(&format!("192.0.2.{n}"))).collect();
        // 600 are left; the last 250 only while others do not hold less.
        let taken = taken_by(&mut holdings, &of_24);
        assert!((350..=400).contains(&taken), "{taken}");
        let denied = holdings.take(of("192.0.2.1"), 1).unwrap_err();
        assert!(
            matches!(denied, Denied::Share(_) | Denied::Scarce),
            "{denied:?}"
        );
    }

    #[test]
    fn the_last_of_it_goes_to_those_who_hold_nothing() {
        let mut holdings = Holdings::new(1_000, 100);
        // 50 networks that have nothing to do with each other take all that they can get.
        let crowd: Vec<_> = (0..50).map(|n| of(&format!("192.0.{n}.1"))).collect();
        let taken = taken_by(&mut holdings, &crowd);
        assert!((900..1_000).contains(&taken), "{taken}");
        assert_eq!(holdings.take(crowd[0], 1), Err(Denied::Scarce));
        let left = 1_000 - taken;
        for stranger in 0..left {
            let stranger = of(&format!("198.51.{stranger}.1"));
            assert_eq!(holdings.take(stranger, 1), Ok(()));
        }
        assert_eq!(holdings.take(of("203.0.113.1"), 1), Err(Denied::Empty));
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let mut holdings = Holdings::new(10, 4);
        let home = of("2001:db8::1");
        holdings.take(home, 4).unwrap();
        assert_eq!(holdings.take(home, 1), Err(Denied::Share(Width::Address)));
        holdings.give_back(home, 1);
        holdings.take(home, 1).unwrap();
        holdings.give_back(home, 4);
        assert!(holdings.by_network.is_empty());
        assert_eq!(holdings.held(), 0);
    }

    #[test]
    fn an_address_that_may_have_all_and_a_whole_without_bound_know_no_scarcity() {
        let mut all = Holdings::new(10, 10);
        let home = of("192.0.2.1");
        assert_eq!(taken_by(&mut all, &[home]), 10);
        assert_eq!(all.take(home, 1), Err(Denied::Empty));
        let mut endless = Holdings::new(0, 3);
        assert_eq!(taken_by(&mut endless, &[home]), 3);
        let mut unshared = Holdings::new(10, 0);
        assert_eq!(taken_by(&mut unshared, &[home]), 10);
    }
}
