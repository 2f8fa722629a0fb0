//! What a store has counted since it was opened, and the metrics that show it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::model::Usage;
use super::plan::Counts;
use super::quota::Held;
use crate::metrics::Metrics;

/// The counters of one engine. Moved after each commit, read by anybody.
#[derive(Debug)]
pub(super) struct Tally {
    /// Nothing awaits while it is locked.
    usage: Mutex<Usage>,
    /// Nothing awaits while it is locked.
    written_at: Mutex<Instant>,
    metrics: Arc<Metrics>,
}

impl Tally {
    /// Of a store that holds this much at the start.
    pub(super) fn new(held: Held, metrics: Arc<Metrics>) -> Self {
        metrics.blobs_stored_at_start.set(as_float(held.blobs));
        let tally = Self {
            usage: Mutex::new(Usage {
                stored_at_start: held.blobs,
                stored: held.blobs,
                bytes: held.bytes,
                ..Usage::default()
            }),
            written_at: Mutex::new(Instant::now()),
            metrics,
        };
        tally.show(held);
        tally
    }

    pub(super) fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago the last transaction was committed.
    pub(super) fn since_written(&self) -> Duration {
        let written_at = self
            .written_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        written_at.elapsed()
    }

    /// A transaction was committed.
    pub(super) fn written(&self) {
        *self
            .written_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Blobs came and went; the store holds `held` now.
    pub(super) fn count(&self, counts: Counts, held: Held) {
        {
            let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
            usage.created += counts.created;
            usage.acknowledged += counts.acknowledged;
            usage.purged += counts.purged;
            usage.expired += counts.expired;
            usage.lost += counts.lost;
            usage.stored = held.blobs;
            usage.bytes = held.bytes;
        }
        let metrics = &self.metrics;
        metrics.blobs_created_total.increment(counts.created);
        metrics
            .blobs_acknowledged_total
            .increment(counts.acknowledged);
        metrics.blobs_purged_total.increment(counts.purged);
        metrics.blobs_expired_total.increment(counts.expired);
        metrics.blobs_lost_total.increment(counts.lost);
        metrics.duplicates_total.increment(counts.duplicates);
        self.show(held);
    }

    fn show(&self, held: Held) {
        self.metrics.blobs_stored.set(as_float(held.blobs));
        self.metrics.stored_bytes.set(as_float(held.bytes));
    }
}

/// A count as a gauge takes it.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, far beyond any disk"
)]
pub(super) fn as_float(count: u64) -> f64 {
    count as f64
}
