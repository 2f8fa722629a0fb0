//! The first signal drains, the deadline or a second signal stops.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use vauchi_relay::server::Ending;

use crate::harness::{Peer, Relay, SILENCE, envelope, eventually, http_get, id, value_of};
use crate::store::faulty::{Call, Fault, Faults, Stall};

#[tokio::test]
async fn an_idle_session_is_closed_going_away_and_the_relay_ends_drained() {
    let relay = Relay::start(&[]).await;
    let mut client = relay.client(&id(1)).await;
    let stopping = tokio::spawn(relay.stop());
    client.expect_close(1001).await;
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
}

#[tokio::test]
async fn readiness_says_no_before_anything_else_changes_and_the_operators_port_answers_to_the_end()
{
    let relay = Relay::start(&[("RELAY_DRAIN_DELAY_SECS", "600")]).await;
    let (clients, operators) = (relay.running.clients, relay.running.operators);
    let shutdown = relay.running.shutdown.clone();
    assert_eq!(http_get(operators, "/ready", &[]).await.0, 200);
    let stopping = tokio::spawn(relay.stop());
    eventually("not ready", async || {
        http_get(operators, "/ready", &[]).await.0 == 503
    })
    .await;
    let (_, body) = http_get(operators, "/ready", &[]).await;
    assert!(body.contains("draining"), "{body}");
    let (_, scrape) = http_get(operators, "/metrics", &[]).await;
    assert_eq!(value_of(&scrape, "relay_ready"), Some(0.0));
    assert_eq!(value_of(&scrape, "relay_draining"), Some(1.0));
    assert_eq!(http_get(operators, "/health", &[]).await.0, 200);

    // New clients are still served while load balancers look away.
    let mut client = Peer::connect(clients).await;
    client
        .handshake(serde_json::json!({ "client_id": id(1) }))
        .await;
    client.store(&id(2), b"in the last minute").await;
    shutdown.stop();
    assert_eq!(stopping.await.unwrap(), Ending::Cut);
}

#[tokio::test]
async fn a_draining_session_stores_what_it_reads_delivers_nothing_and_waits_for_acknowledgements() {
    let relay = Relay::start(&[("RELAY_DRAIN_TIMEOUT_SECS", "120")]).await;
    let mut client = relay.client(&id(1)).await;
    let delivered = client.round_trip(&id(1), b"to myself").await;

    let shutdown = relay.running.shutdown.clone();
    let store = Arc::clone(&relay.running.store);
    let stopping = tokio::spawn(relay.stop());
    shutdown.draining().await;
    client.store(&id(1), b"while draining").await;
    client.expect_silence().await;
    client.acknowledge(&delivered.id).await;
    client.expect_close(1001).await;
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
    assert_eq!(
        store.usage().stored,
        1,
        "the blob that came while draining is kept"
    );
}

#[tokio::test]
async fn a_session_that_never_acknowledges_is_closed_after_half_of_the_drain_time() {
    let relay = Relay::start(&[("RELAY_DRAIN_TIMEOUT_SECS", "2")]).await;
    let mut client = relay.client(&id(1)).await;
    client.round_trip(&id(1), b"never acknowledged").await;
    let stopping = tokio::spawn(relay.stop());
    client.expect_close(1001).await;
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_at_the_deadline() {
    let relay = Relay::configured(&[("RELAY_DRAIN_TIMEOUT_SECS", "1")], |config| {
        config.write_timeout = Duration::from_secs(600)
    })
    .await;
    let mut sender = relay.client(&id(1)).await;
    for _ in 0..40 {
        sender.store(&id(2), &vec![0; 250_000]).await;
    }
    sender.leave().await;
    let _deaf = relay.client(&id(2)).await;
    let mut delivered = 0.0;
    eventually("the deaf client's buffers are full", async || {
        tokio::time::sleep(SILENCE).await;
        let before = std::mem::replace(
            &mut delivered,
            relay.metric("relay_blobs_delivered_total").await,
        );
        before > 0.0 && before == delivered
    })
    .await;
    assert_eq!(relay.stop().await, Ending::Cut);
}

#[tokio::test]
async fn a_connection_that_has_not_said_hello_does_not_hold_up_the_drain() {
    let relay = Relay::start(&[("RELAY_DRAIN_TIMEOUT_SECS", "60")]).await;
    let mut silent = Peer::connect(relay.running.clients).await;
    let address = relay.running.clients;
    let stopping = tokio::spawn(relay.stop());
    silent.expect_close(1001).await;
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
    assert!(
        Peer::try_connect(address).await.is_err(),
        "nobody listens any more"
    );
}

/// A request that waits for the store is owed its answer, though nothing of it is in the outbox yet.
#[tokio::test]
async fn a_request_that_is_being_carried_out_is_answered_before_the_goodbye() {
    let mut faulty = None;
    let relay = Relay::start_with(
        &[("RELAY_DRAIN_TIMEOUT_SECS", "120")],
        |_| {},
        |opened| {
            let (faults, opened) = Faults::under(opened);
            faulty = Some(faults);
            opened
        },
    )
    .await;
    let stall = Stall::default();
    faulty
        .unwrap()
        .on(Call::Purge, 1, Fault::Stall(stall.clone()));
    let mut client = relay.client(&id(1)).await;
    let purge = json!({ "type": "PurgeRequest" });
    client.send(&envelope("a purge request", purge)).await;
    stall.reached().await;
    let shutdown = relay.running.shutdown.clone();
    let stopping = tokio::spawn(relay.stop());
    shutdown.draining().await;
    client.expect_no_notice().await;
    stall.release();
    let answer = client.receive().await;
    assert_eq!(answer["payload"]["type"], "PurgeResponse", "{answer}");
    client.expect_close(1001).await;
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
}
