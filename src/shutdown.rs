//! The first signal drains, the second (or the deadline) stops.
//!
//! Two tokens that everyone holds: *drain* means "finish what is open, take nothing new", *stop*
//! means "end now". The order of a drain is told in `server`.

use std::future::Future;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Where the relay stands on its way out. Cheap to clone; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    announced: CancellationToken,
    drain: CancellationToken,
    stop: CancellationToken,
    deadlines: Arc<OnceLock<Deadlines>>,
}

/// By when sessions must have ended, once the drain has begun.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// v1 sessions that wait for acknowledgements are closed.
    pub sessions: Instant,
    /// Whatever is left is cut off.
    pub all: Instant,
}

impl Shutdown {
    /// Readiness turns to 503; nothing else changes yet, so that load balancers look away first.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Sessions stop delivering and end as soon as they owe nothing, at the latest in `within`.
    pub fn begin_drain(&self, within: Duration) {
        let now = Instant::now();
        // v1 knows no GoAway, and its old clients read no refusal: half of the time is theirs.
        self.deadlines.get_or_init(|| Deadlines {
            sessions: now + within / 2,
            all: now + within,
        });
        self.announced.cancel();
        self.drain.cancel();
    }

    /// Everything ends now.
    pub fn stop(&self) {
        self.stop.cancel();
        // A task that sees the drain begin finds its deadlines.
        self.begin_drain(Duration::ZERO);
    }

    /// Whether the relay is on its way out.
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Whether everything must end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when the drain begins.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        self.drain.clone().cancelled_owned()
    }

    /// Resolves when everything must end.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// The deadlines, once the drain has begun.
    pub fn deadlines(&self) -> Option<Deadlines> {
        self.deadlines.get().copied()
    }
}
