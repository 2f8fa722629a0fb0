//! The time: real, or set by a test.
//!
//! Everything that lets a blob expire or a limit refill asks a [`Clock`], so that ninety days pass
//! in a test within a millisecond. Timeouts of sockets are tokio's business, not this file's.
//! `steady` says whether the clock may decide what is deleted for good.

pub mod steady;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

    /// The span since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Tells the time. Cheap to clone; clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System {
        started: Instant,
    },
    /// Moved by [`ManualClock`].
    Manual(Arc<Hands>),
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
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System {
            started: Instant::now(),
        })
    }

    /// A clock that stands still until its [`ManualClock`] moves it.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let hands = Arc::new(Hands {
            passed: AtomicU64::new(start.millis()),
            set: AtomicI64::new(0),
        });
        let clock = Self(Source::Manual(Arc::clone(&hands)));
        (clock, ManualClock { start, hands })
    }

    /// The wall clock's time. May step backwards when the system's clock is set.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { .. } => {
                let since_epoch = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::default().plus(since_epoch)
            }
            Source::Manual(hands) => {
                let passed = hands.passed.load(Ordering::SeqCst);
                Timestamp(passed.saturating_add_signed(hands.set.load(Ordering::SeqCst)))
            }
        }
    }

    /// A time that never steps backwards, from an arbitrary zero; rates are measured against it.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System { started } => started.elapsed(),
            Source::Manual(hands) => Duration::from_millis(hands.passed.load(Ordering::SeqCst)),
        }
    }
}

/// Moves the clock made with it.
#[derive(Debug, Clone)]
pub struct ManualClock {
    start: Timestamp,
    hands: Arc<Hands>,
}

impl ManualClock {
    /// Lets `span` pass at once.
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
