//! `docs/protocol-v1.md`: its examples are frames that the relay and its client understand.

use serde_json::{Value, json};
use vauchi_relay::protocol::v1::client::{ServerFrame, decode_server_frame};
use vauchi_relay::protocol::v1::{self, Incoming};

/// Types that only a relay sends.
const FROM_RELAY: [&str; 3] = ["HandshakeAck", "RecoveryProofResponse", "PurgeResponse"];

/// Types that clients send.
const FROM_CLIENT: [&str; 9] = [
    "Handshake",
    "EncryptedUpdate",
    "Acknowledgment",
    "DeviceSyncMessage",
    "DeviceSyncAck",
    "RecoveryProofStore",
    "RecoveryProofQuery",
    "PurgeRequest",
    "AccountRevoked",
];

/// The payloads that the page shows.
fn examples() -> Vec<Value> {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol-v1.md");
    let page = std::fs::read_to_string(page).unwrap();
    page.split("```json\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap())
        .map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
        // The envelope.
        .filter(|example: &Value| example["payload"].is_null())
        .collect()
}

fn framed(payload: &Value) -> Vec<u8> {
    let name = "22222222-2222-4222-8222-222222222222";
    let frame =
        json!({ "version": 1, "message_id": name, "timestamp": 1_795_220_095, "payload": payload });
    let text = frame.to_string();
    let mut frame = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[test]
fn every_example_for_the_relay_is_a_request_that_it_understands() {
    for example in examples() {
        let kind = example["type"].as_str().unwrap();
        let read = v1::decode(&framed(&example));
        if FROM_RELAY.contains(&kind) {
            assert_eq!(read, Incoming::Ignored, "{example}");
        } else {
            assert!(
                matches!(read, Incoming::Request { .. } | Incoming::Handshake(_)),
                "{example}: {read:?}"
            );
        }
    }
}

#[test]
fn every_example_for_the_client_is_understood_by_ours() {
    for example in examples() {
        if example["type"] == "Acknowledgment" || example["type"] == "HandshakeAck" {
            let read = decode_server_frame(&framed(&example)).unwrap();
            assert_ne!(read, ServerFrame::Other, "{example}");
        }
    }
}

#[test]
fn every_type_has_an_example() {
    let shown = examples();
    for kind in FROM_CLIENT.iter().chain(&FROM_RELAY) {
        assert!(
            shown.iter().any(|example| example["type"] == *kind),
            "{kind}"
        );
    }
}

#[test]
fn the_limits_that_the_page_names_are_the_defaults() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol-v1.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (name, shown) in [
        ("RELAY_IDLE_TIMEOUT_SECS", "(300)"),
        ("RELAY_BLOB_TTL_DAYS", "(90)"),
        ("RELAY_DEDUP_SECS", "(3,600)"),
        ("RELAY_RECOVERY_RATE_LIMIT", "(10 a minute)"),
    ] {
        let row = vauchi_relay::config::setting(name).unwrap();
        let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(digits, row.default, "{name}");
        assert!(page.contains(&format!("`{name}` {shown}")), "{name}");
    }
}
