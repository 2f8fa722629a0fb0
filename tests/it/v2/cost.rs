//! v2 and v1: a request costs what it makes the relay do, and what costs nothing is read slowly after a
//! while.

use std::time::Duration;

use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::v2::message::Done;
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{Goodbye, Relay, id};
use crate::v1::hostile::{BINARY, PING, others_are_served, websocket, zeros};
use crate::v2::client::{Guest, Owned, submit};

const SLOW: &str = "relay_slow_reading_total";
const CLOSED: &str = "relay_floods_closed_total";

/// A relay on which requests are limited, with reading that is slow for a moment only.
async fn limited(variables: &[(&str, &str)]) -> Relay {
    let limits = [
        ("RELAY_RATE_LIMIT_PER_MIN", "60"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "1000000"),
    ];
    let variables = [&limits[..], variables].concat();
    let change = |config: &mut vauchi_relay::config::Config| {
        config.slow_reading_max = Duration::from_millis(300);
    };
    Relay::start_with(&variables, change, |store| store).await
}

async fn opened(relay: &Relay, owned: &[Owned]) -> Guest {
    let mut guest = Guest::connect(relay).await;
    let subscribe = guest.subscribe_to(&owned.iter().collect::<Vec<_>>(), false);
    guest.try_subscribe(subscribe).await;
    guest.caught_up().await;
    // The first of a connection is free.
    guest.answer(Request::Hello(None)).await;
    guest
}

#[tokio::test]
async fn a_purge_of_empty_mailboxes_writes_once() {
    let relay = Relay::start(&[]).await;
    let owned: Vec<_> = (0..=255).map(Owned::key).collect();
    let mut guest = opened(&relay, &owned).await;
    let commits = "relay_commit_batch_size_count";
    let before = relay.metric(commits).await;
    let ids: Vec<_> = owned.iter().map(Owned::id).collect();
    let answer = guest.answer(Request::Purge(ids)).await;
    let Answer::Purged(mailboxes) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(mailboxes.len(), 256);
    assert!(mailboxes.iter().all(|purged| purged.blobs == 0));
    let commits = relay.metric(commits).await - before;
    assert!(commits <= 2.0, "{commits} commits");
}

#[tokio::test]
async fn a_purge_of_many_mailboxes_is_committed_together_and_each_is_told() {
    let relay = Relay::start(&[]).await;
    let owned: Vec<_> = (0..100).map(Owned::v2_only).collect();
    let mut sender = Guest::connect(&relay).await;
    for (number, owned) in owned.iter().enumerate().step_by(2) {
        for blob in 0..3 {
            let blob = 3 * number as u32 + blob;
            sender.store(submit(&owned.id(), blob, b"x")).await;
        }
    }
    let mut guest = Guest::connect(&relay).await;
    let subscribe = guest.subscribe_to(&owned.iter().collect::<Vec<_>>(), false);
    guest.try_subscribe(subscribe).await;
    let commits = "relay_commit_batch_size_count";
    let before = relay.metric(commits).await;
    let ids: Vec<_> = owned.iter().map(Owned::id).collect();
    let number = guest.ask(Request::Purge(ids.clone())).await;
    let mailboxes = loop {
        match guest.receive_numbered().await {
            (Some(answered), Answer::Purged(mailboxes)) if answered == number => break mailboxes,
            _ => {}
        }
    };
    let told: Vec<_> = mailboxes
        .iter()
        .map(|one| (one.mailbox, one.blobs))
        .collect();
    let expected = ids.iter().enumerate();
    let expected: Vec<_> = expected
        .map(|(number, id)| (*id, [3, 0][number % 2]))
        .collect();
    assert_eq!(told, expected);
    let commits = relay.metric(commits).await - before;
    assert!(commits <= 25.0, "{commits} commits for 50 mailboxes");
    relay.metric_becomes("relay_blobs_stored", 0.0).await;
}

#[tokio::test]
async fn a_purge_costs_a_request_for_each_mailbox_that_holds_something() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "10")]).await;
    let owned: Vec<_> = (0..20).map(Owned::v2_only).collect();
    let mut guest = opened(&relay, &owned).await;
    let mut sender = Guest::connect(&relay).await;
    for (number, owned) in owned[..8].iter().enumerate() {
        sender.store(submit(&owned.id(), number as u32, b"x")).await;
        guest.blob().await;
    }
    let ids: Vec<_> = owned.iter().map(Owned::id).collect();
    guest.answer(Request::Purge(ids.clone())).await;
    // Eight of ten are spent.
    for _ in 0..2 {
        let empty = guest.answer(Request::Purge(ids.clone())).await;
        assert!(matches!(empty, Answer::Purged(_)), "{empty:?}");
    }
    let refused = guest.refusal(Request::Hello(None)).await;
    assert_eq!(refused.code, "rate_limited");
}

#[tokio::test]
async fn a_purge_that_is_not_paid_for_purges_nothing() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "10")]).await;
    let owned: Vec<_> = (0..8).map(Owned::v2_only).collect();
    let mut guest = opened(&relay, &owned).await;
    let mut sender = Guest::connect(&relay).await;
    for (number, owned) in owned.iter().enumerate() {
        sender.store(submit(&owned.id(), number as u32, b"x")).await;
        guest.blob().await;
    }
    for _ in 0..5 {
        guest.answer(Request::Hello(None)).await;
    }
    let ids: Vec<_> = owned.iter().map(Owned::id).collect();
    let refused = guest.refusal(Request::Purge(ids)).await;
    assert_eq!(refused.code, "rate_limited");
    assert_eq!(relay.metric("relay_blobs_stored").await, 8.0);
    guest.expect_nothing().await;
}

#[tokio::test]
async fn acknowledging_what_was_never_delivered_costs_a_request_for_each_hundred() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "10")]).await;
    let owned = Owned::v2_only(1);
    let mut guest = opened(&relay, std::slice::from_ref(&owned)).await;
    let unknown = |number: u32| {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        (owned.id(), BlobId::from_bytes(id))
    };
    let list = Request::Acknowledge((0..1_000).map(unknown).collect());
    assert_eq!(guest.done(list).await, Done::Acknowledged);
    let refused = guest.refusal(Request::Hello(None)).await;
    assert_eq!(refused.code, "rate_limited");
}

/// Sends this until the relay closes the connection; how. It does so long before the end.
async fn flood(guest: &mut Guest, request: &Request) -> Goodbye {
    for _ in 0..60 {
        for number in 1..=500 {
            guest.ask_as(number, request).await;
        }
        for _ in 0..500 {
            if let Err(goodbye) = guest.next().await {
                return goodbye;
            }
        }
    }
    panic!("30,000 of them were answered: {request:?}");
}

#[tokio::test]
async fn a_flood_of_refused_or_free_requests_is_read_slowly_and_then_sent_away() {
    let relay = limited(&[]).await;
    let nobody: Vec<_> = (0..255)
        .map(|byte| MailboxId::from_bytes([byte; 32]))
        .collect();
    for request in [
        Request::Ping,
        Request::Hello(None),
        Request::Unsubscribe(nobody),
    ] {
        let (slow, closed) = (relay.metric(SLOW).await, relay.metric(CLOSED).await);
        let mut guest = Guest::connect(&relay).await;
        let goodbye = flood(&mut guest, &request).await;
        assert!(matches!(goodbye, Goodbye::Frame(4429, _)), "{goodbye:?}");
        assert!(relay.metric(SLOW).await > slow);
        assert_eq!(relay.metric(CLOSED).await, closed + 1.0);
    }
    others_are_served(&relay).await;
}

#[tokio::test]
async fn a_flood_of_websocket_pings_is_sent_away() {
    let relay = limited(&[]).await;
    let mut peer = relay.client(&id(1)).await;
    // So many that a slow machine reads them faster than 100 of them a second are forgiven.
    let pings = websocket(PING, b"").repeat(30_000);
    // The relay may close before all of it is taken.
    drop(peer.write_raw(&pings).await);
    peer.expect_close(4429).await;
}

/// Each of these connections stays within what one may spend at once.
#[tokio::test]
async fn the_connections_of_an_address_share_what_it_may_have_read_for_nothing() {
    let relay = limited(&[("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "60")]).await;
    let pings = websocket(PING, b"").repeat(9_000);
    let mut flood = Vec::new();
    for number in 1..=7 {
        assert_eq!(relay.metric(SLOW).await, 0.0, "{number} have 60,000 units");
        let mut peer = relay.client_from("198.51.100.1", &id(number)).await;
        peer.write_raw(&pings).await.unwrap();
        if number < 7 {
            // The answer comes when all of them have been read.
            peer.store(&id(0xA0), &[number]).await;
        }
        flood.push(peer);
    }
    flood[6].expect_close(4429).await;
    others_are_served(&relay).await;
}

#[tokio::test]
async fn refused_updates_of_v1_cost_their_length() {
    let relay = limited(&[("RELAY_RATE_LIMIT_PER_MIN", "1")]).await;
    let mut peer = relay.client(&id(1)).await;
    for number in 0..70 {
        let update = zeros(&format!("update {number}"), &id(2), 100_000);
        if peer.write_raw(&websocket(BINARY, &update)).await.is_err() {
            break;
        }
    }
    peer.expect_close(4429).await;
}

#[tokio::test]
async fn a_client_that_acknowledges_all_it_gets_is_never_read_slowly() {
    let relay = limited(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "0"),
        ("RELAY_STORAGE_BACKEND", "memory"),
    ])
    .await;
    let owned = Owned::v2_only(1);
    let mut guest = opened(&relay, std::slice::from_ref(&owned)).await;
    let mut sender = Guest::connect(&relay).await;
    for round in 0..45 {
        for number in 0..250 {
            let blob = submit(&owned.id(), 250 * round + number, b"x");
            sender.ask(Request::Submit(blob)).await;
        }
        for _ in 0..250 {
            sender.receive().await;
        }
        let mut acknowledged = 0;
        while acknowledged < 250 {
            match guest.receive().await {
                Answer::Blob(blob) => {
                    let list = vec![(blob.mailbox, blob.id)];
                    guest.ask(Request::Acknowledge(list)).await;
                }
                Answer::Done(Done::Acknowledged) => acknowledged += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    // Large requests that are paid for are of use, too.
    for number in 0..30 {
        let blob = vec![number; 500_000];
        let blob = submit(&Owned::v2_only(2).id(), number.into(), &blob);
        sender.store(blob).await;
    }
    assert_eq!(relay.metric(SLOW).await, 0.0);
}
