//! Whether the relay still moves, for a watchdog.
//!
//! A pulse takes the way that every client's request takes, as far as that waits for no disk: a task
//! of its own, the locks of the limits, of the store's counters and of the metrics. A relay that
//! hangs has none, and a restart helps it. A disk that hangs or fails does not stop it, because no
//! restart makes a disk better; that is what `/ready` is for.

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::service::Service;

/// Feels the pulse. Clones feel the same one.
#[derive(Clone)]
pub struct Pulse {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
}

/// What a pulse tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitals {
    /// Sessions that are open.
    pub connections: u64,
    /// Blobs that wait for their recipients.
    pub blobs: u64,
    /// Whether storage takes writes, as far as is known without trying.
    pub takes_writes: bool,
    /// Whether the relay is on its way out.
    pub is_draining: bool,
}

impl Pulse {
    /// The pulse of this service.
    pub fn new(service: Arc<Service>, metrics: Arc<Metrics>) -> Self {
        Self { service, metrics }
    }

    /// Returns when it has come through; never, while the relay hangs. `None` when it broke on its way.
    pub async fn feel(&self) -> Option<Vitals> {
        let Self { service, metrics } = self.clone();
        // A task of its own runs only when a worker thread takes it up.
        let feeling = tokio::spawn(async move {
            service.tidy();
            let values = metrics.values();
            // A cast from a float keeps within the bounds of the number.
            let value = |series| values.get(series).map_or(0, |value| *value as u64);
            Vitals {
                connections: value("relay_connections_active"),
                blobs: service.store().usage().stored,
                takes_writes: value("relay_store_up") == 1,
                is_draining: value("relay_draining") == 1,
            }
        });
        feeling.await.ok()
    }
}

impl std::fmt::Debug for Pulse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pulse")
    }
}
