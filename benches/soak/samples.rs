//! What a soak reads of the relay, and whether that levels off.

use std::fmt;
use std::time::Instant;

use crate::relay::Relay;

/// Bytes of a departed blob in memory: its place by age (64) and in the table of names (16 and a control
/// byte, at a load of 7/16 to 7/8, so up to 39).
const DEPARTED_BYTES: f64 = 103.0;

/// Gauges that a row of the table has, in this order, after memory, descriptors and threads.
const GAUGES: [&str; 6] = [
    "relay_working_sets_bytes",
    "relay_dedup_remembered",
    "relay_rate_limit_clients",
    "relay_connections_active",
    "relay_blobs_stored",
    "relay_blobs_acknowledged_total",
];

pub const HEAD: &str = "   seconds  resident KiB  unexplained KiB  descriptors  threads  working sets KiB  departed  limits  connections  stored  acknowledged";

/// The relay at one moment.
pub struct Sample {
    at: Instant,
    seconds: f64,
    resident: f64,
    descriptors: f64,
    threads: f64,
    gauges: [f64; GAUGES.len()],
}

impl Sample {
    pub fn of(relay: &Relay) -> Self {
        let scrape = relay.scrape();
        let value = |name: &str| {
            let mut lines = scrape.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(series, _)| *series == name);
            found
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(f64::NAN)
        };
        Self {
            at: Instant::now(),
            seconds: relay.started.elapsed().as_secs_f64(),
            resident: relay.resident_bytes() as f64,
            descriptors: relay.count("fd"),
            threads: relay.count("task"),
            gauges: GAUGES.map(value),
        }
    }

    /// Memory beside what the gauges say that the relay keeps.
    fn unexplained(&self) -> f64 {
        let [sets, departed, ..] = self.gauges;
        self.resident - sets - departed * DEPARTED_BYTES
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sets, departed, limits, connections, stored, acknowledged] = self.gauges;
        write!(
            to,
            "{:>10.0}  {:>12.0}  {:>15.0}  {:>11}  {:>7}  {:>16.0}  {departed:>8}  {limits:>6}  {connections:>11}  {stored:>6}  {acknowledged:>12}",
            self.seconds,
            self.resident / 1024.0,
            self.unexplained() / 1024.0,
            self.descriptors,
            self.threads,
            sets / 1024.0,
        )
    }
}

/// Prints how the second half grew; an error when that is too much.
pub fn judge(samples: &[Sample], growth_max: f64) -> Result<(), ()> {
    let late = &samples[samples.len() / 2..];
    let resident = slope(late, |sample| sample.resident);
    let unexplained = slope(late, Sample::unexplained);
    let descriptors = slope(late, |sample| sample.descriptors);
    let threads = slope(late, |sample| sample.threads);
    println!(
        "second half, a minute: resident {:+.0} KiB, unexplained {:+.0} KiB, descriptors {descriptors:+.2}, threads {threads:+.2}",
        resident / 1024.0,
        unexplained / 1024.0,
    );
    // Descriptors follow the clients that are connected: half of one a minute is their chance.
    let levels_off = unexplained < growth_max && descriptors < 0.5 && threads < 0.5;
    println!(
        "{}",
        if levels_off {
            "it levels off"
        } else {
            "IT GROWS"
        }
    );
    levels_off.then_some(()).ok_or(())
}

/// The least squares' growth a minute.
fn slope(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let minutes = |sample: &Sample| (sample.at - samples[0].at).as_secs_f64() / 60.0;
    let mean_x = samples.iter().map(minutes).sum::<f64>() / count;
    let mean_y = samples.iter().map(&value).sum::<f64>() / count;
    let (mut xy, mut xx) = (0.0, 0.0);
    for sample in samples {
        let x = minutes(sample) - mean_x;
        xy += x * (value(sample) - mean_y);
        xx += x * x;
    }
    xy / xx
}
