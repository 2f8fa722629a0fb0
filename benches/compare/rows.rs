//! The rows of the table: what is divided by what, and the targets.

use crate::loads::{Load, Sample};
use crate::peers::Subject;
use crate::table::number;

/// A subject under a load: runs are shared between rows.
pub type Run = (Subject, Load);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    PerSecond,
    P50,
    P99,
    Cpu,
    Written,
    Connection,
}

impl Measure {
    pub fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::PerSecond => sample.per_second,
            Self::P50 => sample.p50_ms,
            Self::P99 => sample.p99_ms,
            Self::Cpu => sample.cpu_micros,
            Self::Written => sample.written_bytes,
            Self::Connection => sample.connection_kb,
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::P50 | Self::P99 => " ms",
            Self::Cpu => " µs",
            Self::Written => " B",
            Self::Connection => " kB",
        }
    }

    /// Only rates are better when they are higher.
    pub fn reaches(self, value: f64, target: f64) -> bool {
        match self {
            Self::PerSecond => value >= target,
            _ => value <= target,
        }
    }
}

pub struct Row {
    /// The word for it on the command line.
    pub name: &'static str,
    pub title: String,
    pub measure: Measure,
    pub ours: Run,
    /// Without a divisor the figure itself has the targets.
    pub divisor: Option<Run>,
    pub must: Option<f64>,
    pub aim: Option<f64>,
}

impl Row {
    fn new(name: &'static str, title: &str, measure: Measure, ours: Run) -> Self {
        Self {
            name,
            title: title.to_owned(),
            measure,
            ours,
            divisor: None,
            must: None,
            aim: None,
        }
    }

    fn by(self, divisor: Run) -> Self {
        Self {
            divisor: Some(divisor),
            ..self
        }
    }

    fn targets(self, must: f64, aim: f64) -> Self {
        Self {
            must: Some(must),
            aim: Some(aim),
            ..self
        }
    }

    pub fn runs(&self) -> impl Iterator<Item = Run> {
        [Some(self.ours), self.divisor].into_iter().flatten()
    }
}

/// How many blobs wait in the row `backlog`.
#[derive(Clone, Copy)]
pub struct Backlog {
    pub blobs: usize,
    pub must: f64,
}

/// All rows. Rows of one load stand together.
pub fn rows(backlog: Backlog) -> Vec<Row> {
    let mut all = stores(backlog);
    all.extend(live());
    all.extend(collecting_and_connecting());
    all
}

fn stores(backlog: Backlog) -> Vec<Row> {
    use Measure::{Cpu, P99, PerSecond, Written};
    use Subject::{Memory, Mosquitto, Nats, Redis, V1, V2};
    let load = |body, waiting| Load::Stores { body, waiting };
    let (small, large) = (load(crate::BODY, 0), load(64 << 10, 0));
    let full = load(crate::BODY, backlog.blobs);
    let p99 = "answer p99 at full load ÷ redis always";
    let memory = "memory engine's stores ÷ mosquitto";
    let blobs = number(backlog.blobs as f64);
    let waiting = format!("stores with {blobs} blobs waiting ÷ empty");
    let row = Row::new;
    vec![
        row("stores", "v2 stores ÷ redis always", PerSecond, (V2, small))
            .by((Redis, small))
            .targets(0.60, 0.85),
        row("v1", "v1 stores ÷ v2 stores", PerSecond, (V1, small))
            .by((V2, small))
            .targets(0.55, 0.75),
        row("answer-p99", p99, P99, (V2, small))
            .by((Redis, small))
            .targets(2.5, 1.5),
        row(
            "written",
            "written for a blob of 1,024 B",
            Written,
            (V2, small),
        )
        .targets(3_500.0, 2_500.0),
        row("cpu", "CPU of a store ÷ redis always", Cpu, (V2, small))
            .by((Redis, small))
            .targets(1.5, 1.2),
        row("memory", memory, PerSecond, (Memory, small))
            .by((Mosquitto, small))
            .targets(0.9, 1.1),
        row("nats", "v2 stores ÷ NATS JetStream", PerSecond, (V2, small)).by((Nats, small)),
        row("backlog", &waiting, PerSecond, (V2, full))
            .by((V2, small))
            .targets(backlog.must, 0.95),
        row(
            "64k",
            "stores of 64 KiB ÷ redis always",
            PerSecond,
            (V2, large),
        )
        .by((Redis, large))
        .targets(0.75, 1.0),
    ]
}

fn live() -> Vec<Row> {
    use Measure::{P50, PerSecond};
    use Subject::{LiveOnly, Mosquitto, Redis, V2};
    let load = |per_second| Load::Live { per_second };
    let (slow, fast, maximum) = (load(1_000), load(5_000), Load::LiveMaximum);
    let stored = |rate| format!("stored and delivered at {rate}/s, p50 ÷ redis always");
    let live_only = |rate| format!("live_only at {rate}/s, p50 ÷ mosquitto");
    let most = "live maximum, stored ÷ mosquitto";
    let row = Row::new;
    vec![
        row("live-1000", &stored("1,000"), P50, (V2, slow))
            .by((Redis, slow))
            .targets(1.1, 1.0),
        row("live-5000", &stored("5,000"), P50, (V2, fast))
            .by((Redis, fast))
            .targets(1.4, 1.0),
        row("live-only-1000", &live_only("1,000"), P50, (LiveOnly, slow))
            .by((Mosquitto, slow))
            .targets(1.2, 1.0),
        row("live-only-5000", &live_only("5,000"), P50, (LiveOnly, fast))
            .by((Mosquitto, fast))
            .targets(1.2, 1.0),
        row("live-max", most, PerSecond, (V2, maximum))
            .by((Mosquitto, maximum))
            .targets(0.6, 0.9),
    ]
}

fn collecting_and_connecting() -> Vec<Row> {
    use Measure::{Connection, PerSecond};
    use Subject::{Mosquitto, V2};
    let (drain, connects) = (Load::Drain, Load::Connects);
    let gone = "drain, acknowledged and gone ÷ mosquitto";
    let handshakes = "connects with handshake ÷ mosquitto";
    let row = Row::new;
    vec![
        row("drain", gone, PerSecond, (V2, drain))
            .by((Mosquitto, drain))
            .targets(0.6, 0.9),
        row("idle", "idle v2 connection", Connection, (V2, connects)).targets(9.0, 7.0),
        row("connects", handshakes, PerSecond, (V2, connects))
            .by((Mosquitto, connects))
            .targets(0.6, 1.0),
    ]
}
