//! Who only knows the id of a v2 mailbox can do nothing with what lies in it, through v2 or v1: a test for each.

use serde_json::json;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::v2::Request;
use vauchi_relay::protocol::v2::message::{Done, Withdrawal, WithdrawalKind};

use crate::harness::{Peer, Relay, envelope};
use crate::v2::client::{Guest, Owned, on_terms, submit};

/// A mailbox of each kind with one blob, which its owner has seen and not acknowledged.
async fn two_mailboxes() -> (Relay, [(Owned, BlobId); 2]) {
    let relay = Relay::start(&[]).await;
    let mut sender = Guest::connect(&relay).await;
    let mut made = Vec::new();
    for owned in [Owned::key(1), Owned::v2_only(2)] {
        let mut owner = Guest::connect(&relay).await;
        owner.open(&owned).await;
        owner.caught_up().await;
        sender.store(submit(&owned.id(), 1, b"private")).await;
        made.push((owned, owner.blob().await.id));
    }
    let made = made.try_into().ok().unwrap();
    (relay, made)
}

async fn is_still_there(relay: &Relay, owned: &Owned, blob: BlobId) {
    let mut owner = Guest::connect(relay).await;
    assert_eq!(owner.open(owned).await.pending, 1);
    assert_eq!(owner.blob().await.id, blob);
}

/// A v1 client that says to be the mailbox; `None` where the relay does not let it in, because a key has proved itself.
async fn through_v1(relay: &Relay, owned: &Owned) -> Option<Peer> {
    let mut v1 = Peer::connect(relay.running.clients).await;
    v1.say_hello(json!({ "client_id": owned.id().to_hex() }))
        .await;
    match owned.no_pin {
        false => {
            v1.expect_close(4401).await;
            None
        }
        true => {
            assert_eq!(v1.receive().await["payload"]["type"], "HandshakeAck");
            Some(v1)
        }
    }
}

async fn is_unauthorized(stranger: &mut Guest, request: Request) {
    let refused = stranger.refusal(request).await;
    assert_eq!((refused.code, refused.retry_after), ("unauthorized", None));
}

#[tokio::test]
async fn a_stranger_can_not_read() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, blob) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        let mut subscribe = stranger.subscribe_to(&[&Owned::key(3), &Owned::v2_only(4)], true);
        for opening in &mut subscribe.openings {
            opening.mailbox = owned.id();
        }
        let opened = stranger.try_subscribe(subscribe).await;
        assert!(opened.iter().all(|opened| *opened == Err("unauthorized")));
        stranger.expect_nothing().await;
        if let Some(mut v1) = through_v1(&relay, owned).await {
            v1.expect_silence().await;
        }
        is_still_there(&relay, owned, *blob).await;
    }
}

#[tokio::test]
async fn a_stranger_can_not_acknowledge() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, blob) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        let acknowledge = Request::Acknowledge(vec![(owned.id(), *blob)]);
        is_unauthorized(&mut stranger, acknowledge).await;
        if let Some(mut v1) = through_v1(&relay, owned).await {
            v1.acknowledge(&uuid_of(blob.as_bytes())).await;
            // Answered after what was asked before it.
            v1.store(&MailboxId::from_bytes([9; 32]).to_hex(), b"x")
                .await;
        }
        is_still_there(&relay, owned, *blob).await;
    }
}

#[tokio::test]
async fn a_stranger_can_not_purge() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, blob) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        is_unauthorized(&mut stranger, Request::Purge(vec![owned.id()])).await;
        if let Some(mut v1) = through_v1(&relay, owned).await {
            v1.send(&envelope("p", json!({ "type": "PurgeRequest" })))
                .await;
            assert_eq!(v1.receive_any().await["payload"]["blobs_deleted"], 0);
        }
        is_still_there(&relay, owned, *blob).await;
    }
}

/// The id of a blob is no secret; withdrawing wants what it was made from. v1 has no word for it.
#[tokio::test]
async fn a_stranger_can_not_cancel() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, blob) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(blob.as_bytes());
        let cancel = Request::Withdraw(Withdrawal {
            mailbox: owned.id(),
            shown: secret,
            kind: WithdrawalKind::Cancel,
        });
        assert_eq!(stranger.done(cancel).await, Done::Cancelled);
        is_still_there(&relay, owned, *blob).await;
    }
}

#[tokio::test]
async fn a_stranger_can_not_take_the_pin_off() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, _) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        is_unauthorized(&mut stranger, Request::Unpin(owned.id())).await;
        // A key's is still there.
        through_v1(&relay, owned).await;
    }
}

#[tokio::test]
async fn a_stranger_can_not_have_receipts_sent_there() {
    let (relay, mailboxes) = two_mailboxes().await;
    for (owned, _) in &mailboxes {
        let mut stranger = Guest::connect(&relay).await;
        let elsewhere = submit(&MailboxId::from_bytes([9; 32]), 1, b"x");
        let submit = on_terms(elsewhere, |terms| terms.receipt_to = Some(owned.id()));
        is_unauthorized(&mut stranger, Request::Submit(submit)).await;
    }
}

fn uuid_of(id: &[u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
