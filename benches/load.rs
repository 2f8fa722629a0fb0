//! What the relay does on this machine, seen from outside its process.
//!
//! `cargo bench --bench load` starts the release binary on a folder of its own and prints, for each
//! protocol, stores a second and the time to `Stored` at 1, 32 and 512 in flight, beside a bare loop of
//! 100-row transactions into the same schema; blobs a second that go the whole way, from a submit to
//! its acknowledgement by the recipient; the relay's processor time for each; and the memory of an idle
//! connection and of an open mailbox. All are measured in the same run, so what counts is the ratio.
//! `cargo bench --bench load -- SECONDS` runs longer, and `cargo bench --bench load -- SECONDS BINARY
//! BINARY…` measures these binaries in turn instead, for example one of another target or allocator.
//!
//! `cargo bench --bench load -- idle` prints the memory alone.
//!
//! `cargo bench --bench load -- backup` fills a relay with a GiB and backs it up under load: stores a
//! second before, during and after, the longest wait, and how large the log became.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use peer::Version;
use relay::Relay;

#[path = "load/backup.rs"]
mod backup;
#[path = "load/bare.rs"]
mod bare;
#[path = "load/idle.rs"]
mod idle;
#[path = "load/peer.rs"]
mod peer;
#[path = "load/relay.rs"]
mod relay;
#[path = "load/stores.rs"]
mod stores;

/// Bytes of a blob.
const BODY: usize = 1_024;
/// Mailboxes that take turns.
const MAILBOXES: usize = 10_000;

fn main() {
    let (mut seconds, mut binaries) = (5, Vec::new());
    // Cargo says --bench to it.
    for word in std::env::args().skip(1).filter(|word| word != "--bench") {
        match word.parse() {
            Ok(number) => seconds = number,
            Err(_) if word == "backup" || word == "idle" => {}
            Err(_) => binaries.push(PathBuf::from(word)),
        }
    }
    if binaries.is_empty() {
        binaries.push(env!("CARGO_BIN_EXE_vauchi-relay").into());
    }
    let span = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if std::env::args().any(|word| word == "backup") {
        runtime.block_on(backup::backup_under_load(span));
        return;
    }
    if std::env::args().any(|word| word == "idle") {
        binaries.iter().for_each(|binary| idle(&runtime, binary));
        return;
    }
    println!(
        "bodies of {BODY} bytes, {MAILBOXES} mailboxes, {seconds} s a row, 2 cores shared by all"
    );
    let bare = runtime.block_on(bare::bare_loop(span));
    println!("bare loop, 100 rows a transaction: {bare:.0} rows/s");
    for binary in &binaries {
        if binaries.len() > 1 {
            println!("{}", binary.display());
        }
        measure(&runtime, binary, span, bare);
    }
}

fn measure(runtime: &Runtime, binary: &Path, span: Duration, bare: f64) {
    for (connections, in_flight) in [(1, 1), (32, 1), (32, 16)] {
        for version in [Version::V1, Version::V2] {
            with_relay(binary, |relay| {
                let storing = stored(relay, version, (connections, in_flight), span, bare);
                runtime.block_on(storing);
            });
        }
    }
    for version in [Version::V1, Version::V2] {
        with_relay(binary, |relay| {
            runtime.block_on(carried(relay, version, (32, 16), span));
        });
    }
    idle(runtime, binary);
}

fn idle(runtime: &Runtime, binary: &Path) {
    for (version, mailboxes) in [(Version::V1, 1), (Version::V2, 0), (Version::V2, 1)] {
        with_relay(binary, |relay| {
            runtime.block_on(idle::connections(relay, version, mailboxes));
        });
    }
    with_relay(binary, |relay| {
        runtime.block_on(idle::subscriptions(relay));
    });
}

/// Each row has a relay and a folder of its own, so that none inherits what another left.
fn with_relay(binary: &Path, row: impl FnOnce(&Relay)) {
    let folder = tempfile::tempdir().unwrap();
    row(&Relay::start(binary, folder.path()));
}

async fn stored(
    relay: &Relay,
    version: Version,
    (connections, in_flight): (usize, usize),
    span: Duration,
    bare: f64,
) {
    let until = Cell::new(Instant::now() + span);
    let answers = stores::store_load(version, relay.clients, connections, in_flight, &until).await;
    let mut latencies: Vec<_> = answers.into_iter().map(|(_, took)| took).collect();
    let rate = latencies.len() as f64 / span.as_secs_f64();
    latencies.sort_unstable();
    let at =
        |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{version}, {:>4} in flight: {rate:>7.0} stores/s, {:.2} of the bare loop; answer p50 {:.2} ms, p99 {:.2} ms; relay CPU {:.1} µs a store",
        connections * in_flight,
        rate / bare,
        at(0.50),
        at(0.99),
        relay.cpu_seconds() * 1e6 / latencies.len() as f64,
    );
}

async fn carried(
    relay: &Relay,
    version: Version,
    (connections, in_flight): (usize, usize),
    span: Duration,
) {
    let until = Instant::now() + span;
    let carried = stores::carry_load(version, relay.clients, connections, in_flight, until).await;
    println!(
        "{version}, {:>4} on their way: {:>7.0} blobs/s submitted, delivered and acknowledged; relay CPU {:.1} µs a blob",
        connections * in_flight,
        carried as f64 / span.as_secs_f64(),
        relay.cpu_seconds() * 1e6 / carried as f64,
    );
}
