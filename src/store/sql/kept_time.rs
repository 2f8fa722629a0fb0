//! The time that the database knows: what the relay's time and the wall clock were at one moment.
//!
//! Written with a commit, once a minute and after each step of the wall clock, and read at the start,
//! when it tells how long the relay was stopped (`clock::resume`). A relay that is asked for nothing
//! writes too: its probes do.

use std::time::Duration;

use tracing::warn;

use crate::clock::Clock;
use crate::clock::resume::{Reading, Resumed};
use crate::clock::steady::GRACE;

/// Between two writes.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// The wall clock was set when it moved by more than this against the relay's time.
const STEP_MIN_MILLIS: u64 = 5_000;

/// Keeps the time in the database.
#[derive(Debug)]
pub(in crate::store) struct KeptTime {
    clock: Clock,
    saved: Option<Reading>,
}

impl KeptTime {
    /// Lets the relay's time go on from what the database knows, and says so when the wall clock
    /// does not fit.
    pub(in crate::store) fn resume(last: Option<Reading>, clock: Clock) -> Self {
        if let Some(last) = last {
            say(clock.resume(last));
        }
        Self { clock, saved: None }
    }

    /// What the next commit is to write, if it is time.
    pub(in crate::store) fn due(&self) -> Option<Reading> {
        let reading = self.clock.reading();
        let is_due = self.saved.is_none_or(|saved| {
            let passed = reading.relay.less(saved.relay);
            let moved = reading.wall.less(saved.wall).saturating_sub(passed);
            passed.unsigned_abs() >= SAVE_EVERY.as_millis() as u64
                || moved.unsigned_abs() > STEP_MIN_MILLIS
        });
        is_due.then_some(reading)
    }

    /// What a close writes.
    pub(in crate::store) fn last(&self) -> Reading {
        self.clock.reading()
    }

    /// This is durable.
    pub(in crate::store) fn saved(&mut self, reading: Reading) {
        self.saved = Some(reading);
    }
}

fn say(resumed: Resumed) {
    let hours = GRACE.as_secs() / 3_600;
    match resumed {
        Resumed::Counted(_) => {}
        Resumed::Ahead(_) => warn!(
            "the clock is {resumed} ahead of the last time in the database: the relay was stopped for so long, or the clock is wrong. Nothing expires by it until it has been steady for {hours} hours; if it is wrong, set it"
        ),
        Resumed::Behind(_) => warn!(
            "the clock is {resumed} behind the last time in the database: set it. Lifetimes go on from the last time in the database"
        ),
    }
}
