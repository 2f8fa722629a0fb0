//! The background sweep of what is past its time.

use std::time::Duration;

use super::Service;
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
                return Ok(blobs);
            }
            tokio::time::sleep(REST).await;
        }
    }
}
