//! The relay beside redis, mosquitto and NATS on this machine: the targets as ratios, in one run.
//!
//! `cargo bench --bench compare` prints a Markdown table, `-- ROWS…` only these rows, `-- --quick` a
//! rough one, `-- --help` the rest. `-- --binary OLD --binary NEW` compares two builds of the relay in
//! the same run. `docs/performance.md` says how to read the table.
//!
//! - `rows`: what is divided by what, and the targets; `schedule`: the runs in their order; `table` and
//!   `machine`: what is printed
//! - `loads/`: the workloads; `verify`: whether a server holds what it answered for
//! - `peers`: the servers; `launch`: their cores and their end; `process`: what they use
//! - `generator`: many connections on one thread; `dialect/`: what a client says to each server;
//!   `mailbox`: to whom and what

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;

use launch::Cores;
use rows::{Backlog, Row};
use schedule::{Measured, Results};

#[path = "compare/dialect/mod.rs"]
mod dialect;
#[path = "compare/generator.rs"]
mod generator;
#[path = "compare/launch.rs"]
mod launch;
#[path = "compare/loads/mod.rs"]
mod loads;
#[path = "compare/machine.rs"]
mod machine;
#[path = "compare/mailbox.rs"]
mod mailbox;
#[path = "compare/peers.rs"]
mod peers;
#[path = "compare/process.rs"]
mod process;
#[path = "load/relay.rs"]
mod relay;
#[path = "compare/rows.rs"]
mod rows;
#[path = "compare/schedule.rs"]
mod schedule;
#[path = "compare/table.rs"]
mod table;
#[path = "compare/verify.rs"]
mod verify;

/// Bytes of a blob, unless a row says otherwise.
const BODY: usize = 1_024;

/// Descriptors that are not connections.
const DESCRIPTORS_KEPT: u64 = 500;

/// Compares the relay with redis, mosquitto and NATS.
#[derive(Parser)]
struct Options {
    /// Only these rows; the first column of the table has their names.
    rows: Vec<String>,
    /// The relay to measure, by default the one of this build. Several are compared with the first.
    #[arg(long, value_name = "FILE")]
    binary: Vec<PathBuf>,
    /// One round of a second each, and small backlogs: shows that everything works.
    #[arg(long)]
    quick: bool,
    /// 1,000,000 blobs wait in the row `backlog` instead of 200,000.
    #[arg(long, conflicts_with = "quick")]
    long: bool,
    /// Rounds, of which the median counts [default: 5].
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each run, without warm-up [default: 6].
    #[arg(long)]
    seconds: Option<u64>,
    /// Writes every round's figures into this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How everything is measured.
pub struct Bench {
    cores: Option<Cores>,
    rounds: usize,
    span: Duration,
    warm_up: Duration,
    /// Blobs of the row `drain`.
    drain_blobs: usize,
    /// Connections of the row `idle`.
    connections: usize,
    /// Where data folders are: on the disk of the build.
    root: PathBuf,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    fn new(options: &Options) -> Self {
        let quick = options.quick;
        let descriptors = launch::raise_descriptors().saturating_sub(DESCRIPTORS_KEPT);
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, interrupted.clone()).unwrap();
        }
        let seconds = options.seconds.unwrap_or(if quick { 1 } else { 6 });
        Self {
            cores: Cores::find(),
            rounds: options.rounds.unwrap_or(if quick { 1 } else { 5 }).max(1),
            span: Duration::from_secs(seconds.max(1)),
            warm_up: Duration::from_millis(if quick { 250 } else { 1_000 }),
            drain_blobs: if quick { 4_000 } else { 40_000 },
            connections: descriptors.min(if quick { 1_000 } else { 10_000 }) as usize,
            root: env!("CARGO_TARGET_TMPDIR").into(),
            interrupted,
        }
    }

    /// A new data folder. What earlier runs have written is on the disk then, and does not slow this one.
    fn folder(&self) -> TempDir {
        rustix::fs::sync();
        tempfile::Builder::new()
            .prefix("compare-")
            .tempdir_in(&self.root)
            .unwrap()
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.next_if(|word| word == launch::WORD).is_some() {
        launch::become_server(words);
    }
    let options = Options::parse();
    let bench = Bench::new(&options);
    let rows = match chosen(&options) {
        Ok(rows) => rows,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let mut binaries = options.binary;
    if binaries.is_empty() {
        binaries.push(env!("CARGO_BIN_EXE_vauchi-relay").into());
    }
    for missing in schedule::missing(&rows) {
        eprintln!("PEER MISSING, its rows have no ratio: {missing}");
    }
    let head = machine::head(&bench, &binaries);
    eprintln!("{head}");
    if let Some(cores) = bench.cores {
        launch::pin(cores.generator);
    }
    let results = Results::measure(&bench, &binaries, &rows);
    if bench.is_interrupted() {
        eprintln!("interrupted");
        return ExitCode::from(130);
    }
    println!("{head}");
    println!("{}", table::markdown(&rows, &results, binaries.len()));
    if let Some(file) = &options.json {
        let json = table::json(&rows, &results, &binaries, &head);
        std::fs::write(file, format!("{json:#}\n")).unwrap();
    }
    if results.all().iter().any(Measured::has_failed) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The rows that were asked for.
fn chosen(options: &Options) -> Result<Vec<Row>, String> {
    let (blobs, must) = match (options.quick, options.long) {
        (true, _) => (5_000, 0.9),
        (_, true) => (1_000_000, 0.85),
        _ => (200_000, 0.9),
    };
    let mut rows = rows::rows(Backlog { blobs, must });
    let is_known = |name: &&String| rows.iter().any(|row| row.name == **name);
    if let Some(unknown) = options.rows.iter().find(|name| !is_known(name)) {
        let names: Vec<_> = rows.iter().map(|row| row.name).collect();
        return Err(format!("no row {unknown}; there are {}", names.join(", ")));
    }
    rows.retain(|row| options.rows.is_empty() || options.rows.iter().any(|name| name == row.name));
    Ok(rows)
}
