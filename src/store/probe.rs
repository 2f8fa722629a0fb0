//! Whether storage takes and gives blobs: asked by `/ready`, and looked after every second.

use std::time::Duration;

use super::health::Unread;
use super::model::PageBounds;
use super::write::Write;
use super::{Store, StoreError};

/// How long a probe may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);

/// A probe writes when nothing else was written for this long.
const PROBE_WRITE_AFTER: Duration = Duration::from_secs(5);

/// The page that a probe asks for.
const ONE_BLOB: PageBounds = PageBounds {
    blobs_max: 1,
    bytes_max: 1,
};

impl Store {
    /// Whether storage answers: a real read, and a real write when none has succeeded lately.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let answer = tokio::time::timeout(PROBE_TIME_MAX, self.probe_now());
        let late = "storage did not answer within 2 s";
        let answer = answer.await;
        self.counted(answer.unwrap_or_else(|_| Err(StoreError::unavailable(late))))
    }

    /// Sees that storage is still where it was, and stops taking writes when it is not. Called every
    /// second: a relay that nobody sends to must notice, too.
    pub async fn watch(&self) {
        if self.pipeline.check().is_ok() && self.reads.look().await.is_err() {
            // Its commit finds the same, and says it. A probe that comes meanwhile says so itself.
            self.pipeline.write::<()>(Write::Trial).await.ok();
        }
        if let Some(held) = self.reads.held_by_all() {
            self.tally.set_held(held);
            let is_full = self.quota.is_relay_full(held.bytes);
            self.health.set_full(is_full);
        }
    }

    async fn probe_now(&self) -> Result<(), StoreError> {
        self.pipeline.check()?;
        self.reads.look().await?;
        let read = self.probe_reads().await;
        match &read {
            Ok(()) => self.health.read_again(),
            Err(_) => self.health.failed_to_read(Unread::Other),
        }
        read?;
        if self.health.doubts_writes() || self.tally.since_written() >= PROBE_WRITE_AFTER {
            self.pipeline.write::<()>(Write::Trial).await?;
        }
        Ok(())
    }

    /// Reads something, and once more what could not be read lately.
    async fn probe_reads(&self) -> Result<(), StoreError> {
        self.reads.probe().await?;
        let Some(Unread::Page(mailbox, view, after, now)) = self.health.unread() else {
            return Ok(());
        };
        let page = self.reads.page(mailbox, view, after, ONE_BLOB, now);
        page.await.map(drop)
    }

    /// Whether a new blob would be stored, as far as is known without trying.
    pub fn takes_blobs(&self) -> bool {
        self.health.takes_blobs()
    }

    /// Whether a blob that waits would be delivered, as far as is known without trying.
    pub fn gives_blobs(&self) -> bool {
        self.health.gives_blobs()
    }
}
