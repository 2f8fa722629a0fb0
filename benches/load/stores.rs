//! How fast blobs are stored, and how fast they go the whole way.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::peer::{Heard, Peer, Version, numbered};
use crate::{BODY, MAILBOXES};

/// Stores from this many connections until the time is up; returns when each submit was answered, and
/// how long it took.
pub async fn store_load(
    version: Version,
    address: SocketAddr,
    connections: usize,
    in_flight: usize,
    until: &Cell<Instant>,
) -> Vec<(Instant, Duration)> {
    let bodies = bodies();
    let senders =
        (0..connections).map(|number| sender(version, address, number, in_flight, until, &bodies));
    join_all(senders).await.concat()
}

async fn sender(
    version: Version,
    address: SocketAddr,
    number: usize,
    in_flight: usize,
    until: &Cell<Instant>,
    bodies: &[Bytes],
) -> Vec<(Instant, Duration)> {
    let mut peer = Peer::connect(version, address, number).await;
    let (mut sent, mut waiting, mut answered) = (0, VecDeque::new(), Vec::new());
    loop {
        while waiting.len() < in_flight && Instant::now() < until.get() {
            let mailbox = (number * 7_919 + sent * 104_729) % MAILBOXES;
            let body = &bodies[sent % bodies.len()];
            peer.submit(numbered(mailbox), body).await;
            waiting.push_back(Instant::now());
            sent += 1;
        }
        peer.flush().await;
        if waiting.is_empty() {
            return answered;
        }
        if let Heard::Stored = peer.next().await {
            answered.push((Instant::now(), waiting.pop_front().unwrap().elapsed()));
        }
    }
}

/// Each connection sends to its own mailbox and acknowledges what comes from there, until the time is
/// up; returns how many blobs went the whole way.
pub async fn carry_load(
    version: Version,
    address: SocketAddr,
    connections: usize,
    in_flight: usize,
    until: Instant,
) -> usize {
    let bodies = bodies();
    let peers =
        (0..connections).map(|number| carrier(version, address, number, in_flight, until, &bodies));
    join_all(peers).await.into_iter().sum()
}

async fn carrier(
    version: Version,
    address: SocketAddr,
    number: usize,
    in_flight: usize,
    until: Instant,
    bodies: &[Bytes],
) -> usize {
    let mut peer = Peer::connect(version, address, number).await;
    peer.open(1).await;
    let own = peer.mailbox();
    let (mut sent, mut carried) = (0, 0);
    loop {
        while sent - carried < in_flight && Instant::now() < until {
            peer.submit(own, &bodies[sent % bodies.len()]).await;
            sent += 1;
        }
        peer.flush().await;
        if sent == carried {
            return carried;
        }
        if let Heard::Blob(arrived) = peer.next().await {
            carried += 1;
            peer.acknowledge(arrived).await;
        }
    }
}

/// Random, so that nothing is spared by looking alike.
fn bodies() -> Vec<Bytes> {
    let body = || std::array::from_fn::<u8, BODY, _>(|_| rand::random());
    (0..64).map(|_| Bytes::from(body().to_vec())).collect()
}
