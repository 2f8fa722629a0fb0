//! Recovery proofs: who may store, who gets what, and that nobody touches another's.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Peer, Relay, envelope, id};

fn store(name: &str, key_hash: &str, proof: &[u8]) -> Value {
    envelope(
        name,
        json!({ "type": "RecoveryProofStore", "key_hash": key_hash, "proof_data": proof }),
    )
}

async fn found(peer: &mut Peer, key_hashes: &[String]) -> Vec<(String, Vec<u8>)> {
    let query = json!({ "type": "RecoveryProofQuery", "key_hashes": key_hashes });
    peer.send(&envelope("88888888-8888-4888-8888-888888888888", query))
        .await;
    let answer = peer.receive().await;
    assert_eq!(
        answer["payload"]["type"], "RecoveryProofResponse",
        "{answer}"
    );
    let proofs = answer["payload"]["proofs"].as_array().unwrap();
    let read = |proof: &Value| {
        let hash = proof["key_hash"].as_str().unwrap().to_owned();
        (
            hash,
            serde_json::from_value(proof["proof_data"].clone()).unwrap(),
        )
    };
    proofs.iter().map(read).collect()
}

async fn put(peer: &mut Peer, name: &str, key_hash: &str, proof: &[u8]) {
    peer.send(&store(name, key_hash, proof)).await;
    peer.expect_stored(name).await;
}

#[tokio::test]
async fn a_proof_is_found_by_whoever_knows_the_hash() {
    let relay = Relay::start(&[]).await;
    let mut owner = relay.client(&id(1)).await;
    put(&mut owner, "a proof", &id(0xAB).to_uppercase(), &[1, 2]).await;
    let relay = relay.restart().await;
    let mut anyone = relay.client(&id(2)).await;
    let proofs = found(&mut anyone, &[id(0xAB), id(0xCD), "no hash".to_owned()]).await;
    assert_eq!(proofs, [(id(0xAB), vec![1, 2])]);
    assert_eq!(relay.metric("relay_recovery_proofs_active").await, 1.0);
}

#[tokio::test]
async fn a_stranger_neither_replaces_nor_deletes_and_the_newest_comes_first() {
    let relay = Relay::start(&[]).await;
    let mut owner = relay.client(&id(1)).await;
    let mut stranger = relay.client(&id(2)).await;
    put(&mut owner, "the owner's", &id(0xAB), b"true").await;
    relay.time.advance(Duration::from_secs(1));
    put(&mut stranger, "a stranger's", &id(0xAB), b"false").await;
    let purge = |include: bool| {
        let payload = json!({ "type": "PurgeRequest", "include_recovery_proofs": include,
            "recovery_key_hash": id(0xAB) });
        envelope("99999999-9999-4999-8999-999999999999", payload)
    };
    let both = [(id(0xAB), b"false".to_vec()), (id(0xAB), b"true".to_vec())];
    assert_eq!(found(&mut owner, &[id(0xAB)]).await, both);
    stranger.send(&purge(true)).await;
    let purged = stranger.receive().await;
    assert_eq!(purged["payload"]["recovery_proofs_deleted"], 1, "{purged}");
    assert_eq!(found(&mut owner, &[id(0xAB)]).await, both[1..]);

    relay.time.advance(Duration::from_secs(1));
    put(&mut owner, "the owner's second", &id(0xAB), b"newer").await;
    assert_eq!(
        found(&mut owner, &[id(0xAB)]).await,
        [(id(0xAB), b"newer".to_vec())]
    );
}

#[tokio::test]
async fn a_proof_lives_for_ninety_days() {
    let relay = Relay::start(&[]).await;
    let mut owner = relay.client(&id(1)).await;
    put(&mut owner, "a proof", &id(0xAB), b"true").await;
    relay.time.advance(Duration::from_secs(90 * 86_400 - 1));
    assert_eq!(found(&mut owner, &[id(0xAB)]).await.len(), 1);
    relay.time.advance(Duration::from_secs(1));
    assert_eq!(found(&mut owner, &[id(0xAB)]).await.len(), 0);
}

#[tokio::test]
async fn one_address_takes_two_places_a_day_under_a_hash() {
    let relay = Relay::start(&[("RELAY_RECOVERY_RATE_LIMIT", "1000")]).await;
    for number in 0..2 {
        let mut client = relay.client(&id(number)).await;
        put(&mut client, "a proof of mine", &id(0xAB), &[number]).await;
    }
    let mut third = relay.client(&id(3)).await;
    third.send(&store("one too many", &id(0xAB), b"x")).await;
    let refusal = third.expect_refusal("one too many", "rate_limited").await;
    assert!(
        refusal["retry_after_ms"].as_u64().unwrap() > 3_600_000,
        "{refusal}"
    );
    put(&mut third, "under another hash", &id(0xCD), b"x").await;
}

#[tokio::test]
async fn a_key_has_eight_proofs_and_the_oldest_unproven_goes() {
    let relay = Relay::start(&[]).await;
    for number in 0..9 {
        relay.time.advance(Duration::from_secs(1));
        let mut client = relay.client(&id(number)).await;
        put(&mut client, "a proof of mine", &id(0xAB), &[number]).await;
    }
    let mut anyone = relay.client(&id(20)).await;
    let proofs: Vec<u8> = found(&mut anyone, &[id(0xAB)])
        .await
        .iter()
        .map(|(_, proof)| proof[0])
        .collect();
    assert_eq!(proofs, [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn recovery_has_a_rate_of_its_own_and_bad_hashes_and_giants_are_refused() {
    let relay = Relay::start(&[("RELAY_RECOVERY_RATE_LIMIT", "3")]).await;
    let mut client = relay.client(&id(1)).await;
    client.send(&store("a bad hash", "no hash", b"x")).await;
    client.expect_refusal("a bad hash", "invalid").await;
    client
        .send(&store("a giant proof", &id(0xAB), &vec![0; 65_537]))
        .await;
    client.expect_refusal("a giant proof", "invalid").await;
    put(&mut client, "a good proof", &id(0xAB), b"x").await;
    found(&mut client, &[id(0xAB)]).await;
    let query = json!({ "type": "RecoveryProofQuery", "key_hashes": [id(0xAB)] });
    client.send(&envelope("one too many", query)).await;
    client.expect_refusal("one too many", "rate_limited").await;
    client.store(&id(2), b"blobs have another").await;
}
