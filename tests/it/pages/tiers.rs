//! `docs/tiers.md`: relays know nothing of each other.

use crate::harness::{Relay, id};

#[tokio::test]
async fn a_blob_waits_in_the_relay_that_it_was_handed_to_and_in_no_other() {
    let (one, other) = (Relay::start(&[]).await, Relay::start(&[]).await);
    let mut sender = one.client(&id(1)).await;
    sender.store(&id(2), b"hello").await;

    let mut elsewhere = other.client(&id(2)).await;
    elsewhere.expect_silence().await;
    assert_eq!(other.metric("relay_blobs_stored").await, 0.0);

    let mut here = one.client(&id(2)).await;
    assert_eq!(here.delivery().await.blob, b"hello");
}
