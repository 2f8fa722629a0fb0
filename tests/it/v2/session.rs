//! v2: what a session owes its client when things happen at the same time: while an answer waits for a commit,
//! while a page waits for the window, while an id is still in flight.

use std::time::Duration;

use futures_util::SinkExt as _;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use vauchi_relay::ids::BlobId;
use vauchi_relay::protocol::message::RecoveryProof;
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::client::encode_request;
use vauchi_relay::protocol::v2::message::{Done, Withdrawal, WithdrawalKind};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::store::faulty::{Call, Fault, Stall, faulty_relay};
use crate::v2::client::{Guest, Owned, on_terms, submit};

/// A narrow window, so that what was read waits for it.
async fn narrow(guest: &mut Guest, blobs: u32, bytes: u64) {
    let granted = guest.answer(Request::Window { blobs, bytes }).await;
    assert!(matches!(granted, Answer::Windowed { .. }));
}

/// Acknowledges one blob and expects the next one to come, before or after the answer.
async fn next_after(guest: &mut Guest, owned: &Owned, id: BlobId) -> BlobId {
    let request = Request::Acknowledge(vec![(owned.id(), id)]);
    guest.ask(request).await;
    let (mut next, mut answered) = (None, false);
    while next.is_none() || !answered {
        match guest.receive().await {
            Answer::Blob(blob) => next = Some(blob.id),
            Answer::Done(done) => answered = done == Done::Acknowledged,
            Answer::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    next.unwrap()
}

/// A blob whose sender kept the secret.
fn withdrawable(
    to: &Owned,
    secret: u8,
    ttl_secs: u64,
) -> vauchi_relay::protocol::v2::message::Submit {
    let mut blob = on_terms(submit(&to.id(), 0, &[secret]), |terms| {
        terms.ttl = Some(Duration::from_secs(ttl_secs));
    });
    blob.id = proof::v2_blob_id(&to.id(), &[secret; 32]);
    blob
}

fn withdraw(from: &Owned, secret: u8, kind: WithdrawalKind) -> Request {
    Request::Withdraw(Withdrawal {
        mailbox: from.id(),
        shown: match kind {
            WithdrawalKind::Extend(_) => proof::v2_extend_key(&[secret; 32]),
            WithdrawalKind::Cancel => [secret; 32],
        },
        kind,
    })
}

/// A blob left while it was in flight, and another one came under its id: the window gave back the bytes of the
/// second, of which it had counted none.
#[tokio::test]
async fn another_blob_under_an_id_in_flight_counts_as_what_it_is() {
    let relay = Relay::start(&[("RELAY_DEDUP_SECS", "0")]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    let (mut slow, mut quick) = (Guest::connect(&relay).await, Guest::connect(&relay).await);
    narrow(&mut slow, 64, 1_000).await;
    for owner in [&mut slow, &mut quick] {
        owner.open(&owned).await;
        owner.caught_up().await;
    }
    sender.store(submit(&owned.id(), 1, &[1; 10])).await;
    let id = slow.blob().await.id;
    quick.blob().await;
    quick.acknowledge(owned.id(), id).await;
    sender.store(submit(&owned.id(), 1, &[1; 900])).await;
    assert_eq!(slow.blob().await.body.len(), 900);
    // 900 of 1,000 bytes are in flight.
    sender.store(submit(&owned.id(), 2, &[2; 200])).await;
    slow.expect_nothing().await;
    next_after(&mut slow, &owned, id).await;
    // 200 are.
    sender.store(submit(&owned.id(), 3, &[3; 801])).await;
    slow.expect_nothing().await;
    sender.store(submit(&owned.id(), 4, &[4; 10])).await;
    slow.expect_nothing().await;
}

/// The page in memory had the expiry from before, and the blob was passed over as expired.
#[tokio::test]
async fn a_blob_that_was_extended_while_it_waited_for_the_window_comes() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    for (secret, ttl_secs) in [(1, 86_400), (2, 3_600), (3, 86_400)] {
        sender.store(withdrawable(&owned, secret, ttl_secs)).await;
    }
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 1, 1 << 20).await;
    owner.open(&owned).await;
    let first = owner.blob().await.id;
    owner.expect_nothing().await;
    let longer = WithdrawalKind::Extend(Duration::from_secs(86_400));
    let extended = sender.done(withdraw(&owned, 2, longer)).await;
    assert_eq!(extended, Done::Extended);
    relay.time.advance(Duration::from_secs(3_601));
    let second = next_after(&mut owner, &owned, first).await;
    assert_eq!(second, proof::v2_blob_id(&owned.id(), &[2; 32]));
    let third = next_after(&mut owner, &owned, second).await;
    assert_eq!(third, proof::v2_blob_id(&owned.id(), &[3; 32]));
}

/// A page may wait for the window for hours; what its blobs were then is no longer true.
#[tokio::test]
async fn what_was_taken_back_long_ago_does_not_come_when_the_window_opens() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    for secret in 1..=4 {
        sender.store(withdrawable(&owned, secret, 86_400)).await;
    }
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 1, 1 << 20).await;
    owner.open(&owned).await;
    let first = owner.blob().await.id;
    owner.expect_nothing().await;
    let cancelled = sender
        .done(withdraw(&owned, 2, WithdrawalKind::Cancel))
        .await;
    assert_eq!(cancelled, Done::Cancelled);
    relay.time.advance(Duration::from_secs(60));
    let second = next_after(&mut owner, &owned, first).await;
    assert_eq!(second, proof::v2_blob_id(&owned.id(), &[3; 32]));
    let third = next_after(&mut owner, &owned, second).await;
    assert_eq!(third, proof::v2_blob_id(&owned.id(), &[4; 32]), "each once");
}

/// An answer that waits for its commit keeps those behind it waiting, and deliveries went past them all.
#[tokio::test]
async fn deliveries_begin_after_the_answer_that_their_mailbox_is_open() {
    let (relay, store) = faulty_relay(&[]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    sender.store(submit(&owned.id(), 1, b"waits")).await;

    let mut guest = Guest::connect(&relay).await;
    let stall = Stall::default();
    store.on(Call::Append, 1, Fault::StallCommit(stall.clone()));
    guest
        .ask(Request::Submit(submit(&owned.id(), 2, b"stalls")))
        .await;
    let subscribe = guest.subscribe_to(&[&owned], true);
    guest.ask(Request::Subscribe(subscribe)).await;
    // It is stored, and not answered yet.
    stall.reached().await;
    let live = on_terms(submit(&owned.id(), 3, b"ring"), |terms| {
        terms.live_only = true;
    });
    let not_yet = sender.refusal(Request::Submit(live)).await;
    assert_eq!(not_yet.code, "not_connected");
    guest.peer.expect_silence().await;
    stall.release();
    assert!(matches!(guest.receive().await, Answer::Stored { .. }));
    assert!(matches!(guest.receive().await, Answer::Subscribed { .. }));
    assert_eq!(&*guest.blob().await.body, b"waits");
    assert_eq!(&*guest.blob().await.body, b"stalls");
    assert_eq!(guest.caught_up().await, [owned.id()]);
}

/// Between the answer's place in the queue and its leaving the mailbox may be closed and opened again.
#[tokio::test]
async fn a_mailbox_that_is_closed_and_opened_before_its_answer_left_is_told_of_once_each() {
    let (relay, store) = faulty_relay(&[]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    for number in 1..=3 {
        sender.store(submit(&owned.id(), number, b"waits")).await;
    }
    let mut guest = Guest::connect(&relay).await;
    let stall = Stall::default();
    store.on(Call::Append, 1, Fault::StallCommit(stall.clone()));
    guest
        .ask(Request::Submit(submit(&Owned::v2_only(2).id(), 9, b"x")))
        .await;
    let subscribe = || guest.subscribe_to(&[&owned], true);
    let (first, second) = (subscribe(), subscribe());
    guest.ask(Request::Subscribe(first)).await;
    guest.ask(Request::Unsubscribe(vec![owned.id()])).await;
    guest.ask(Request::Subscribe(second)).await;
    stall.reached().await;
    guest.peer.expect_silence().await;
    stall.release();
    assert!(matches!(guest.receive().await, Answer::Stored { .. }));
    assert!(matches!(guest.receive().await, Answer::Subscribed { .. }));
    assert!(matches!(
        guest.receive().await,
        Answer::Done(Done::Unsubscribed)
    ));
    assert!(matches!(guest.receive().await, Answer::Subscribed { .. }));
    for _ in 1..=3 {
        assert_eq!(&*guest.blob().await.body, b"waits");
    }
    assert_eq!(guest.caught_up().await, [owned.id()]);
    let purged = guest.answer(Request::Purge(vec![owned.id()])).await;
    assert!(matches!(purged, Answer::Purged { .. }));
    sender.store(submit(&owned.id(), 4, b"after")).await;
    assert_eq!(&*guest.blob().await.body, b"after");
    guest.expect_nothing().await;
}

/// The slots came back before the charge was refused, so the window admitted more than it may.
#[tokio::test]
async fn a_refused_acknowledgement_does_nothing() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "2")]).await;
    let (owned, unknown) = (Owned::v2_only(1), BlobId::from_bytes([9; 16]));
    for number in 1..=2 {
        // Each has a rate of its own.
        let mut sender = Guest::connect(&relay).await;
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 1, 1 << 20).await;
    owner.open(&owned).await;
    let first = owner.blob().await.id;
    // The first one is free.
    for _ in 0..3 {
        owner.answer(Request::Hello(None)).await;
    }
    let both = Request::Acknowledge(vec![(owned.id(), first), (owned.id(), unknown)]);
    assert_eq!(owner.refusal(both).await.code, "rate_limited");
    owner.expect_nothing().await;
    // What is in flight is free.
    next_after(&mut owner, &owned, first).await;
}

#[tokio::test]
async fn a_storage_that_fails_gives_no_slot_back_either() {
    let (relay, store) = faulty_relay(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 1..=2 {
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 1, 1 << 20).await;
    owner.open(&owned).await;
    let first = owner.blob().await.id;
    store.take_down();
    sender
        .ask(Request::Submit(submit(&owned.id(), 9, b"x")))
        .await;
    relay.metric_becomes("relay_store_up", 0.0).await;
    let acknowledge = Request::Acknowledge(vec![(owned.id(), first)]);
    assert_eq!(owner.refusal(acknowledge).await.code, "unavailable");
    owner.expect_nothing().await;
    store.bring_up();
    relay.metric_becomes("relay_store_up", 1.0).await;
    next_after(&mut owner, &owned, first).await;
}

/// Requests that are refused at once cost nothing, so a stranger could ask without end.
#[tokio::test]
async fn what_is_refused_before_it_is_looked_at_is_charged_all_the_same() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "2")]).await;
    let owned = Owned::v2_only(1);
    let greedy = Guest::connect(&relay).await;
    let many = greedy.subscribe_to(&vec![&owned; 1_025], false);
    for request in [
        Request::Acknowledge(vec![(owned.id(), BlobId::from_bytes([1; 16]))]),
        Request::Subscribe(many),
    ] {
        let mut stranger = Guest::connect(&relay).await;
        for _ in 0..2 {
            assert_ne!(stranger.refusal(request.clone()).await.code, "rate_limited");
        }
        assert_eq!(stranger.refusal(request).await.code, "rate_limited");
    }
}

/// Two failures of storage, and the client was locked out for a day.
#[tokio::test]
async fn a_recovery_proof_that_was_not_stored_takes_no_place_of_the_day() {
    let variables = [("RELAY_RECOVERY_RATE_LIMIT", "10")];
    let (relay, store) = faulty_relay(&variables).await;
    let mut guest = Guest::connect(&relay).await;
    guest.open(&Owned::key(1)).await;
    guest.caught_up().await;
    let put = || {
        Request::RecoveryStore(RecoveryProof {
            key_hash: [5; 32],
            proof: vec![1; 40].into(),
        })
    };
    for _ in 0..3 {
        store.on(Call::RecoveryPut, 1, Fault::Fail);
        assert_eq!(guest.refusal(put()).await.code, "unavailable");
    }
    for _ in 0..2 {
        let kept = guest.answer(put()).await;
        assert!(matches!(kept, Answer::RecoveryKept { .. }), "{kept:?}");
    }
    assert_eq!(guest.refusal(put()).await.code, "rate_limited");
}

/// The sender heard that its blob was delivered, and never that it was received.
#[tokio::test]
async fn a_v1_sender_hears_of_a_v2_recipient_what_it_hears_of_any() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::v2_only(1);
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    owner.caught_up().await;
    let mut sender = relay.client(&"5".repeat(64)).await;
    let name = sender.submit(&owned.id().to_hex(), b"tell me").await;
    sender.expect_stored(&name).await;
    let blob = owner.blob().await;
    let delivered = sender.receive_any().await;
    assert_eq!(delivered["payload"]["status"], "Delivered");
    owner.acknowledge(owned.id(), blob.id).await;
    let received = sender.receive_any().await;
    assert_eq!(received["payload"]["status"], "ReceivedByRecipient");
    assert_eq!(received["payload"]["message_id"], json!(name));
    // Unless the recipient does not let senders know.
    let quiet = owner.subscribe_to(&[&owned], false);
    owner.try_subscribe(quiet).await;
    sender.store(&owned.id().to_hex(), b"quietly").await;
    let blob = owner.blob().await;
    owner.acknowledge(owned.id(), blob.id).await;
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn only_who_has_a_mailbox_open_takes_its_pin_off() {
    let relay = Relay::start(&[]).await;
    let (owned, not_open) = (Owned::key(1), Owned::v2_only(2));
    let mut guest = Guest::connect(&relay).await;
    guest.open_empty(&owned).await;
    let unpin = |owned: &Owned| Request::Unpin(owned.id());
    assert_eq!(guest.refusal(unpin(&not_open)).await.code, "unauthorized");
    assert_eq!(relay.metric("relay_pins").await, 1.0);
    assert_eq!(guest.done(unpin(&owned)).await, Done::Unpinned);
    assert_eq!(relay.metric("relay_pins").await, 0.0);
    // One that was never pinned has no pin from now on either.
    guest.open_empty(&not_open).await;
    assert_eq!(guest.done(unpin(&not_open)).await, Done::Unpinned);
}

/// Closing is free and may go unanswered, so a frame full of ids must not cost more than its bytes.
#[tokio::test]
async fn closing_without_a_number_is_not_answered_and_gives_the_slots_back() {
    let relay = Relay::start(&[]).await;
    let (owned, other) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    for to in [&owned, &other] {
        sender.store(submit(&to.id(), 1, b"x")).await;
    }
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 1, 1 << 20).await;
    owner.open(&owned).await;
    owner.blob().await;
    assert_eq!(owner.caught_up().await, [owned.id()]);
    owner.open(&other).await;
    owner.expect_nothing().await;
    let mut ids: Vec<_> = (3..=255).map(|byte| Owned::v2_only(byte).id()).collect();
    ids.push(owned.id());
    let frame = encode_request(None, &Request::Unsubscribe(ids));
    owner
        .peer
        .socket
        .send(Message::Binary(frame))
        .await
        .unwrap();
    assert_eq!(owner.blob().await.mailbox, other.id());
    assert_eq!(owner.caught_up().await, [other.id()]);
    owner.expect_nothing().await;
}

/// Nothing new is delivered after `GoAway`, though the window opens.
#[tokio::test]
async fn a_draining_session_takes_acknowledgements_and_delivers_nothing_more() {
    let relay = Relay::start(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 1..=3 {
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    sender.peer.leave().await;
    let mut owner = Guest::connect(&relay).await;
    narrow(&mut owner, 2, 1 << 20).await;
    owner.open(&owned).await;
    let (first, second) = (owner.blob().await.id, owner.blob().await.id);
    let stopping = tokio::spawn(relay.stop());
    assert!(matches!(owner.receive().await, Answer::GoAway(_)));
    owner.acknowledge(owned.id(), first).await;
    let subscribe = owner.subscribe_to(&[&Owned::v2_only(2)], false);
    let refused = owner.refusal(Request::Subscribe(subscribe)).await;
    assert_eq!(refused.code, "shutting_down");
    assert_eq!(owner.done(Request::Ping).await, Done::Pong);
    owner.acknowledge(owned.id(), second).await;
    owner.peer.expect_close(1001).await;
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_receipt_counts_in_the_window_as_one_blob_of_64_bytes() {
    let relay = Relay::start(&[]).await;
    let (own, other) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    narrow(&mut sender, 64, 2 * 64 + 63).await;
    sender.open(&own).await;
    sender.caught_up().await;
    for number in 1..=3 {
        let asking = on_terms(submit(&other.id(), number, b"x"), |terms| {
            terms.receipt_to = Some(own.id());
        });
        sender.store(asking).await;
    }
    let mut owner = Guest::connect(&relay).await;
    owner.open(&other).await;
    for _ in 1..=3 {
        owner.blob().await;
    }
    let first = sender.receipt().await;
    sender.receipt().await;
    sender.expect_nothing().await;
    let request = Request::Acknowledge(vec![(own.id(), first.receipt_id)]);
    sender.ask(request).await;
    let frames = [sender.receive().await, sender.receive().await];
    let is_receipt = |frame: &Answer| matches!(frame, Answer::Receipt(_));
    assert!(frames.iter().any(is_receipt), "{frames:?}");
}

/// Not even a refusal answers a request without a number.
#[tokio::test]
async fn what_wants_no_answer_gets_none_whatever_becomes_of_it() {
    let (relay, store) = faulty_relay(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    sender.store(submit(&owned.id(), 1, b"x")).await;
    let mut owner = Guest::connect(&relay).await;
    let quietly = |to: &Owned, ids: usize| {
        let item = (to.id(), submit(&to.id(), 1, b"").id);
        encode_request(None, &Request::Acknowledge(vec![item; ids]))
    };
    let not_open = quietly(&owned, 1);
    owner
        .peer
        .socket
        .send(Message::Binary(not_open))
        .await
        .unwrap();
    owner.open(&owned).await;
    owner.blob().await;
    owner.caught_up().await;
    let too_many = quietly(&owned, 1_001);
    owner
        .peer
        .socket
        .send(Message::Binary(too_many))
        .await
        .unwrap();
    store.on(Call::Acknowledge, 1, Fault::Fail);
    for _ in 0..2 {
        let good = quietly(&owned, 1);
        owner.peer.socket.send(Message::Binary(good)).await.unwrap();
    }
    owner.expect_nothing().await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
}
