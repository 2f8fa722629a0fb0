//! Watches the wall clock, and says whether things may be deleted for good.
//!
//! The wall clock of a machine may be wrong at its start, and may be set while the relay runs. It then
//! moves against the monotonic clock: a *step*. No step changes a lifetime, because these go by the
//! relay's time. What a step decides is what time clients are told. One of up to a minute is followed
//! at once. A larger one is followed after the clocks have agreed for [`STEADY_AFTER`]; until then
//! clients are told the time as it was going on.
//!
//! What is deleted does not come back. So nothing is deleted either until the clocks have agreed for as
//! long, and a stop that only the wall clock tells of ([`super::resume`]) is counted only when they have
//! agreed for a day.
//!
//! [`Steadiness`] is the rule, on plain values; [`SteadyClock`] asks a real clock.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Clock, Timestamp, lead_millis, whole_millis};

/// How long the clocks must have agreed, since the start or since the last step.
pub const STEADY_AFTER: Duration = Duration::from_secs(600);

/// How long the clocks must have agreed before a long stop is counted that only the wall clock tells of: a
/// day, in which a person can see the warning.
pub const GRACE: Duration = Duration::from_secs(86_400);

/// What is no more than this is no step: leap seconds, and small corrections.
const STEP_MIN_MILLIS: i64 = 5_000;

/// A step of no more than this changes at once what clients are told.
const FOLLOWED_MAX_MILLIS: u64 = 60_000;

/// The clocks may drift apart by 1 ms in a second: twice what a time service slews (500 ppm).
const DRIFT_MAX_DIVISOR: i64 = 1_000;

/// How often drift is taken in; more often it would be rounded to nothing.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// The wall clock has moved against the monotonic one, forward when positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// By so many milliseconds.
    pub millis: i64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.millis {
            ..0 => "back",
            _ => "forward",
        };
        write!(f, "{} {direction}", self.size())
    }
}

impl Step {
    /// How far, in words.
    pub(super) fn size(self) -> String {
        let secs = self.millis.unsigned_abs() / 1_000;
        match secs {
            ..120 => format!("{secs} s"),
            120..7_200 => format!("{} min", secs / 60),
            7_200..172_800 => format!("{} h", secs / 3_600),
            _ => format!("{} days", secs / 86_400),
        }
    }
}

/// Compares what the two clocks say.
#[derive(Debug)]
pub struct Steadiness {
    /// By how much the wall clock is ahead of the monotonic one. It follows slowly, so that drift is
    /// no step, and many small steps in one direction are one.
    lead_millis: i64,
    followed_at: Duration,
    agreed_since: Duration,
}

impl Steadiness {
    /// Begins with a clock of which nothing is known.
    pub fn new(wall: Timestamp, monotonic: Duration) -> Self {
        Self {
            lead_millis: lead_millis(wall, monotonic),
            followed_at: monotonic,
            agreed_since: monotonic,
        }
    }

    /// Takes in what the clocks say now; tells the step, if there was one.
    pub fn read(&mut self, wall: Timestamp, monotonic: Duration) -> Option<Step> {
        let elapsed = monotonic.saturating_sub(self.followed_at);
        let drift_max = whole_millis(elapsed) / DRIFT_MAX_DIVISOR;
        let moved = lead_millis(wall, monotonic).saturating_sub(self.lead_millis);
        if moved.saturating_abs() > STEP_MIN_MILLIS.saturating_add(drift_max) {
            *self = Self::new(wall, monotonic);
            return Some(Step { millis: moved });
        }
        if elapsed >= FOLLOW_EVERY {
            self.lead_millis += moved.clamp(-drift_max, drift_max);
            self.followed_at = monotonic;
        }
        None
    }

    /// Whether the clocks have agreed for long enough.
    pub fn is_steady(&self, monotonic: Duration) -> bool {
        self.agreed_for(monotonic) >= STEADY_AFTER
    }

    /// For how long the clocks have agreed.
    fn agreed_for(&self, monotonic: Duration) -> Duration {
        monotonic.saturating_sub(self.agreed_since)
    }
}

/// A clock that says up to when things may be deleted for good.
#[derive(Debug)]
pub struct SteadyClock {
    clock: Clock,
    /// Nothing awaits while it is locked.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    steadiness: Steadiness,
    /// What clients are told, less the relay's time, when the clock was last steady.
    told_millis: i64,
    /// Steps since [`SteadyClock::take_steps`].
    steps: Steps,
}

/// How often the clock was set, and where to in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Steps {
    /// How many steps.
    pub count: u64,
    /// All of them in one.
    pub sum: Step,
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.sum),
            _ => write!(f, "{} times, {} in all", self.count, self.sum),
        }
    }
}

impl SteadyClock {
    /// Watches `clock` from now on.
    pub fn new(clock: Clock) -> Self {
        let steadiness = Steadiness::new(clock.wall(), clock.monotonic());
        let told_millis = clock.told_millis();
        Self {
            clock,
            state: Mutex::new(State {
                steadiness,
                told_millis,
                steps: Steps::default(),
            }),
        }
    }

    /// What had expired by this time may be deleted for good: now, or while the clock is not steady
    /// the epoch, before which nothing expires.
    pub fn expired_by(&self) -> Timestamp {
        self.read().unwrap_or_default()
    }

    /// How far the wall clock is from the time that clients are told; positive when it is ahead. Zero
    /// but for a while after a step of more than a minute.
    pub fn gap(&self) -> Step {
        self.read();
        gap(&self.clock)
    }

    /// Whether the clock has been steady for [`STEADY_AFTER`].
    pub fn is_steady(&self) -> bool {
        self.read().is_some()
    }

    /// The steps that nobody has been told of.
    pub fn take_steps(&self) -> Steps {
        self.read();
        std::mem::take(&mut self.lock().steps)
    }

    /// Reads both clocks, so that each decision sees a step that came just before it. `None` when
    /// the clock is not steady.
    fn read(&self) -> Option<Timestamp> {
        let mut state = self.lock();
        let (clock, monotonic) = (&self.clock, self.clock.monotonic());
        if let Some(step) = state.steadiness.read(clock.wall(), monotonic) {
            clock.revise_stop(step);
            state.steps.count += 1;
            let sum = &mut state.steps.sum.millis;
            *sum = sum.saturating_add(step.millis);
        }
        if state.steadiness.agreed_for(monotonic) >= GRACE {
            clock.confirm_stop();
        }
        let is_steady = state.steadiness.is_steady(monotonic);
        // From where it was steady: many small steps are a large one.
        let moved = clock.wall().less(clock.date().moved(state.told_millis));
        if is_steady || moved.unsigned_abs() <= FOLLOWED_MAX_MILLIS {
            clock.tell(clock.wall());
        }
        if is_steady {
            state.told_millis = clock.told_millis();
        }
        is_steady.then(|| clock.now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gap(clock: &Clock) -> Step {
    Step {
        millis: clock.wall().less(clock.told_now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const YEAR: u64 = 365 * 24 * 60 * MINUTE;

    /// Two clocks, and what is made of them.
    struct Bench {
        wall: u64,
        monotonic: u64,
        steadiness: Steadiness,
    }

    impl Bench {
        fn new() -> Self {
            let monotonic = 7 * SECOND;
            Self {
                wall: NOW,
                monotonic,
                steadiness: Steadiness::new(
                    Timestamp::from_millis(NOW),
                    Duration::from_millis(monotonic),
                ),
            }
        }

        /// One that has been steady for long enough.
        fn steady() -> Self {
            let mut bench = Self::new();
            assert_eq!(bench.pass(10 * MINUTE, 10 * MINUTE), None);
            assert!(bench.is_steady());
            bench
        }

        /// So much passes on each clock; then they are read.
        fn pass(&mut self, wall: u64, monotonic: u64) -> Option<Step> {
            self.wall += wall;
            self.monotonic += monotonic;
            self.read()
        }

        fn read(&mut self) -> Option<Step> {
            let wall = Timestamp::from_millis(self.wall);
            self.steadiness.read(wall, self.passed())
        }

        fn is_steady(&self) -> bool {
            self.steadiness.is_steady(self.passed())
        }

        fn passed(&self) -> Duration {
            Duration::from_millis(self.monotonic)
        }
    }

    #[test]
    fn a_clock_is_steady_ten_minutes_after_the_start() {
        let mut bench = Bench::new();
        assert!(!bench.is_steady());
        assert_eq!(bench.pass(10 * MINUTE - 1, 10 * MINUTE - 1), None);
        assert!(!bench.is_steady());
        assert_eq!(bench.pass(1, 1), None);
        assert!(bench.is_steady());
    }

    #[test]
    fn a_step_either_way_begins_the_ten_minutes_anew() {
        for step in [YEAR.cast_signed(), -YEAR.cast_signed(), 6_000, -6_000] {
            let mut bench = Bench::steady();
            bench.wall = bench.wall.saturating_add_signed(step);
            assert_eq!(bench.read(), Some(Step { millis: step }));
            assert!(!bench.is_steady());
            assert_eq!(bench.read(), None, "one step is told once");
            assert_eq!(bench.pass(10 * MINUTE - 1, 10 * MINUTE - 1), None);
            assert!(!bench.is_steady());
            assert_eq!(bench.pass(1, 1), None);
            assert!(bench.is_steady());
        }
    }

    #[test]
    fn a_clock_that_is_put_right_is_watched_for_another_ten_minutes() {
        let mut bench = Bench::steady();
        assert!(bench.pass(YEAR, 0).is_some());
        assert_eq!(bench.pass(9 * MINUTE, 9 * MINUTE), None);
        bench.wall -= YEAR;
        assert!(bench.read().is_some());
        bench.pass(9 * MINUTE, 9 * MINUTE);
        assert!(!bench.is_steady());
        bench.pass(MINUTE, MINUTE);
        assert!(bench.is_steady());
    }

    #[test]
    fn a_pause_that_only_the_wall_clock_counts_is_a_step() {
        let mut bench = Bench::steady();
        let woken = bench.pass(8 * 60 * MINUTE, 20);
        assert!(woken.is_some_and(|step| step.millis > 7 * 60 * 60_000));
        assert!(!bench.is_steady());
    }

    #[test]
    fn leap_seconds_and_small_corrections_are_no_step() {
        let mut bench = Bench::steady();
        for _ in 0..10_000 {
            assert_eq!(bench.pass(5 * SECOND + 700, 5 * SECOND), None);
            assert_eq!(bench.pass(5 * SECOND - 700, 5 * SECOND), None);
        }
        assert_eq!(bench.pass(5 * SECOND, 0), None);
        assert!(bench.is_steady());
    }

    #[test]
    fn drift_does_not_add_up_to_a_step_however_often_the_clocks_are_read() {
        for every in [10 * SECOND, 5 * SECOND, 1_500, 24 * 60 * MINUTE] {
            for drift in [every / 2_000, every / 1_000] {
                let mut bench = Bench::steady();
                for _ in 0..20_000 {
                    assert_eq!(bench.pass(every + drift, every), None);
                }
                assert!(bench.is_steady());
            }
        }
    }

    #[test]
    fn small_steps_in_one_direction_add_up() {
        let mut bench = Bench::steady();
        let steps = (0..4).filter_map(|_| bench.pass(7 * SECOND, 5 * SECOND));
        assert_eq!(steps.count(), 1);
        assert!(!bench.is_steady());
    }

    #[test]
    fn readings_that_come_late_or_far_apart_do_no_harm() {
        let mut bench = Bench::steady();
        bench.wall -= 3;
        bench.monotonic -= 3;
        assert_eq!(bench.read(), None);
        assert_eq!(bench.pass(YEAR, YEAR), None);
        let end = Timestamp::from_millis(u64::MAX);
        for wall in [end, Timestamp::default(), end] {
            for monotonic in [Duration::MAX, Duration::ZERO] {
                bench.steadiness.read(wall, monotonic);
            }
        }
    }

    #[test]
    fn nothing_has_expired_by_a_clock_that_is_not_steady() {
        let start = Timestamp::from_millis(NOW);
        let (clock, time) = Clock::manual(start);
        let steady = SteadyClock::new(clock.clone());
        assert_eq!(steady.expired_by(), Timestamp::default());
        time.advance(STEADY_AFTER);
        assert_eq!(steady.expired_by(), clock.now());
        time.step_forward(STEADY_AFTER);
        assert_eq!(steady.expired_by(), Timestamp::default());
        time.step_back(2 * STEADY_AFTER);
        assert!(!steady.is_steady());
        let sum = Step { millis: -600_000 };
        let steps = steady.take_steps();
        assert_eq!(steps, Steps { count: 2, sum });
        assert_eq!(steps.to_string(), "2 times, 10 min back in all");
        assert_eq!(steady.take_steps(), Steps::default());
        time.advance(STEADY_AFTER);
        assert!(steady.is_steady());
    }

    #[test]
    fn a_step_moves_no_lifetime_and_is_told_when_it_has_lasted() {
        let start = Timestamp::from_millis(NOW);
        let (clock, time) = Clock::manual(start);
        let steady = SteadyClock::new(clock.clone());
        time.step_forward(Duration::from_secs(59));
        let millis = 59_000;
        assert_eq!(steady.take_steps().sum, Step { millis });
        assert_eq!(clock.now(), start);
        assert_eq!(clock.told_now(), clock.wall(), "a small one at once");
        let year = Duration::from_millis(YEAR);
        time.step_back(year);
        assert_eq!(steady.gap().millis, -YEAR.cast_signed());
        assert_eq!(clock.told_now(), start.moved(millis), "a large one not yet");
        time.advance(STEADY_AFTER);
        assert_eq!(steady.gap().millis, 0);
        assert_eq!(clock.told_now(), clock.wall());
        assert_eq!(clock.now(), start.plus(STEADY_AFTER));
    }

    #[test]
    fn a_stop_is_counted_after_a_day_without_a_step() {
        let (clock, time) = Clock::manual(Timestamp::from_millis(NOW + YEAR));
        let last = Timestamp::from_millis(NOW);
        clock.resume(super::super::resume::Reading {
            relay: last,
            wall: last,
        });
        let steady = SteadyClock::new(clock.clone());
        time.advance(GRACE - Duration::from_secs(1));
        assert_eq!(
            steady.expired_by(),
            last.plus(GRACE - Duration::from_secs(1))
        );
        time.step_forward(Duration::from_secs(10));
        time.advance(Duration::from_secs(1));
        assert!(!steady.is_steady());
        time.advance(GRACE - Duration::from_secs(1));
        assert_eq!(clock.unconfirmed(), Duration::from_millis(YEAR));
        steady.is_steady();
        time.advance(Duration::from_secs(1));
        let counted = last.plus(2 * GRACE + Duration::from_millis(YEAR));
        assert_eq!(steady.expired_by(), counted);
    }

    #[test]
    fn a_step_reads_well() {
        let spelt = |millis| Step { millis }.to_string();
        assert_eq!(spelt(-6_900), "6 s back");
        assert_eq!(spelt(180_000), "3 min forward");
        assert_eq!(spelt(8 * 3_600_000), "8 h forward");
        assert_eq!(spelt(-365 * 86_400_000), "365 days back");
    }
}
