//! v2: what a sender may ask, and what it hears of it afterwards.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::Message;
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::message::{Done, ReceiptKind, Withdrawal, WithdrawalKind};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{BEGINNING, Peer, Relay};
use crate::v2::client::{Guest, Owned, on_terms, submit};

#[tokio::test]
async fn the_welcome_comes_first_and_a_hello_brings_it_again() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "600")]).await;
    let mut guest = Guest::connect(&relay).await;
    assert_eq!(guest.welcome.limits.submits_per_minute, 600);
    assert_eq!(guest.welcome.limits.blob_bytes_max, 1 << 20);
    let Answer::Welcome(welcome) = guest.answer(Request::Hello(None)).await else {
        panic!()
    };
    assert_eq!(*welcome, guest.welcome);
    let other = Guest::connect(&relay).await;
    assert_eq!(other.welcome.relay_id, guest.welcome.relay_id);
    assert_ne!(other.welcome.challenge, guest.welcome.challenge);
    let relay = relay.restart().await;
    let later = Guest::connect(&relay).await;
    assert_eq!(later.welcome.relay_id, guest.welcome.relay_id, "kept");
}

#[tokio::test]
async fn what_no_one_offers_is_not_spoken() {
    let relay = Relay::start(&[]).await;
    let offers = [("sec-websocket-protocol", "mqtt, vauchi.relay.v3")];
    assert!(
        Peer::try_connect_with(relay.running.clients, &offers)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn unknown_frames_are_refused_and_what_can_not_be_read_ends_the_connection() {
    let relay = Relay::start(&[]).await;
    let mut guest = Guest::connect(&relay).await;
    // request = 5, field 900 of some later version.
    let unknown = Bytes::from_static(&[0x08, 5, 0xA2, 0x38, 0]);
    guest
        .peer
        .socket
        .send(Message::Binary(unknown))
        .await
        .unwrap();
    match guest.receive_numbered().await {
        (number, Answer::Refused(refused)) => {
            assert_eq!((number, refused.code), (Some(5), "unsupported"));
        }
        other => panic!("{other:?}"),
    }
    guest
        .peer
        .socket
        .send(Message::Binary(Bytes::from_static(&[0xFF; 9])))
        .await
        .unwrap();
    guest.peer.expect_close(4400).await;
    let mut guest = Guest::connect(&relay).await;
    guest
        .peer
        .socket
        .send(Message::Text("hello".into()))
        .await
        .unwrap();
    guest.peer.expect_close(4400).await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "1024")]).await;
    let (owned, mut guest) = (Owned::v2_only(1), Guest::connect(&relay).await);
    let to = owned.id();
    for (request, code) in [
        (submit(&to, 1, &[0; 1025]), "too_large"),
        (submit(&to, 1, &[0; 2600]), "too_large"),
        (
            on_terms(submit(&to, 1, b"x"), |terms| {
                terms.ttl = Some(Duration::from_secs(91 * 86_400));
            }),
            "ttl_out_of_range",
        ),
        (
            on_terms(submit(&to, 1, b"x"), |terms| terms.relay = Some([1; 32])),
            "unknown_relay",
        ),
        (
            on_terms(submit(&to, 1, b"x"), |terms| terms.live_only = true),
            "not_connected",
        ),
    ] {
        let refused = guest.refusal(Request::Submit(request)).await;
        assert_eq!(refused.code, code);
    }
    guest.store(submit(&to, 1, &[0; 1024])).await;
    let reused = guest
        .refusal(Request::Submit(submit(&to, 1, b"other")))
        .await;
    assert_eq!((reused.code, reused.retry_after), ("id_reused", None));
    let own = guest.welcome.relay_id;
    let named = on_terms(submit(&to, 2, b"x"), |terms| terms.relay = Some(own));
    assert!(!guest.store(named).await);
}

#[tokio::test]
async fn a_blob_replaces_the_unacknowledged_one_of_its_topic() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "2")]).await;
    let (owned, mut guest) = (Owned::v2_only(1), Guest::connect(&relay).await);
    let on_topic = |number, body: &[u8]| {
        on_terms(submit(&owned.id(), number, body), |terms| {
            terms.topic = Some([4; 32])
        })
    };
    guest.store(on_topic(1, b"old")).await;
    guest.store(submit(&owned.id(), 2, b"other")).await;
    guest.store(on_topic(3, b"new")).await;
    guest.open(&owned).await;
    assert_eq!(&*guest.blob().await.body, b"other");
    assert_eq!(&*guest.blob().await.body, b"new");
    assert_eq!(relay.metric("relay_blobs_replaced_total").await, 1.0);
}

#[tokio::test]
async fn a_live_blob_reaches_who_is_there_and_is_never_stored() {
    let relay = Relay::start(&[]).await;
    let (owned, mut owner) = (Owned::v2_only(1), Guest::connect(&relay).await);
    let live = |number| {
        on_terms(submit(&owned.id(), number, b"ring"), |terms| {
            terms.live_only = true
        })
    };
    let mut sender = Guest::connect(&relay).await;
    // A subscriber that does not let senders know is as good as absent.
    let quiet = owner.subscribe_to(&[&owned], false);
    owner.try_subscribe(quiet).await;
    owner.caught_up().await;
    let refused = sender.refusal(Request::Submit(live(1))).await;
    assert_eq!(refused.code, "not_connected");
    owner.open(&owned).await;
    let handed = sender.answer(Request::Submit(live(2))).await;
    assert!(matches!(handed, Answer::Handed));
    assert_eq!(&*owner.blob().await.body, b"ring");
    assert_eq!(relay.metric("relay_blobs_created_total").await, 0.0);
}

#[tokio::test]
async fn receipts_tell_a_sender_what_became_of_its_blobs() {
    let relay = Relay::start(&[]).await;
    let (owned, own) = (Owned::key(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    sender.open(&own).await;
    sender.caught_up().await;
    let with_receipts = |number| {
        on_terms(submit(&owned.id(), number, b"x"), |terms| {
            terms.receipt_to = Some(own.id());
        })
    };
    sender.store(with_receipts(1)).await;
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    let blob = owner.blob().await;
    let delivered = sender.receipt().await;
    assert_eq!(
        (delivered.kind, delivered.id),
        (ReceiptKind::Delivered, blob.id)
    );
    assert_eq!(delivered.at.millis() % 60_000, 0);
    owner.caught_up().await;
    owner.acknowledge(owned.id(), blob.id).await;
    let acknowledged = sender.receipt().await;
    assert_eq!(acknowledged.kind, ReceiptKind::Acknowledged);
    for receipt in [delivered, acknowledged] {
        sender.acknowledge(own.id(), receipt.receipt_id).await;
    }
    // A recipient that does not let senders know: nothing is told.
    let quiet = owner.subscribe_to(&[&owned], false);
    owner.try_subscribe(quiet).await;
    sender.store(with_receipts(2)).await;
    let blob = owner.blob().await;
    owner.acknowledge(owned.id(), blob.id).await;
    sender.expect_nothing().await;
}

#[tokio::test]
async fn a_blob_that_nobody_opens_makes_an_expired_receipt_at_the_cleanup() {
    let relay = Relay::start(&[("RELAY_CLEANUP_INTERVAL_SECS", "1")]).await;
    let own = Owned::v2_only(2);
    let mut sender = Guest::connect(&relay).await;
    sender.open(&own).await;
    sender.caught_up().await;
    let short = |secs| {
        on_terms(submit(&Owned::key(1).id(), 1, b"x"), |terms| {
            terms.receipt_to = Some(own.id());
            terms.ttl = Some(Duration::from_secs(secs));
        })
    };
    let refused = sender.refusal(Request::Submit(short(3_599))).await;
    assert_eq!(refused.code, "ttl_out_of_range");
    sender.store(short(3_600)).await;
    relay.time.advance(Duration::from_secs(3_601));
    let receipt = sender.receipt().await;
    assert_eq!(receipt.kind, ReceiptKind::Expired);
}

#[tokio::test]
async fn who_kept_the_secret_may_extend_or_take_back_a_blob() {
    let relay = Relay::start(&[]).await;
    let (owned, own) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    sender.open(&own).await;
    sender.caught_up().await;
    let blob = |secret: u8| {
        let mut blob = on_terms(submit(&owned.id(), 0, &[secret]), |terms| {
            terms.ttl = Some(Duration::from_secs(7_200));
            terms.receipt_to = Some(own.id());
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
    for secret in [1, 2] {
        sender.store(blob(secret)).await;
    }
    let longer = WithdrawalKind::Extend(Duration::from_secs(86_400));
    assert_eq!(sender.done(withdraw(1, longer)).await, Done::Extended);
    sender.ask(withdraw(2, WithdrawalKind::Cancel)).await;
    let (mut told, mut answered) = (None, false);
    while told.is_none() || !answered {
        match sender.receive().await {
            Answer::Receipt(receipt) => told = Some(receipt.kind),
            Answer::Done(done) => answered = done == Done::Cancelled,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, Some(ReceiptKind::Removed));
    relay.time.advance(Duration::from_secs(7_201));
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    assert_eq!(&*owner.blob().await.body, [1]);
    // What is gone is answered alike: these are commands, not questions.
    sender.ask(withdraw(9, WithdrawalKind::Cancel)).await;
    // That the first one was delivered is told before this is answered, or after.
    let answer = loop {
        match sender.receive().await {
            Answer::Receipt(receipt) => assert_eq!(receipt.kind, ReceiptKind::Delivered),
            answer => break answer,
        }
    };
    assert_eq!(answer, Answer::Done(Done::Cancelled));
}

/// Lifetimes go by the relay's time; what a client is told goes by the wall clock, once that is steady.
#[tokio::test]
async fn a_client_is_told_the_time_of_day_after_the_clock_was_set() {
    let relay = Relay::start(&[("RELAY_BLOB_TTL_DAYS", "1")]).await;
    let (owned, mut guest) = (Owned::v2_only(1), Guest::connect(&relay).await);
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
    let year = 365 * day;
    let told = async |guest: &mut Guest, number| {
        let submit = Request::Submit(submit(&owned.id(), number, b"blob"));
        match guest.answer(submit).await {
            Answer::Stored { expires_at, .. } => expires_at,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&mut guest, 1).await, BEGINNING.plus(day));
    relay.time.step_forward(year);
    assert_eq!(told(&mut guest, 2).await, BEGINNING.plus(day), "not yet");
    // Somebody looks at the clock between the step and the end of its ten minutes.
    relay.metric_becomes("relay_clock_steps_total", 1.0).await;
    relay.time.advance(10 * minute);
    relay.metric_becomes("relay_clock_gap_seconds", 0.0).await;
    let now = BEGINNING.plus(year + 10 * minute);
    assert_eq!(told(&mut guest, 3).await, now.plus(day));
    // What waited is told by the new clock, too.
    guest.open(&owned).await;
    let blob = guest.blob().await;
    assert_eq!(blob.expires_at, Some(now.plus(day).minus(10 * minute)));
    assert_eq!(blob.stored_at, now.minus(10 * minute));
}
