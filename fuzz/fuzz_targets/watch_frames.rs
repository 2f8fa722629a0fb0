//! Any bytes as WebSocket frames under the watcher: never a panic, never a stall, and every byte comes
//! through unchanged, however the reads are cut, until the end or a frame that is refused.
#![no_main]

use std::cell::LazyCell;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::{Builder, Runtime};
use vauchi_relay::limits::address::Address;
use vauchi_relay::limits::unfinished::Unfinished;
use vauchi_relay::metrics::Metrics;
use vauchi_relay::socket::watch::{WatchRules, Watched};

thread_local! {
    static METRICS: LazyCell<Arc<Metrics>> = LazyCell::new(|| Arc::new(Metrics::new()));
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().build().unwrap());
}

fuzz_target!(|input: &[u8]| {
    let [early, cut, stream @ ..] = input else {
        return;
    };
    let (early, rest) = stream.split_at(usize::from(*early).min(stream.len()));
    let rules = WatchRules {
        message_timeout: Duration::from_secs(3600),
        unfinished: METRICS.with(|metrics| Unfinished::new(1 << 20, Arc::clone(metrics))),
        slow_reading: METRICS.with(|metrics| metrics.slow_reading_total.clone()),
    };
    let address = Address::of([192, 0, 2, 1].into());
    let mut buffer = vec![0; usize::from(*cut) + 1];
    let mut came_through = Vec::new();
    let ended = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut watched = Watched::new(rest, early, rules, address);
            loop {
                match watched.read(&mut buffer).await {
                    Ok(0) => return Ok(()),
                    Ok(read) => came_through.extend_from_slice(&buffer[..read]),
                    Err(error) => return Err(error.kind()),
                }
            }
        })
    });
    match ended {
        Ok(()) => assert_eq!(came_through, stream),
        Err(refused) => {
            assert_eq!(refused, ErrorKind::InvalidData);
            assert!(stream.starts_with(&came_through));
        }
    }
});
