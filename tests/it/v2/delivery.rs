//! v2: what is stored is delivered through windows, in order, and leaves when it is acknowledged.

use vauchi_relay::protocol::v2::message::Done;
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::v2::client::{Guest, Owned, submit};

#[tokio::test]
async fn a_stranger_submits_and_the_owner_receives_by_key_or_by_secret() {
    let relay = Relay::start(&[]).await;
    for owned in [Owned::key(1), Owned::v2_only(2)] {
        let mut sender = Guest::connect(&relay).await;
        assert!(!sender.store(submit(&owned.id(), 1, b"waits")).await);
        assert!(sender.store(submit(&owned.id(), 1, b"waits")).await, "once");

        let mut owner = Guest::connect(&relay).await;
        let opened = owner.open(&owned).await;
        assert_eq!((opened.pending, opened.blobs), (1, 1));
        let waited = owner.blob().await;
        assert_eq!((&*waited.body, waited.mailbox), (&b"waits"[..], owned.id()));
        assert!(!waited.redelivered);
        assert_eq!(owner.caught_up().await, [owned.id()]);

        sender.store(submit(&owned.id(), 2, b"comes")).await;
        let came = owner.blob().await;
        assert_eq!(&*came.body, b"comes");
        owner.acknowledge(owned.id(), waited.id).await;

        // What was not acknowledged comes again, and is known to.
        let mut again = Guest::connect(&relay).await;
        assert_eq!(again.open(&owned).await.pending, 1);
        let repeat = again.blob().await;
        assert_eq!((repeat.id, repeat.redelivered), (came.id, true));
        again.caught_up().await;
        again.acknowledge(owned.id(), came.id).await;
    }
    assert_eq!(relay.metric("relay_blobs_stored").await, 0.0);
}

#[tokio::test]
async fn the_window_bounds_what_is_in_flight_and_each_acknowledgement_admits_more() {
    let relay = Relay::start(&[]).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 0..5 {
        sender.store(submit(&owned.id(), number, &[7; 100])).await;
    }
    let mut owner = Guest::connect(&relay).await;
    let narrow = Request::Window {
        blobs: 2,
        bytes: 1 << 20,
    };
    let granted = owner.answer(narrow).await;
    assert!(matches!(granted, Answer::Windowed { blobs: 2, .. }));
    owner.open(&owned).await;
    let first = owner.blob().await;
    owner.blob().await;
    owner.expect_nothing().await;
    owner
        .ask(Request::Acknowledge(vec![(owned.id(), first.id)]))
        .await;
    let mut frames = [owner.receive().await, owner.receive().await];
    frames.sort_by_key(|frame| matches!(frame, Answer::Blob(_)));
    assert!(matches!(frames[0], Answer::Done(Done::Acknowledged)));
    assert!(matches!(&frames[1], Answer::Blob(blob) if blob.id.as_bytes()[3] == 2));
    owner.expect_nothing().await;
    // By bytes: one may always go, however large.
    let mut other = Guest::connect(&relay).await;
    other
        .answer(Request::Window {
            blobs: 64,
            bytes: 50,
        })
        .await;
    other.open(&owned).await;
    other.blob().await;
    other.expect_nothing().await;
    // A wider window admits what waited.
    other
        .ask(Request::Window {
            blobs: 64,
            bytes: 1 << 20,
        })
        .await;
    let mut blobs = 0;
    while blobs < 3 {
        blobs += u32::from(matches!(other.receive().await, Answer::Blob(_)));
    }
    assert_eq!(other.caught_up().await, [owned.id()]);
}

#[tokio::test]
async fn a_full_mailbox_does_not_keep_the_others_of_its_connection_waiting() {
    let relay = Relay::start(&[]).await;
    let (full, small) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&relay).await;
    for number in 0..40 {
        sender.store(submit(&full.id(), number, &[1; 60_000])).await;
    }
    sender.store(submit(&small.id(), 99, b"small")).await;
    let mut owner = Guest::connect(&relay).await;
    let subscribe = owner.subscribe_to(&[&full, &small], false);
    owner.try_subscribe(subscribe).await;
    let mut before = 0;
    while owner.blob().await.mailbox != small.id() {
        before += 1;
    }
    assert!(before <= 5, "a page of the full one came first: {before}");
}

#[tokio::test]
async fn a_closed_mailbox_is_silent_and_opened_again_it_begins_anew() {
    let relay = Relay::start(&[]).await;
    let (owned, mut sender) = (Owned::key(1), Guest::connect(&relay).await);
    let mut owner = Guest::connect(&relay).await;
    assert_eq!(owner.open(&owned).await.pending, 0);
    assert_eq!(owner.caught_up().await, [owned.id()]);
    sender.store(submit(&owned.id(), 1, b"one")).await;
    owner.blob().await;
    // Opening an open one delivers nothing twice.
    assert_eq!(owner.open(&owned).await.pending, 1);
    owner.expect_nothing().await;
    let close = Request::Unsubscribe(vec![owned.id()]);
    assert_eq!(owner.done(close).await, Done::Unsubscribed);
    sender.store(submit(&owned.id(), 2, b"two")).await;
    owner.expect_nothing().await;
    owner.open(&owned).await;
    assert_eq!(&*owner.blob().await.body, b"one");
    assert_eq!(&*owner.blob().await.body, b"two");
}

#[tokio::test]
async fn each_subscriber_gets_each_blob_and_the_first_acknowledgement_deletes_it() {
    let relay = Relay::start(&[]).await;
    let (owned, mut sender) = (Owned::key(1), Guest::connect(&relay).await);
    let mut owners = [Guest::connect(&relay).await, Guest::connect(&relay).await];
    for owner in &mut owners {
        owner.open(&owned).await;
        owner.caught_up().await;
    }
    sender.store(submit(&owned.id(), 1, b"both")).await;
    // Both have it before one acknowledges: whoever looks later finds nothing.
    let ids = [owners[0].blob().await.id, owners[1].blob().await.id];
    for (owner, id) in owners.iter_mut().zip(ids) {
        owner.acknowledge(owned.id(), id).await;
    }
    assert_eq!(relay.metric("relay_blobs_acknowledged_total").await, 1.0);
}

#[tokio::test]
async fn hundreds_of_mailboxes_are_open_on_one_connection() {
    // Good proofs are no failed ones, however many come at once.
    let relay = Relay::start(&[("RELAY_FAILED_PROOFS_PER_MIN", "20")]).await;
    let owned: Vec<_> = (0..=255).map(Owned::v2_only).collect();
    let mut owner = Guest::connect(&relay).await;
    let subscribe = owner.subscribe_to(&owned.iter().collect::<Vec<_>>(), false);
    assert!(
        owner
            .try_subscribe(subscribe)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(owner.caught_up().await.len(), 256, "told in one frame");
    let mut sender = Guest::connect(&relay).await;
    sender.store(submit(&owned[200].id(), 1, b"found")).await;
    assert_eq!(owner.blob().await.mailbox, owned[200].id());
    // Beyond the bound a subscribe is refused whole.
    let many: Vec<_> = (0..1_025u16)
        .map(|number| {
            let mut secret = [3; 32];
            secret[..2].copy_from_slice(&number.to_be_bytes());
            Owned::from_seed(secret)
        })
        .collect();
    let mut greedy = Guest::connect(&relay).await;
    let subscribe = greedy.subscribe_to(&many.iter().collect::<Vec<_>>(), false);
    let refused = greedy.refusal(Request::Subscribe(subscribe)).await;
    assert_eq!(refused.code, "too_many_mailboxes");
    assert_eq!(refused.retry_after, None);
}

#[tokio::test]
async fn a_drain_is_announced_and_what_is_in_flight_may_be_acknowledged() {
    let relay = Relay::start(&[("RELAY_ALTERNATES", "wss://other.example.com")]).await;
    let (owned, mut sender) = (Owned::key(1), Guest::connect(&relay).await);
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    owner.caught_up().await;
    sender.store(submit(&owned.id(), 1, b"late")).await;
    let blob = owner.blob().await;
    let stopping = tokio::spawn(relay.stop());
    let Answer::GoAway(go_away) = owner.receive().await else {
        panic!("no GoAway")
    };
    assert_eq!(*go_away.alternates, ["wss://other.example.com"]);
    assert!(!go_away.reconnect_after.is_zero());
    let refused = owner
        .refusal(Request::Submit(submit(&owned.id(), 2, b"x")))
        .await;
    assert_eq!(refused.code, "shutting_down");
    owner.acknowledge(owned.id(), blob.id).await;
    owner.peer.expect_close(1001).await;
    sender.peer.expect_close(1001).await;
    stopping.await.unwrap();
}
