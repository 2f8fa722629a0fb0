//! A wall clock that is wrong for a while deletes nothing, forgets nothing, and shortens or lengthens no
//! life.
//!
//! Once, one start with the clock a year ahead swept every confirmed blob away with one line in the
//! log, and so did a step forward that lasted. A blob that came while the clock was a year behind was gone
//! when it was put right, and one that came while it was a year ahead stayed for a year.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::{BEGINNING, Relay, eventually, http_get, id, update};
use crate::store::faulty::{Call, Faults, faulty_relay};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

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

/// What `/health/detailed` says of the clock.
async fn told_of_clock(relay: &Relay) -> serde_json::Value {
    let (_, body) = http_get(relay.running.operators, "/health/detailed", &[]).await;
    let mut told: serde_json::Value = serde_json::from_str(&body).unwrap();
    told["clock"].take()
}

/// A relay with one blob, stopped and started a year later by its clock; and its store.
async fn started_a_year_ahead(settings: &[(&str, &str)]) -> (Relay, Arc<Faults>) {
    let relay = Relay::start(settings).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"confirmed").await;
    sender.leave().await;
    let mut counted = None;
    let wrap = |opened| {
        let (store, opened) = Faults::under(opened);
        counted = Some(store);
        opened
    };
    let relay = relay.restart_ahead(YEAR, wrap).await;
    (relay, counted.unwrap())
}

#[tokio::test]
async fn a_start_with_the_clock_a_year_ahead_takes_nothing_from_a_blob() {
    let (relay, store) = started_a_year_ahead(&SETTINGS).await;
    // The clock is believed to be steady, and the stop is not believed yet.
    relay.time.advance(10 * MINUTE);
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));
    let told = told_of_clock(&relay).await;
    assert_eq!(
        (&told["steady"], &told["gap_seconds"]),
        (&true.into(), &0.into())
    );
    assert_eq!(told["unconfirmed_stop_seconds"], YEAR.as_secs());

    // Somebody puts the clock right.
    relay.time.step_back(YEAR);
    assert_eq!(told_of_clock(&relay).await["steady"], false);
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"confirmed");
    recipient.leave().await;
    a_sweep(&store).await;
    relay.time.advance(10 * MINUTE);
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (1.0, 0.0));
    assert_eq!(told_of_clock(&relay).await["unconfirmed_stop_seconds"], 0);

    // Its day is over.
    relay.time.advance(DAY);
    relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
}

#[tokio::test]
async fn a_stop_of_a_year_counts_after_a_day_and_spares_what_came_since() {
    let settings = [
        ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
        ("RELAY_BLOB_TTL_DAYS", "30"),
    ];
    let (relay, store) = started_a_year_ahead(&settings).await;
    // It is delivered, and only then acknowledged: its departure is remembered like the others.
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"confirmed");
    recipient.leave().await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(3), b"came since").await;
    sender.leave().await;
    relay.time.advance(DAY - Duration::from_secs(1));
    a_sweep(&store).await;
    assert_eq!(kept_and_expired(&relay).await, (2.0, 0.0));

    relay.time.advance(Duration::from_secs(1));
    relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
    relay.time.advance(28 * DAY);
    a_sweep(&store).await;
    let mut recipient = relay.client(&id(3)).await;
    assert_eq!(recipient.delivery().await.blob, b"came since");
    relay.time.advance(DAY);
    relay.metric_becomes("relay_blobs_expired_total", 2.0).await;
}

#[tokio::test]
async fn a_start_with_the_clock_a_year_behind_goes_on_where_the_last_one_ended() {
    let relay = Relay::start(&SETTINGS).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"before").await;
    sender.leave().await;
    relay.time.advance(DAY / 2);
    let relay = relay.restart_at(BEGINNING.minus(YEAR), |store| store).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(3), b"after").await;
    sender.leave().await;
    relay.time.advance(DAY / 4);
    relay.time.step_forward(YEAR + DAY);
    assert_eq!(told_of_clock(&relay).await["steady"], false);
    let before = relay.client(&id(2)).await.delivery().await;
    let after = relay.client(&id(3)).await.delivery().await;
    assert_eq!(
        (&*before.blob, &*after.blob),
        (&b"before"[..], &b"after"[..])
    );

    relay.time.advance(DAY / 4);
    relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
    relay.time.advance(DAY / 2);
    relay.metric_becomes("relay_blobs_expired_total", 2.0).await;
}

#[tokio::test]
async fn a_step_in_either_direction_moves_no_expiry() {
    for is_forward in [true, false] {
        let (relay, store) = steady_relay().await;
        let step = |is_forward| match is_forward {
            true => relay.time.step_forward(YEAR),
            false => relay.time.step_back(YEAR),
        };
        let mut sender = relay.client(&id(1)).await;
        sender.store(&id(2), b"one").await;
        step(is_forward);
        assert_eq!(told_of_clock(&relay).await["steady"], false);
        // Believed after ten minutes; it makes no difference to what waits.
        relay.time.advance(10 * MINUTE);
        a_sweep(&store).await;
        sender.store(&id(2), b"two").await;
        step(!is_forward);
        assert_eq!(told_of_clock(&relay).await["steady"], false);
        relay
            .time
            .advance(DAY - 10 * MINUTE - Duration::from_secs(1));
        a_sweep(&store).await;
        assert_eq!(kept_and_expired(&relay).await, (2.0, 0.0));
        let mut recipient = relay.client(&id(2)).await;
        assert_eq!(recipient.delivery().await.blob, b"one");
        assert_eq!(recipient.delivery().await.blob, b"two");
        recipient.leave().await;

        relay.time.advance(Duration::from_secs(1));
        relay.metric_becomes("relay_blobs_expired_total", 1.0).await;
        relay.time.advance(10 * MINUTE);
        relay.metric_becomes("relay_blobs_expired_total", 2.0).await;
    }
}

#[tokio::test]
async fn a_repeat_stays_a_duplicate_however_far_the_clock_jumps() {
    let (relay, store) = faulty_relay(&[
        ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
        ("RELAY_DEDUP_SECS", "86400"),
    ])
    .await;
    relay.time.advance(10 * MINUTE);
    let mut sender = relay.client(&id(1)).await;
    let sent = sender.submit(&id(2), b"once").await;
    sender.expect_stored(&sent).await;
    let mut recipient = relay.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    recipient.acknowledge(&delivered.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    relay.time.step_forward(YEAR);
    assert_eq!(told_of_clock(&relay).await["steady"], false);
    relay.time.advance(10 * MINUTE);
    a_sweep(&store).await;
    assert_eq!(relay.metric("relay_dedup_remembered").await, 1.0);
    sender.send(&update(&sent, &id(2), b"once")).await;
    relay.metric_becomes("relay_duplicates_total", 1.0).await;
    recipient.expect_silence().await;
}

#[tokio::test]
async fn a_step_is_counted_and_shown_until_the_clock_is_steady_again() {
    let (relay, _) = steady_relay().await;
    let told = async || {
        let told = told_of_clock(&relay).await;
        (
            told["steady"].as_bool().unwrap(),
            told["gap_seconds"].as_i64().unwrap(),
        )
    };
    assert_eq!(told().await, (true, 0));
    relay.metric_becomes("relay_clock_steady", 1.0).await;
    relay.time.step_back(2 * MINUTE);
    assert_eq!(told().await, (false, -120));
    relay.metric_becomes("relay_clock_steps_total", 1.0).await;
    relay.metric_becomes("relay_clock_steady", 0.0).await;
    relay
        .metric_becomes("relay_clock_gap_seconds", -120.0)
        .await;
    relay.time.advance(10 * MINUTE);
    assert_eq!(told().await, (true, 0));
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
