//! A wall clock that is wrong for a while deletes nothing for good.
//!
//! Once, one start with the clock a year ahead swept every confirmed blob away with one line in the
//! log, and so did a step forward that lasted for seconds.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Relay, eventually, http_get, id};
use crate::store::faulty::{Call, Faults, faulty_relay};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Sweeps every second what is older than a day, in mailboxes of two blobs.
const SETTINGS: [(&str, &str); 3] = [
    ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
    ("RELAY_BLOB_TTL_DAYS", "1"),
    ("RELAY_MAILBOX_MAX_BLOBS", "2"),
];

/// Waits until a whole sweep has begun and ended.
async fn a_sweep(store: &Faults) {
    let before = store.calls(Call::Expire);
    eventually("a sweep", async || store.calls(Call::Expire) >= before + 2).await;
}

/// A relay that has been up for long enough to trust its clock, and its store.
async fn steady_relay() -> (Relay, Arc<Faults>) {
    let (relay, store) = faulty_relay(&SETTINGS).await;
    relay.time.advance(10 * MINUTE);
    (relay, store)
}

/// How many blobs are kept, and how many expired.
async fn kept_and_expired(relay: &Relay) -> (f64, f64) {
    (
        relay.metric("relay_blobs_stored").await,
        relay.metric("relay_blobs_expired_total").await,
    )
}

#[tokio::test]
async fn a_start_with_the_clock_a_year_ahead_deletes_nothing_in_the_first_minutes() {
    let relay = Relay::start(&SETTINGS).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"confirmed").await;
    sender.leave().await;
    let mut counted = None;
    let relay = relay
        .restart_ahead(365 * DAY, |opened| {
            let (store, opened) = Faults::under(opened);
            counted = Some(store);
            opened
        })
        .await;
    let store = counted.unwrap();
    relay.time.advance(10 * MINUTE - Duration::from_secs(1));
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));

    // Somebody puts the clock right.
    relay.time.step_back(365 * DAY);
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"confirmed");
    a_sweep(&store).await;
    relay.time.advance(10 * MINUTE);
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));

    // Its day is over.
    relay.time.advance(DAY);
    relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
}

#[tokio::test]
async fn a_step_forward_deletes_nothing_until_the_clock_has_been_steady_for_ten_minutes() {
    let (relay, store) = steady_relay().await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"confirmed").await;
    relay.time.step_forward(2 * DAY);
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));
    // What a client sees goes by the clock at once, right or wrong.
    relay.client(&id(2)).await.expect_silence().await;

    relay.time.advance(10 * MINUTE - Duration::from_secs(1));
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));
    relay.time.advance(Duration::from_secs(1));
    relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
}

#[tokio::test]
async fn a_step_is_counted_and_shown_until_the_clock_is_steady_again() {
    let (relay, _) = steady_relay().await;
    let operators = relay.running.operators;
    let told = async || {
        let (_, body) = http_get(operators, "/health/detailed", &[]).await;
        let told: serde_json::Value = serde_json::from_str(&body).unwrap();
        told["clock"]["steady"].as_bool().unwrap()
    };
    assert!(told().await);
    relay.metric_becomes("relay_clock_steady", 1.0).await;
    relay.time.step_back(MINUTE);
    assert!(!told().await);
    relay.metric_becomes("relay_clock_steps_total", 1.0).await;
    relay.metric_becomes("relay_clock_steady", 0.0).await;
    relay.time.advance(10 * MINUTE);
    assert!(told().await);
    assert_eq!(relay.metric("relay_clock_steps_total").await, 1.0);
}

#[tokio::test]
async fn a_full_mailbox_loses_nothing_to_a_step_of_the_clock() {
    let (relay, _) = steady_relay().await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"one").await;
    sender.store(&id(2), b"two").await;
    relay.time.step_forward(2 * DAY);
    let third = sender.submit(&id(2), b"three").await;
    sender.expect_refusal(&third, "mailbox_full").await;

    relay.time.step_back(2 * DAY);
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"one");
    assert_eq!(recipient.delivery().await.blob, b"two");
}
