//! What the client library asks beside storing blobs: live-only blobs, purges, pins, recovery.

use std::time::Duration;

use vauchi_relay::client::{
    Blob, ClientError, Event, MailboxKey, ReceiptKind, Receipts, Submitted, v1,
};

use crate::client::v2::{client, client_with, expect_nothing, next, next_blob, url};
use crate::harness::Relay;

#[tokio::test]
async fn a_live_blob_goes_to_who_is_there_and_is_refused_at_once_otherwise() {
    let relay = Relay::start(&[]).await;
    let key = MailboxKey::random();
    let (sender, recipient) = (client(&relay).await, client(&relay).await);
    let mut blob = Blob::new(key.mailbox(), "now");
    blob.terms.live_only = true;
    let refused = sender.submit(&blob).await;
    let is_told =
        matches!(&refused, Err(ClientError::Refused { code, .. }) if code == "not_connected");
    assert!(is_told, "{refused:?}");

    recipient.open(&key, Receipts::All).await.unwrap();
    assert_eq!(sender.submit(&blob).await, Ok(Submitted::Handed));
    let delivery = next_blob(&recipient).await;
    assert_eq!(
        (&delivery.body[..], delivery.expires_at),
        (&b"now"[..], None)
    );
    // There is nothing to delete, and saying so costs nothing.
    recipient.acknowledge(delivery.item).await.unwrap();
    // A sender who did not hear that it was handed over does so again.
    assert_eq!(sender.submit(&blob).await, Ok(Submitted::Handed));
    expect_nothing(&recipient).await;
}

#[tokio::test]
async fn a_purge_deletes_what_is_there_tells_how_much_and_leaves_the_mailbox_open() {
    let relay = Relay::start(&[]).await;
    let (mine, receipts) = (MailboxKey::random(), MailboxKey::derived(&[1; 32], 1));
    let client = client_with(&relay, |options| options.window_blobs = 1).await;
    client.open(&receipts, Receipts::None).await.unwrap();
    let mut blob = Blob::new(mine.mailbox(), "one");
    blob.terms.receipt_to = Some(receipts.mailbox());
    client.submit(&blob).await.unwrap();
    client
        .submit(&Blob::new(mine.mailbox(), "two"))
        .await
        .unwrap();

    let closed = client.purge(&[mine.mailbox()]).await;
    let is_refused =
        matches!(&closed, Err(ClientError::Refused { code, .. }) if code == "unauthorized");
    assert!(is_refused, "{closed:?}");
    client.open(&mine, Receipts::All).await.unwrap();
    let purged = client.purge(&[mine.mailbox()]).await.unwrap();
    assert_eq!((purged[0].blobs, purged[0].receipts), (2, 0));
    assert!(purged[0].mailbox == mine.mailbox());
    let became = loop {
        match next(&client).await {
            Event::Receipt(receipt) if receipt.kind != ReceiptKind::Delivered => {
                break receipt.kind;
            }
            Event::Receipt(receipt) => client.acknowledge(receipt.item).await.unwrap(),
            // It was on its way when the mailbox was emptied.
            Event::Blob(delivery) => client.acknowledge(delivery.item).await.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(became, ReceiptKind::Removed);
    client
        .submit(&Blob::new(mine.mailbox(), "three"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_mailbox_that_is_unpinned_opens_to_v1_again() {
    let relay = Relay::start(&[]).await;
    let key = MailboxKey::random();
    let client = client(&relay).await;
    client.open(&key, Receipts::None).await.unwrap();
    let url = url(relay.running.clients);
    let by_v1 = async || {
        let options = v1::Options::unsigned(key.mailbox());
        v1::Client::connect(&url, options).await
    };
    let pinned = by_v1().await.err();
    assert!(
        matches!(pinned, Some(ClientError::Closed { code: 4401, .. })),
        "{pinned:?}"
    );
    client.unpin(key.mailbox()).await.unwrap();
    by_v1().await.unwrap();
}

#[tokio::test]
async fn recovery_proofs_are_kept_by_who_has_a_mailbox_and_found_by_anybody() {
    let relay = Relay::start(&[]).await;
    let (owner, contact) = (client(&relay).await, client(&relay).await);
    let hash = [4; 32];
    let nobody = owner.put_recovery(hash, "proof").await;
    assert!(
        matches!(nobody, Err(ClientError::Refused { .. })),
        "{nobody:?}"
    );
    owner
        .open(&MailboxKey::random(), Receipts::None)
        .await
        .unwrap();
    owner.put_recovery(hash, "proof").await.unwrap();
    let kept = owner.put_recovery(hash, "a later one").await.unwrap();
    let found = contact.get_recovery(&[hash, [5; 32]]).await.unwrap();
    let [proof] = found.proofs.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (proof.key_hash, &proof.proof[..]),
        (hash, &b"a later one"[..])
    );
    assert!(!found.is_cut && kept > proof.stored_at.plus(Duration::from_secs(1)));
    let too_many = contact.get_recovery(&[[0; 32]; 51]).await;
    assert!(
        matches!(too_many, Err(ClientError::TooLarge { .. })),
        "{too_many:?}"
    );
}

#[tokio::test]
async fn the_example_does_what_it_says() {
    let relay = Relay::start(&[]).await;
    let url = url(relay.running.clients);
    crate::example::round_trip(&url).await.unwrap();
    assert_eq!(relay.running.store.usage().stored, 0);
}
