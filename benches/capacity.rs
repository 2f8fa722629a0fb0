//! What blobs cost a disk, a start and their recipients, seen from outside the relay's process.
//!
//! `cargo bench --bench capacity` stores blobs of three sizes and prints the bytes that each takes on
//! the disk, how fast many recipients collect them, and how large the folder is afterwards; then the
//! time from the start to the first connection, and the memory then, with 0, 100,000 and 1,000,000
//! blobs. `cargo bench --bench capacity -- BINARY` measures another binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use vauchi_relay::client::v1::{Client, Options};
use vauchi_relay::ids::MailboxId;

use relay::Relay;

#[path = "load/relay.rs"]
mod relay;

/// Blobs in one mailbox; more than one page of small ones.
const IN_A_MAILBOX: usize = 500;
/// Connections that send, and then collect, at once.
const CONNECTIONS: usize = 32;
/// Submits on their way on each connection.
const IN_FLIGHT: usize = 16;

fn main() {
    // Cargo says --bench to it.
    let named = std::env::args().skip(1).find(|word| word != "--bench");
    let binary = named.map_or_else(|| env!("CARGO_BIN_EXE_vauchi-relay").into(), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (size, count) in [(256, 100_000), (1_024, 100_000), (65_536, 5_000)] {
        runtime.block_on(one_size(&binary, size, count));
    }
    for count in [0, 100_000, 1_000_000] {
        runtime.block_on(start(&binary, count));
    }
}

async fn one_size(binary: &Path, size: usize, count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(binary, folder.path());
    store(&relay.url(), size, count).await;
    relay.stop();
    let each = bytes_in(folder.path()) as f64 / count as f64;
    let relay = Relay::start(binary, folder.path());
    let began = Instant::now();
    // Kept open, so that no acknowledgement is cut off.
    let recipients = collect(&relay.url(), count).await;
    while relay.stored() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    drop(recipients);
    relay.stop();
    println!(
        "{count} blobs of {size} bytes: {each:.0} bytes each on the disk; collected: {rate:.0}/s ({:.0} MB/s); the folder afterwards: {:.1} MB",
        rate * size as f64 / 1e6,
        bytes_in(folder.path()) as f64 / 1e6
    );
}

async fn start(binary: &Path, count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(binary, folder.path());
    store(&relay.url(), 1_024, count).await;
    let memory = relay.resident_bytes();
    relay.stop();
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            let relay = Relay::start(binary, folder.path());
            let (took, resident) = (relay.took, relay.resident_bytes());
            relay.stop();
            (took, resident)
        })
        .collect();
    times.sort_unstable();
    let (took, resident) = times[times.len() / 2];
    println!(
        "{count} blobs of 1024 bytes: {:.0} ms from the start to the first connection, {:.1} MB of memory then; {:.1} MB after storing them; {:.0} MB on the disk",
        took.as_secs_f64() * 1e3,
        resident as f64 / 1e6,
        memory as f64 / 1e6,
        bytes_in(folder.path()) as f64 / 1e6
    );
}

fn mailbox(number: usize) -> MailboxId {
    let mut id = [0x5A; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    MailboxId::from_bytes(id)
}

/// Mailboxes are filled in turn, as in life: one that is filled at once would lie side by side.
async fn store(url: &str, size: usize, count: usize) {
    let mailboxes = count.div_ceil(IN_A_MAILBOX);
    let senders = (0..CONNECTIONS).map(|sender| async move {
        let client = Client::connect(url, Options::unsigned(MailboxId::random()))
            .await
            .unwrap();
        let blobs = (sender..count).step_by(CONNECTIONS);
        let mut bytes = vec![0; size];
        let submits = blobs.map(|number| {
            bytes.fill_with(rand::random);
            client.submit(mailbox(number % mailboxes), Bytes::from(bytes.clone()))
        });
        futures_util::stream::iter(submits)
            .buffer_unordered(IN_FLIGHT)
            .for_each(|answer| async { drop(answer.unwrap()) })
            .await;
    });
    futures_util::future::join_all(senders).await;
}

/// Each recipient opens its mailboxes one after another and acknowledges what it gets.
async fn collect(url: &str, count: usize) -> Vec<Vec<Client>> {
    let mailboxes = count.div_ceil(IN_A_MAILBOX);
    let recipients = (0..CONNECTIONS).map(|recipient| async move {
        let mut clients = Vec::new();
        for number in (recipient..mailboxes).step_by(CONNECTIONS) {
            let client = Client::connect(url, Options::unsigned(mailbox(number)))
                .await
                .unwrap();
            for _ in (number..count).step_by(mailboxes) {
                let delivery = client.next_delivery().await.unwrap();
                client.acknowledge(&delivery).await.unwrap();
            }
            clients.push(client);
        }
        clients
    });
    futures_util::future::join_all(recipients).await
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}
