//! What a v1 sender is told while it is connected, and what a delivery tells of its sender.

use serde_json::{Value, json};

use crate::harness::{Peer, Relay, envelope, frame, id, update};

fn of_kind(frames: &[Value], status: &str) -> Vec<Value> {
    let is = |frame: &&Value| frame["payload"]["status"] == status;
    frames.iter().filter(is).cloned().collect()
}

async fn expect_notice(peer: &mut Peer, message_id: &str, status: &str, blob_id: &str) {
    let notice = peer.receive_any().await;
    assert_eq!(notice["payload"]["type"], "Acknowledgment", "{notice}");
    assert_eq!(notice["payload"]["status"], status, "{notice}");
    assert_eq!(notice["payload"]["message_id"], message_id, "{notice}");
    assert_eq!(notice["payload"]["blob_id"], blob_id, "{notice}");
}

#[tokio::test]
async fn a_connected_sender_is_told_of_delivery_and_acknowledgement_under_its_own_name() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let message_id = sender.submit(&id(2), b"tell me").await;
    sender.expect_stored(&message_id).await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    expect_notice(&mut sender, &message_id, "Delivered", &delivered.id).await;
    recipient.acknowledge(&delivered.id).await;
    expect_notice(
        &mut sender,
        &message_id,
        "ReceivedByRecipient",
        &delivered.id,
    )
    .await;
    recipient.acknowledge(&delivered.id).await;
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn a_redelivery_is_not_told_again() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let message_id = sender.submit(&id(2), b"twice").await;
    sender.expect_stored(&message_id).await;
    for round in 0..2 {
        let mut recipient = relay.client(&id(2)).await;
        let delivered = recipient.delivery().await;
        if round == 0 {
            expect_notice(&mut sender, &message_id, "Delivered", &delivered.id).await;
        }
        recipient.leave().await;
    }
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn a_recipient_that_suppresses_presence_gives_no_sign() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"quietly").await;
    let mut recipient = Peer::connect(relay.running.clients).await;
    recipient
        .handshake(json!({ "client_id": id(2), "suppress_presence": true }))
        .await;
    let delivered = recipient.delivery().await;
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn notices_reach_the_sender_whichever_of_its_connections_closes() {
    let relay = Relay::start(&[]).await;
    let mut first = relay.client(&id(1)).await;
    let mut second = relay.client(&id(1)).await;
    let message_id = first.submit(&id(2), b"from the first").await;
    first.expect_stored(&message_id).await;
    first.leave().await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    expect_notice(&mut second, &message_id, "Delivered", &delivered.id).await;
    recipient.acknowledge(&delivered.id).await;
    expect_notice(
        &mut second,
        &message_id,
        "ReceivedByRecipient",
        &delivered.id,
    )
    .await;
}

#[tokio::test]
async fn a_sender_that_was_not_connected_is_told_nothing_later() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"and away").await;
    sender.leave().await;
    let mut recipient = relay.client(&id(2)).await;
    recipient.delivery().await;
    let mut sender = relay.client(&id(1)).await;
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn the_sender_id_comes_back_unchanged_and_is_absent_when_there_was_none() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let mut with_sender = update("with a sender", &id(2), b"who");
    with_sender["payload"]["sender_id"] = json!("Any Text, as it Stood");
    sender.send(&with_sender).await;
    sender.expect_stored("with a sender").await;
    sender.store(&id(2), b"nobody").await;
    let relay = relay.restart().await;

    let mut recipient = relay.client(&id(2)).await;
    let first = recipient.receive().await;
    assert_eq!(first["payload"]["sender_id"], "Any Text, as it Stood");
    let second = recipient.receive().await;
    assert!(second["payload"].get("sender_id").is_none(), "{second}");
}

#[tokio::test]
async fn the_sender_id_is_neither_kept_nor_given_when_it_shall_be_dropped() {
    let relay = Relay::start(&[("RELAY_V1_SENDER_ID", "drop")]).await;
    let mut sender = relay.client(&id(1)).await;
    let mut with_sender = update("with a sender", &id(2), b"who");
    with_sender["payload"]["sender_id"] = json!(id(1));
    sender.send(&with_sender).await;
    sender.expect_stored("with a sender").await;
    let mut recipient = relay.client(&id(2)).await;
    let delivery = recipient.receive().await;
    assert!(delivery["payload"].get("sender_id").is_none(), "{delivery}");
}

#[tokio::test]
async fn no_id_and_no_sender_stands_in_the_database() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(0xA1)).await;
    let mut with_sender = update("with a sender", &id(0xB2), b"who");
    with_sender["payload"]["sender_id"] = json!("a sender in the clear");
    sender.send(&with_sender).await;
    sender.expect_stored("with a sender").await;
    let folder = relay.config.data_dir.clone();
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"a sender in the clear") && !holds(b"with a sender"));
        for byte in [0xA1, 0xB2] {
            assert!(!holds(&[byte; 32]) && !holds(id(byte).as_bytes()));
        }
    }
}

#[tokio::test]
async fn word_of_a_revoked_account_is_delivered_as_a_whole_frame_without_notices() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let revoked = envelope(
        "55555555-5555-4555-8555-555555555555",
        json!({
            "type": "AccountRevoked", "sender_id": id(1), "recipient_id": id(2),
            "timestamp": 1_795_220_000_u64, "signature": vec![7; 64],
        }),
    );
    sender.send(&revoked).await;
    sender
        .expect_stored("55555555-5555-4555-8555-555555555555")
        .await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    let (prefix, body) = delivered.blob.split_at(4);
    assert_eq!(
        u32::from_be_bytes(prefix.try_into().unwrap()) as usize,
        body.len()
    );
    let inner: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(inner, revoked);
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    sender.expect_no_notice().await;

    let bad = envelope(
        "66666666-6666-4666-8666-666666666666",
        json!({ "type": "AccountRevoked", "sender_id": id(1), "recipient_id": "nobody",
            "timestamp": 1, "signature": [] }),
    );
    sender.send(&bad).await;
    sender
        .expect_refusal("66666666-6666-4666-8666-666666666666", "invalid")
        .await;
}

#[tokio::test]
async fn a_purge_empties_the_mailbox_and_counts() {
    let relay = Relay::start(&[]).await;
    let mut owner = relay.client(&id(1)).await;
    let mut other = relay.client(&id(3)).await;
    for number in 0..5 {
        other.store(&id(1), &[number]).await;
        other.store(&id(2), &[number]).await;
    }
    for _ in 0..5 {
        owner.delivery().await;
    }
    let purge = envelope(
        "99999999-9999-4999-8999-999999999999",
        json!({ "type": "PurgeRequest" }),
    );
    owner.send(&purge).await;
    let purged = owner.receive().await;
    assert_eq!(purged["message_id"], "99999999-9999-4999-8999-999999999999");
    assert_eq!(purged["payload"]["type"], "PurgeResponse", "{purged}");
    assert_eq!(purged["payload"]["blobs_deleted"], 5);
    assert_eq!(relay.metric("relay_blobs_purged_total").await, 5.0);
    assert_eq!(
        relay.metric("relay_blobs_stored").await,
        5.0,
        "another's mailbox stays"
    );
    other.store(&id(1), b"after the purge").await;
    assert_eq!(owner.delivery().await.blob, b"after the purge");
}

#[tokio::test]
async fn a_flood_of_notices_to_a_deaf_sender_is_bounded() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    for number in 0..600_u16 {
        sender.submit(&id(2), &number.to_be_bytes()).await;
    }
    let mut answers = Vec::new();
    for _ in 0..600 {
        answers.push(sender.receive().await);
    }
    assert_eq!(of_kind(&answers, "Stored").len(), 600);
    // The sender reads nothing while all is delivered; what it gets is in order and not too much.
    let mut recipient = relay.client(&id(2)).await;
    for _ in 0..600 {
        recipient.delivery().await;
    }
    sender
        .send_bytes(frame(&update("the last", &id(3), b"x")))
        .await;
    let mut notices = 0;
    loop {
        let next = sender.receive_any().await;
        match next["payload"]["status"].as_str() {
            Some("Delivered") => notices += 1,
            Some("Stored") => break,
            other => panic!("{other:?}"),
        }
    }
    let dropped = relay.metric("relay_notices_dropped_total").await;
    println!("{notices} notices before the answer, {dropped} dropped");
    assert!(f64::from(notices) + dropped <= 600.0);
}
