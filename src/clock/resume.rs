//! How the relay's time goes on after a stop.
//!
//! The database keeps what both times were at one moment ([`Reading`]). At a start the wall clock tells
//! how long the relay was stopped, and it may be wrong. A stop of up to an hour is counted at once. A
//! longer one is *unconfirmed*: what waits is not deleted and is delivered, departures and nonces stay
//! remembered, and new things are dated as if the stop had been that long. It is counted when the wall
//! clock has not been moved for a day (`steady`), or dropped as soon as the clock is put right. A wall clock
//! that is behind the database's counts nothing.

use std::fmt;
use std::time::Duration;

use super::steady::Step;
use super::{Clock, Timestamp, whole_millis};

/// A stop of up to this is counted at once: restarts and upgrades, and no time zone is as short.
const STOP_MAX: Duration = Duration::from_secs(3_600);

/// The wall clock is behind when it is so by more than this.
const BEHIND_MIN: Duration = Duration::from_secs(60);

/// What both times were at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The relay's time.
    pub relay: Timestamp,
    /// The wall clock's time, less a stop that was not confirmed then.
    pub wall: Timestamp,
}

/// What a start found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// The relay was stopped for so long; counted.
    Counted(Duration),
    /// The wall clock is ahead of the database's last time by so much; not counted yet.
    Ahead(Duration),
    /// The wall clock is behind the database's last time by so much; nothing is counted.
    Behind(Duration),
}

impl fmt::Display for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Counted(span) | Self::Ahead(span) | Self::Behind(span)) = self;
        let sign = if matches!(self, Self::Behind(_)) {
            -1
        } else {
            1
        };
        let step = Step {
            millis: sign * whole_millis(*span),
        };
        write!(f, "{}", step.size())
    }
}

impl Resumed {
    /// What `last` and the wall clock of this start say.
    fn of(last: Reading, wall: Timestamp) -> Self {
        match wall.since(last.wall) {
            _ if last.wall.since(wall) > BEHIND_MIN => Self::Behind(last.wall.since(wall)),
            stop if stop > STOP_MAX => Self::Ahead(stop),
            stop => Self::Counted(stop),
        }
    }
}

impl Clock {
    /// Lets the relay's time go on from what the database knows. Called once, before anything asks
    /// for the time.
    pub fn resume(&self, last: Reading) -> Resumed {
        let wall = self.wall();
        let resumed = Resumed::of(last, wall);
        let counted = match resumed {
            Resumed::Counted(stop) => stop,
            Resumed::Ahead(_) | Resumed::Behind(_) => Duration::ZERO,
        };
        if let Resumed::Ahead(stop) = resumed {
            self.set_unconfirmed(stop);
        }
        let monotonic = Timestamp::default().plus(self.monotonic());
        self.set_lead(last.relay.plus(counted).less(monotonic));
        // A clock that is behind is believed when it has stood by that for a while.
        self.tell(match resumed {
            Resumed::Behind(_) => last.wall,
            _ => wall,
        });
        resumed
    }

    /// What the database is to keep.
    pub fn reading(&self) -> Reading {
        Reading {
            relay: self.now(),
            wall: self.wall().minus(self.unconfirmed()),
        }
    }

    /// The wall clock has stood by a stop for long enough: it is counted.
    pub(super) fn confirm_stop(&self) {
        self.count(self.unconfirmed(), Duration::ZERO);
    }

    /// The wall clock was moved while a stop is unconfirmed: it was as much shorter as the clock went
    /// back. It never becomes longer: what was dated meanwhile would lose time.
    pub(super) fn revise_stop(&self, step: Step) {
        let unconfirmed = self.unconfirmed();
        let Step { millis } = step;
        if unconfirmed.is_zero() || millis >= 0 {
            return;
        }
        let left = unconfirmed.saturating_sub(Duration::from_millis(millis.unsigned_abs()));
        match left > STOP_MAX {
            true => self.set_unconfirmed(left),
            false => self.count(left, Duration::ZERO),
        }
    }

    /// Counts a part of the stop.
    fn count(&self, stop: Duration, left: Duration) {
        let (monotonic, now) = (self.monotonic(), self.now());
        let monotonic = Timestamp::default().plus(monotonic);
        // In this order: nothing is dated too early in between.
        self.set_lead(now.plus(stop).less(monotonic));
        self.set_unconfirmed(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    /// The last time that a database knows: the clock had been a day behind the relay's time.
    const LAST: Reading = Reading {
        relay: Timestamp::from_millis(1_800_000_000_000 + 86_400_000),
        wall: NOW,
    };

    #[test]
    fn a_short_stop_is_counted_and_no_time_is_lost() {
        let (clock, time) = Clock::manual(NOW.plus(HOUR));
        assert_eq!(clock.resume(LAST), Resumed::Counted(HOUR));
        assert_eq!(clock.now(), LAST.relay.plus(HOUR));
        assert_eq!(clock.date(), clock.now());
        assert_eq!(clock.told_now(), NOW.plus(HOUR));
        time.advance(DAY);
        assert_eq!(clock.now(), LAST.relay.plus(HOUR + DAY));
        let reading = Reading {
            relay: LAST.relay.plus(HOUR + DAY),
            wall: NOW.plus(HOUR + DAY),
        };
        assert_eq!(clock.reading(), reading);
    }

    #[test]
    fn a_long_stop_waits_and_new_things_are_dated_after_it() {
        let (clock, _) = Clock::manual(NOW.plus(YEAR));
        assert_eq!(clock.resume(LAST), Resumed::Ahead(YEAR));
        assert_eq!(clock.now(), LAST.relay);
        assert_eq!(clock.date(), LAST.relay.plus(YEAR));
        assert_eq!(clock.told_now(), NOW.plus(YEAR));
        // Another start meanwhile finds the same.
        assert_eq!(clock.reading(), LAST);
        clock.confirm_stop();
        assert_eq!(clock.now(), LAST.relay.plus(YEAR));
        assert_eq!(clock.date(), clock.now());
        assert_eq!(clock.told_now(), NOW.plus(YEAR));
    }

    #[test]
    fn a_clock_that_is_put_right_ends_the_wait() {
        let (clock, time) = Clock::manual(NOW.plus(YEAR));
        clock.resume(LAST);
        time.step_back(YEAR - HOUR);
        clock.revise_stop(Step {
            millis: -whole_millis(YEAR - HOUR),
        });
        assert_eq!(clock.unconfirmed(), Duration::ZERO);
        assert_eq!(clock.now(), LAST.relay.plus(HOUR));
        assert_eq!(clock.told_now(), NOW.plus(HOUR));
    }

    #[test]
    fn a_step_forward_makes_no_stop_longer() {
        let (clock, time) = Clock::manual(NOW.plus(YEAR));
        clock.resume(LAST);
        time.step_forward(YEAR);
        clock.revise_stop(Step {
            millis: whole_millis(YEAR),
        });
        assert_eq!(clock.unconfirmed(), YEAR);
    }

    #[test]
    fn a_clock_that_is_behind_counts_nothing() {
        let (clock, time) = Clock::manual(NOW.minus(YEAR));
        assert_eq!(clock.resume(LAST), Resumed::Behind(YEAR));
        assert_eq!((clock.now(), clock.date()), (LAST.relay, LAST.relay));
        assert_eq!(clock.told_now(), NOW);
        time.advance(HOUR);
        time.step_forward(YEAR);
        assert_eq!(clock.now(), LAST.relay.plus(HOUR));
        assert_eq!(clock.told_now(), NOW.plus(HOUR));
    }
}
