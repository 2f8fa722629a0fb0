//! How a series is made and described, and in which steps histograms count.

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// Seconds: from a memory store's 100 µs to a stalled disk's 10 s.
const SECONDS_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Writes per transaction, up to the pipeline's bound.
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 350.0, 500.0];

/// A recorder without any series.
#[expect(
    clippy::expect_used,
    reason = "the bucket lists are constants and not empty"
)]
pub(super) fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new()
        .set_buckets(&SECONDS_BUCKETS)
        .and_then(|builder| {
            let batch = metrics_exporter_prometheus::Matcher::Suffix("_batch_size".to_owned());
            builder.set_buckets_for_metric(batch, &BATCH_BUCKETS)
        })
        .expect("bucket lists are not empty")
        .build_recorder()
}

/// A kind of series: how one is described, and made in the current recorder.
pub(super) trait Series {
    /// There from the first scrape on.
    fn make(name: &'static str, help: &'static str) -> Self;
}

impl Series for Counter {
    fn make(name: &'static str, help: &'static str) -> Self {
        describe_counter!(name, help);
        let counter = counter!(name);
        counter.absolute(0);
        counter
    }
}

impl Series for Gauge {
    fn make(name: &'static str, help: &'static str) -> Self {
        describe_gauge!(name, help);
        let gauge = gauge!(name);
        gauge.set(0.0);
        gauge
    }
}

/// Of times, or of sizes of batches; the end of its name says which.
impl Series for Histogram {
    fn make(name: &'static str, help: &'static str) -> Self {
        let unit = match name.ends_with("_seconds") {
            true => Unit::Seconds,
            false => Unit::Count,
        };
        describe_histogram!(name, unit, help);
        histogram!(name)
    }
}
