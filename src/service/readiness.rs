//! Whether storage answers, asked by probes and, where nobody probes, by the relay itself.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Service;
use crate::store::StoreError;

/// Without a probe for this long the relay asks itself: three rounds of a usual prober.
const UNASKED_MAX: Duration = Duration::from_secs(15);

impl Service {
    /// Asks storage for real, and shows the answer in `relay_ready`.
    pub async fn probe(&self) -> Result<(), StoreError> {
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let answer = self.parts.store.probe().await;
        self.show_ready(answer.is_ok());
        answer
    }

    /// Keeps `relay_ready` fresh where nobody asks `/ready`.
    pub async fn probe_if_unasked(&self) {
        let last = *self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let store = &self.parts.store;
        // What went wrong is looked at again soon, whoever asks.
        let is_well = store.takes_blobs() && store.gives_blobs();
        if last.elapsed() >= UNASKED_MAX || !is_well {
            // The answer is in the metric; what is wrong, the store's own lines say.
            self.probe().await.ok();
        }
    }

    /// Moves `relay_ready`; the drain says no by it whatever storage answers.
    pub fn show_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Release);
        self.parts.metrics.ready.set(f64::from(u8::from(is_ready)));
    }

    /// What storage answered when it was last asked.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    #[tokio::test(start_paused = true)]
    async fn where_nobody_asks_the_relay_asks_itself() {
        let (clock, _) = Clock::manual(Timestamp::from_millis(0));
        let (service, metrics) = Service::in_memory(clock);
        let is_ready = || metrics.values()["relay_ready"];
        assert_eq!(is_ready(), 1.0);
        // Whoever asks finds that it is.
        service.show_ready(false);
        tokio::time::advance(UNASKED_MAX - Duration::from_secs(1)).await;
        service.probe_if_unasked().await;
        assert_eq!(is_ready(), 0.0, "somebody asked lately");
        tokio::time::advance(Duration::from_secs(1)).await;
        service.probe_if_unasked().await;
        assert_eq!(is_ready(), 1.0);
        // What is known to be wrong is looked at at once.
        service.store().close().await;
        service.probe_if_unasked().await;
        assert_eq!(is_ready(), 0.0);
    }
}
