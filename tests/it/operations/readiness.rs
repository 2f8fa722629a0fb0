//! `/ready`, and what tells apart that blobs come in and that they go out.

use serde_json::{Value, json};

use crate::harness::{Peer, Relay, eventually, http_get, id, update, value_of};
use crate::process::Process;
use crate::store::faulty::{Call, Fault, faulty_relay};

async fn ready(relay: &Relay) -> (u16, String) {
    http_get(relay.running.operators, "/ready", &[]).await
}

/// Whether it takes blobs, and whether it gives them: as `/metrics` and `/health/detailed` have it.
async fn directions(relay: &Relay) -> (bool, bool) {
    let (_, page) = http_get(relay.running.operators, "/health/detailed", &[]).await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let takes = relay.metric("relay_takes_blobs").await == 1.0;
    let gives = relay.metric("relay_gives_blobs").await == 1.0;
    assert_eq!(page["storage"]["takes_blobs"], takes, "{page}");
    assert_eq!(page["storage"]["gives_blobs"], gives, "{page}");
    (takes, gives)
}

/// For five seconds after the last blob that was stored it said yes, whatever failed since.
#[tokio::test]
async fn a_failed_write_makes_ready_say_no_at_once() {
    let (relay, faults) = faulty_relay(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"stored").await;
    assert_eq!(ready(&relay).await.0, 200);
    assert_eq!(directions(&relay).await, (true, true));

    for call in [Call::Append, Call::Trial] {
        faults.on_every(call, Fault::Fail);
    }
    sender.send(&update("refused", &id(2), b"refused")).await;
    let answer = sender.receive().await;
    assert_eq!(answer["payload"]["error"], "unavailable");
    let (status, body) = ready(&relay).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(directions(&relay).await, (false, true));
    // What waits comes out.
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"stored");

    for call in [Call::Append, Call::Trial] {
        faults.mend(call);
    }
    assert_eq!(ready(&relay).await.0, 200);
    assert_eq!(directions(&relay).await, (true, true));
}

/// The probe read a page that was in memory, and said yes while no blob came out.
#[tokio::test]
async fn a_mailbox_that_cannot_be_read_makes_ready_say_no() {
    let (relay, faults) = faulty_relay(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"waits").await;
    faults.on_every(Call::Page, Fault::Fail);
    let mut recipient = relay.client(&id(2)).await;
    relay.metric_becomes("relay_gives_blobs", 0.0).await;
    let (status, body) = ready(&relay).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(directions(&relay).await, (true, false));
    // New blobs are stored.
    sender.store(&id(3), b"comes").await;

    faults.mend(Call::Page);
    assert_eq!(recipient.delivery().await.blob, b"waits");
    assert_eq!(ready(&relay).await.0, 200);
    assert_eq!(directions(&relay).await, (true, true));
}

/// 32 of 4,691 scrapes were made in the middle of a commit and did not add up.
#[tokio::test]
async fn every_scrape_of_a_busy_relay_adds_up() {
    const SCRAPES: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let connect = async |byte: u8| {
        let mut peer = Peer::connect(relay.clients).await;
        peer.handshake(json!({ "client_id": id(byte) })).await;
        peer
    };
    let mut sender = connect(1).await;
    let mut recipient = connect(2).await;
    let sending = async {
        loop {
            sender.store(&id(2), b"blob").await;
        }
    };
    let receiving = async {
        loop {
            let delivery = recipient.delivery().await;
            recipient.acknowledge(&delivery.id).await;
        }
    };
    let scraping = async {
        let created = "relay_blobs_created_total";
        for _ in 0..SCRAPES {
            let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
            let value = |series: &str| value_of(&scrape, series).unwrap();
            let left = [
                "acknowledged",
                "cancelled",
                "replaced",
                "purged",
                "expired",
                "lost",
            ];
            let left = left.map(|how| value(&format!("relay_blobs_{how}_total")));
            let gone: f64 = left.iter().sum();
            let came = value("relay_blobs_stored_at_start") + value(created);
            assert_eq!(came, gone + value("relay_blobs_stored"));
        }
        eventually("it was busy", async || {
            let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
            value_of(&scrape, created).unwrap() > 10.0
        })
        .await;
    };
    tokio::select! {
        () = scraping => {}
        () = async { tokio::join!(sending, receiving); } => {}
    }
}
