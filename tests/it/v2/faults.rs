//! v2: what storage fails to do is refused for now, nothing is claimed, and the repeat works.

use std::time::Duration;

use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery};
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::message::{Done, ReceiptKind, Withdrawal, WithdrawalKind};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{Peer, Relay};
use crate::store::faulty::{Call, Fault, Faults, Stall, faulty_relay};
use crate::v2::client::{Guest, Owned, on_terms, submit};

/// Asks while this call fails, and is refused for now; the session goes on. Then asks again.
async fn refused_first(
    guest: &mut Guest,
    faulty: &Faults,
    (call, fault): (Call, &Fault),
    request: Request,
) -> Answer {
    faulty.on(call, 1, fault.clone());
    let refused = guest.refusal(request.clone()).await;
    assert_eq!(refused.code, "unavailable", "{call:?}");
    assert!(refused.message.contains("retry"), "{refused:?}");
    assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()));
    assert_eq!(guest.done(Request::Ping).await, Done::Pong);
    guest.answer(request).await
}

fn is_done(answer: &Answer, what: Done) -> bool {
    matches!(answer, Answer::Done(done) if *done == what)
}

const FAULTS: [Fault; 2] = [Fault::Fail, Fault::FailCommit];

#[tokio::test]
async fn a_submit_that_is_not_stored_is_not_confirmed_and_costs_no_share() {
    let (relay, faulty) = faulty_relay(&[
        ("RELAY_MAILBOX_MAX_BLOBS", "2"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
        ("RELAY_MAX_STORAGE_BYTES", "10240"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.5"),
    ])
    .await;
    let mut sender = Guest::connect(&relay).await;
    for (place, fault) in FAULTS.iter().enumerate() {
        let owned = Owned::v2_only(place as u8);
        // The whole share of the mailbox, and nearly half of that of the relay.
        let request = Request::Submit(submit(&owned.id(), 1, &[7; 1_500]));
        let answer = refused_first(&mut sender, &faulty, (Call::Append, fault), request).await;
        assert!(matches!(
            answer,
            Answer::Stored {
                duplicate: false,
                ..
            }
        ));
        let mut owner = Guest::connect(&relay).await;
        assert_eq!(owner.open(&owned).await.pending, 1);
    }
    assert_eq!(relay.metric("relay_blobs_stored").await, 2.0);
}

#[tokio::test]
async fn of_submits_that_are_under_way_together_each_is_told_its_own_fate() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    faulty.on(Call::Append, 2, Fault::FailCommit);
    faulty.on(Call::Append, 4, Fault::FailCommit);
    let mut asked = Vec::new();
    for number in 0..6 {
        let request = Request::Submit(submit(&owned.id(), number, b"x"));
        asked.push(sender.ask(request).await);
    }
    let (mut stored, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let (number, answer) = sender.receive_numbered().await;
        let number = number.unwrap();
        match answer {
            Answer::Stored { .. } => stored.push(number),
            Answer::Refused { .. } => refused.push(number),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stored, [asked[0], asked[2], asked[4], asked[5]]);
    assert_eq!(refused, [asked[1], asked[3]]);
    let mut owner = Guest::connect(&relay).await;
    assert_eq!(owner.open(&owned).await.pending, 4);
    let refusals = "relay_refusals_total{code=\"unavailable\"}";
    assert_eq!(relay.metric(refusals).await, 2.0);
}

#[tokio::test]
async fn a_deletion_that_fails_deletes_nothing_and_the_repeat_deletes() {
    let (relay, faulty) = faulty_relay(&[]).await;
    for (place, fault) in FAULTS.iter().enumerate() {
        let (owned, mut owner) = (Owned::key(place as u8), Guest::connect(&relay).await);
        owner.store(submit(&owned.id(), 1, b"first")).await;
        owner.store(submit(&owned.id(), 2, b"second")).await;
        owner.open(&owned).await;
        let blob = owner.blob().await;
        owner.blob().await;
        owner.caught_up().await;

        let request = Request::Acknowledge(vec![(owned.id(), blob.id)]);
        let met = (Call::Acknowledge, fault);
        let answer = refused_first(&mut owner, &faulty, met, request).await;
        assert!(is_done(&answer, Done::Acknowledged));
        assert_eq!(relay.metric("relay_blobs_stored").await, 1.0);

        let request = Request::Purge(vec![owned.id()]);
        let answer = refused_first(&mut owner, &faulty, (Call::Purge, fault), request).await;
        let Answer::Purged(mailboxes) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(mailboxes[0].blobs, 1);
        assert_eq!(relay.metric("relay_blobs_stored").await, 0.0);
    }
}

#[tokio::test]
async fn a_refused_acknowledgement_leaves_its_blobs_in_flight() {
    // Otherwise the window would admit more than the client has room for, and a drain would not wait.
    let (relay, faulty) = faulty_relay(&[("RELAY_RATE_LIMIT_PER_MIN", "1")]).await;
    let (owned, mut owner) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 0..3 {
        let mut sender = Guest::connect(&relay).await;
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    let narrow = Request::Window {
        blobs: 1,
        bytes: 100,
    };
    owner.answer(narrow).await;
    owner.open(&owned).await;
    let first = owner.blob().await;
    let both = |owner: &Owned| {
        let unknown = vauchi_relay::ids::BlobId::from_bytes([9; 16]);
        Request::Acknowledge(vec![(owner.id(), first.id), (owner.id(), unknown)])
    };
    // The client's one request of this minute.
    faulty.take_down();
    let mut sender = Guest::connect(&relay).await;
    sender
        .ask(Request::Submit(submit(&owned.id(), 9, b"x")))
        .await;
    relay.metric_becomes("relay_store_up", 0.0).await;
    assert_eq!(owner.refusal(both(&owned)).await.code, "unavailable");
    assert_eq!(owner.refusal(both(&owned)).await.code, "rate_limited");
    owner.expect_nothing().await;
    faulty.bring_up();
    relay.metric_becomes("relay_store_up", 1.0).await;
    // It is still in flight, so acknowledging it costs nothing.
    owner
        .ask(Request::Acknowledge(vec![(owned.id(), first.id)]))
        .await;
    let frames = [owner.receive().await, owner.receive().await];
    assert!(
        frames
            .iter()
            .any(|frame| is_done(frame, Done::Acknowledged))
    );
    assert!(frames.iter().any(|frame| matches!(frame, Answer::Blob(_))));
}

#[tokio::test]
async fn a_blob_is_taken_back_or_extended_when_storage_works_again() {
    let (relay, faulty) = faulty_relay(&[]).await;
    for (place, fault) in FAULTS.iter().enumerate() {
        let (owned, mut sender) = (Owned::v2_only(place as u8), Guest::connect(&relay).await);
        let blob = |secret: u8| {
            let mut blob = on_terms(submit(&owned.id(), 0, &[secret]), |terms| {
                terms.ttl = Some(Duration::from_secs(7_200));
            });
            blob.id = proof::v2_blob_id(&owned.id(), &[secret; 32]);
            blob
        };
        let withdraw = |secret: u8, kind| {
            Request::Withdraw(Withdrawal {
                mailbox: owned.id(),
                shown: match kind {
                    WithdrawalKind::Extend(_) => proof::v2_extend_key(&[secret; 32]),
                    WithdrawalKind::Cancel => [secret; 32],
                },
                kind,
            })
        };
        for secret in 1..=3 {
            sender.store(blob(secret)).await;
        }
        let cancel = withdraw(1, WithdrawalKind::Cancel);
        let answer = refused_first(&mut sender, &faulty, (Call::Cancel, fault), cancel).await;
        assert!(is_done(&answer, Done::Cancelled));
        let longer = WithdrawalKind::Extend(Duration::from_secs(86_400));
        let extend = withdraw(2, longer);
        let answer = refused_first(&mut sender, &faulty, (Call::Extend, fault), extend).await;
        assert!(is_done(&answer, Done::Extended));
        // A refused one has done nothing.
        faulty.on(Call::Extend, 1, fault.clone());
        let refused = sender.refusal(withdraw(3, longer)).await;
        assert_eq!(refused.code, "unavailable");

        // Ten minutes more: what waits is counted by slots of so long.
        relay.time.advance(Duration::from_secs(7_801));
        let mut owner = Guest::connect(&relay).await;
        assert_eq!(owner.open(&owned).await.pending, 1);
        assert_eq!(&*owner.blob().await.body, [2]);
    }
}

#[tokio::test]
async fn what_storage_could_not_open_is_not_open_and_opens_with_the_repeat() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, mut owner) = (Owned::key(1), Guest::connect(&relay).await);
    owner.store(submit(&owned.id(), 1, b"waits")).await;
    faulty.on(Call::Holdings, 1, Fault::Fail);
    let subscribe = Request::Subscribe(owner.subscribe_to(&[&owned, &Owned::v2_only(2)], true));
    assert_eq!(owner.refusal(subscribe.clone()).await.code, "unavailable");
    let purge = Request::Purge(vec![owned.id()]);
    assert_eq!(owner.refusal(purge).await.code, "unauthorized");
    let mut sender = Guest::connect(&relay).await;
    let live = on_terms(submit(&owned.id(), 2, b"x"), |terms| terms.live_only = true);
    let refused = sender.refusal(Request::Submit(live)).await;
    assert_eq!(refused.code, "not_connected");
    owner.expect_nothing().await;
    owner.answer(subscribe).await;
    let mut blobs = 0;
    let mut caught_up = 0;
    while (blobs, caught_up) != (1, 2) {
        match owner.receive().await {
            Answer::Blob(_) => blobs += 1,
            Answer::CaughtUp(mailboxes) => caught_up += mailboxes.len(),
            other => panic!("{other:?}"),
        }
    }

    let unpin = Request::Unpin(owned.id());
    let met = (Call::Unpin, &Fault::Fail);
    let answer = refused_first(&mut owner, &faulty, met, unpin).await;
    assert!(is_done(&answer, Done::Unpinned));
}

/// Whether a v1 client may open this mailbox without a signature.
async fn opens_unsigned(relay: &Relay, owned: &Owned) -> bool {
    let mut v1 = Peer::connect(relay.running.clients).await;
    let hello = serde_json::json!({ "client_id": owned.id().to_hex() });
    v1.say_hello(hello).await;
    v1.next().await.is_ok()
}

/// The owner was let in, so that it can make room, and so was a stranger after it.
#[tokio::test]
async fn while_no_pin_can_be_saved_owners_are_let_in_and_strangers_are_not() {
    let (relay, faulty) = faulty_relay(&[]).await;
    for (byte, call) in [(1, Call::Pin), (2, Call::IsPinned)] {
        let owned = Owned::key(byte);
        assert!(opens_unsigned(&relay, &owned).await);
        let mut owner = Guest::connect(&relay).await;
        faulty.on_every(call, Fault::Fail);
        owner.open_empty(&owned).await;
        assert!(!opens_unsigned(&relay, &owned).await);
        faulty.mend(call);
        assert!(!opens_unsigned(&relay, &owned).await);
        assert_eq!(relay.metric("relay_pins").await, 0.0, "{byte}");
    }
    // They are saved with the next one.
    let mut other = Guest::connect(&relay).await;
    other.open_empty(&Owned::key(3)).await;
    assert_eq!(relay.metric("relay_pins").await, 3.0);
    let relay = relay.restart().await;
    for byte in 1..=3 {
        assert!(!opens_unsigned(&relay, &Owned::key(byte)).await);
    }
    // Whoever takes the pin off takes it off in both places.
    let mut owner = Guest::connect(&relay).await;
    owner.open_empty(&Owned::key(1)).await;
    owner.done(Request::Unpin(Owned::key(1).id())).await;
    assert!(opens_unsigned(&relay, &Owned::key(1)).await);
}

#[tokio::test]
async fn a_recovery_proof_that_is_not_stored_takes_no_place() {
    // An address has two places a day under a hash: more failures than that must not use them up.
    let (relay, faulty) = faulty_relay(&[
        ("RELAY_RECOVERY_RATE_LIMIT", "1000"),
        ("RELAY_MAX_STORAGE_BYTES", "10240"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.5"),
    ])
    .await;
    let mut owner = Guest::connect(&relay).await;
    owner.open_empty(&Owned::v2_only(1)).await;
    let put = Request::RecoveryStore(RecoveryProof {
        key_hash: [5; 32],
        proof: vec![7; 1_500].into(),
    });
    faulty.on_every(Call::RecoveryPut, Fault::Fail);
    for _ in 0..5 {
        let refused = owner.refusal(put.clone()).await;
        assert_eq!(refused.code, "unavailable", "{refused:?}");
        assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()));
    }
    faulty.mend(Call::RecoveryPut);
    for _ in 0..2 {
        let kept = owner.answer(put.clone()).await;
        assert!(matches!(kept, Answer::RecoveryKept { .. }), "{kept:?}");
    }
    assert_eq!(owner.refusal(put).await.code, "rate_limited");

    let get = Request::RecoveryQuery(RecoveryQuery {
        key_hashes: vec![[5; 32]],
    });
    let met = (Call::RecoveryGet, &Fault::Fail);
    let answer = refused_first(&mut owner, &faulty, met, get).await;
    let Answer::RecoveryFound { proofs, .. } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(proofs.len(), 1);
}

#[tokio::test]
async fn a_page_that_can_not_be_read_delays_deliveries_and_loses_none() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    // Two to a page.
    for number in 0..5 {
        let blob = vec![number as u8; 120_000];
        sender.store(submit(&owned.id(), number, &blob)).await;
    }
    faulty.on(Call::Page, 2, Fault::Fail);
    let mut owner = Guest::connect(&relay).await;
    assert_eq!(owner.open(&owned).await.pending, 5);
    for number in 0..5 {
        let blob = owner.blob().await;
        assert_eq!((blob.body[0], blob.redelivered), (number, false));
        if number == 1 {
            // Requests are served while the page is out of reach.
            assert_eq!(owner.done(Request::Ping).await, Done::Pong);
        }
    }
    assert_eq!(owner.caught_up().await, [owned.id()]);
    assert!(faulty.calls(Call::Page) >= 4);
}

#[tokio::test]
async fn a_delivery_whose_receipt_fails_is_a_delivery_all_the_same() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, own) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    sender.open_empty(&own).await;
    let mut owner = Guest::connect(&relay).await;
    owner.open_empty(&owned).await;
    for (number, fault) in FAULTS.into_iter().enumerate() {
        faulty.on(Call::Delivered, 1, fault);
        let blob = submit(&owned.id(), number as u32, b"x");
        let blob = on_terms(blob, |terms| terms.receipt_to = Some(own.id()));
        sender.store(blob).await;
        let blob = owner.blob().await;
        owner.acknowledge(owned.id(), blob.id).await;
        let receipt = sender.receipt().await;
        assert_eq!(
            (receipt.kind, receipt.id),
            (ReceiptKind::Acknowledged, blob.id)
        );
    }
    sender.expect_nothing().await;
}

#[tokio::test]
async fn a_receipt_that_waits_for_the_disk_holds_up_no_answer() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, own) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    sender.open_empty(&own).await;
    for number in 0..2 {
        let blob = submit(&owned.id(), number, b"x");
        let blob = on_terms(blob, |terms| terms.receipt_to = Some(own.id()));
        sender.store(blob).await;
    }
    let stall = Stall::default();
    faulty.on(Call::Delivered, 1, Fault::Stall(stall.clone()));
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    for _ in 0..2 {
        owner.blob().await;
    }
    owner.caught_up().await;
    stall.reached().await;
    assert_eq!(owner.done(Request::Ping).await, Done::Pong);
    stall.release();
    for _ in 0..2 {
        assert_eq!(sender.receipt().await.kind, ReceiptKind::Delivered);
    }
}

#[tokio::test]
async fn a_refused_subscribe_does_not_change_who_is_told() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (owned, mut owner) = (Owned::v2_only(1), Guest::connect(&relay).await);
    let quiet = owner.subscribe_to(&[&owned], false);
    owner.try_subscribe(quiet).await;
    owner.caught_up().await;
    faulty.on(Call::Holdings, 1, Fault::Fail);
    let telling = Request::Subscribe(owner.subscribe_to(&[&owned], true));
    assert_eq!(owner.refusal(telling.clone()).await.code, "unavailable");
    let mut sender = Guest::connect(&relay).await;
    let live = on_terms(submit(&owned.id(), 1, b"x"), |terms| terms.live_only = true);
    let refused = sender.refusal(Request::Submit(live.clone())).await;
    assert_eq!(refused.code, "not_connected");
    owner.answer(telling).await;
    let handed = sender.answer(Request::Submit(live)).await;
    assert!(matches!(handed, Answer::Handed));
}
