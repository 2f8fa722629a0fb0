//! Nothing personal leaves by the side door: no id, address or blob in any log or metric.

use serde_json::json;

use crate::harness::{Peer, envelope, http_get, id, update};
use crate::process::{Process, command};

/// A client's address as a trusted proxy tells it; it occurs nowhere else.
const ADDRESS: &str = "203.0.113.77";
/// A blob that is easily found again.
const BLOB: &[u8] = b"SEVENTY-SEVEN TRUMPETS";

async fn client(relay: &Process, own: &str) -> Peer {
    let headers = [("X-Forwarded-For", ADDRESS)];
    let mut peer = Peer::try_connect_with(relay.clients, &headers)
        .await
        .unwrap();
    peer.handshake(json!({ "client_id": own, "device_id": id(0xDE) }))
        .await;
    peer
}

/// Everything that a client may say, right and wrong.
async fn mixed_load(relay: &Process) {
    let (sender_id, recipient_id) = (id(0xAE), id(0xBE));
    let mut sender = client(relay, &sender_id).await;
    let mut with_sender = update("a message named LILAC", &recipient_id, BLOB);
    with_sender["payload"]["sender_id"] = json!(sender_id);
    sender.send(&with_sender).await;
    sender.expect_stored("a message named LILAC").await;
    sender
        .send(&update("a message named LILAC", "not-a-recipient", BLOB))
        .await;
    sender
        .send(&json!({ "payload": String::from_utf8_lossy(BLOB) }))
        .await;
    sender.send_bytes(BLOB.to_vec()).await;
    sender
        .send(&envelope("LILAC", json!({ "type": "TRUMPETS" })))
        .await;
    let odd = json!({ "type": "EncryptedUpdate", "recipient_id": recipient_id, "ciphertext": "TRUMPETS" });
    sender.send(&envelope("a message named LILAC", odd)).await;
    let mut recipient = client(relay, &recipient_id).await;
    let delivered = recipient.delivery().await;
    recipient.acknowledge(&delivered.id).await;
    recipient.acknowledge(&id(0xCE)).await;
    recipient.leave().await;

    let mut first_frame_is_a_blob = Peer::connect(relay.clients).await;
    first_frame_is_a_blob
        .send(&update("LILAC", &recipient_id, BLOB))
        .await;
    first_frame_is_a_blob.expect_close(4400).await;
    let mut badly_signed = Peer::connect(relay.clients).await;
    badly_signed
        .say_hello(
            json!({ "client_id": id(0xEE), "identity_public_key": id(0xEE),
            "nonce": id(0xCE), "timestamp": 1, "signature": "ab".repeat(64) }),
        )
        .await;
    badly_signed.expect_close(4401).await;
    let path = format!("/{recipient_id}?blob=TRUMPETS");
    assert_eq!(http_get(relay.clients, &path, &[]).await.0, 404);
    drop(sender);
}

#[tokio::test]
async fn a_mixed_load_with_errors_leaves_no_id_address_or_blob_in_any_output() {
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path());
        command
            .env("RUST_LOG", "trace")
            .env("RELAY_LOG_FORMAT", format);
        command.env("RELAY_RATE_LIMIT_PER_MIN", "1000");
        let relay = Process::spawn(&mut command).await;
        mixed_load(&relay).await;
        let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
        let (_, detailed) = http_get(relay.operators, "/health/detailed", &[]).await;
        relay.signal("TERM").await;
        let (status, log) = relay.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        println!("{} bytes of log", log.len());
        let integers = serde_json::to_string(BLOB).unwrap();
        for personal in [
            ADDRESS,
            "TRUMPETS",
            "LILAC",
            &integers[1..20],
            "not-a-recipient",
        ] {
            for output in [&log, &scrape, &detailed] {
                assert!(!output.contains(personal), "{personal} in\n{output}");
            }
        }
        for byte in [0xAE, 0xBE, 0xCE, 0xDE, 0xEE] {
            for output in [&log, &scrape, &detailed] {
                let digits = &id(byte)[..16];
                assert!(
                    !output.to_lowercase().contains(digits),
                    "{digits} in\n{output}"
                );
            }
        }
    }
}
