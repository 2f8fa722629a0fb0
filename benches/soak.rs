//! Does the relay's memory level off? A mixed load with churn, for as long as you like.
//!
//! `cargo bench --bench soak -- MINUTES [BINARY]` starts the release binary on a folder of its own.
//! Clients of both protocols come from ever new addresses with ever new mailboxes, submit, fetch and
//! acknowledge; some leave without a word, or without fetching, and come back later. Every 10 seconds it
//! reads the relay's memory, descriptors and threads, and the gauges of all that grows with use. After
//! the first half, which is the warm-up, it fits a line through each: the exit code is 1 when memory
//! that no gauge explains grows faster than [`GROWTH_MAX`], or descriptors or threads grow at all.
//!
//! The load is paced, so the figures do not depend on how busy the machine is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use peer::{Heard, Peer, Version};
use relay::Relay;
use samples::{Sample, judge};

#[path = "load/peer.rs"]
mod peer;
#[path = "load/relay.rs"]
mod relay;
#[path = "soak/samples.rs"]
mod samples;

/// How fast memory that no gauge explains may grow in the second half. An allocator's own ups and downs
/// over some minutes are about a tenth of it.
const GROWTH_MAX: f64 = 100.0 * 1024.0; // bytes a minute

/// Clients that come and go at the same time.
const CLIENTS: usize = 24;

/// Between two things that a client does: 24 clients make some 400 requests a second.
const PACE: Duration = Duration::from_millis(50);

/// Clients that have left without fetching, and will come back. Beyond that the oldest comes back.
const AWAY_MAX: usize = 500;

/// Everything that the relay keeps for a while is kept so briefly that it levels off in the warm-up;
/// limits count, and never bind.
const SETTINGS: [(&str, &str); 8] = [
    // By number: by time nothing is forgotten in the first ten minutes.
    ("RELAY_DEDUP_MAX", "10000"),
    ("RELAY_CLEANUP_INTERVAL_SECS", "60"),
    ("RELAY_RATE_LIMIT_PER_MIN", "1000000"),
    ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "10000000"),
    ("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", "1000000"),
    ("RELAY_OPENINGS_PER_MIN", "1000000"),
    ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "1000"),
    ("RELAY_MAX_CONNECTIONS", "1000"),
];

fn main() -> ExitCode {
    let mut minutes = 20;
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_vauchi-relay"));
    // Cargo says --bench to it.
    for word in std::env::args().skip(1).filter(|word| word != "--bench") {
        match word.parse() {
            Ok(number) => minutes = number,
            Err(_) => binary = word.into(),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start_with(&binary, folder.path(), &SETTINGS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let samples = runtime.block_on(soak(&relay, Duration::from_secs(60 * minutes)));
    match judge(&samples, GROWTH_MAX) {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    }
}

/// What the clients share.
struct World<'a> {
    relay: &'a Relay,
    body: Bytes,
    next: Cell<usize>,
    /// Mailboxes in which something waits.
    away: RefCell<VecDeque<(Version, usize)>>,
    until: Instant,
}

async fn soak(relay: &Relay, span: Duration) -> Vec<Sample> {
    let world = World {
        relay,
        body: Bytes::from((0..16_384).map(|_| rand::random()).collect::<Vec<u8>>()),
        next: Cell::new(0),
        away: RefCell::default(),
        until: Instant::now() + span,
    };
    let clients = join_all((0..CLIENTS).map(|_| async {
        while Instant::now() < world.until {
            world.visit().await;
        }
    }));
    let watching = async {
        let mut samples = Vec::new();
        println!("{}", samples::HEAD);
        while Instant::now() < world.until {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let sample = Sample::of(relay);
            println!("{sample}");
            samples.push(sample);
        }
        samples
    };
    futures_util::join!(clients, watching).1
}

impl World<'_> {
    /// A client comes from a new address, does something, and leaves.
    async fn visit(&self) {
        let number = self.next.replace(self.next.get() + 1);
        let version = match number % 2 {
            0 => Version::V1,
            _ => Version::V2,
        };
        let is_away = self.away.borrow().len() >= AWAY_MAX;
        let back = is_away.then(|| self.away.borrow_mut().pop_front());
        match back.flatten() {
            Some((version, number)) => self.comes_back(version, number).await,
            None if number.is_multiple_of(7) => self.leaves_a_blob(version, number).await,
            None => self.talks_to_itself(version, number).await,
        }
    }

    async fn connect(&self, version: Version, number: usize) -> Peer {
        tokio::time::sleep(PACE).await;
        let new = self.next.get();
        let [_, a, b, c] = u32::try_from(new % (1 << 24)).unwrap().to_be_bytes();
        let from = std::net::Ipv4Addr::new(11, a, b, c);
        Peer::connect_from(version, self.relay.clients, number, Some(from.into())).await
    }

    /// Sends some blobs to its own mailbox and fetches them. One in five leaves without a word.
    async fn talks_to_itself(&self, version: Version, number: usize) {
        let mut peer = self.connect(version, number).await;
        peer.open(1 + number % 8).await;
        for _ in 0..rand::random_range(1..20) {
            let bytes = 1 << rand::random_range(4..14);
            peer.submit(peer.mailbox(), &self.body.slice(..bytes)).await;
            peer.flush().await;
            let (mut is_stored, mut is_fetched) = (false, false);
            while !(is_stored && is_fetched) {
                match peer.next().await {
                    Heard::Stored => is_stored = true,
                    Heard::Blob(arrived) => {
                        peer.acknowledge(arrived).await;
                        is_fetched = true;
                    }
                    Heard::Other => {}
                }
            }
            tokio::time::sleep(PACE).await;
        }
        // The last acknowledgement: what stays behind would make the database grow.
        peer.flush().await;
        match number % 5 {
            0 => drop(peer),
            _ => peer.close().await,
        }
    }

    /// Sends a blob to its own mailbox and leaves.
    async fn leaves_a_blob(&self, version: Version, number: usize) {
        let mut peer = self.connect(version, number).await;
        peer.submit(peer.mailbox(), &self.body.slice(..2_048)).await;
        peer.flush().await;
        while !matches!(peer.next().await, Heard::Stored) {}
        self.away.borrow_mut().push_back((version, number));
    }

    /// Fetches what it left.
    async fn comes_back(&self, version: Version, number: usize) {
        let mut peer = self.connect(version, number).await;
        peer.open(1).await;
        loop {
            if let Heard::Blob(arrived) = peer.next().await {
                peer.acknowledge(arrived).await;
                peer.close().await;
                return;
            }
        }
    }
}
