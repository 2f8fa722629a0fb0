//! v2: a session that rests costs storage nothing, and good proofs that come together are no bad ones.

use std::time::Duration;

use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::store::faulty::{Call, faulty_relay};
use crate::v2::client::{Guest, Owned, submit};

/// A page that had waited ten seconds for the window was dropped and read again at any sign of life, to no end.
#[tokio::test]
async fn a_full_window_reads_no_page_twice_until_it_opens() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let owned = Owned::v2_only(1);
    let mut guest = Guest::connect(&relay).await;
    for number in 1..=3 {
        guest.store(submit(&owned.id(), number, b"x")).await;
    }
    let window = Request::Window {
        blobs: 1,
        bytes: 100,
    };
    guest.answer(window).await;
    guest.open(&owned).await;
    let first = guest.blob().await;
    guest.expect_nothing().await;
    let pages = faulty.calls(Call::Page);
    for _ in 0..3 {
        relay.time.advance(Duration::from_secs(11));
        guest.done(Request::Ping).await;
        guest.expect_nothing().await;
    }
    assert_eq!(faulty.calls(Call::Page), pages);
    let acknowledge = Request::Acknowledge(vec![(owned.id(), first.id)]);
    guest.ask(acknowledge).await;
    while !matches!(guest.receive().await, Answer::Blob(_)) {}
    assert_eq!(faulty.calls(Call::Page), pages + 1);
}

/// A blob that comes for a connected recipient goes out from memory; its mailbox is read only when it
/// is opened, or when something stands between.
#[tokio::test]
async fn what_comes_for_a_connected_recipient_is_not_read_back() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let owned = Owned::v2_only(1);
    let (mut sender, mut owner) = (Guest::connect(&relay).await, Guest::connect(&relay).await);
    owner.open_empty(&owned).await;
    let opened = faulty.calls(Call::Page);
    for number in 1..=20 {
        sender.store(submit(&owned.id(), number, b"x")).await;
        let id = owner.blob().await.id;
        let acknowledge = Request::Acknowledge(vec![(owned.id(), id)]);
        owner.done(acknowledge).await;
    }
    assert_eq!(faulty.calls(Call::Page), opened);
    // Without room in the window they wait in the store, and are read in order.
    let window = Request::Window {
        blobs: 1,
        bytes: 100,
    };
    owner.answer(window).await;
    for number in 21..=23 {
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    let mut next = 21;
    while next <= 23 {
        // The answer to an acknowledgement and the next blob come in either order.
        if let Answer::Blob(blob) = owner.receive().await {
            assert_eq!(blob.id, submit(&owned.id(), next, b"x").id);
            let acknowledge = Request::Acknowledge(vec![(owned.id(), blob.id)]);
            owner.ask(acknowledge).await;
            next += 1;
        }
    }
    assert!(faulty.calls(Call::Page) > opened);
}

/// What was committed before a purge waits in memory for room in the window, and is not delivered after it.
#[tokio::test]
async fn a_purge_takes_what_waits_in_memory_too() {
    let (relay, _) = faulty_relay(&[]).await;
    let owned = Owned::v2_only(1);
    let (mut sender, mut owner) = (Guest::connect(&relay).await, Guest::connect(&relay).await);
    let window = Request::Window {
        blobs: 1,
        bytes: 100,
    };
    owner.answer(window).await;
    owner.open_empty(&owned).await;
    for number in 1..=5 {
        sender.store(submit(&owned.id(), number, b"x")).await;
    }
    owner.blob().await;
    let purged = owner.answer(Request::Purge(vec![owned.id()])).await;
    assert!(matches!(purged, Answer::Purged { .. }));
    sender.store(submit(&owned.id(), 9, b"after")).await;
    assert_eq!(&*owner.blob().await.body, b"after");
}

/// Each attempt counted as failed for as long as it was looked at: many good ones of one address at one time were refused,
/// and their connections closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_proofs_at_the_same_time_refuse_each_other_nothing() {
    let relay = Relay::start(&[("RELAY_FAILED_PROOFS_PER_MIN", "1")]).await;
    let owned: Vec<_> = (1..=60).map(Owned::key).collect();
    let all: Vec<_> = owned.iter().collect();
    let mut guests = Vec::new();
    for _ in 0..4 {
        guests.push(Guest::connect(&relay).await);
    }
    let mut asked = Vec::new();
    for guest in &mut guests {
        let subscribe = guest.subscribe_to(&all, false);
        asked.push(guest.ask(Request::Subscribe(subscribe)).await);
    }
    for guest in &mut guests {
        loop {
            match guest.receive().await {
                Answer::Subscribed(openings) => {
                    assert!(openings.iter().all(Result::is_ok));
                    break;
                }
                Answer::Refused(refused) => panic!("{refused:?}"),
                _ => {}
            }
        }
    }
}
