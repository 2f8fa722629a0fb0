//! How many sessions at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits for sessions.
#[derive(Debug, Clone)]
pub struct Connections {
    permits: Arc<Semaphore>,
}

/// The right to one session; given back by dropping it.
#[derive(Debug)]
pub struct ConnectionPermit(
    #[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit,
);

impl Connections {
    /// At most `max` sessions (`RELAY_MAX_CONNECTIONS`); zero for no limit.
    pub fn new(max: u32) -> Self {
        let permits = if max == 0 {
            Semaphore::MAX_PERMITS
        } else {
            max as usize
        };
        Self {
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    /// A permit, or `None` when the house is full.
    pub fn admit(&self) -> Option<ConnectionPermit> {
        Arc::clone(&self.permits)
            .try_acquire_owned()
            .ok()
            .map(ConnectionPermit)
    }
}
