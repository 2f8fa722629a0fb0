//! Ninety days in a moment.

use std::time::Duration;

use vauchi_relay::store::sqlite::DATABASE_FILE;

use crate::harness::{Relay, SILENCE, eventually, id};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_blob_lives_for_ninety_days_and_not_a_moment_longer() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"ninety days").await;
    relay.time.advance(90 * DAY - Duration::from_secs(1));
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"ninety days");
    recipient.leave().await;

    // The next sweep is an hour away; the blob is never delivered all the same.
    relay.time.advance(Duration::from_secs(1));
    let mut recipient = relay.client(&id(2)).await;
    recipient.expect_silence().await;
    assert_eq!(relay.metric("relay_blobs_expired_total").await, 0.0);
}

#[tokio::test]
async fn the_sweep_deletes_what_has_expired_and_counts_it() {
    let relay = Relay::start(&[
        ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
        ("RELAY_BLOB_TTL_DAYS", "1"),
    ])
    .await;
    let mut sender = relay.client(&id(1)).await;
    for number in 0..600_u16 {
        sender
            .submit(&id(10 + (number % 200) as u8), &number.to_be_bytes())
            .await;
    }
    for _ in 0..600 {
        assert_eq!(sender.receive().await["payload"]["status"], "Stored");
    }
    relay.time.advance(DAY / 2);
    sender.store(&id(250), b"half a day younger").await;
    relay.time.advance(DAY / 2 + Duration::from_secs(1));
    relay
        .metric_becomes("relay_blobs_expired_total", 600.0)
        .await;
    assert_eq!(relay.metric("relay_blobs_stored").await, 1.0);
    // Half a day and the day of its life after the harness's start of time.
    let next = 1_795_220_095.0 + (DAY / 2 + DAY).as_secs_f64();
    relay
        .metric_becomes("relay_next_expiry_timestamp_seconds", next)
        .await;
    let mut recipient = relay.client(&id(250)).await;
    assert_eq!(recipient.delivery().await.blob, b"half a day younger");
}

#[tokio::test]
async fn what_expired_while_the_relay_was_down_is_swept_at_the_start() {
    let relay = Relay::start(&[]).await;
    relay.client(&id(1)).await.store(&id(2), b"forgotten").await;
    relay.time.advance(91 * DAY);
    let relay = relay.restart().await;
    // The restart begins at the old time of day and is then moved on; the hourly sweep has run by
    // then, so only delivery is judged here.
    let mut recipient = relay.client(&id(2)).await;
    recipient.expect_silence().await;
}

#[tokio::test]
async fn the_space_of_what_has_expired_is_given_back_and_used_again() {
    const BLOBS: u8 = 120;
    const MIB: u64 = 1 << 20;
    let settings = [
        ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
        ("RELAY_BLOB_TTL_DAYS", "1"),
    ];
    let relay = Relay::start(&settings).await;
    let file = relay.config.data_dir.join(DATABASE_FILE);
    let file_bytes = || std::fs::metadata(&file).unwrap().len();
    // 15 MiB.
    let fill = async |relay: &Relay, sender: u8| {
        let mut sender = relay.client(&id(sender)).await;
        for number in 0..BLOBS {
            sender
                .store(&id(2 + number % 7), &[number; 128 << 10])
                .await;
        }
        sender.leave().await;
    };
    fill(&relay, 100).await;
    // A relay that was stopped leaves one file, which has everything.
    let relay = relay.restart().await;
    let full = file_bytes();
    assert!(full > 15 * MIB, "{full}");

    relay.time.advance(DAY + Duration::from_secs(1));
    relay
        .metric_becomes("relay_blobs_expired_total", f64::from(BLOBS))
        .await;
    // 8 MiB and a tenth are kept for what comes next.
    eventually("the file is small", async || file_bytes() < 10 * MIB).await;

    fill(&relay, 101).await;
    let relay = relay.restart().await;
    let again = file_bytes();
    assert!(again < full + MIB, "{again} bytes after {full}");
    assert_eq!(relay.metric("relay_blobs_stored").await, f64::from(BLOBS));
}

/// A slow client may take a page for longer than its blobs live.
#[tokio::test]
async fn what_expires_while_a_slow_client_takes_its_page_is_not_sent() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    for number in 0..200_u8 {
        sender.submit(&id(2), &vec![number; 20_000]).await;
    }
    for _ in 0..200 {
        assert_eq!(sender.receive().await["payload"]["status"], "Stored");
    }
    let mut slow = relay.client(&id(2)).await;
    let mut written = 0.0;
    eventually("the system's buffers are full", async || {
        tokio::time::sleep(SILENCE).await;
        let now = relay.metric("relay_blobs_delivered_total").await;
        std::mem::replace(&mut written, now) == now && now > 0.0
    })
    .await;
    assert!(written < 190.0, "{written} of 200 fit into the buffers");
    relay.time.advance(91 * DAY);
    for _ in 0..written as usize {
        slow.delivery().await;
    }
    // The one that was being written when its time came is on its way; the rest of the page is not.
    let mut more = 0;
    while tokio::time::timeout(SILENCE, slow.next()).await.is_ok() {
        more += 1;
    }
    assert!(more <= 1, "{more} were sent after their time");
}
