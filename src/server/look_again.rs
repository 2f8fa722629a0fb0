//! When blobs that were found damaged are looked at again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::service::Service;

/// While the disk cannot be read: how soon that is tried again, because the relay is not ready until then.
const RETRY: Duration = Duration::from_secs(5);

/// A look reads the whole database. It takes at most a twentieth of the time.
const REST_TIMES: u32 = 20;

/// Looks for ever; costs nothing while nothing is damaged.
pub(super) async fn look_again_for_ever(service: Arc<Service>, every: Duration) {
    let mut due = Instant::now() + every;
    loop {
        tokio::time::sleep_until(due.min(Instant::now() + RETRY)).await;
        let began = Instant::now();
        // An error of either is told by the store, once.
        if began < due {
            service.store().read_again().await.ok();
            continue;
        }
        service.look_again().await.ok();
        due = began + every.max(began.elapsed() * REST_TIMES);
    }
}
