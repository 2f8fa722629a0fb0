//! How fast: one budget's buckets, which refill evenly.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore as _;
use governor::{Quota, RateLimiter};

use super::memory::{Memory, RateKey};
use crate::clock::Clock;

/// The bucket does not hold as much; it will after this time, in whole milliseconds rounded up: clients
/// are told in those, and a client that waits as long as it was told must be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFast(pub(super) Duration);

/// The relay's clock as governor wants it.
#[derive(Debug, Clone)]
struct RateClock(Clock);

impl governor::clock::Clock for RateClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

/// So much per period for each key. A bucket holds what one period gives, and refills evenly.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: RateLimiter<RateKey, Memory, RateClock, NoOpMiddleware<Duration>>,
    memory: Memory,
    clock: RateClock,
    holds: NonZeroU32,
    one_per: Duration,
    /// What the limiter counts its time from.
    started: Duration,
}

impl Rate {
    /// Buckets that hold `holds` and refill within `period`.
    pub(super) fn new(holds: NonZeroU32, period: Duration, memory: Memory, clock: Clock) -> Self {
        let clock = RateClock(clock);
        let started = clock.now();
        // A minute through the largest number is 13 ns; only a period of zero would not do.
        let one_per = (period / holds.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(one_per)
            .unwrap_or_else(|| Quota::per_minute(holds))
            .allow_burst(holds);
        Self {
            limiter: RateLimiter::new(quota, memory.clone(), clock.clone()),
            memory,
            clock,
            holds,
            one_per,
            started,
        }
    }

    /// Takes `cost` from the bucket, or nothing and says when there will be as much. What is more
    /// than a whole bucket costs a whole bucket: a small budget makes nothing impossible, only rare.
    pub(super) fn take(&self, key: RateKey, cost: u32) -> Result<(), TooFast> {
        let Some(cost) = NonZeroU32::new(cost.min(self.holds.get())) else {
            return Ok(());
        };
        match self.limiter.check_key_n(&key, cost) {
            Ok(taken) => {
                taken.map_err(|not_yet| TooFast(whole(not_yet.wait_time_from(self.clock.now()))))
            }
            // Cut to what the bucket holds above.
            Err(_) => Ok(()),
        }
    }

    /// What a bucket holds.
    pub(super) fn holds(&self) -> u32 {
        self.holds.get()
    }

    /// How much of a bucket is taken.
    pub(super) fn taken(&self, key: RateKey) -> u32 {
        let now = Nanos::from(self.clock.now().saturating_sub(self.started));
        let Some(state) = self.memory.state(&key) else {
            return 0;
        };
        let taken = u64::from(state).saturating_sub(u64::from(now));
        let one_per = u64::try_from(self.one_per.as_nanos()).unwrap_or(u64::MAX);
        u32::try_from(taken.div_ceil(one_per.max(1))).unwrap_or(u32::MAX)
    }

    /// The time in which so much comes back.
    pub(super) fn refills(&self, amount: u64) -> Duration {
        whole(self.one_per * u32::try_from(amount).unwrap_or(u32::MAX))
    }

    /// Puts back what was taken.
    pub(super) fn give_back(&self, key: RateKey, cost: u32) {
        let back = Nanos::from(self.one_per * cost.min(self.holds.get()));
        let returned: Result<(), ()> = self.memory.measure_and_replace(&key, |state| match state {
            Some(state) => Ok(((), state.saturating_sub(back))),
            // Forgotten in between, because it is full.
            None => Err(()),
        });
        returned.ok();
    }
}

/// The next whole millisecond.
fn whole(wait: Duration) -> Duration {
    let over = wait.subsec_nanos() % 1_000_000;
    match over {
        0 => wait,
        over => wait + Duration::from_nanos(u64::from(1_000_000 - over)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::limits::address::Width;
    use crate::limits::table::Budget;

    const MINUTE: Duration = Duration::from_secs(60);

    fn rate(holds: u32, period: Duration) -> (Rate, ManualClock, RateKey) {
        let (clock, time) = Clock::manual(Timestamp::from_millis(1_000));
        let holds = NonZeroU32::new(holds).unwrap();
        let rate = Rate::new(holds, period, Memory::new(10), clock);
        (rate, time, RateKey::new(Budget::Client, Width::Address, 1))
    }

    #[test]
    fn a_period_s_worth_may_come_at_once_and_comes_back_evenly() {
        let (rate, time, key) = rate(60, MINUTE);
        assert!((0..60).all(|_| rate.take(key, 1).is_ok()));
        assert_eq!(rate.take(key, 1), Err(TooFast(Duration::from_secs(1))));
        assert_eq!(rate.take(key, 5), Err(TooFast(Duration::from_secs(5))));
        time.advance(Duration::from_secs(1));
        assert_eq!(rate.take(key, 1), Ok(()));
        assert!(rate.take(key, 1).is_err());
    }

    #[test]
    fn what_is_more_than_the_bucket_costs_the_whole_bucket() {
        let (rate, time, key) = rate(10, MINUTE);
        assert_eq!(rate.take(key, 1_000_000), Ok(()));
        assert_eq!(rate.take(key, u32::MAX), Err(TooFast(MINUTE)));
        time.advance(MINUTE);
        assert_eq!(rate.take(key, u32::MAX), Ok(()));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_not_more() {
        let (rate, time, key) = rate(10, MINUTE);
        rate.take(key, 10).unwrap();
        rate.give_back(key, 4);
        assert_eq!(rate.take(key, 4), Ok(()));
        assert!(rate.take(key, 1).is_err());
        rate.give_back(key, 10);
        time.advance(MINUTE);
        rate.give_back(key, 10);
        assert_eq!(rate.take(key, 10), Ok(()));
        assert!(rate.take(key, 1).is_err());
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let (rate, time, key) = rate(u32::MAX, Duration::from_secs(86_400));
        assert_eq!(rate.take(key, u32::MAX), Ok(()));
        assert!(rate.take(key, u32::MAX).is_err());
        time.advance(Duration::from_secs(10 * 365 * 86_400));
        assert_eq!(rate.take(key, u32::MAX), Ok(()));
        rate.give_back(key, u32::MAX);
    }
}
