//! What a connection costs that says nothing, and a mailbox that is open on it.

use std::time::{Duration, Instant};

use crate::peer::{Peer, Version};
use crate::relay::Relay;

/// Connections.
const IDLE: usize = 2_000;
/// Connections that open many mailboxes.
const SUBSCRIBERS: usize = 100;
/// Mailboxes that each of them opens.
const SUBSCRIPTIONS: usize = 500;

/// The memory of an idle connection with this many open mailboxes.
pub async fn connections(relay: &Relay, version: Version, mailboxes: usize) {
    let mut peers = connect(relay, version, 0..100, mailboxes).await;
    let before = relay.resident_bytes();
    let began = Instant::now();
    peers.extend(connect(relay, version, 100..100 + IDLE, mailboxes).await);
    let took = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (relay.resident_bytes() - before) / IDLE as u64;
    println!(
        "{version}: {IDLE} idle connections with {mailboxes} open mailboxes: {each} bytes each; {:.0} connects a second, one at a time",
        IDLE as f64 / took
    );
}

/// The memory of one more mailbox on a connection that has others.
pub async fn subscriptions(relay: &Relay) {
    let mut peers = connect(relay, Version::V2, 0..SUBSCRIBERS, 1).await;
    let before = relay.resident_bytes();
    let began = Instant::now();
    for peer in &mut peers {
        peer.open(SUBSCRIPTIONS).await;
    }
    let (more, took) = (SUBSCRIBERS * (SUBSCRIPTIONS - 1), began.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (relay.resident_bytes() - before) / more as u64;
    println!(
        "v2: {more} more mailboxes open on {SUBSCRIBERS} connections: {each} bytes each; {:.0} opened a second",
        more as f64 / took.as_secs_f64()
    );
}

async fn connect(
    relay: &Relay,
    version: Version,
    numbers: std::ops::Range<usize>,
    mailboxes: usize,
) -> Vec<Peer> {
    let mut peers = Vec::new();
    for number in numbers {
        let mut peer = Peer::connect(version, relay.clients, number).await;
        if mailboxes > 0 {
            peer.open(mailboxes).await;
        }
        peers.push(peer);
    }
    peers
}
