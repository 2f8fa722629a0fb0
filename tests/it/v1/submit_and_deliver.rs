//! The main way of a blob: handed in, stored, pushed now or later, acknowledged, gone.

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Peer, Relay, envelope, id, update};

#[tokio::test]
async fn a_blob_waits_for_its_recipient_and_is_gone_after_the_acknowledgement() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"hello").await;

    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    assert_eq!(delivered.blob, b"hello");
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    recipient.leave().await;

    let mut again = relay.client(&id(2)).await;
    again.expect_silence().await;
    assert_eq!(relay.metric("relay_blobs_stored").await, 0.0);
}

#[tokio::test]
async fn a_connected_recipient_gets_a_blob_at_once() {
    let relay = Relay::start(&[]).await;
    let mut recipient = relay.client(&id(2)).await;
    let mut sender = relay.client(&id(1)).await;
    for round in 0..20_u8 {
        let began = Instant::now();
        sender.store(&id(2), &[round]).await;
        let stored = began.elapsed();
        let delivered = recipient.delivery().await;
        assert_eq!(delivered.blob, [round]);
        println!(
            "round {round}: stored after {stored:?}, delivered after {:?}",
            began.elapsed()
        );
        recipient.acknowledge(&delivered.id).await;
    }
}

#[tokio::test]
async fn the_order_holds_over_reconnects_and_restarts() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    for number in 0..30_u8 {
        sender.store(&id(2), &[number]).await;
    }
    let mut recipient = relay.client(&id(2)).await;
    let mut first = Vec::new();
    for number in 0..30_u8 {
        let delivered = recipient.delivery().await;
        assert_eq!(delivered.blob, [number]);
        first.push(delivered);
    }
    for delivered in &first[..10] {
        recipient.acknowledge(&delivered.id).await;
    }
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 10.0)
        .await;
    recipient.leave().await;

    let relay = relay.restart().await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), &[30]).await;
    let mut recipient = relay.client(&id(2)).await;
    for expected in &first[10..] {
        assert_eq!(
            &recipient.delivery().await,
            expected,
            "the same blob under the same id"
        );
    }
    assert_eq!(recipient.delivery().await.blob, [30]);
}

#[tokio::test]
async fn a_backlog_of_many_pages_comes_whole_and_in_order() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let blob = |number: u16| [number.to_be_bytes().to_vec(), vec![7; 5_000]].concat();
    for number in 0..300 {
        sender.submit(&id(2), &blob(number)).await;
    }
    for _ in 0..300 {
        assert_eq!(sender.receive().await["payload"]["status"], "Stored");
    }
    let mut recipient = relay.client(&id(2)).await;
    for number in 0..300 {
        assert_eq!(recipient.delivery().await.blob, blob(number));
    }
    recipient.expect_silence().await;
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let mut expected = Vec::new();
    for number in 0..200_u8 {
        if number % 7 == 0 {
            sender
                .send(&update("an invalid recipient", "nobody", &[number]))
                .await;
            expected.push(("an invalid recipient".to_owned(), "Failed"));
        } else {
            expected.push((sender.submit(&id(2), &[number]).await, "Stored"));
        }
    }
    for (message_id, status) in expected {
        let answer = sender.receive().await;
        assert_eq!(answer["payload"]["message_id"], *message_id);
        assert_eq!(answer["payload"]["status"], status);
    }
}

#[tokio::test]
async fn a_repeated_submit_is_confirmed_and_stored_once() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let submit = update("the same submit", &id(2), b"once");
    for _ in 0..3 {
        sender.send(&submit).await;
        sender.expect_stored("the same submit").await;
    }
    // The same name with other bytes is another blob: clients with constant ids exist.
    sender
        .send(&update("the same submit", &id(2), b"twice"))
        .await;
    sender.expect_stored("the same submit").await;

    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"once");
    let twice = recipient.delivery().await;
    assert_eq!(twice.blob, b"twice");
    recipient.acknowledge(&twice.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    sender
        .send(&update("the same submit", &id(2), b"twice"))
        .await;
    sender.expect_stored("the same submit").await;
    recipient.expect_silence().await;
    assert_eq!(relay.metric("relay_duplicates_total").await, 3.0);
}

#[tokio::test]
async fn every_connection_of_an_id_gets_the_blob_and_a_late_goodbye_keeps_the_new_session() {
    let relay = Relay::start(&[]).await;
    let old = relay.client(&id(2)).await;
    let mut new = relay.client(&id(2)).await;
    let mut sender = relay.client(&id(1)).await;
    old.leave().await;
    relay.metric_becomes("relay_connections_active", 2.0).await;
    sender.store(&id(2), b"to whoever is left").await;
    assert_eq!(new.delivery().await.blob, b"to whoever is left");

    let mut third = relay.client(&id(2)).await;
    assert_eq!(third.delivery().await.blob, b"to whoever is left");
    sender.store(&id(2), b"to both").await;
    assert_eq!(new.delivery().await, third.delivery().await);
}

#[tokio::test]
async fn a_routing_token_is_the_mailbox_and_is_echoed_as_it_was_spelt() {
    let relay = Relay::start(&[]).await;
    let spelt = id(0xAB).to_uppercase();
    let mut recipient = Peer::connect(relay.running.clients).await;
    recipient
        .handshake(json!({ "client_id": id(9), "routing_token": spelt }))
        .await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(0xAB), b"by token").await;
    let delivery = recipient.receive().await;
    assert_eq!(delivery["payload"]["recipient_id"], spelt);
    sender.store(&id(9), b"by client_id").await;
    recipient.expect_silence().await;
}

#[tokio::test]
async fn only_the_mailbox_s_own_connection_acknowledges() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"mine").await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    let mut stranger = relay.client(&id(3)).await;
    stranger.acknowledge(&delivered.id).await;
    stranger.store(&id(3), b"a round trip").await;
    recipient.leave().await;
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await, delivered);
}

#[tokio::test]
async fn unknown_types_are_ignored_and_counted() {
    let relay = Relay::start(&[]).await;
    let mut client = relay.client(&id(1)).await;
    for kind in ["SomethingNew", "HandshakeAck", "Handshake", "PurgeResponse"] {
        client
            .send(&envelope(
                "a frame of another kind",
                json!({ "type": kind, "client_id": id(1) }),
            ))
            .await;
    }
    client.store(&id(2), b"still served").await;
    assert_eq!(relay.metric("relay_messages_ignored_total").await, 4.0);
}

#[tokio::test]
async fn an_empty_blob_and_one_of_every_byte_come_back_as_they_were() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    sender.store(&id(2), &[]).await;
    sender.store(&id(2), &every_byte).await;
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, Vec::<u8>::new());
    assert_eq!(recipient.delivery().await.blob, every_byte);
}
