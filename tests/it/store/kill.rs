//! The process is killed between `Stored` and a restart; nothing that was confirmed is missing.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::sync::watch;

use crate::harness::{Peer, eventually, id};
use crate::process::Process;

const SENDERS: usize = 50;
const MAILBOXES: usize = 1_000;
const BLOBS: usize = 10_000;
const KILLS: usize = 3;

#[tokio::test]
async fn a_confirmed_blob_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let mut sender = Peer::connect(relay.clients).await;
    sender.handshake(json!({ "client_id": id(1) })).await;
    sender.store(&id(2), b"survivor").await;
    relay.kill().await;

    let relay = Process::start(folder.path()).await;
    let mut recipient = Peer::connect(relay.clients).await;
    recipient.handshake(json!({ "client_id": id(2) })).await;
    assert_eq!(recipient.delivery().await.blob, b"survivor");
}

/// Many senders, three kills on the way: every blob that was answered `Stored` is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_confirmed_blob_is_lost_over_three_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Process::start(folder.path()).await;
    let (announce, address) = watch::channel(relay.clients);
    let confirmed = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..SENDERS)
        .map(|number| tokio::spawn(send_share(number, address.clone(), Arc::clone(&confirmed))))
        .collect();

    for kill in 1..=KILLS {
        let share = kill * BLOBS / (KILLS + 1);
        eventually("senders get on", async || {
            confirmed.load(Ordering::Relaxed) >= share
        })
        .await;
        relay.kill().await;
        relay = Process::start(folder.path()).await;
        announce.send(relay.clients).unwrap();
    }

    let mut expected: HashMap<usize, HashSet<Vec<u8>>> = HashMap::new();
    for sender in senders {
        for number in sender.await.unwrap() {
            expected
                .entry(number % MAILBOXES)
                .or_default()
                .insert(blob(number));
        }
    }
    let total: usize = expected.values().map(HashSet::len).sum();
    println!("{total} of {BLOBS} blobs were answered Stored over {KILLS} kills");
    assert!(
        total >= BLOBS - KILLS * SENDERS,
        "a kill costs each sender one answer at the most"
    );
    for (mailbox, mut blobs) in expected {
        let mut recipient = Peer::connect(relay.clients).await;
        recipient
            .handshake(json!({ "client_id": mailbox_id(mailbox) }))
            .await;
        while !blobs.is_empty() {
            // A blob whose answer the kill swallowed may come, too.
            blobs.remove(&recipient.delivery().await.blob);
        }
    }
}

/// Sends this sender's share one after the other; returns the blobs that were confirmed.
async fn send_share(
    sender: usize,
    mut address: watch::Receiver<SocketAddr>,
    confirmed: Arc<AtomicUsize>,
) -> Vec<usize> {
    let mut stored = Vec::new();
    let mut connection = None;
    for number in (sender..BLOBS).step_by(SENDERS) {
        let mut peer = match connection.take() {
            Some(peer) => peer,
            None => reconnected(sender, &mut address).await,
        };
        if is_stored(&mut peer, number).await {
            stored.push(number);
            confirmed.fetch_add(1, Ordering::Relaxed);
            connection = Some(peer);
        }
    }
    stored
}

async fn reconnected(sender: usize, address: &mut watch::Receiver<SocketAddr>) -> Peer {
    loop {
        let now = *address.borrow_and_update();
        if let Ok(mut peer) = Peer::try_connect(now).await
            && peer.try_handshake(&mailbox_id(MAILBOXES + sender)).await
        {
            return peer;
        }
        address.changed().await.unwrap();
    }
}

async fn is_stored(peer: &mut Peer, number: usize) -> bool {
    let message_id = format!("33333333-3333-4333-8333-{number:012}");
    let frame = crate::harness::update(&message_id, &mailbox_id(number % MAILBOXES), &blob(number));
    peer.try_send(&frame).await
        && peer
            .next()
            .await
            .is_ok_and(|answer| String::from_utf8_lossy(&answer).contains("\"Stored\""))
}

fn mailbox_id(number: usize) -> String {
    format!("{number:064x}")
}

fn blob(number: usize) -> Vec<u8> {
    let mut blob = number.to_be_bytes().to_vec();
    blob.resize(1_024, (number % 251) as u8);
    blob
}
