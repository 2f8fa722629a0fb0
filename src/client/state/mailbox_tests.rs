//! The client's mailboxes and what comes from them, with a relay that is played by hand.

use bytes::Bytes;
use tokio::time::Instant;

use super::State;
use super::tests::{Played, subscribed, waiter};
use crate::client::request::{Ask, Key};
use crate::client::{ClientError, Event, Item, MailboxKey, Options};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::v2::message::{BlobDelivery, Done, Opened};
use crate::protocol::v2::{Answer, Request};

#[test]
fn a_mailbox_that_does_not_open_again_is_told_and_its_acknowledgements_spoil_no_other() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    played.0.disconnected();
    let mut acknowledged = played.acknowledge(item);
    played.connected_to(1);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, subscribed(Err("unauthorized")));
    assert!(played.written().is_none());
    assert_eq!(
        acknowledged.try_recv().unwrap().err(),
        Some(ClientError::NotOpen)
    );
    played.took();
    assert!(matches!(played.took(), Some(Event::Closed { .. })));
}

/// A relay that reads nothing could fill the client's memory with repeats of one blob.
#[test]
fn what_comes_again_and_again_is_acknowledged_again_once() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    let mut told = played.acknowledge(item);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, Answer::Done(Done::Acknowledged));
    told.try_recv().unwrap().unwrap();
    for _ in 0..3 {
        played.deliver(mailbox, 1);
    }
    let (_, again) = played.written().unwrap();
    assert_eq!(again, Request::Acknowledge(vec![(mailbox, item.id)]));
    assert!(played.written().is_none());
}

#[test]
fn at_another_relay_nothing_of_the_first_is_acknowledged() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    let mut acknowledged = played.acknowledge(item);
    played.written().unwrap();
    played.0.disconnected();
    played.connected_to(2);
    assert_eq!(
        acknowledged.try_recv().unwrap().err(),
        Some(ClientError::OtherRelay)
    );
    assert_eq!(played.came(), 1);
    let mut late = played.acknowledge(item);
    assert_eq!(
        late.try_recv().unwrap().err(),
        Some(ClientError::OtherRelay)
    );
    // The other one may have a blob of that name, too.
    played.deliver(mailbox, 1);
    assert_eq!(played.came(), 1);
}

#[test]
fn the_window_goes_before_the_mailboxes_and_these_in_the_order_of_their_opening() {
    let mut options = Options::new(["ws://relay"]);
    options.window_blobs = 1;
    let mut played = Played(State::new(&options), Instant::now());
    played.connected_to(1);
    played.written().unwrap();
    let mailboxes: Vec<_> = (0..20)
        .map(|n| played.opens(MailboxKey::ed25519([n; 32])))
        .collect();
    played.0.disconnected();
    played.connected_to(1);
    let (_, window) = played.written().unwrap();
    assert!(matches!(window, Request::Window { blobs: 1, .. }));
    let (_, Request::Subscribe(subscribe)) = played.written().unwrap() else {
        panic!("the mailboxes are opened")
    };
    let again: Vec<_> = subscribe.openings.iter().map(|o| o.mailbox).collect();
    assert_eq!(again, mailboxes);
}

#[test]
fn many_openings_and_acknowledgements_fit_into_the_frames_of_a_small_relay() {
    let mut played = Played::new();
    played.connected_to_one_that_takes(1, 1 << 10);
    let mailboxes: Vec<_> = (0..100)
        .map(|n| played.opens(MailboxKey::ed25519([n; 32])))
        .collect();
    played.0.disconnected();
    let items: Vec<_> = (0..10)
        .flat_map(|n| mailboxes.iter().map(move |mailbox| (*mailbox, n)))
        .collect();
    let mut told: Vec<_> = items
        .into_iter()
        .map(|(mailbox, n)| {
            let id = BlobId::from_bytes([n; 16]);
            played.acknowledge(Item { mailbox, id })
        })
        .collect();
    played.connected_to_one_that_takes(1, 1 << 10);
    let reopening: Vec<_> = std::iter::from_fn(|| played.written()).collect();
    let mut again = Vec::new();
    for (tag, request) in reopening {
        let Request::Subscribe(subscribe) = request else {
            panic!("{request:?}")
        };
        again.extend(subscribe.openings.iter().map(|opening| opening.mailbox));
        let opened = Opened {
            pending: 0,
            blobs: 0,
            bytes: 0,
        };
        let openings = vec![Ok(opened); subscribe.openings.len()];
        assert!(told.iter_mut().all(|told| told.try_recv().is_err()));
        played.hear(tag, Answer::Subscribed(openings));
    }
    assert_eq!(again, mailboxes);
    while let Some((tag, _)) = played.written() {
        played.hear(tag, Answer::Done(Done::Acknowledged));
    }
    assert!(told.iter_mut().all(|told| told.try_recv().unwrap().is_ok()));
    assert!(played.took().is_none(), "all are open");
}

#[test]
fn what_finds_no_room_holds_nothing_up_and_comes_once_there_is_some() {
    let mut options = Options::new(["ws://relay"]);
    options.window_blobs = 1;
    let mut played = Played(State::new(&options), Instant::now());
    played.connected_to(1);
    played.written().unwrap();
    let mailbox = played.opened();
    played.deliver(mailbox, 1);
    // Left untaken over a reconnect, and the relay begins with another.
    played.0.disconnected();
    played.connected_to(1);
    played.written().unwrap();
    let (tag, _) = played.written().unwrap();
    played.hear(tag, subscribed(Ok(())));
    played.deliver(mailbox, 2);
    let caught_up = Answer::CaughtUp(vec![mailbox]);
    played.hear(None, caught_up.clone());
    assert!(played.written().is_none(), "there is no room yet");
    assert_eq!(played.came(), 1, "and nobody has caught up");
    let (tag, unsubscribe) = played.written().unwrap();
    assert_eq!(unsubscribe, Request::Unsubscribe(vec![mailbox]));
    let (again_tag, again) = played.written().unwrap();
    assert!(matches!(again, Request::Subscribe(_)));
    // Under way before the relay had read that, and after the one that was missed.
    played.deliver(mailbox, 3);
    played.hear(tag, Answer::Done(Done::Unsubscribed));
    assert_eq!(played.came(), 0, "a mailbox has an order");
    played.hear(again_tag, subscribed(Ok(())));
    for n in [1, 2] {
        played.deliver(mailbox, n);
    }
    played.hear(None, caught_up);
    assert_eq!(played.came(), 2, "the second blob, and that was all");
}

#[test]
fn a_closed_mailbox_is_silent_and_gives_again_what_was_not_acknowledged_when_it_is_opened() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let kept = played.deliver(mailbox, 1);
    let _told = played.acknowledge(kept);
    played.deliver(mailbox, 2);
    let (waiter, _) = waiter();
    played.0.unsubscribe(vec![mailbox], waiter);
    played.deliver(mailbox, 3);
    assert_eq!(played.came(), 0);
    let asked: Vec<_> = std::iter::from_fn(|| played.written()).collect();
    assert!(matches!(asked[0].1, Request::Acknowledge(_)));
    assert!(matches!(asked[1].1, Request::Unsubscribe(_)));
    played.opened();
    for n in 1..=3 {
        played.deliver(mailbox, n);
    }
    assert_eq!(played.came(), 2);
}

/// Hands over a blob that is not stored.
fn hand_over(played: &mut Played, mailbox: MailboxId, n: u8) {
    played.hear(
        None,
        Answer::Blob(BlobDelivery {
            id: BlobId::from_bytes([n; 16]),
            mailbox,
            stored_at: Timestamp::from_millis(1),
            expires_at: None,
            redelivered: false,
            body: Bytes::new(),
        }),
    );
}

#[test]
fn a_live_blob_that_is_handed_over_twice_comes_once() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    for _ in 0..2 {
        hand_over(&mut played, mailbox, 1);
    }
    assert_eq!(played.came(), 1);
}

#[test]
fn a_stored_blob_under_the_name_of_a_live_one_comes_and_can_be_acknowledged() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    hand_over(&mut played, mailbox, 1);
    let item = played.deliver(mailbox, 1);
    assert_eq!(played.came(), 2);
    let _told = played.acknowledge(item);
    let (_, acknowledged) = played.written().unwrap();
    assert!(matches!(acknowledged, Request::Acknowledge(_)));
}

#[test]
fn an_opening_that_nobody_waits_for_any_more_leaves_nothing_open_at_the_relay() {
    let mut played = Played::new();
    played.connected_to(1);
    let key = MailboxKey::ed25519([1; 32]);
    let mailbox = key.mailbox();
    let (waiter, _) = waiter();
    let number = played.0.ask(Ask::Open(vec![Key::new(key, false)]), waiter);
    let (tag, _) = played.written().unwrap();
    played.deliver(mailbox, 1);
    played.0.abandon(number.unwrap());
    assert_eq!(played.came(), 0);
    let (of_nobody, unsubscribe) = played.written().unwrap();
    assert!(of_nobody.is_none() && unsubscribe == Request::Unsubscribe(vec![mailbox]));
    played.hear(tag, subscribed(Ok(())));
    assert!(played.written().is_none());
    played.opened();
    played.deliver(mailbox, 1);
    assert_eq!(played.came(), 1);
}

#[test]
fn a_mailbox_is_closed_though_nobody_waits_for_it_any_more() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let (waiter, _) = waiter();
    let number = played.0.unsubscribe(vec![mailbox], waiter);
    played.0.abandon(number.unwrap());
    let (_, unsubscribe) = played.written().unwrap();
    assert_eq!(unsubscribe, Request::Unsubscribe(vec![mailbox]));
}

#[test]
fn what_was_acknowledged_before_a_mailbox_was_closed_offline_does_not_go_to_another_relay() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    played.0.disconnected();
    let mut acknowledged = played.acknowledge(item);
    let (waiter, _) = waiter();
    played.0.unsubscribe(vec![mailbox], waiter);
    played.connected_to(2);
    let (_, first) = played.written().unwrap();
    assert_eq!(first, Request::Unsubscribe(vec![mailbox]));
    let why = acknowledged.try_recv().unwrap().err();
    assert_eq!(why, Some(ClientError::OtherRelay));
}

#[test]
fn a_mailbox_that_is_closed_before_its_opening_is_answered_stays_closed() {
    let mut played = Played::new();
    played.connected_to(1);
    let key = MailboxKey::ed25519([1; 32]);
    let mailbox = key.mailbox();
    let (opening, _) = waiter();
    played.0.ask(Ask::Open(vec![Key::new(key, false)]), opening);
    let (tag, _) = played.written().unwrap();
    let (closing, _) = waiter();
    played.0.unsubscribe(vec![mailbox], closing);
    played.deliver(mailbox, 1);
    played.hear(tag, subscribed(Ok(())));
    assert_eq!(played.came(), 0);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, Answer::Done(Done::Unsubscribed));
    played.0.disconnected();
    played.connected_to(1);
    assert!(played.written().is_none(), "it is not opened again");
}
