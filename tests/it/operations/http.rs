//! What operators and their tools see.

use serde_json::json;

use crate::harness::{Relay, eventually, http_get, id, value_of};
use crate::store::faulty::{Call, Fault, Faults, faulty_relay};

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
    let (relay, faulty) = faulty_relay(&[]).await;
    faulty.on(Call::Probe, 1, Fault::Fail);
    let (status, body) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("storage is unavailable"), "{body}");
    assert_eq!(relay.metric("relay_ready").await, 0.0);
    assert_eq!(
        http_get(relay.running.operators, "/health", &[]).await.0,
        200,
        "alive all the same"
    );
    assert_eq!(
        http_get(relay.running.operators, "/ready", &[]).await.0,
        200
    );
    assert_eq!(relay.metric("relay_ready").await, 1.0);
}

#[tokio::test]
async fn the_bounds_and_the_disk_are_there_to_compare_with() {
    let relay = Relay::start(&[
        ("RELAY_MAX_CONNECTIONS", "7"),
        ("RELAY_MIN_FREE_BYTES", "12345"),
    ])
    .await;
    assert_eq!(relay.metric("relay_connections_limit").await, 7.0);
    assert_eq!(relay.metric("relay_disk_free_min_bytes").await, 12_345.0);
    eventually("the free bytes of the disk are shown", async || {
        relay.metric("relay_disk_free_bytes").await > 0.0
    })
    .await;
    let relay = Relay::start(&[("RELAY_STORAGE_BACKEND", "memory")]).await;
    assert_eq!(relay.metric("relay_disk_free_bytes").await, 0.0);
    assert_eq!(relay.metric("relay_disk_free_min_bytes").await, 0.0);
}

#[tokio::test]
async fn the_detailed_health_tells_what_is_kept_and_by_whom_nothing() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS", "7")]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"one").await;
    sender.store(&id(2), b"two").await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;

    let (status, body) = http_get(relay.running.operators, "/health/detailed", &[]).await;
    assert_eq!(status, 200, "{body}");
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    for (pointer, expected) in [
        ("/status", json!("ready")),
        ("/reason", json!(null)),
        ("/draining", json!(false)),
        ("/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/storage/engine", json!("sqlite")),
        ("/storage/takes_writes", json!(true)),
        ("/storage/bytes", json!(3 + 256)),
        ("/storage/bytes_max", json!(10_u64 << 30)),
        // The tests switch this bound off.
        ("/storage/disk_free_bytes_min", json!(null)),
        ("/blobs/stored", json!(1)),
        ("/blobs/created", json!(2)),
        ("/blobs/acknowledged", json!(1)),
        ("/blobs/add_up", json!(true)),
        ("/sessions/active", json!(2)),
        ("/sessions/max", json!(7)),
        ("/commits/waiting_writes", json!(0)),
        ("/departed/remembered", json!(1)),
        // For ten minutes after the start.
        ("/clock/steady", json!(false)),
        ("/clock/steps", json!(0)),
    ] {
        assert_eq!(
            told.pointer(pointer),
            Some(&expected),
            "{pointer} in {body}"
        );
    }
    for pointer in ["/commit", "/uptime_seconds", "/storage/disk_free_bytes"] {
        assert!(
            told.pointer(pointer).is_some_and(|v| !v.is_null()),
            "{pointer} in {body}"
        );
    }
    assert!(!body.contains(&id(1)) && !body.contains(&id(2)), "{body}");
    assert!(!body.contains(&delivered.id), "{body}");
}

#[tokio::test]
async fn the_detailed_health_of_a_relay_that_is_not_ready_says_why() {
    let mut faulty = None;
    let relay = Relay::start_with(
        &[("RELAY_STORAGE_BACKEND", "memory")],
        |_| {},
        |opened| {
            let (faults, opened) = Faults::under(opened);
            faulty = Some(faults);
            opened
        },
    )
    .await;
    faulty.unwrap().on(Call::Probe, 1, Fault::Fail);
    let ask = async || http_get(relay.running.operators, "/health/detailed", &[]).await;
    let (status, body) = ask().await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("storage is unavailable"), "{body}");
    assert!(
        body.contains("memory: a restart deletes everything"),
        "{body}"
    );

    relay.running.shutdown.announce();
    let (status, body) = ask().await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("\"draining\":true"), "{body}");
}

/// Paths of the operators' port that are not for everybody; one that does not exist tells nothing
/// else.
const GUARDED: [(&str, u16); 4] = [
    ("/", 200),
    ("/health/detailed", 200),
    ("/cluster", 200),
    ("/nothing", 404),
];

#[tokio::test]
async fn strangers_are_told_apart_from_operators() {
    // What a proxy on this machine passes on comes from loopback and was made elsewhere.
    let stranger = ("X-Forwarded-For", "127.0.0.1");
    let relay = Relay::start(&[]).await;
    let operators = relay.running.operators;
    for (path, status) in GUARDED {
        assert_eq!(http_get(operators, path, &[]).await.0, status, "{path}");
        let (refused, body) = http_get(operators, path, &[stranger]).await;
        assert_eq!(refused, 403, "{path}");
        assert!(body.contains("RELAY_METRICS_TOKEN"), "{body}");
    }
    for path in ["/health", "/up", "/ready", "/metrics"] {
        assert_eq!(
            http_get(operators, path, &[stranger]).await.0,
            200,
            "{path}"
        );
    }

    let relay = Relay::start(&[("RELAY_METRICS_TOKEN", "swordfish")]).await;
    let operators = relay.running.operators;
    for (path, status) in GUARDED {
        assert_eq!(http_get(operators, path, &[]).await.0, status, "{path}");
        let wrong = [stranger, ("Authorization", "Bearer sword")];
        for headers in [&wrong[..1], &wrong] {
            let (refused, body) = http_get(operators, path, headers).await;
            assert_eq!(refused, 401, "{path}");
            assert!(!body.contains("swordfish"), "{body}");
        }
        let right = [stranger, ("Authorization", "Bearer swordfish")];
        assert_eq!(http_get(operators, path, &right).await.0, status, "{path}");
    }
    for path in ["/health", "/up", "/ready"] {
        assert_eq!(
            http_get(operators, path, &[stranger]).await.0,
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn whoever_comes_from_another_address_is_a_stranger() {
    let Some(own) = own_address() else {
        // A machine without a network has no other address; the guard's own test has it.
        return;
    };
    let relay = Relay::start(&[("RELAY_HTTP_ADDR", "0.0.0.0:0")]).await;
    let from_outside = std::net::SocketAddr::new(own, relay.running.operators.port());
    assert_eq!(http_get(from_outside, "/health/detailed", &[]).await.0, 403);
    assert_eq!(http_get(from_outside, "/ready", &[]).await.0, 200);
}

/// An address of this machine that is not loopback. Nothing is sent: connecting a datagram socket
/// only looks up the route.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}
