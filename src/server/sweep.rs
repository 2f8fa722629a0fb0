//! When what has expired is deleted: all of it once in an interval, and every minute what somebody
//! waits to hear of.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::service::{Service, StoreError};

/// Between two looks for blobs whose senders asked for receipts.
const LOOK_EVERY: Duration = Duration::from_secs(60);

pub(super) async fn sweep_for_ever(service: Arc<Service>, interval: Duration) {
    loop {
        if let Some(blobs) = or_warn(service.sweep().await) {
            tracing::info!(blobs, "deleted {blobs} expired blobs");
        }
        look_until_due(&service, interval).await;
    }
}

/// Returns when the next sweep is due: after the interval, or earlier when a sweep was held back and
/// the clock is steady now.
async fn look_until_due(service: &Service, interval: Duration) {
    let due = Instant::now() + interval;
    let mut was_held_back = false;
    loop {
        was_held_back |= !service.is_clock_steady();
        tokio::time::sleep_until(due.min(Instant::now() + LOOK_EVERY)).await;
        if Instant::now() >= due || (was_held_back && service.is_clock_steady()) {
            return;
        }
        if let Some(blobs) = or_warn(service.sweep_asking().await) {
            tracing::debug!(blobs, "deleted {blobs} expired blobs whose senders asked");
        }
    }
}

/// How many blobs were deleted, if any were.
fn or_warn(swept: Result<u64, StoreError>) -> Option<u64> {
    match swept {
        Ok(blobs) => (blobs > 0).then_some(blobs),
        Err(error) => {
            tracing::warn!(%error, "the sweep of expired blobs failed; retrying at the next interval");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::steady::STEADY_AFTER;
    use crate::clock::{Clock, ManualClock, Timestamp};
    use crate::ids::{BlobId, MailboxHash};
    use crate::store::model::{Class, Envelope, Usage};

    const TICK: Duration = Duration::from_secs(10);
    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    /// A service whose sweep runs once in a day, and its clock.
    struct Bench {
        service: Arc<Service>,
        time: ManualClock,
    }

    impl Bench {
        /// Keeps a blob for an hour that asks for receipts, and one that does not.
        async fn new() -> Self {
            let (clock, time) = Clock::manual(NOW);
            let (service, _) = Service::in_memory(clock);
            let service = Arc::new(service);
            for (number, receipt_to) in [(1, None), (2, Some(MailboxHash::from_bytes([9; 32])))] {
                let envelope = Envelope {
                    mailbox: MailboxHash::from_bytes([1; 32]),
                    id: BlobId::from_bytes([number; 16]),
                    class: Class::ProvenOnly,
                    owner: None,
                    topic: None,
                    receipt_to,
                    stored_at: NOW,
                    expires_at: NOW.plus(HOUR),
                    sealed: bytes::Bytes::new(),
                    body: bytes::Bytes::from_static(b"body"),
                };
                let appended = service.store().append(envelope, NOW).await;
                appended.unwrap().await.unwrap();
            }
            tokio::spawn(sweep_for_ever(Arc::clone(&service), 24 * HOUR));
            Self { service, time }
        }

        /// So much passes, for tokio and for the relay; whatever is due meanwhile runs.
        async fn pass(&self, span: Duration) {
            let until = Instant::now() + span;
            while Instant::now() < until {
                tokio::time::sleep(TICK).await;
                self.time.advance(TICK);
            }
        }

        fn usage(&self) -> Usage {
            self.service.store().usage()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_who_asked_hears_within_a_minute_and_the_rest_is_swept_later() {
        let bench = Bench::new().await;
        bench.pass(HOUR - TICK).await;
        assert_eq!(bench.usage().expired, 0);
        bench.pass(LOOK_EVERY + 2 * TICK).await;
        let usage = bench.usage();
        assert_eq!((usage.expired, usage.receipts.created), (1, 1));
        bench.pass(22 * HOUR).await;
        assert_eq!(bench.usage().expired, 1);
        bench.pass(2 * HOUR).await;
        assert_eq!(bench.usage().expired, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_that_was_held_back_is_made_up_for_within_a_minute() {
        let bench = Bench::new().await;
        bench.pass(HOUR - TICK).await;
        bench.time.step_forward(2 * HOUR);
        bench.pass(STEADY_AFTER - TICK).await;
        assert_eq!(bench.usage().expired, 0);
        bench.pass(LOOK_EVERY + 2 * TICK).await;
        assert_eq!(bench.usage().expired, 2);
    }
}
