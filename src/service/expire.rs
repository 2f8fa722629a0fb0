//! The background sweep of what is past its time.

use std::time::Duration;

use super::Service;
use crate::clock::Timestamp;
use crate::store::StoreError;

/// Blobs deleted in one transaction. Small, so that a sweep never makes a sender wait for long.
const STEP: u32 = 256;

/// Rest between two steps: senders' commits go first, and the disk is not kept busy by cleaning.
const REST: Duration = Duration::from_millis(2);

impl Service {
    /// Deletes everything that has expired; returns how many blobs that were.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let mut blobs = 0;
        loop {
            let swept = self
                .parts
                .store
                .expire(STEP, self.parts.clock.now())
                .await?;
            blobs += swept.blobs;
            if !swept.more {
                let next = swept.next_expiry.map_or(0, Timestamp::secs);
                self.parts
                    .metrics
                    .next_expiry_timestamp_seconds
                    .set(next as f64);
                return Ok(blobs);
            }
            tokio::time::sleep(REST).await;
        }
    }
}
