//! Many hostile clients at once: memory stays bounded, and others hardly notice.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;

use futures_util::SinkExt as _;

use crate::harness::{Peer, SILENCE, eventually, http_get, id, value_of};
use crate::process::Process;

/// Readers that never read.
const DEAF: usize = 200;
/// Frames that cannot be read, ten a connection.
const MALFORMED: usize = 20_000;

async fn scraped(relay: &Process, series: &str) -> f64 {
    let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
    value_of(&scrape, series).unwrap_or_default()
}

/// How long a blob takes from its sender to its recipient, in milliseconds: median and worst of 50.
async fn latency(relay: &Process) -> (f64, f64) {
    let mut recipient = Peer::connect(relay.clients).await;
    recipient.handshake(json!({ "client_id": id(0xA0) })).await;
    let mut sender = Peer::connect(relay.clients).await;
    sender.handshake(json!({ "client_id": id(0xA1) })).await;
    let mut took = Vec::new();
    for _ in 0..50 {
        // The same blob a second time would be taken for a repeat.
        let blob = uuid::Uuid::new_v4().into_bytes();
        let began = Instant::now();
        sender.submit(&id(0xA0), &blob).await;
        let delivered = recipient.delivery().await;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        recipient.acknowledge(&delivered.id).await;
        sender.receive().await;
    }
    took.sort_by(f64::total_cmp);
    (took[25], took[49])
}

async fn deaf_reader(relay: &Process, mailbox: &str) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let stream = socket.connect(relay.clients).await.unwrap();
    let mut peer = Peer::over(stream).await.unwrap();
    peer.say_hello(json!({ "client_id": mailbox })).await;
    peer
}

/// Waits until each deaf reader has got something and none gets more. All that they get before takes a busy
/// machine longer than anybody is patient, so patience begins anew with each blob.
async fn until_nobody_gets_more(relay: &Process) {
    let mut delivered = 0.0;
    let mut goes_on = true;
    while goes_on {
        eventually(
            "a blob for a deaf reader, or none for a while",
            async || {
                tokio::time::sleep(SILENCE).await;
                let now = scraped(relay, "relay_blobs_delivered_total").await;
                goes_on = std::mem::replace(&mut delivered, now) < now;
                goes_on || now >= DEAF as f64
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_that_never_read_cost_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let mut sender = Peer::connect(relay.clients).await;
    sender.handshake(json!({ "client_id": id(1) })).await;
    for number in 0..64_u8 {
        sender.store(&id(2), &vec![number; 64 << 10]).await;
    }
    let before = latency(&relay).await;
    let resident = scraped(&relay, "process_resident_memory_bytes").await;

    let mut readers = Vec::new();
    for _ in 0..DEAF {
        readers.push(deaf_reader(&relay, &id(2)).await);
    }
    until_nobody_gets_more(&relay).await;
    let grown = scraped(&relay, "process_resident_memory_bytes").await - resident;
    let after = latency(&relay).await;
    println!(
        "{DEAF} deaf readers with 4 MiB waiting: {:.0} KiB each; a blob's way took {:.1} / {:.1} ms before and {:.1} / {:.1} ms after (median / worst)",
        grown / 1024.0 / DEAF as f64,
        before.0,
        before.1,
        after.0,
        after.1,
    );
    // A page of 256 KiB, one frame on its way (3.6 bytes for each of a blob), and what both were
    // copied from; nowhere near the 14 MiB that wait for each.
    assert!(
        grown < DEAF as f64 * 1.5 * 1024.0 * 1024.0,
        "{grown} bytes more"
    );
    drop(readers);
    let (status, _) = http_get(relay.operators, "/ready", &[]).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_malformed_frames_disturb_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let before = latency(&relay).await;
    let resident = scraped(&relay, "process_resident_memory_bytes").await;
    let flood = async {
        for number in 0..MALFORMED / 10 {
            let mut peer = Peer::connect(relay.clients).await;
            peer.handshake(json!({ "client_id": format!("{number:064x}") }))
                .await;
            for frame in 0..10 {
                let garbage = vec![(number + frame) as u8; 1 + (number * 7 + frame) % 300];
                // The relay closes after the tenth; it may be faster than we are.
                drop(peer.socket.feed(Message::Binary(garbage.into())).await);
            }
            drop(peer.socket.flush().await);
            peer.expect_close(4400).await;
        }
    };
    let watch = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        latency(&relay).await
    };
    let ((), during) = tokio::join!(flood, watch);
    let grown = scraped(&relay, "process_resident_memory_bytes").await - resident;
    println!(
        "{MALFORMED} malformed frames: {:.1} MiB more; a blob's way took {:.1} / {:.1} ms before and {:.1} / {:.1} ms meanwhile (median / worst)",
        grown / 1024.0 / 1024.0,
        before.0,
        before.1,
        during.0,
        during.1,
    );
    assert!(grown < 64.0 * 1024.0 * 1024.0, "{grown} bytes more");
    assert_eq!(
        scraped(&relay, "relay_refusals_total{code=\"invalid\"}").await,
        MALFORMED as f64
    );
}
