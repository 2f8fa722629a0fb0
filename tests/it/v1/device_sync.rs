//! Messages between the devices of one identity.

use serde_json::{Value, json};

use crate::harness::{Peer, Relay, envelope, id};

fn message(name: &str, identity: &str, target: &str, version: u64, body: &[u8]) -> Value {
    let payload = json!({
        "type": "DeviceSyncMessage", "identity_id": identity, "target_device_id": target,
        "sender_device_id": id(0xD2), "encrypted_payload": body, "version": version,
    });
    envelope(name, payload)
}

async fn device(relay: &Relay, identity: &str, device: &str) -> Peer {
    let mut peer = Peer::connect(relay.running.clients).await;
    peer.handshake(json!({ "client_id": identity, "device_id": device }))
        .await;
    peer
}

async fn next_message(peer: &mut Peer) -> Value {
    let message = peer.receive().await;
    assert_eq!(message["payload"]["type"], "DeviceSyncMessage", "{message}");
    message
}

async fn acknowledge(peer: &mut Peer, message: &Value) {
    let payload = json!({
        "type": "DeviceSyncAck", "message_id": message["message_id"],
        "synced_version": message["payload"]["version"],
    });
    peer.send(&envelope("77777777-7777-4777-8777-777777777777", payload))
        .await;
}

#[tokio::test]
async fn what_waits_comes_by_version_and_what_comes_later_is_pushed() {
    let relay = Relay::start(&[]).await;
    let (me, phone, laptop) = (id(5), id(0xD1), id(0xD2));
    let mut sender = device(&relay, &me, &laptop).await;
    for (name, version) in [("message three", 3), ("message one", 1), ("message two", 2)] {
        sender
            .send(&message(name, &me, &phone, version, name.as_bytes()))
            .await;
        sender.expect_stored(name).await;
    }
    let spelt = phone.to_uppercase();
    let mut receiver = device(&relay, &me, &spelt).await;
    for version in 1..=3 {
        let message = next_message(&mut receiver).await;
        assert_eq!(message["payload"]["version"], version);
        assert_eq!(message["payload"]["sender_device_id"], id(0xD2));
        assert_eq!(message["payload"]["identity_id"], me);
        assert_eq!(message["payload"]["target_device_id"], spelt);
    }
    sender
        .send(&message("message zero", &me, &phone, 0, b"late"))
        .await;
    sender.expect_stored("message zero").await;
    assert_eq!(next_message(&mut receiver).await["payload"]["version"], 0);
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn at_connect_the_blobs_come_first_and_device_sync_after_them() {
    let relay = Relay::start(&[]).await;
    let (me, phone) = (id(5), id(0xD1));
    let mut sender = device(&relay, &me, &id(0xD2)).await;
    sender
        .send(&message("a message", &me, &phone, 1, b"x"))
        .await;
    sender.expect_stored("a message").await;
    let mut other = relay.client(&id(6)).await;
    for number in 0..20 {
        other.store(&me, &vec![number; 20_000]).await;
    }
    let mut receiver = device(&relay, &me, &phone).await;
    for number in 0..20 {
        assert_eq!(receiver.delivery().await.blob[0], number);
    }
    next_message(&mut receiver).await;
}

#[tokio::test]
async fn only_the_device_it_is_for_has_it_and_only_until_it_acknowledges() {
    let relay = Relay::start(&[]).await;
    let (me, phone, laptop) = (id(5), id(0xD1), id(0xD2));
    let mut sender = device(&relay, &me, &laptop).await;
    sender
        .send(&message("for the phone", &me, &phone, 1, b"x"))
        .await;
    sender.expect_stored("for the phone").await;
    sender.expect_silence().await;
    let mut blobs_only = relay.client(&me).await;
    blobs_only.expect_silence().await;

    let mut receiver = device(&relay, &me, &phone).await;
    let first = next_message(&mut receiver).await;
    receiver.leave().await;
    let mut receiver = device(&relay, &me, &phone).await;
    let again = next_message(&mut receiver).await;
    assert_eq!(again["message_id"], first["message_id"]);
    // Another device that knows the id deletes nothing.
    acknowledge(&mut sender, &again).await;
    sender.store(&id(9), b"a round trip").await;
    acknowledge(&mut receiver, &again).await;
    relay
        .metric_becomes("relay_device_sync_acknowledged_total", 1.0)
        .await;
    receiver.leave().await;
    let mut receiver = device(&relay, &me, &phone).await;
    receiver.expect_silence().await;
}

#[tokio::test]
async fn messages_survive_a_restart_with_all_their_fields() {
    let relay = Relay::start(&[]).await;
    let (me, phone) = (id(5), id(0xD1));
    let mut sender = device(&relay, &me, &id(0xD2)).await;
    sender
        .send(&message("kept", &me, &phone, u64::MAX, &[9, 8]))
        .await;
    sender.expect_stored("kept").await;
    let relay = relay.restart().await;
    let mut receiver = device(&relay, &me, &phone).await;
    let message = next_message(&mut receiver).await;
    assert_eq!(message["payload"]["version"], u64::MAX);
    assert_eq!(message["payload"]["encrypted_payload"], json!([9, 8]));
    assert_eq!(message["payload"]["sender_device_id"], id(0xD2));
}

#[tokio::test]
async fn nobody_writes_to_the_devices_of_another_identity() {
    let relay = Relay::start(&[]).await;
    let mut stranger = device(&relay, &id(6), &id(0xD2)).await;
    stranger
        .send(&message("from a stranger", &id(5), &id(0xD1), 1, b"x"))
        .await;
    stranger.expect_refusal("from a stranger", "invalid").await;
}

#[tokio::test]
async fn the_quota_of_an_identity_is_its_own() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "1")]).await;
    let (me, phone) = (id(5), id(0xD1));
    let mut sender = device(&relay, &me, &id(0xD2)).await;
    for number in 0..1_000_u32 {
        let name = format!("message {number}");
        sender
            .send(&message(&name, &me, &phone, 1, &number.to_be_bytes()))
            .await;
    }
    for number in 0..1_000 {
        sender.expect_stored(&format!("message {number}")).await;
    }
    sender
        .send(&message("one too many", &me, &phone, 1, b"x"))
        .await;
    sender.expect_refusal("one too many", "mailbox_full").await;
    sender.store(&me, b"its mailbox has room").await;
}

#[tokio::test]
async fn a_purge_reaches_all_devices_when_it_is_asked_to() {
    let relay = Relay::start(&[]).await;
    let me = id(5);
    let mut owner = device(&relay, &me, &id(0xD2)).await;
    for (name, target) in [("for the first", id(0xD1)), ("for the second", id(0xD3))] {
        owner.send(&message(name, &me, &target, 1, b"x")).await;
        owner.expect_stored(name).await;
    }
    for (include, deleted) in [(false, 0), (true, 2)] {
        let payload = json!({ "type": "PurgeRequest", "include_device_sync": include });
        owner
            .send(&envelope("99999999-9999-4999-8999-999999999999", payload))
            .await;
        let purged = owner.receive().await;
        assert_eq!(
            purged["payload"]["device_sync_deleted"], deleted,
            "{purged}"
        );
    }
    let mut phone = device(&relay, &me, &id(0xD1)).await;
    phone.expect_silence().await;
}
