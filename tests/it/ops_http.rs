//! What operators and their tools see.

use std::sync::Arc;

use crate::faulty::{Call, Fault, FaultyStore};
use crate::harness::{Relay, http_get, id, value_of};

/// The guide's fourteen.
const GUIDE: [&str; 14] = [
    "relay_connections_total",
    "relay_connections_active",
    "relay_connection_errors_total",
    "relay_messages_received_total",
    "relay_messages_sent_total",
    "relay_messages_rejected_total",
    "relay_message_duration_seconds",
    "relay_blobs_stored",
    "relay_blobs_created_total",
    "relay_blobs_delivered_total",
    "relay_blobs_expired_total",
    "relay_recovery_proofs_active",
    "relay_recovery_vouchers_total",
    "relay_rate_limited_total",
];

#[tokio::test]
async fn all_fourteen_metrics_of_the_guide_are_there_at_the_first_scrape() {
    let relay = Relay::start(&[]).await;
    let (_, scrape) = http_get(relay.running.operators, "/metrics", &[]).await;
    for name in GUIDE {
        let kind = scrape
            .lines()
            .find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let is_histogram = name.ends_with("_seconds");
        let expected = if is_histogram {
            "histogram"
        } else if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        assert_eq!(kind, Some(expected), "{name} in\n{scrape}");
        assert!(
            scrape.contains(&format!("# HELP {name} ")),
            "{name} has no help"
        );
        let series = if is_histogram {
            format!("{name}_count")
        } else {
            name.to_owned()
        };
        assert_eq!(value_of(&scrape, &series), Some(0.0), "{series}");
    }
    assert!(scrape.contains("relay_build_info{"), "{scrape}");
    assert!(
        scrape.contains("process_resident_memory_bytes "),
        "{scrape}"
    );
    assert!(
        scrape.contains("relay_refusals_total{code=\"mailbox_full\"} 0"),
        "{scrape}"
    );
}

#[tokio::test]
async fn the_metrics_tell_the_truth_about_a_short_life() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    for number in 0..3 {
        sender.store(&id(2), &[number]).await;
    }
    sender.submit("nobody", b"refused").await;
    sender.receive().await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    recipient.delivery().await;
    recipient.delivery().await;
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    recipient.leave().await;
    relay.metric_becomes("relay_connections_active", 1.0).await;

    // Five and four answers and deliveries, three notices of delivery and one of acknowledgement.
    relay
        .metric_becomes("relay_messages_sent_total", 13.0)
        .await;
    for (series, value) in [
        ("relay_connections_total", 2.0),
        ("relay_connection_errors_total", 0.0),
        ("relay_messages_received_total", 7.0),
        ("relay_messages_rejected_total", 1.0),
        ("relay_refusals_total{code=\"invalid\"}", 1.0),
        ("relay_message_duration_seconds_count", 4.0),
        ("relay_blobs_created_total", 3.0),
        ("relay_blobs_delivered_total", 3.0),
        ("relay_blobs_stored", 2.0),
        ("relay_stored_bytes", 2.0 * 257.0),
        ("relay_store_up", 1.0),
    ] {
        assert_eq!(relay.metric(series).await, value, "{series}");
    }
    assert!(relay.metric("relay_commit_duration_seconds_count").await >= 1.0);
    assert!(relay.metric("relay_commit_batch_size_count").await >= 1.0);
    assert!(relay.running.store.usage().is_conserved());
}

#[tokio::test]
async fn metrics_need_the_token_once_one_is_set() {
    let relay = Relay::start(&[("RELAY_METRICS_TOKEN", "a-long-and-secret-word")]).await;
    let get = async |headers: &[(&str, &str)]| {
        http_get(relay.running.operators, "/metrics", headers)
            .await
            .0
    };
    assert_eq!(get(&[]).await, 401);
    assert_eq!(get(&[("Authorization", "Bearer another-word")]).await, 401);
    assert_eq!(
        get(&[("Authorization", "Bearer a-long-and-secret-word")]).await,
        200
    );
    assert_eq!(
        http_get(relay.running.operators, "/health", &[]).await.0,
        200
    );
}

#[tokio::test]
async fn both_ports_answer_probes() {
    let relay = Relay::start(&[]).await;
    relay.client(&id(1)).await.store(&id(2), b"one").await;
    for address in [relay.running.clients, relay.running.operators] {
        let (status, body) = http_get(address, "/health", &[]).await;
        assert_eq!(status, 200);
        let health: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&health["status"], &health["blob_count"]),
            (&"healthy".into(), &1.into())
        );
        assert_eq!(http_get(address, "/ready", &[]).await.0, 200);
    }
    assert_eq!(
        http_get(relay.running.operators, "/nothing", &[]).await.0,
        404
    );
}

#[tokio::test]
async fn readiness_asks_the_store_and_names_the_reason() {
    let mut faulty = None;
    let relay = Relay::start_with(
        &[],
        |_| {},
        |store| {
            let store = FaultyStore::new(store);
            faulty = Some(Arc::clone(&store));
            store
        },
    )
    .await;
    let faulty = faulty.unwrap();
    faulty.on(Call::Probe, 1, Fault::Fail);
    let (status, body) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("storage is unavailable"), "{body}");
    assert_eq!(
        http_get(relay.running.operators, "/health", &[]).await.0,
        200,
        "alive all the same"
    );
    assert_eq!(
        http_get(relay.running.operators, "/ready", &[]).await.0,
        200
    );
}
