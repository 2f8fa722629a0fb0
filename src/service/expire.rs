//! The background sweep of what is past its time, and whether the clock is to be trusted with that.

use std::time::Duration;

use super::Service;
use crate::clock::Timestamp;
use crate::clock::steady::STEADY_AFTER;
use crate::store::StoreError;

/// Blobs deleted in one transaction. Small, so that a sweep never makes a sender wait for long.
const STEP: u32 = 256;

/// Rest between two steps: senders' commits go first, and the disk is not kept busy by cleaning.
const REST: Duration = Duration::from_millis(2);

impl Service {
    /// Deletes everything that has expired; returns how many blobs that were. While the clock is not
    /// steady that is nothing, and only the rest of the housekeeping is done.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let mut blobs = 0;
        loop {
            // Asked before each step: the clock may be set in the middle of a long sweep.
            let expired_by = self.expired_by();
            let swept = self.parts.store.expire(STEP, expired_by).await?;
            blobs += swept.blobs;
            if !swept.more {
                let told = |next| self.parts.clock.told(next).secs();
                let next = swept.next_expiry.map_or(0, told);
                self.parts
                    .metrics
                    .next_expiry_timestamp_seconds
                    .set(next as f64);
                return Ok(blobs);
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Deletes what expired lately of the blobs whose senders asked to hear of it; returns how many
    /// blobs that were. What they are told is in the same transaction.
    pub async fn sweep_asking(&self) -> Result<u64, StoreError> {
        self.parts.store.expire_asking(self.expired_by()).await
    }

    /// Whether what has expired is deleted: not before the clock has been steady for a while.
    pub fn is_clock_steady(&self) -> bool {
        self.steady_clock.is_steady()
    }

    /// What had expired by then may be deleted for good.
    pub(super) fn expired_by(&self) -> Timestamp {
        self.steady_clock.expired_by()
    }

    /// How far the wall clock is from what clients are told, in seconds, and how long a stop is that
    /// is not confirmed.
    pub fn clock_doubts(&self) -> (i64, Duration) {
        let gap = self.steady_clock.gap();
        (gap.millis / 1_000, self.parts.clock.unconfirmed())
    }

    /// Tells the operator when the clock was set.
    pub(super) fn watch_clock(&self) {
        let (steps, metrics) = (self.steady_clock.take_steps(), &self.parts.metrics);
        let is_steady = f64::from(u8::from(self.is_clock_steady()));
        metrics.clock_steady.set(is_steady);
        let (gap, unconfirmed) = self.clock_doubts();
        metrics.clock_gap_seconds.set(gap as f64);
        metrics
            .clock_unconfirmed_stop_seconds
            .set(unconfirmed.as_secs_f64());
        if steps.count == 0 {
            return;
        }
        metrics.clock_steps_total.increment(steps.count);
        tracing::warn!(
            "the clock moved {steps}; no blob expires earlier or later for it. Clients are told the new time, \
             and what has expired is deleted, after {} steady minutes",
            STEADY_AFTER.as_secs() / 60
        );
    }
}
