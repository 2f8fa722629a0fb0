//! The workloads. Each starts a server of its own, checks that every blob is accounted for, and returns
//! one sample.

pub mod connects;
pub mod drain;
pub mod live;
pub mod stores;

use std::path::Path;

use crate::Bench;
use crate::peers::{Server, Subject};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Stores to offline mailboxes, with this many bytes in a blob and this many blobs waiting before.
    Stores { body: usize, waiting: usize },
    /// To recipients that are there, at this rate.
    Live { per_second: u64 },
    /// To recipients that are there, as fast as it goes.
    LiveMaximum,
    /// Recipients come and collect what waits.
    Drain,
    /// Connections come and stay silent.
    Connects,
}

/// What one run measured. A load leaves at zero what it does not measure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of the server's processor time.
    pub cpu_micros: f64,
    pub written_bytes: f64,
    pub connection_kb: f64,
    /// The share of the run in which the generator did not wait for the server.
    pub generator_busy: f64,
}

impl Load {
    pub fn run(self, bench: &Bench, subject: Subject, binary: &Path) -> Result<Sample, String> {
        let server = Server::start(bench, subject, binary)?;
        let sample = match self {
            Self::Stores { body, waiting } => stores::run(bench, &server, body, waiting),
            Self::Live { per_second } => live::run(bench, &server, per_second),
            Self::LiveMaximum => live::run_maximum(bench, &server),
            Self::Drain => drain::run(bench, &server),
            Self::Connects => connects::run(bench, &server),
        };
        sample.map_err(|why| {
            let (name, _) = subject.describe();
            match server.last_words() {
                words if words.is_empty() => format!("{name}: {why}"),
                words => format!("{name}: {why} ({words})"),
            }
        })
    }
}

/// The value at this share of the sorted values, in milliseconds.
fn percentile(nanos: &mut [u64], share: f64) -> f64 {
    if nanos.is_empty() {
        return f64::NAN;
    }
    let at = ((nanos.len() - 1) as f64 * share) as usize;
    let (_, value, _) = nanos.select_nth_unstable(at);
    *value as f64 / 1e6
}
