//! When and how fast the scrub goes through all that is stored.

use std::sync::Arc;
use std::time::Duration;

use crate::service::{OrderKey, Service};

/// Rows in a second: a million takes an hour and a half, and about a hundredth of a core.
const ROWS_PER_SECOND: u32 = 200;

/// Bytes in a second: a GiB takes a quarter of an hour.
const BYTES_PER_SECOND: u32 = 1 << 20;

/// The first pass begins so long after the start, which has other things to read.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Scrubs for ever; rests for so long between two passes.
pub(super) async fn scrub_for_ever(service: Arc<Service>, rest: Duration) {
    tokio::time::sleep(rest.min(FIRST_AFTER)).await;
    let mut after = OrderKey::START;
    loop {
        let pause = match service.scrub(after).await {
            Ok(scrub) => {
                after = scrub.next.unwrap_or(OrderKey::START);
                match scrub.next {
                    Some(_) => pace(scrub.rows, scrub.bytes),
                    None => rest,
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the scrub waits until storage answers");
                rest.min(FIRST_AFTER)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How long so many rows and bytes may take.
fn pace(rows: u64, bytes: u64) -> Duration {
    let of = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let for_rows = Duration::from_secs(1) * of(rows) / ROWS_PER_SECOND;
    let for_bytes = Duration::from_secs(1) * of(bytes) / BYTES_PER_SECOND;
    for_rows.max(for_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_slow_by_rows_and_by_bytes() {
        assert_eq!(pace(64, 0), Duration::from_millis(320));
        assert_eq!(pace(1, 3 << 20), Duration::from_secs(3));
    }
}
