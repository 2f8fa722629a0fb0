//! Whether storage answers, asked by probes and, where nobody probes, by the relay itself.

use std::sync::PoisonError;
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
        if last.elapsed() >= UNASKED_MAX {
            // The answer is in the metric; what is wrong, the store's own lines say.
            self.probe().await.ok();
        }
    }

    /// Moves `relay_ready`; the drain says no by it whatever storage answers.
    pub fn show_ready(&self, is_ready: bool) {
        self.parts.metrics.ready.set(f64::from(u8::from(is_ready)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::config::Config;
    use crate::hub::Hub;
    use crate::limits::budgets::Budgets;
    use crate::metrics::Metrics;
    use crate::secrets::Secret;
    use crate::service::Parts;
    use crate::store::memory::{self, MemoryOptions};
    use crate::store::quota::Quota;
    use crate::store::{Store, StoreOptions};

    #[tokio::test(start_paused = true)]
    async fn where_nobody_asks_the_relay_asks_itself() {
        let (clock, _) = Clock::manual(Timestamp::from_millis(0));
        let (secret, metrics) = (Secret::random(), Arc::new(Metrics::new()));
        let opened = memory::open(MemoryOptions {
            dedup: Duration::ZERO,
            dedup_max: 1,
            metrics: Arc::clone(&metrics),
        });
        let options = StoreOptions {
            secret: secret.clone(),
            quota: Quota::UNBOUNDED,
            dedup: Duration::ZERO,
            receipt_ttl: Duration::from_secs(60),
            news: Arc::new(|_| {}),
            metrics: Arc::clone(&metrics),
        };
        let store = Arc::new(Store::start(opened, options));
        let config = Config::default();
        let service = Service::new(Parts {
            receipt_min_ttl: Duration::from_secs(3_600),
            v1_allows_unverified: true,
            v1_keeps_sender_id: true,
            store: Arc::clone(&store),
            hub: Arc::new(Hub::default()),
            secret,
            budgets: Arc::new(Budgets::new(&config, clock.clone(), &metrics)),
            clock,
            metrics: Arc::clone(&metrics),
            blob_ttl: config.blob_ttl,
        });
        let is_ready = || metrics.values()["relay_ready"];
        assert_eq!(is_ready(), 1.0);
        // From now on it does not answer.
        store.close().await;
        tokio::time::advance(UNASKED_MAX - Duration::from_secs(1)).await;
        service.probe_if_unasked().await;
        assert_eq!(is_ready(), 1.0, "somebody asked lately");
        tokio::time::advance(Duration::from_secs(1)).await;
        service.probe_if_unasked().await;
        assert_eq!(is_ready(), 0.0);
    }
}
