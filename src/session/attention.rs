//! How much of its time the relay gives a connection for frames that nothing is charged for.
//!
//! Requests are charged when they are served (`service::charge`), and acknowledging what was delivered
//! is free. Everything else that a client may send costs it nothing there: a request that is refused
//! because its rate is spent, a ping, an acknowledgement of nothing. To read these takes time all the
//! same. So each frame is paid before it is decoded, one unit and one for each KiB, and gets its units
//! back when it was charged for or was of use. A connection whose frames are not is read slowly after a
//! while, and closed when that goes on. The connections of an address share what it has.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Parts;

/// Units that a connection may spend at once: 10,000 refused requests, or refused frames of 10 MiB.
const AT_ONCE: f64 = 10_000.0;

/// Units a second that a connection may go on spending; so a ping each second, or a hundred, is fine.
const PER_SECOND: f64 = 100.0;

/// Units that a connection takes from its address's budget at a time, so that it is seldom asked.
const LEASE: u32 = 64;

/// The address's budget is asked again after this time at the soonest, and at the latest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Less than this is no pause.
const WAITED_MIN: Duration = Duration::from_millis(5);

/// A connection that was read without a pause for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// What a frame of so many bytes costs to read.
pub(super) fn price(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / 1_024).unwrap_or(u32::MAX)
}

/// The connection has been read slowly for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

/// What a connection has spent.
pub(super) struct Attention {
    parts: Arc<Parts>,
    address: IpAddr,
    /// Without a limit on requests there is none here.
    is_limited: bool,
    /// Units taken from the address's budget and not spent.
    lease: u32,
    spent: Spent,
}

/// The connection's own bucket, in plain values.
#[derive(Debug)]
struct Spent {
    units: f64,
    at: Instant,
    /// How long it was made to wait, and when that ended.
    slow: Duration,
    slow_until: Instant,
}

impl Attention {
    pub(super) fn new(parts: &Arc<Parts>, address: IpAddr) -> Self {
        Self {
            parts: Arc::clone(parts),
            address,
            is_limited: parts.service.limits_reading(),
            lease: 0,
            spent: Spent::new(Instant::now()),
        }
    }

    /// Pays for a frame that is about to be decoded. Waits when the connection or its address has spent
    /// too much.
    pub(super) async fn pay(&mut self, units: u32) -> Result<(), Exhausted> {
        if !self.is_limited {
            return Ok(());
        }
        let pause = self.spent.pay(units, Instant::now());
        let is_leased = self.lease >= units;
        if is_leased && pause.is_zero() {
            self.lease -= units;
            return Ok(());
        }
        // Boxed, because it is rare.
        Box::pin(self.pause(units, pause)).await
    }

    async fn pause(&mut self, units: u32, pause: Duration) -> Result<(), Exhausted> {
        let began = Instant::now();
        let slow_max = self.parts.settings.slow_reading_max;
        let left = slow_max.saturating_sub(self.spent.slow);
        let mut is_slow = !pause.is_zero();
        if is_slow {
            tokio::time::sleep(pause.min(left)).await;
        }
        is_slow |= self.lease_more(units, began + left).await;
        let waited = began.elapsed();
        // A busy machine takes its time as well, which is nobody's fault.
        if is_slow && waited >= WAITED_MIN {
            self.parts.metrics.slow_reading_total.increment(1);
            self.spent.paused(waited, Instant::now());
        }
        if self.spent.slow >= slow_max {
            self.parts.metrics.floods_closed_total.increment(1);
            return Err(Exhausted);
        }
        self.lease = self.lease.saturating_sub(units);
        Ok(())
    }

    /// Has so many units from the address's budget, or gives up at that time. Tells whether it had to wait.
    async fn lease_more(&mut self, units: u32, until: Instant) -> bool {
        let mut has_waited = false;
        while self.lease < units {
            let more = LEASE.max(units - self.lease);
            let service = &self.parts.service;
            match service.lease_reading(self.address, more, !has_waited) {
                Ok(()) => self.lease += more,
                Err(_) if Instant::now() >= until => break,
                Err(wait) => {
                    has_waited = true;
                    tokio::time::sleep(wait.clamp(ASK_AGAIN.0, ASK_AGAIN.1)).await;
                }
            }
        }
        has_waited
    }

    /// A frame for which `units` were paid was worth so many of them.
    pub(super) fn earned(&mut self, units: u32) {
        if !self.is_limited {
            return;
        }
        self.spent.earned(units);
        self.lease = self.lease.saturating_add(units);
        if self.lease > 4 * LEASE {
            let over = self.lease - LEASE;
            self.parts.service.return_reading(self.address, over);
            self.lease = LEASE;
        }
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        if self.is_limited && self.lease > 0 {
            self.parts.service.return_reading(self.address, self.lease);
        }
    }
}

impl Spent {
    fn new(now: Instant) -> Self {
        Self {
            units: 0.0,
            at: now,
            slow: Duration::ZERO,
            slow_until: now,
        }
    }

    /// How long to wait before this frame.
    fn pay(&mut self, units: u32, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.units = (self.units - elapsed * PER_SECOND).max(0.0) + f64::from(units);
        self.at = now;
        if now.saturating_duration_since(self.slow_until) >= FORGIVEN_AFTER {
            self.slow = Duration::ZERO;
        }
        Duration::from_secs_f64((self.units - AT_ONCE).max(0.0) / PER_SECOND)
    }

    fn earned(&mut self, units: u32) {
        self.units = (self.units - f64::from(units)).max(0.0);
    }

    fn paused(&mut self, waited: Duration, now: Instant) {
        self.slow += waited;
        self.slow_until = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_costs_one_and_one_for_each_kib() {
        assert_eq!((price(0), price(1_023), price(1_024)), (1, 1, 2));
        assert_eq!(price(200 << 10), 201);
    }

    #[test]
    fn what_is_of_use_is_never_waited_for() {
        let now = Instant::now();
        let mut spent = Spent::new(now);
        for _ in 0..1_000_000 {
            assert_eq!(spent.pay(1, now), Duration::ZERO);
            spent.earned(1);
        }
    }

    #[test]
    fn a_hundred_pings_a_second_are_never_waited_for() {
        let mut now = Instant::now();
        let mut spent = Spent::new(now);
        for _ in 0..1_000_000 {
            now += Duration::from_millis(10);
            assert_eq!(spent.pay(1, now), Duration::ZERO);
        }
    }

    #[test]
    fn a_flood_is_read_slowly_and_the_pauses_add_up_until_it_has_stopped_for_a_minute() {
        let mut now = Instant::now();
        let mut spent = Spent::new(now);
        for _ in 0..10_000 {
            assert_eq!(spent.pay(1, now), Duration::ZERO);
        }
        for _ in 0..100 {
            let pause = spent.pay(1, now);
            assert!(pause >= Duration::from_millis(9), "{pause:?}");
            now += pause;
            spent.paused(pause, now);
        }
        assert!(spent.slow >= Duration::from_millis(990), "{:?}", spent.slow);
        now += FORGIVEN_AFTER;
        assert_eq!(spent.pay(1, now), Duration::ZERO);
        assert_eq!(spent.slow, Duration::ZERO);
    }
}
