//! What a store has counted since it was opened, and the metrics that show it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::model::{Kept, Usage};
use super::plan::Plan;
use super::plan::change::{Counts, Happened};
use super::plan::quota::HeldInAll;
use crate::metrics::Metrics;

/// The counters of one store. Moved after each commit, read by anybody.
#[derive(Debug)]
pub(super) struct Tally {
    /// Nothing awaits while it is locked.
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    held: HeldInAll,
    /// What was there at the start, and since then by how much others have changed it.
    not_ours: NotOurs,
    usage: Usage,
    written_at: Instant,
    metrics: Arc<Metrics>,
}

/// Blobs, device sync messages and receipts that this store has not counted in and out. Fewer than none when
/// others have taken out what came in here.
#[derive(Debug, Clone, Copy)]
struct NotOurs {
    blobs: i64,
    device_sync: i64,
    receipts: i64,
}

impl NotOurs {
    fn at_start(held: HeldInAll) -> Self {
        Self {
            blobs: signed(held.blobs),
            device_sync: signed(held.device_sync),
            receipts: signed(held.receipts),
        }
    }

    fn change(&mut self, from: HeldInAll, to: HeldInAll) {
        self.blobs += signed(to.blobs) - signed(from.blobs);
        self.device_sync += signed(to.device_sync) - signed(from.device_sync);
        self.receipts += signed(to.receipts) - signed(from.receipts);
    }
}

impl Tally {
    /// Of a store that holds this much at the start.
    pub(super) fn new(held: HeldInAll, metrics: Arc<Metrics>) -> Self {
        let mut ledger = Ledger {
            held,
            not_ours: NotOurs::at_start(held),
            usage: Usage::default(),
            written_at: Instant::now(),
            metrics,
        };
        ledger.show();
        Self {
            ledger: Mutex::new(ledger),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        self.ledger().usage
    }

    /// Counts what a plan did that is durable now.
    pub(super) fn count(&self, plan: &Plan) {
        self.ledger().count(plan);
    }

    /// Takes over what is kept in all, where others write, too.
    pub(super) fn set_held(&self, held: HeldInAll) {
        let mut ledger = self.ledger();
        let before = std::mem::replace(&mut ledger.held, held);
        ledger.not_ours.change(before, held);
        let metrics = Arc::clone(&ledger.metrics);
        let _together = metrics.books();
        ledger.show();
    }

    /// How long ago something was written last.
    pub(super) fn since_written(&self) -> Duration {
        self.ledger().written_at.elapsed()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn count(&mut self, plan: &Plan) {
        let happened = plan.happened;
        let blobs = happened.blobs;
        let usage = &mut self.usage;
        usage.created += blobs.created;
        usage.acknowledged += blobs.acknowledged;
        usage.cancelled += blobs.cancelled;
        usage.replaced += blobs.replaced;
        usage.purged += blobs.purged;
        usage.expired += blobs.expired;
        usage.lost += blobs.lost;
        add(&mut usage.device_sync, happened.device_sync);
        add(&mut usage.receipts, happened.receipts);
        usage.receipts_dropped += happened.receipts_dropped;
        if !plan.is_empty() {
            self.written_at = Instant::now();
        }
        self.held = plan.change.applied_to(self.held);
        let metrics = Arc::clone(&self.metrics);
        let _together = metrics.books();
        self.move_metrics(happened);
        self.show();
    }

    fn move_metrics(&self, happened: Happened) {
        let metrics = &self.metrics;
        let blobs = happened.blobs;
        metrics.blobs_created_total.increment(blobs.created);
        metrics
            .blobs_acknowledged_total
            .increment(blobs.acknowledged);
        metrics.blobs_cancelled_total.increment(blobs.cancelled);
        metrics.blobs_replaced_total.increment(blobs.replaced);
        metrics.blobs_purged_total.increment(blobs.purged);
        metrics.blobs_expired_total.increment(blobs.expired);
        metrics.blobs_lost_total.increment(blobs.lost);
        let sync = happened.device_sync;
        metrics.device_sync_created_total.increment(sync.created);
        metrics
            .device_sync_acknowledged_total
            .increment(sync.acknowledged);
        metrics.device_sync_purged_total.increment(sync.purged);
        metrics.device_sync_expired_total.increment(sync.expired);
        metrics.device_sync_lost_total.increment(sync.lost);
        let receipts = happened.receipts;
        metrics.receipts_created_total.increment(receipts.created);
        metrics
            .receipts_acknowledged_total
            .increment(receipts.acknowledged);
        metrics.receipts_purged_total.increment(receipts.purged);
        metrics.receipts_expired_total.increment(receipts.expired);
        metrics.receipts_lost_total.increment(receipts.lost);
        metrics
            .receipts_dropped_total
            .increment(happened.receipts_dropped);
        metrics.duplicates_total.increment(happened.duplicates);
        metrics.recovery_vouchers_total.increment(happened.vouchers);
        metrics.pins_evicted_total.increment(happened.pins_evicted);
    }

    fn show(&mut self) {
        let held = self.held;
        self.usage.stored = held.blobs;
        self.usage.device_sync.stored = held.device_sync;
        self.usage.receipts.stored = held.receipts;
        self.usage.recovery_proofs = held.recovery_proofs;
        self.usage.pins = held.pins;
        self.usage.bytes = held.bytes;
        let not_ours = self.not_ours;
        let or_none = |count: i64| u64::try_from(count).unwrap_or(0);
        self.usage.stored_at_start = or_none(not_ours.blobs);
        self.usage.device_sync.stored_at_start = or_none(not_ours.device_sync);
        self.usage.receipts.stored_at_start = or_none(not_ours.receipts);
        let metrics = &self.metrics;
        metrics.blobs_stored_at_start.set(not_ours.blobs as f64);
        metrics
            .device_sync_stored_at_start
            .set(not_ours.device_sync as f64);
        metrics
            .receipts_stored_at_start
            .set(not_ours.receipts as f64);
        metrics.blobs_stored.set(as_float(held.blobs));
        metrics.device_sync_stored.set(as_float(held.device_sync));
        metrics.receipts_stored.set(as_float(held.receipts));
        metrics
            .recovery_proofs_active
            .set(as_float(held.recovery_proofs));
        metrics.pins.set(as_float(held.pins));
        metrics.stored_bytes.set(as_float(held.bytes));
    }
}

/// Adds what happened to a sum of rows that are neither cancelled nor replaced.
fn add(kept: &mut Kept, counts: Counts) {
    kept.created += counts.created;
    kept.acknowledged += counts.acknowledged;
    kept.purged += counts.purged;
    kept.expired += counts.expired;
    kept.lost += counts.lost;
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count as a gauge takes it.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, far beyond any disk"
)]
pub(super) fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Under load 32 of 4,691 scrapes did not add up: they were made while a commit was being counted.
    #[test]
    fn the_books_balance_at_every_scrape() {
        let metrics = Arc::new(Metrics::new());
        let tally = Tally::new(HeldInAll::default(), Arc::clone(&metrics));
        let (mut comes, mut goes) = (Plan::default(), Plan::default());
        comes.change.blobs = 1;
        comes.happened.blobs.created = 1;
        goes.change.blobs = -1;
        goes.happened.blobs.acknowledged = 1;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    tally.count(&comes);
                    tally.count(&goes);
                }
            });
            let balances = (0..200).all(|_| {
                let values = metrics.values();
                let value = |series: &str| values[&format!("relay_blobs_{series}")];
                value("created_total") == value("acknowledged_total") + value("stored")
            });
            is_over.store(true, Ordering::SeqCst);
            assert!(balances);
        });
    }
}
