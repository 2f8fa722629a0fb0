//! When to ping, and when to give a silent client up. Pure: the time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// The rhythm of one session.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    interval: Duration,
    idle: Duration,
    next_ping: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this moment.
    At(Instant),
    /// Send a ping now.
    Ping,
    /// The client has been silent for too long.
    Silent,
}

impl Keepalive {
    /// Pings each `interval`, stretched or shortened by up to a tenth (`jitter` from 0 to 1), so
    /// that ten thousand clients that reconnected together are not pinged together. A client that
    /// is silent for `idle` is given up; zero for never.
    pub fn new(interval: Duration, idle: Duration, jitter: f64, now: Instant) -> Self {
        let interval = interval.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0));
        Self {
            interval,
            idle,
            next_ping: now + interval,
        }
    }

    /// What is due at `now` for a client that was last heard at `heard`.
    pub fn due(&self, now: Instant, heard: Instant) -> Due {
        let silent_at = (!self.idle.is_zero()).then(|| heard + self.idle);
        if silent_at.is_some_and(|at| now >= at) {
            return Due::Silent;
        }
        if now >= self.next_ping {
            return Due::Ping;
        }
        Due::At(silent_at.map_or(self.next_ping, |at| at.min(self.next_ping)))
    }

    /// A ping was sent at `now`.
    pub fn pinged(&mut self, now: Instant) {
        self.next_ping = now + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Duration = Duration::from_secs(30);
    const IDLE: Duration = Duration::from_secs(300);

    #[test]
    fn pings_come_at_the_interval_and_silence_ends_the_session() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PING, IDLE, 0.5, start);
        assert_eq!(keepalive.due(start, start), Due::At(start + PING));
        assert_eq!(keepalive.due(start + PING, start), Due::Ping);
        keepalive.pinged(start + PING);
        assert_eq!(
            keepalive.due(start + PING, start),
            Due::At(start + 2 * PING)
        );
        assert_eq!(keepalive.due(start + IDLE, start), Due::Silent);
        assert_eq!(
            keepalive.due(start + IDLE, start + PING),
            Due::Ping,
            "it was heard in between"
        );
    }

    #[test]
    fn an_idle_time_of_zero_never_ends_a_session() {
        let start = Instant::now();
        let keepalive = Keepalive::new(PING, Duration::ZERO, 0.5, start);
        assert_eq!(keepalive.due(start + IDLE * 100, start), Due::Ping);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let start = Instant::now();
        for (jitter, secs) in [(0.0, 27), (1.0, 33), (7.0, 33)] {
            let keepalive = Keepalive::new(PING, IDLE, jitter, start);
            assert_eq!(
                keepalive.due(start, start),
                Due::At(start + Duration::from_secs(secs))
            );
        }
    }
}
