//! Charging: takes from one budget or from several at once, all or nothing.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::nanos::Nanos;
use metrics::{Counter, Gauge};

use super::address::{Address, Width};
use super::holdings::shrunk;
use super::memory::{CLIENTS_MAX, Memory, RateKey};
use super::rate::{Rate, TooFast};
use super::table::{Budget, TABLE};
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::{Metrics, Shared, Why};

/// Every budget of the relay.
pub struct Budgets {
    hasher: RandomState,
    clock: Clock,
    /// What the limiters count their time from.
    started: Duration,
    memory: Memory,
    /// By the number of the budget.
    limited: Vec<Limited>,
    rate_limited_total: Counter,
    rate_limit_clients: Gauge,
    /// `RELAY_MAX_STORAGE_BYTES`.
    storage_bytes_max: u64,
    storage_scarce: Counter,
    /// A private address has been warned about.
    has_warned: AtomicBool,
}

/// A budget, its limiters unless they are off, and the count of its refusals.
struct Limited {
    /// By width.
    rates: [Option<Rate>; 3],
    refused: Counter,
}

/// Something that costs `amount` of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    key: RateKey,
    amount: u32,
}

/// This budget does not hold as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Which one.
    pub budget: Budget,
    /// When it will hold as much, if nothing else is taken.
    pub retry_after: Duration,
}

impl Budgets {
    /// The budgets that these settings give. Each is a series from the first scrape on.
    pub fn new(config: &Config, clock: Clock, metrics: &Metrics) -> Self {
        let memory = Memory::new(CLIENTS_MAX);
        let limited = TABLE
            .iter()
            .map(|row| {
                let holds = (row.holds)(config);
                let rate = |width| {
                    // More than 2³² KiB a day or requests a minute is as good as that.
                    let holds = holds.saturating_mul(row.wider.factor_at(width)?);
                    let holds = NonZeroU32::new(u32::try_from(holds).unwrap_or(u32::MAX))?;
                    Some(Rate::new(holds, row.period, memory.clone(), clock.clone()))
                };
                let refused = metrics.rate_limited_by(row.label);
                refused.absolute(0);
                Limited {
                    rates: Width::ALL.map(rate),
                    refused,
                }
            })
            .collect();
        Self {
            hasher: RandomState::new(),
            started: clock.monotonic(),
            clock,
            memory,
            limited,
            rate_limited_total: metrics.rate_limited_total.clone(),
            rate_limit_clients: metrics.rate_limit_clients.clone(),
            storage_bytes_max: config.storage_bytes_max,
            storage_scarce: metrics.share_refusals(Shared::Storage, Why::Scarce),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Which bucket of `budget` belongs to `whose`. For budgets of addresses there is
    /// [`Budgets::of_networks`].
    pub fn key(&self, budget: Budget, whose: impl Hash) -> RateKey {
        self.key_at(budget, Width::Address, whose)
    }

    /// What `amount` costs `address` and the networks around it.
    pub fn of_networks(&self, budget: Budget, address: Address, amount: u32) -> [Charge; 3] {
        self.of_networks_for(budget, address, (), amount)
    }

    /// What `amount` costs `address` and the networks around it, each in its bucket for `what`.
    pub fn of_networks_for(
        &self,
        budget: Budget,
        address: Address,
        what: impl Hash,
        amount: u32,
    ) -> [Charge; 3] {
        let wider = budget.row().wider;
        Width::ALL.map(|width| {
            let is_charged = wider.factor(address, width).is_some();
            let whose = (address.within(width), &what);
            self.key_at(budget, width, whose)
                .costs(if is_charged { amount } else { 0 })
        })
    }

    fn key_at(&self, budget: Budget, width: Width, whose: impl Hash) -> RateKey {
        RateKey::new(budget, width, self.hasher.hash_one((budget, width, whose)))
    }

    /// Takes all of these, or nothing: what some gave goes back when another refuses. When several do,
    /// the one that lasts longest is told, or a client that waits would only meet the next. `address` is who
    /// is counted, for the operator's hint.
    pub fn take(&self, charges: &[Charge], address: Address) -> Result<(), Spent> {
        for (place, charge) in charges.iter().enumerate() {
            if let Some(wait) = self.wait_of(charge) {
                self.give_back(&charges[..place]);
                let (charge, wait) = self.longest(&charges[place + 1..], (charge, wait));
                return Err(self.spent(charge.key.budget(), wait, address));
            }
        }
        Ok(())
    }

    /// Takes this; or nothing, and says how long it would have to wait.
    fn wait_of(&self, charge: &Charge) -> Option<Duration> {
        let TooFast(wait) = self.rate(charge)?.take(charge.key, charge.amount).err()?;
        Some(wait)
    }

    /// The one of `others` that would have to wait longer than `longest`, if there is one. Takes nothing.
    fn longest<'a>(
        &self,
        others: &'a [Charge],
        mut longest: (&'a Charge, Duration),
    ) -> (&'a Charge, Duration) {
        for other in others {
            match self.wait_of(other) {
                None => self.give_back(&[*other]),
                Some(wait) if wait > longest.1 => longest = (other, wait),
                Some(_) => {}
            }
        }
        longest
    }

    /// Takes all of these, or nothing and says how long they would have to wait; counts no refusal. For
    /// those who wait and ask again.
    pub fn take_or_wait(&self, charges: &[Charge]) -> Result<(), Duration> {
        for (place, charge) in charges.iter().enumerate() {
            if let Some(wait) = self.wait_of(charge) {
                self.give_back(&charges[..place]);
                return Err(wait);
            }
        }
        Ok(())
    }

    /// Whether this budget has a limit.
    pub fn limits(&self, budget: Budget) -> bool {
        self.limited[budget as usize].rates[0].is_some()
    }

    /// Puts back what was taken and not used.
    pub fn give_back(&self, charges: &[Charge]) {
        for charge in charges {
            if let Some(rate) = self.rate(charge) {
                rate.give_back(charge.key, charge.amount);
            }
        }
    }

    /// Forgets whom it need not remember. Call it now and then.
    pub fn tidy(&self) {
        let elapsed = self.clock.monotonic().saturating_sub(self.started);
        self.memory.tidy(Nanos::from(elapsed));
        self.rate_limit_clients.set(self.memory.clients() as f64);
    }

    /// What so many cells of the relay's storage cost `address`, while the relay holds `held` bytes. When
    /// it is nearly full, shares shrink with what is left, as in
    /// [`Holdings`](super::holdings::Holdings): whoever has stored much lately waits, and whoever has
    /// stored nothing may always begin.
    pub fn of_storage(
        &self,
        address: Address,
        cells: u32,
        held: u64,
    ) -> Result<[Charge; 3], Spent> {
        let charges = self.of_networks(Budget::AddressBytes, address, cells);
        let total = self.storage_bytes_max;
        if total > 0
            && let Some(wait) = self.scarcity(&charges, total.saturating_sub(held), total)
        {
            self.storage_scarce.increment(1);
            return Err(self.spent(Budget::AddressBytes, wait, address));
        }
        Ok(charges)
    }

    /// How long until these would fit into their shares, of which only a part is there while `left` of
    /// `total` is.
    fn scarcity(&self, charges: &[Charge], left: u64, total: u64) -> Option<Duration> {
        let waits = charges.iter().filter(|charge| charge.amount > 0);
        let waits = waits.filter_map(|charge| {
            let rate = self.rate(charge)?;
            let taken = u64::from(rate.taken(charge.key));
            let share = shrunk(rate.holds().into(), left, total);
            let whole = share == u64::from(rate.holds());
            let over = (taken + u64::from(charge.amount)).saturating_sub(share);
            (!whole && taken > 0 && over > 0).then(|| rate.refills(over.min(taken)))
        });
        waits.max()
    }

    /// Tells the operator, once, that `setting` hit a private address: behind a proxy that is not
    /// trusted all clients are one, which nobody would think of at once.
    pub fn hint_at_proxy(&self, setting: &str, address: Address) {
        if let Some(hint) = self.first_hint(setting, address) {
            tracing::warn!("{hint}");
        }
    }

    /// So many proofs of an address were checked together and not good: they are charged, as far as the
    /// budget holds. That refuses nobody, so it is not counted as a refusal.
    pub fn failed_proofs(&self, address: Address, bad: usize) {
        for one in self.of_networks(Budget::FailedProofs, address, 1) {
            if let Some(rate) = self.rate(&one) {
                let _spent = (0..bad).all(|_| rate.take(one.key, one.amount).is_ok());
            }
        }
    }

    fn first_hint(&self, setting: &str, address: Address) -> Option<String> {
        let is_first = address.is_private() && !self.has_warned.swap(true, Ordering::Relaxed);
        is_first.then(|| {
            format!(
                "{setting} was reached by a private address. If a proxy or a container network is in front of the relay, all its clients count as one: add it to RELAY_TRUSTED_PROXIES and let it send Forwarded or X-Forwarded-For. Otherwise raise {setting}. This is logged once."
            )
        })
    }

    fn rate(&self, charge: &Charge) -> Option<&Rate> {
        let rates = &self.limited[charge.key.budget() as usize].rates;
        rates[charge.key.width() as usize].as_ref()
    }

    fn spent(&self, budget: Budget, retry_after: Duration, address: Address) -> Spent {
        self.rate_limited_total.increment(1);
        self.limited[budget as usize].refused.increment(1);
        // One client's own limit says nothing about the others behind its address.
        if !matches!(budget, Budget::Client | Budget::Openings | Budget::Recovery) {
            self.hint_at_proxy(budget.row().setting, address);
        }
        Spent {
            budget,
            retry_after,
        }
    }
}

impl RateKey {
    /// As a charge of `amount`.
    pub fn costs(self, amount: u32) -> Charge {
        Charge { key: self, amount }
    }
}

impl Charge {
    /// So many of this.
    pub fn times(self, count: u32) -> Self {
        self.key.costs(self.amount.saturating_mul(count))
    }
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Budgets")
    }
}

/// A proof that is being checked. It is charged as a failed one before the check, so that a spent
/// address costs no verification; only [`ProofAttempt::succeeded`] gives that back.
#[derive(Debug)]
pub struct ProofAttempt {
    budgets: Arc<Budgets>,
    charges: [Charge; 3],
}

impl ProofAttempt {
    /// Begins a check for `address`, or refuses it unchecked.
    pub fn begin(budgets: &Arc<Budgets>, address: Address) -> Result<Self, Spent> {
        let charges = budgets.of_networks(Budget::FailedProofs, address, 1);
        budgets.take(&charges, address)?;
        Ok(Self {
            budgets: Arc::clone(budgets),
            charges,
        })
    }

    /// The proof is good.
    pub fn succeeded(self) {
        self.budgets.give_back(&self.charges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};

    fn home() -> Address {
        Address::of([192, 0, 2, 1].into())
    }

    fn budgets(change: impl FnOnce(&mut Config)) -> (Arc<Budgets>, ManualClock, Metrics) {
        let (clock, time) = Clock::manual(Timestamp::from_millis(0));
        let mut config = Config::default();
        change(&mut config);
        let metrics = Metrics::new();
        let budgets = Arc::new(Budgets::new(&config, clock, &metrics));
        (budgets, time, metrics)
    }

    #[test]
    fn several_budgets_give_all_or_nothing() {
        let (budgets, time, _) = budgets(|config| {
            config.rate_limit_per_min = 60;
            config.rate_limit_per_address_per_min = 2;
        });
        let client = budgets.key(Budget::Client, "a name").costs(30);
        let address = budgets.key(Budget::Address, home()).costs(1);
        let both = [client, address];
        assert_eq!(budgets.take(&both, home()), Ok(()));
        assert_eq!(budgets.take(&[address], home()), Ok(()));
        let spent = budgets.take(&both, home()).unwrap_err();
        assert_eq!(spent.budget, Budget::Address);
        assert_eq!(spent.retry_after, Duration::from_secs(30));
        assert_eq!(
            budgets.take(&[client], home()),
            Ok(()),
            "nothing was lost of it"
        );
        time.advance(spent.retry_after);
        assert_eq!(budgets.take(&[address], home()), Ok(()));
    }

    #[test]
    fn refusals_are_counted_in_all_and_by_budget() {
        let (budgets, _, metrics) = budgets(|config| config.recovery_rate_limit = 1);
        let charge = budgets.key(Budget::Recovery, 1).costs(1);
        budgets.take(&[charge], home()).unwrap();
        budgets.take(&[charge], home()).unwrap_err();
        let text = metrics.render();
        for series in [
            "relay_rate_limited_total 1",
            "relay_rate_limited_by_total{budget=\"recovery\"} 1",
            "relay_rate_limited_by_total{budget=\"address_bytes\"} 0",
        ] {
            assert!(text.contains(series), "{series}");
        }
    }

    #[test]
    fn a_budget_that_is_off_takes_everything_and_remembers_nobody() {
        let (budgets, _, _) = budgets(|config| config.rate_limit_per_min = 0);
        let charge = budgets.key(Budget::Client, 1).costs(u32::MAX);
        assert!((0..1_000).all(|_| budgets.take(&[charge], home()).is_ok()));
        assert_eq!(budgets.memory.clients(), 0);
    }

    #[test]
    fn quiet_clients_are_forgotten() {
        let (budgets, time, _) = budgets(|_| {});
        let charge = budgets.key(Budget::Client, 1).costs(60);
        budgets.take(&[charge], home()).unwrap();
        time.advance(Duration::from_secs(59));
        budgets.tidy();
        assert_eq!(budgets.memory.clients(), 1);
        time.advance(Duration::from_secs(1));
        budgets.tidy();
        assert_eq!(budgets.memory.clients(), 0);
    }

    #[test]
    fn good_proofs_are_free_and_bad_ones_are_not() {
        let (budgets, _, _) = budgets(|config| config.failed_proofs_per_min = 2);
        for _ in 0..100 {
            ProofAttempt::begin(&budgets, home()).unwrap().succeeded();
        }
        drop(ProofAttempt::begin(&budgets, home()).unwrap());
        drop(ProofAttempt::begin(&budgets, home()).unwrap());
        let spent = ProofAttempt::begin(&budgets, home()).unwrap_err();
        assert_eq!(spent.budget, Budget::FailedProofs);
    }

    #[test]
    fn bad_proofs_that_come_together_are_charged_together_and_refuse_nobody() {
        let (budgets, _, metrics) = budgets(|config| config.failed_proofs_per_min = 4);
        budgets.failed_proofs(home(), 3);
        ProofAttempt::begin(&budgets, home()).unwrap().succeeded();
        budgets.failed_proofs(home(), 1_000);
        assert!(metrics.render().contains("relay_rate_limited_total 0"));
        let spent = ProofAttempt::begin(&budgets, home()).unwrap_err();
        assert_eq!(spent.budget, Budget::FailedProofs);
    }

    #[test]
    fn the_hint_is_for_private_addresses_and_given_once() {
        let (budgets, _, _) = budgets(|_| {});
        let private = Address::of([10, 0, 0, 1].into());
        assert_eq!(budgets.first_hint("RELAY_A", home()), None);
        let hint = budgets.first_hint("RELAY_A", private).unwrap();
        assert!(
            hint.contains("RELAY_A") && hint.contains("RELAY_TRUSTED_PROXIES"),
            "{hint}"
        );
        assert!(!hint.contains("10.0.0.1"), "{hint}");
        assert_eq!(budgets.first_hint("RELAY_A", private), None);
    }
}
