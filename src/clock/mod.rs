//! The time: real, or set by a test.
//!
//! There are two. The **wall clock** is the time of day: somebody may set it, and it may be wrong. The
//! **relay's time** counts what has passed, and steps neither forward nor back, whatever happens to the
//! wall clock while the relay runs. Everything that expires or is forgotten goes by the relay's time,
//! in memory and in the database, so a wall clock that is wrong for a while changes no lifetime. The
//! wall clock is asked for three things only: how long the relay was stopped (`resume`), what clients
//! are told ([`Clock::told`]), and whether a signature is fresh.
//!
//! Timeouts of sockets are tokio's business, not this file's. `steady` watches the wall clock and says
//! whether things may be deleted for good.

pub mod resume;
pub mod steady;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment as Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `millis` after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// This moment and `span` later; stays at the largest moment instead of overflowing.
    pub fn plus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// This moment and `span` earlier; stays at the epoch instead of going below.
    pub fn minus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// This moment, moved by so many milliseconds.
    pub const fn moved(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }

    /// How many milliseconds it is later than `other`; negative when it is earlier.
    pub fn less(self, other: Self) -> i64 {
        let millis = i128::from(self.0) - i128::from(other.0);
        i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
    }

    /// The span since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Tells the time. Cheap to clone; clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
    times: Arc<Times>,
}

#[derive(Debug, Clone)]
enum Source {
    System,
    /// Moved by [`ManualClock`].
    Manual(Arc<Hands>),
}

/// How the relay's time stands to the others, in milliseconds.
#[derive(Debug)]
struct Times {
    /// The relay's time, less the monotonic clock.
    lead: AtomicI64,
    /// A stop before this start that only the wall clock tells of ([`resume`]): not yet counted.
    unconfirmed: AtomicI64,
    /// What clients are told, less what the relay dates.
    told: AtomicI64,
}

/// Where a manual clock stands.
#[derive(Debug)]
struct Hands {
    /// What has passed, in milliseconds, counted from the epoch.
    passed: AtomicU64,
    /// How far the wall clock was set away from that, in milliseconds.
    set: AtomicI64,
}

impl Clock {
    /// The system's clock. The relay's time begins as the time of day.
    pub fn system() -> Self {
        Self::new(Source::System)
    }

    /// A clock that stands still until its [`ManualClock`] moves it.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let hands = Arc::new(Hands {
            passed: AtomicU64::new(start.millis()),
            set: AtomicI64::new(0),
        });
        let clock = Self::new(Source::Manual(Arc::clone(&hands)));
        (clock, ManualClock { start, hands })
    }

    fn new(source: Source) -> Self {
        let times = Times {
            lead: AtomicI64::new(0),
            unconfirmed: AtomicI64::new(0),
            told: AtomicI64::new(0),
        };
        let clock = Self {
            source,
            times: Arc::new(times),
        };
        clock.set_lead(lead_millis(clock.wall(), clock.monotonic()));
        clock
    }

    /// The relay's time, by which things expire. It never steps back.
    pub fn now(&self) -> Timestamp {
        let lead = self.times.lead.load(Ordering::SeqCst);
        as_timestamp(self.monotonic()).moved(lead)
    }

    /// The relay's time as new things are dated with: later than [`Clock::now`] while a stop is not
    /// confirmed. So they lose nothing should it be counted.
    pub fn date(&self) -> Timestamp {
        self.now().plus(self.unconfirmed())
    }

    /// A stop that only the wall clock tells of, and that is not counted yet.
    pub fn unconfirmed(&self) -> Duration {
        let millis = self.times.unconfirmed.load(Ordering::SeqCst);
        Duration::from_millis(millis.unsigned_abs())
    }

    /// A moment of the relay's time as a time of day, for clients.
    pub fn told(&self, moment: Timestamp) -> Timestamp {
        moment.moved(self.told_millis())
    }

    /// What time it is, for clients: the wall clock's, except while that has just been moved by more
    /// than a minute ([`steady`]).
    pub fn told_now(&self) -> Timestamp {
        self.told(self.date())
    }

    /// The wall clock's time. May step in either direction when the system's clock is set.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    pub fn wall(&self) -> Timestamp {
        match &self.source {
            Source::System => {
                let since_epoch = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                as_timestamp(since_epoch)
            }
            Source::Manual(hands) => {
                let passed = hands.passed.load(Ordering::SeqCst);
                Timestamp(passed).moved(hands.set.load(Ordering::SeqCst))
            }
        }
    }

    /// A time that never steps, from an arbitrary zero; rates are measured against it.
    pub fn monotonic(&self) -> Duration {
        match &self.source {
            Source::System => uptime(),
            Source::Manual(hands) => Duration::from_millis(hands.passed.load(Ordering::SeqCst)),
        }
    }

    fn set_lead(&self, millis: i64) {
        self.times.lead.store(millis, Ordering::SeqCst);
    }

    fn set_unconfirmed(&self, span: Duration) {
        let millis = whole_millis(span);
        self.times.unconfirmed.store(millis, Ordering::SeqCst);
    }

    fn told_millis(&self) -> i64 {
        self.times.told.load(Ordering::SeqCst)
    }

    /// Clients are told that it is `wall` now.
    fn tell(&self, wall: Timestamp) {
        let told = wall.less(self.date());
        self.times.told.store(told, Ordering::SeqCst);
    }
}

/// How long the machine has been up, its sleep counted.
#[cfg(all(feature = "server", target_os = "linux"))]
fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// How long this process has run. Whether sleep counts is the system's choice.
#[cfg(not(all(feature = "server", target_os = "linux")))]
fn uptime() -> Duration {
    static STARTED: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    STARTED.get_or_init(std::time::Instant::now).elapsed()
}

fn as_timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp::default().plus(since_epoch)
}

/// By how much the wall clock is ahead of the monotonic one.
fn lead_millis(wall: Timestamp, monotonic: Duration) -> i64 {
    wall.less(as_timestamp(monotonic))
}

fn whole_millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// Moves the clock made with it.
#[derive(Debug, Clone)]
pub struct ManualClock {
    start: Timestamp,
    hands: Arc<Hands>,
}

impl ManualClock {
    /// Lets `span` pass at once, on both clocks.
    pub fn advance(&self, span: Duration) {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.hands.passed.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock forward; no time passes.
    pub fn step_forward(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.hands.set.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock back; no time passes.
    pub fn step_back(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.hands.set.fetch_sub(millis, Ordering::SeqCst);
    }

    /// How much time has passed since the clock was made.
    pub fn elapsed(&self) -> Duration {
        Timestamp(self.hands.passed.load(Ordering::SeqCst)).since(self.start)
    }
}
