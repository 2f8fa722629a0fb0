//! How fast: a token bucket per client.
//!
//! The bucket holds a minute's worth and refills evenly. A key is a client's mailbox name together
//! with its address, so that nobody can spend another's rate by claiming its name.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::ids::MailboxHash;

/// Clients remembered at once. An entry is 8 bytes of key, 8 of state and the map's overhead:
/// about 40 MB at the bound. A client whose bucket is full again is forgotten by [`Rate::tidy`].
pub const CLIENTS_MAX: usize = 1_000_000;

/// Buckets that newcomers share while the memory for clients is used up. Only a flood of made-up
/// clients gets there; then everyone is limited together by chance, instead of nobody at all.
const SHARED_BUCKETS: u64 = 65_536;

/// Which bucket a client draws from. A keyed hash: two clients share one with a chance of 2⁻⁶⁴.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateKey(u64);

/// The client is too fast; it may come back after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast(pub Duration);

#[derive(Debug, Clone)]
struct RateClock(Clock);

impl governor::clock::Clock for RateClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

type Limiter = RateLimiter<
    RateKey,
    DashMapStateStore<RateKey>,
    RateClock,
    governor::middleware::NoOpMiddleware<Duration>,
>;

/// One budget: so many requests a minute for each key.
#[derive(Debug)]
pub struct Rate {
    hasher: RandomState,
    clock: RateClock,
    limiter: Option<Limiter>,
    /// As of the last [`Rate::tidy`]; counting at each request would lock the whole map.
    is_full: AtomicBool,
}

impl Rate {
    /// `per_min` requests a minute, all of which may come at once; zero for no limit.
    pub fn per_minute(per_min: u32, clock: Clock) -> Self {
        let clock = RateClock(clock);
        let limiter = NonZeroU32::new(per_min).map(|per_min| {
            RateLimiter::dashmap_with_clock(Quota::per_minute(per_min), clock.clone())
        });
        Self {
            hasher: RandomState::new(),
            clock,
            limiter,
            is_full: AtomicBool::new(false),
        }
    }

    /// The bucket of this mailbox name from this address.
    pub fn key(&self, mailbox: &MailboxHash, address: IpAddr) -> RateKey {
        RateKey(self.hasher.hash_one((mailbox, address)))
    }

    /// Takes one request from the bucket, or says when there will be one.
    pub fn admit(&self, key: RateKey) -> Result<(), TooFast> {
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        let is_full = self.is_full.load(Ordering::Relaxed);
        let key = if is_full {
            RateKey(key.0 % SHARED_BUCKETS)
        } else {
            key
        };
        limiter
            .check_key(&key)
            .map_err(|not_yet| TooFast(not_yet.wait_time_from(self.clock.now())))
    }

    /// Forgets clients whose bucket is full again. Call it now and then.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
            self.is_full
                .store(limiter.len() >= CLIENTS_MAX, Ordering::Relaxed);
        }
    }

    /// Clients remembered now.
    pub fn clients(&self) -> usize {
        self.limiter.as_ref().map_or(0, RateLimiter::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_minute_s_worth_may_come_at_once_and_comes_back_evenly() {
        let (clock, time) = Clock::manual(Timestamp::from_millis(0));
        let rate = Rate::per_minute(60, clock);
        let key = rate.key(&MailboxHash::from_bytes([1; 32]), HOME);
        assert!((0..60).all(|_| rate.admit(key).is_ok()));
        let TooFast(wait) = rate.admit(key).unwrap_err();
        assert!(
            wait <= Duration::from_secs(1) && wait > Duration::ZERO,
            "{wait:?}"
        );
        time.advance(wait);
        assert_eq!(rate.admit(key), Ok(()));
        assert!(rate.admit(key).is_err());
    }

    #[test]
    fn nobody_spends_the_rate_of_a_name_from_another_address() {
        let rate = Rate::per_minute(1, Clock::system());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let stranger = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(rate.admit(rate.key(&mailbox, stranger)), Ok(()));
        assert!(rate.admit(rate.key(&mailbox, stranger)).is_err());
        assert_eq!(rate.admit(rate.key(&mailbox, HOME)), Ok(()));
    }

    #[test]
    fn quiet_clients_are_forgotten() {
        let (clock, time) = Clock::manual(Timestamp::from_millis(0));
        let rate = Rate::per_minute(60, clock);
        let key = rate.key(&MailboxHash::from_bytes([1; 32]), HOME);
        rate.admit(key).unwrap();
        assert_eq!(rate.clients(), 1);
        time.advance(Duration::from_secs(120));
        rate.tidy();
        assert_eq!(rate.clients(), 0);
    }
}
