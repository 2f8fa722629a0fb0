//! v2: a session that rests costs storage nothing, and good proofs that come together are no bad ones.

use std::time::Duration;

use vauchi_relay::protocol::v2::{Answer, Request};

use crate::faulty::{Call, faulty_relay};
use crate::guest::{Guest, Owned, submit};
use crate::harness::Relay;

/// A page that had waited ten seconds for the window was dropped and read again at any sign of life, to no end.
#[tokio::test]
async fn a_full_window_reads_no_page_twice_until_it_opens() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let owned = Owned::secret(1);
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
