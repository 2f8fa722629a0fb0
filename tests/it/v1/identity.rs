//! Who may open what: signed handshakes, nonces that open once, and relays that ask for a proof.

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

use vauchi_relay::clock::{Clock, Timestamp};

use crate::harness::{Peer, Relay, id};
use crate::process::Process;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// A handshake signed at `secs` with this nonce.
pub(crate) fn signed(key: &SigningKey, nonce: [u8; 32], secs: u64) -> Value {
    let message = [&nonce[..], &secs.to_be_bytes()].concat();
    json!({
        "client_id": HEXLOWER.encode(key.verifying_key().as_bytes()),
        "identity_public_key": HEXLOWER.encode(key.verifying_key().as_bytes()),
        "nonce": HEXLOWER.encode(&nonce),
        "timestamp": secs,
        "signature": HEXLOWER.encode(&key.sign(&message).to_bytes()),
    })
}

const NOW: u64 = 1_795_220_095;

async fn try_open(relay: &Relay, fields: Value) -> Result<(), u16> {
    try_open_at(relay.running.clients, fields).await
}

async fn try_open_at(clients: SocketAddr, fields: Value) -> Result<(), u16> {
    let mut peer = Peer::connect(clients).await;
    peer.say_hello(fields).await;
    match peer.next().await {
        Ok(_) => Ok(()),
        Err(crate::harness::Goodbye::Frame(code, _)) => Err(code),
        Err(crate::harness::Goodbye::Bare) => Err(0),
    }
}

#[tokio::test]
async fn a_recorded_handshake_opens_nothing_a_second_time() {
    let relay = Relay::start(&[]).await;
    let handshake = signed(&key(1), [1; 32], NOW);
    assert_eq!(try_open(&relay, handshake.clone()).await, Ok(()));
    assert_eq!(try_open(&relay, handshake).await, Err(4401));
    assert_eq!(
        try_open(&relay, signed(&key(1), [2; 32], NOW)).await,
        Ok(())
    );
}

/// It was good again after a restart, while the nonces were in memory only.
#[tokio::test]
async fn a_recorded_handshake_opens_nothing_after_a_kill_or_a_restart_either() {
    let folder = tempfile::tempdir().unwrap();
    let now = Clock::system().wall().since(Timestamp::default()).as_secs();
    let recorded = || signed(&key(1), [1; 32], now);
    let relay = Process::start(folder.path()).await;
    assert_eq!(try_open_at(relay.clients, recorded()).await, Ok(()));
    relay.kill().await;

    let relay = Process::start(folder.path()).await;
    assert_eq!(try_open_at(relay.clients, recorded()).await, Err(4401));
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert!(status.success(), "{log}");

    let relay = Process::start(folder.path()).await;
    assert_eq!(try_open_at(relay.clients, recorded()).await, Err(4401));
    let fresh = signed(&key(1), [2; 32], now);
    assert_eq!(try_open_at(relay.clients, fresh).await, Ok(()));
}

/// By then its nonce is forgotten, because that time is over; set back, the clock called it fresh again.
#[tokio::test]
async fn a_recorded_handshake_opens_nothing_after_the_clock_was_set_back() {
    let relay = Relay::start(&[]).await;
    relay.time.advance(Duration::from_secs(900));
    let recorded = signed(&key(1), [1; 32], NOW + 900);
    assert_eq!(try_open(&relay, recorded.clone()).await, Ok(()));
    let later = Duration::from_secs(1_200);
    relay.time.advance(later);
    let another = signed(&key(1), [2; 32], NOW + 900 + later.as_secs());
    assert_eq!(try_open(&relay, another).await, Ok(()));
    relay.time.step_back(later);
    relay.metric_becomes("relay_clock_steps_total", 1.0).await;
    assert_eq!(try_open(&relay, recorded.clone()).await, Err(4401));
    // And forward again.
    relay.time.step_forward(later);
    assert_eq!(try_open(&relay, recorded).await, Err(4401));
}

#[tokio::test]
async fn a_forged_handshake_does_not_burn_the_genuine_one_s_nonce() {
    let relay = Relay::start(&[]).await;
    let genuine = signed(&key(1), [1; 32], NOW);
    let mut forged = genuine.clone();
    forged["signature"] = json!("00".repeat(64));
    assert_eq!(try_open(&relay, forged).await, Err(4401));
    assert_eq!(try_open(&relay, genuine).await, Ok(()));
}

#[tokio::test]
async fn a_handshake_is_good_for_a_minute_by_the_relay_s_clock() {
    let relay = Relay::start(&[]).await;
    assert_eq!(
        try_open(&relay, signed(&key(1), [1; 32], NOW - 61)).await,
        Err(4401)
    );
    assert_eq!(
        try_open(&relay, signed(&key(1), [2; 32], NOW + 61)).await,
        Err(4401)
    );
    assert_eq!(
        try_open(&relay, signed(&key(1), [3; 32], NOW - 60)).await,
        Ok(())
    );
    relay.time.advance(Duration::from_secs(120));
    assert_eq!(
        try_open(&relay, signed(&key(1), [4; 32], NOW)).await,
        Err(4401)
    );
}

#[tokio::test]
async fn a_relay_that_asks_for_proofs_opens_neither_names_nor_tokens_without() {
    let relay = Relay::start(&[("RELAY_V1_UNVERIFIED", "deny")]).await;
    assert_eq!(
        try_open(&relay, json!({ "client_id": id(1) })).await,
        Err(4401)
    );
    let mut with_token = signed(&key(1), [1; 32], NOW);
    with_token["routing_token"] = json!(id(5));
    assert_eq!(try_open(&relay, with_token).await, Err(4401));
    assert_eq!(
        try_open(&relay, signed(&key(1), [2; 32], NOW)).await,
        Ok(())
    );
}

#[tokio::test]
async fn an_id_that_has_proved_itself_is_not_opened_without_a_proof_again() {
    let relay = Relay::start(&[]).await;
    let own = HEXLOWER.encode(key(1).verifying_key().as_bytes());
    assert_eq!(try_open(&relay, json!({ "client_id": own })).await, Ok(()));
    assert_eq!(
        try_open(&relay, signed(&key(1), [1; 32], NOW)).await,
        Ok(())
    );
    assert_eq!(
        try_open(&relay, json!({ "client_id": own })).await,
        Err(4401)
    );
    let by_token = json!({ "client_id": id(7), "routing_token": own });
    assert_eq!(try_open(&relay, by_token).await, Err(4401));
    // Under another token it would still get the device sync of the pinned id.
    let beside = json!({ "client_id": own, "routing_token": id(8), "device_id": id(9) });
    assert_eq!(try_open(&relay, beside).await, Err(4401));
    let relay = relay.restart().await;
    assert_eq!(
        try_open(&relay, json!({ "client_id": own })).await,
        Err(4401)
    );
    assert_eq!(
        try_open(&relay, json!({ "client_id": id(7) })).await,
        Ok(())
    );
}

#[tokio::test]
async fn a_pin_ends_when_it_is_unused_for_the_maximum_ttl_or_its_holder_purges() {
    let relay = Relay::start(&[("RELAY_BLOB_TTL_DAYS", "30")]).await;
    let own = HEXLOWER.encode(key(1).verifying_key().as_bytes());
    assert_eq!(
        try_open(&relay, signed(&key(1), [1; 32], NOW)).await,
        Ok(())
    );
    relay.time.advance(Duration::from_secs(31 * 86_400));
    assert_eq!(try_open(&relay, json!({ "client_id": own })).await, Ok(()));

    let now = NOW + 31 * 86_400;
    let mut holder = Peer::connect(relay.running.clients).await;
    holder.handshake(signed(&key(1), [2; 32], now)).await;
    assert_eq!(
        try_open(&relay, json!({ "client_id": own })).await,
        Err(4401)
    );
    let purge = json!({ "type": "PurgeRequest" });
    holder
        .send(&crate::harness::envelope("a purge request", purge))
        .await;
    holder.receive().await;
    assert_eq!(try_open(&relay, json!({ "client_id": own })).await, Ok(()));
}
