//! Every refusal, as a client sees it.

use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use vauchi_relay::service::refusal::Refusal;

use crate::harness::{Delivered, Peer, Relay, envelope, frame, id, prefixed, update};
use crate::store::faulty::{Call, Fault, faulty_relay};

/// Stands for a request whose own id could not be read.
const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// What a refusal says beside its code.
fn words(refusal: &Value) -> &str {
    let message = refusal["message"].as_str().unwrap();
    assert!(!message.is_empty());
    message
}

fn retry_after(refusal: &Value) -> Duration {
    Duration::from_millis(refusal["retry_after_ms"].as_u64().expect("a retry hint"))
}

fn acknowledgment(name: &str, blob: &str, status: &str) -> Value {
    let payload = json!({ "type": "Acknowledgment", "message_id": blob, "status": status });
    envelope(name, payload)
}

#[tokio::test]
async fn an_invalid_request_is_refused_by_its_own_name() {
    let relay = Relay::start(&[]).await;
    let mut client = relay.client(&id(1)).await;

    client
        .send(&update("a bad recipient", "nobody", b"blob"))
        .await;
    let refusal = client.expect_refusal("a bad recipient", "invalid").await;
    assert!(words(&refusal).contains("recipient_id"), "{refusal}");
    assert_eq!(refusal.get("retry_after_ms"), None, "a repeat cannot help");

    client
        .send(&acknowledgment("a bad status", NO_ID, "Eaten"))
        .await;
    let refusal = client.expect_refusal("a bad status", "invalid").await;
    assert!(words(&refusal).contains("status"), "{refusal}");

    let mut longer = frame(&update("a bad prefix", &id(2), b"blob"));
    longer[3] = longer[3].wrapping_add(1);
    client.send_bytes(longer).await;
    let refusal = client.expect_refusal("a bad prefix", "invalid").await;
    assert!(words(&refusal).contains("length prefix"), "{refusal}");

    client.send(&update("numbers over 255", &id(2), b"")).await;
    client.expect_stored("numbers over 255").await;
    let mut too_high = update("numbers over 255", &id(2), b"");
    too_high["payload"]["ciphertext"] = json!([256]);
    client.send(&too_high).await;
    client.expect_refusal("numbers over 255", "invalid").await;

    client.store(&id(2), b"still served").await;
    assert_eq!(
        relay.metric("relay_refusals_total{code=\"invalid\"}").await,
        4.0
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_without_a_name_and_the_tenth_closes() {
    let relay = Relay::start(&[]).await;
    let mut client = relay.client(&id(1)).await;
    let unreadable = [
        Vec::new(),
        vec![0, 0, 0],
        prefixed(b""),
        prefixed(b"no JSON"),
        prefixed(b"{\"message_id\":"),
        prefixed(b"\xff\xfe"),
        prefixed(b"[]"),
        prefixed(b"{}"),
    ];
    for bytes in unreadable {
        client.send_bytes(bytes).await;
        words(&client.expect_refusal(NO_ID, "invalid").await);
    }
    client.store(&id(2), b"in between").await;
    client.socket.send(Message::text("hello")).await.unwrap();
    let refusal = client.expect_refusal(NO_ID, "invalid").await;
    assert!(words(&refusal).contains("text"), "{refusal}");

    client.send_bytes(prefixed(b"the tenth")).await;
    client.expect_refusal(NO_ID, "invalid").await;
    let reason = client.expect_close(4400).await;
    assert!(reason.contains("ten"), "{reason}");
    relay
        .metric_becomes("relay_connection_errors_total", 1.0)
        .await;
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_by_name_and_the_connection_stays() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "2048")]).await;
    let mut client = relay.client(&id(1)).await;

    // The limit is for the frame as it travels; this one fits to the byte, the next does not.
    let empty = frame(&update("just right", &id(2), b"")).len();
    let blob = vec![7; (2048 - empty).div_ceil(2)];
    let mut fits = frame(&update("just right", &id(2), &blob));
    fits.resize(2048, b' ');
    fits[..4].copy_from_slice(&2044_u32.to_be_bytes());
    client.send_bytes(fits.clone()).await;
    client.expect_stored("just right").await;
    fits.push(b' ');
    fits[..4].copy_from_slice(&2045_u32.to_be_bytes());
    client.send_bytes(fits).await;
    let refusal = client.expect_refusal("just right", "too_large").await;
    assert!(words(&refusal).contains("2048"), "{refusal}");

    // 2 × 2048 + 4096 is the most that is read.
    let mut largest = frame(&update("much too large", &id(2), &[7; 3_000]));
    largest.resize(8192, b' ');
    client.send_bytes(largest.clone()).await;
    client.expect_refusal("much too large", "too_large").await;
    client.send_bytes(vec![b'x'; 4000]).await;
    client.expect_refusal(NO_ID, "too_large").await;
    client.store(&id(2), b"still served").await;

    largest.push(b' ');
    client.send_bytes(largest).await;
    client.expect_close(1009).await;
}

#[tokio::test]
async fn who_is_too_fast_is_told_when_to_come_back() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "3")]).await;
    let mut client = relay.client(&id(1)).await;
    for _ in 0..3 {
        client.store(&id(2), b"blob").await;
    }
    let too_soon = client.submit(&id(2), b"one more").await;
    let refusal = client.expect_refusal(&too_soon, "rate_limited").await;
    words(&refusal);
    let wait = retry_after(&refusal);
    assert!((1..=20_000).contains(&wait.as_millis()), "{wait:?}");

    relay.time.advance(wait + Duration::from_millis(1));
    client.store(&id(2), b"in time").await;
    let again = client.submit(&id(2), b"too soon again").await;
    client.expect_refusal(&again, "rate_limited").await;
    assert_eq!(relay.metric("relay_rate_limited_total").await, 2.0);
}

#[tokio::test]
async fn acknowledging_what_was_delivered_costs_nothing_and_anything_else_does() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "3")]).await;
    let mut client = relay.client(&id(1)).await;
    let mut delivered: Vec<Delivered> = Vec::new();
    for _ in 0..3 {
        client.store(&id(1), b"blob").await;
        delivered.push(client.delivery().await);
    }
    let spent = client.submit(&id(1), b"one more").await;
    client.expect_refusal(&spent, "rate_limited").await;
    for blob in &delivered {
        client.acknowledge(&blob.id).await;
    }
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 3.0)
        .await;

    let foreign = "99999999-9999-4999-8999-999999999999";
    client
        .send(&acknowledgment("not mine", foreign, "ReceivedByRecipient"))
        .await;
    client.expect_refusal("not mine", "rate_limited").await;
}

#[tokio::test]
async fn frames_that_are_ignored_or_invalid_are_charged_all_the_same() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "4")]).await;
    let mut client = relay.client(&id(1)).await;
    for _ in 0..3 {
        let unknown = json!({ "type": "SomethingNew" });
        client.send(&envelope("of a type to come", unknown)).await;
    }
    client
        .send(&update("a bad recipient", "nobody", b"blob"))
        .await;
    client.expect_refusal("a bad recipient", "invalid").await;
    let spent = client.submit(&id(2), b"the fifth").await;
    client.expect_refusal(&spent, "rate_limited").await;
    client.send_bytes(prefixed(b"no JSON")).await;
    let refusal = client.expect_refusal(NO_ID, "rate_limited").await;
    retry_after(&refusal);
}

#[tokio::test]
async fn a_full_mailbox_refuses_until_something_is_collected() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "2")]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"first").await;
    sender.store(&id(2), b"second").await;
    let third = sender.submit(&id(2), b"third").await;
    let refusal = sender.expect_refusal(&third, "mailbox_full").await;
    words(&refusal);
    assert!(!retry_after(&refusal).is_zero());
    sender.store(&id(3), b"another mailbox has room").await;

    let mut recipient = relay.client(&id(2)).await;
    let first = recipient.delivery().await;
    recipient.acknowledge(&first.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    sender.send(&update(&third, &id(2), b"third")).await;
    sender.expect_stored(&third).await;
}

#[tokio::test]
async fn a_mailbox_is_full_by_its_bytes_too() {
    // A blob is charged with its length and 256 bytes.
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BYTES", "1000")]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), &[7; 244]).await;
    let larger = sender.submit(&id(2), &[7; 245]).await;
    sender.expect_refusal(&larger, "mailbox_full").await;
    sender.store(&id(2), &[7; 244]).await;
    let empty = sender.submit(&id(2), &[]).await;
    sender.expect_refusal(&empty, "mailbox_full").await;
}

#[tokio::test]
async fn a_full_relay_says_so_and_confirms_what_it_has() {
    let relay = Relay::start(&[("RELAY_MAX_STORAGE_BYTES", "1000")]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), &[7; 244]).await;
    let kept = sender.submit(&id(3), &[7; 244]).await;
    sender.expect_stored(&kept).await;
    let one_more = sender.submit(&id(4), &[]).await;
    let refusal = sender.expect_refusal(&one_more, "relay_full").await;
    words(&refusal);
    assert!(!retry_after(&refusal).is_zero());
    sender.send(&update(&kept, &id(3), &[7; 244])).await;
    sender.expect_stored(&kept).await;
}

#[tokio::test]
async fn a_failed_write_is_never_confirmed_and_its_repeat_is_stored_once() {
    for fault in [Fault::Fail, Fault::FailCommit] {
        let (relay, faulty) = faulty_relay(&[]).await;
        let mut sender = relay.client(&id(1)).await;
        faulty.on(Call::Append, 1, fault);
        let message_id = sender.submit(&id(2), b"blob").await;
        let refusal = sender.expect_refusal(&message_id, "unavailable").await;
        words(&refusal);
        assert!(!retry_after(&refusal).is_zero());

        sender.send(&update(&message_id, &id(2), b"blob")).await;
        sender.expect_stored(&message_id).await;
        let mut recipient = relay.client(&id(2)).await;
        assert_eq!(recipient.delivery().await.blob, b"blob");
        recipient.expect_silence().await;
    }
}

#[tokio::test]
async fn an_id_used_twice_is_no_fault_in_v1() {
    // A blob's id is made of the request's id and its content, so other content is another blob.
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    for blob in [b"first", b"other"] {
        sender.send(&update("the same id", &id(2), blob)).await;
        sender.expect_stored("the same id").await;
    }
    assert_eq!(
        relay
            .metric("relay_refusals_total{code=\"id_reused\"}")
            .await,
        0.0
    );
    let refusal = Refusal::IdReused;
    assert_eq!((refusal.code(), refusal.retry_after()), ("id_reused", None));
}

/// A handshake with every field of a good signature.
fn signed_handshake(key: &SigningKey) -> Value {
    let nonce = [9_u8; 32];
    let timestamp = 1_795_220_095_u64;
    let mut signed = nonce.to_vec();
    signed.extend(timestamp.to_be_bytes());
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let public_key = hex(key.verifying_key().as_bytes());
    json!({
        "client_id": public_key,
        "identity_public_key": public_key,
        "nonce": hex(&nonce),
        "timestamp": timestamp,
        "signature": hex(&key.sign(&signed).to_bytes()),
    })
}

#[tokio::test]
async fn a_good_signature_is_welcome_and_a_bad_or_partial_one_is_shown_out() {
    let relay = Relay::start(&[]).await;
    let good = signed_handshake(&SigningKey::from_bytes(&[5; 32]));
    Peer::connect(relay.running.clients)
        .await
        .handshake(good.clone())
        .await;

    let mut refused = Vec::new();
    for field in ["identity_public_key", "nonce", "timestamp", "signature"] {
        let mut partial = good.clone();
        partial.as_object_mut().unwrap().remove(field);
        refused.push(partial);
    }
    let with = |field: &str, value: Value| {
        let mut bad = good.clone();
        bad[field] = value;
        bad
    };
    refused.push(with("nonce", id(8).into()));
    refused.push(with("client_id", id(8).into()));
    refused.push(with("identity_public_key", id(8).into()));
    refused.push(with(
        "timestamp",
        1_795_220_095_u64.saturating_sub(61).into(),
    ));
    refused.push(with("signature", "00".repeat(64).into()));
    refused.push(with("signature", "no hex".into()));
    for mut handshake in refused {
        handshake["type"] = "Handshake".into();
        let mut peer = Peer::connect(relay.running.clients).await;
        peer.send(&envelope("a bad handshake", handshake.clone()))
            .await;
        let reason = peer.expect_close(4401).await;
        assert!(reason.contains("signature"), "{reason} for {handshake}");
    }
}

/// A bad `device_id` was closed with words about `client_id`, which was right.
#[tokio::test]
async fn a_handshake_with_a_bad_field_is_closed_with_the_name_of_that_field() {
    let relay = Relay::start(&[]).await;
    for field in [
        "client_id",
        "device_id",
        "routing_token",
        "suppress_presence",
    ] {
        let mut handshake = json!({ "type": "Handshake", "client_id": id(1) });
        handshake[field] = "0123".into();
        let mut peer = Peer::connect(relay.running.clients).await;
        peer.send(&envelope("a bad field", handshake)).await;
        let reason = peer.expect_close(4400).await;
        assert!(
            reason.starts_with(&format!("the Handshake's {field} ")),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_first_frame_that_is_no_handshake_closes_with_a_reason() {
    let relay = Relay::start(&[]).await;
    let firsts = [
        frame(&update("too early", &id(2), b"blob")),
        frame(&envelope("no id", json!({ "type": "Handshake" }))),
        frame(&envelope(
            "a short id",
            json!({ "type": "Handshake", "client_id": "0123" }),
        )),
        frame(&envelope("unknown", json!({ "type": "SomethingNew" }))),
        prefixed(b"no JSON"),
        Vec::new(),
    ];
    for first in firsts {
        let mut peer = Peer::connect(relay.running.clients).await;
        peer.send_bytes(first).await;
        let reason = peer.expect_close(4400).await;
        assert!(reason.contains("Handshake"), "{reason}");
    }
    let mut peer = Peer::connect(relay.running.clients).await;
    peer.socket.send(Message::text("hello")).await.unwrap();
    peer.expect_close(4400).await;
}

#[test]
fn every_code_has_its_section_in_the_errors_page() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut sections: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    let closes = [
        "1001", "1009", "1013", "4400", "4401", "4406", "4408", "4429",
    ];
    let mut expected: Vec<_> = Refusal::CODES
        .into_iter()
        .chain(closes)
        .map(str::to_owned)
        .collect();
    // Each once: an anchor leads to the first of two.
    sections.sort();
    expected.sort();
    assert_eq!(sections, expected);
}
