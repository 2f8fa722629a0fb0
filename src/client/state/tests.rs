//! The client's state, with a relay that is played by hand.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::State;
use crate::client::request::{Ask, Key, Live, Outcome, Waiter};
use crate::client::send_order::Next;
use crate::client::{ClientError, Event, Item, MailboxKey, Options};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::Refused;
use crate::protocol::v2::client::ServerFrame;
use crate::protocol::v2::message::{BlobDelivery, Done, Limits, Opened, Submit, Welcome};
use crate::protocol::v2::{self, Answer, Incoming, Request, Tag};

const WINDOW: (u32, u64) = (64, 4 << 20);

/// A client's state and the clock that it is read by.
pub(super) struct Played(pub(super) State, pub(super) Instant);

impl Played {
    pub(super) fn new() -> Self {
        Self(State::new(&Options::new(["ws://relay"])), Instant::now())
    }

    /// Connected to relay 1, with a mailbox open.
    pub(super) fn with_a_mailbox() -> (Self, MailboxId) {
        let mut played = Self::new();
        played.connected_to(1);
        let mailbox = played.opened();
        (played, mailbox)
    }

    pub(super) fn connected_to(&mut self, relay: u8) {
        self.connected_to_one_that_takes(relay, 1 << 20);
    }

    pub(super) fn connected_to_one_that_takes(&mut self, relay: u8, blob_bytes_max: u64) {
        let live = Live {
            origin: "relay.example".into(),
            welcome: Welcome {
                relay_id: [relay; 32],
                server_version: Cow::Borrowed("1"),
                challenge: [9; 32],
                limits: Limits {
                    blob_bytes_max,
                    submits_per_minute: 0,
                    ttl_default: Duration::from_secs(1),
                    ttl_max: Duration::from_secs(1),
                    mailboxes_max: 10,
                    window_default: WINDOW,
                    window_max: WINDOW,
                    mailbox_blobs_max: 0,
                    mailbox_bytes_max: 0,
                },
                keepalive: Duration::from_secs(30),
                features: Vec::new(),
                proof: None,
            },
        };
        self.0.connected(live, self.1);
    }

    /// What is written next, as the relay reads it.
    pub(super) fn written(&mut self) -> Option<(Option<Tag>, Request)> {
        match self.0.next(self.1) {
            Next::Write(frame) => match v2::decode(&frame) {
                Incoming::Request { tag, request } => Some((tag, request)),
                other => panic!("{other:?}"),
            },
            Next::Idle(_) | Next::Leave => None,
        }
    }

    pub(super) fn hear(&mut self, answers: Option<Tag>, answer: Answer) {
        self.0.hear(ServerFrame::Known { answers, answer }, self.1);
    }

    pub(super) fn submit(&mut self, n: u8) -> oneshot::Receiver<Outcome> {
        self.submit_numbered(n).1
    }

    fn submit_numbered(&mut self, n: u8) -> (Option<Tag>, oneshot::Receiver<Outcome>) {
        let (waiter, told) = waiter();
        let submit = Submit {
            recipient: MailboxId::from_bytes([n; 32]),
            id: BlobId::from_bytes([n; 16]),
            terms: Default::default(),
            body: Bytes::new(),
        };
        let pads = false;
        (self.0.ask(Ask::Submit { submit, pads }, waiter), told)
    }

    pub(super) fn opened(&mut self) -> MailboxId {
        self.opens(MailboxKey::ed25519([1; 32]))
    }

    pub(super) fn opens(&mut self, key: MailboxKey) -> MailboxId {
        let mailbox = key.mailbox();
        let (waiter, _) = waiter();
        self.0.ask(Ask::Open(vec![Key::new(key, false)]), waiter);
        let (tag, _) = self.written().unwrap();
        self.hear(tag, subscribed(Ok(())));
        mailbox
    }

    pub(super) fn deliver(&mut self, mailbox: MailboxId, n: u8) -> Item {
        let id = BlobId::from_bytes([n; 16]);
        self.hear(
            None,
            Answer::Blob(BlobDelivery {
                id,
                mailbox,
                stored_at: Timestamp::from_millis(1),
                expires_at: Some(Timestamp::from_millis(2)),
                redelivered: false,
                body: Bytes::new(),
            }),
        );
        Item { mailbox, id }
    }

    pub(super) fn acknowledge(&mut self, item: Item) -> oneshot::Receiver<Outcome> {
        let (waiter, told) = waiter();
        self.0.acknowledge(item, waiter);
        told
    }

    pub(super) fn took(&mut self) -> Option<Event> {
        self.0.arrivals.take().0
    }

    pub(super) fn came(&mut self) -> usize {
        std::iter::from_fn(|| self.took()).count()
    }
}

pub(super) fn waiter() -> (Waiter, oneshot::Receiver<Outcome>) {
    let (tell, told) = oneshot::channel();
    let room = Vec::new();
    (Waiter { tell, room }, told)
}

pub(super) fn subscribed(outcome: Result<(), &'static str>) -> Answer {
    let opened = outcome.map(|()| Opened {
        pending: 0,
        blobs: 0,
        bytes: 0,
    });
    Answer::Subscribed(vec![opened])
}

fn stored() -> Answer {
    Answer::Stored {
        expires_at: Timestamp::from_millis(1),
        duplicate: false,
    }
}

fn refused(code: &'static str, retry_after: Option<Duration>) -> Answer {
    Answer::Refused(Refused {
        code,
        message: "".into(),
        retry_after,
    })
}

#[test]
fn what_is_unanswered_goes_out_again_after_the_mailboxes_are_open_and_under_the_same_id() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let mut told = played.submit(7);
    let (_, before) = played.written().unwrap();
    let item = played.deliver(mailbox, 1);
    let mut acknowledged = played.acknowledge(item);
    assert!(matches!(
        played.written(),
        Some((_, Request::Acknowledge(_)))
    ));
    played.0.disconnected();
    assert!(played.written().is_none());

    played.connected_to(1);
    let (tag, reopening) = played.written().unwrap();
    assert!(matches!(reopening, Request::Subscribe(_)));
    assert!(played.written().is_none(), "the rest waits for it");
    // It comes again before its acknowledgement does, and is not given a second time.
    assert_eq!(played.came(), 1);
    played.deliver(mailbox, 1);
    assert_eq!(played.came(), 0);
    played.hear(tag, subscribed(Ok(())));
    let mut rest: Vec<_> = std::iter::from_fn(|| played.written()).collect();
    let again = rest.remove(0);
    assert!(again.0.is_none() && matches!(again.1, Request::Acknowledge(_)));
    let (tag, submit) = rest.remove(0);
    assert_eq!(submit, before);
    played.hear(tag, stored());
    assert!(told.try_recv().unwrap().is_ok());
    let (tag, _) = rest.remove(0);
    played.hear(tag, Answer::Done(Done::Acknowledged));
    assert!(acknowledged.try_recv().unwrap().is_ok());
    assert!(rest.is_empty() && played.written().is_none());
}

#[test]
fn a_submit_that_a_stopping_relay_refuses_is_kept_for_the_next() {
    let mut played = Played::new();
    played.connected_to(1);
    let mut kept = played.submit(1);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, refused("shutting_down", Some(Duration::from_secs(1))));
    assert!(kept.try_recv().is_err() && played.written().is_none());
    played.0.disconnected();
    played.connected_to(2);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, stored());
    assert!(kept.try_recv().unwrap().is_ok());
}

#[test]
fn a_refusal_for_now_is_repeated_until_the_patience_ends_and_a_final_one_is_told() {
    let mut played = Played::new();
    played.connected_to(1);
    let (mut told, mut last) = (played.submit(1), played.submit(2));
    let began = played.1;
    let mut times = 0;
    let why = loop {
        let (tag, _) = played.written().unwrap();
        times += 1;
        played.hear(tag, refused("unavailable", Some(Duration::from_secs(5))));
        if let Ok(answer) = told.try_recv() {
            break answer.err().unwrap();
        }
        if times == 1 {
            // Another goes meanwhile.
            let (tag, _) = played.written().unwrap();
            played.hear(tag, refused("id_reused", None));
        }
        let Next::Idle(Some(due)) = played.0.next(played.1) else {
            panic!("it comes back")
        };
        played.1 = due;
    };
    assert_eq!(why.retry_after(), Some(Duration::from_secs(5)));
    // 5 s and up to a quarter more, within a minute from the first.
    assert!((10..=13).contains(&times), "{times}");
    assert!(played.1 <= began + Duration::from_secs(60));
    let last = last.try_recv().unwrap().err().unwrap();
    assert_eq!(last.retry_after(), None);
}

#[test]
fn a_full_mailbox_and_an_absent_recipient_are_told_at_once() {
    let mut played = Played::new();
    played.connected_to(1);
    for (code, wait) in [("mailbox_full", 60), ("not_connected", 1)] {
        let mut told = played.submit(1);
        let (tag, _) = played.written().unwrap();
        played.hear(tag, refused(code, Some(Duration::from_secs(wait))));
        assert!(told.try_recv().unwrap().is_err(), "{code}");
    }
}

#[test]
fn a_wait_holds_over_a_reconnect_to_the_same_relay_and_not_to_another() {
    let mut played = Played::new();
    played.connected_to(1);
    let _told = played.submit(1);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, refused("rate_limited", Some(Duration::from_secs(9))));
    played.0.disconnected();
    played.connected_to(1);
    assert!(matches!(played.0.next(played.1), Next::Idle(Some(at)) if at > played.1));
    played.0.disconnected();
    played.connected_to(2);
    assert!(played.written().is_some());
}

#[test]
fn who_is_too_fast_begins_slowly_again() {
    let mut played = Played::new();
    played.connected_to(1);
    let _told: Vec<_> = (0..20).map(|n| played.submit(n)).collect();
    let (first, _) = played.written().unwrap();
    let sent: Vec<_> = std::iter::from_fn(|| played.written()).collect();
    played.hear(first, refused("rate_limited", Some(Duration::from_secs(1))));
    assert!(played.written().is_none());
    for (tag, _) in sent {
        played.hear(tag, stored());
    }
    // One, and one more for each of the three answers.
    assert_eq!(std::iter::from_fn(|| played.written()).count(), 4);
}

#[test]
fn what_nobody_waits_for_any_more_is_not_asked_again() {
    let mut played = Played::new();
    let (waiter, _) = waiter();
    let number = played
        .0
        .ask(Ask::Request(Request::Unpin(MailboxId::random())), waiter);
    played.connected_to(1);
    played.written().unwrap();
    played.0.abandon(number.unwrap());
    played.0.disconnected();
    played.connected_to(1);
    assert!(played.written().is_none());
}

#[test]
fn what_no_connection_could_carry_is_told_and_holds_nothing_up() {
    let mut played = Played::new();
    let (waiter, mut told) = waiter();
    let submit = Submit {
        recipient: MailboxId::from_bytes([1; 32]),
        id: BlobId::from_bytes([1; 16]),
        terms: Default::default(),
        body: vec![0; (1 << 20) + 1].into(),
    };
    let pads = true;
    played.0.ask(Ask::Submit { submit, pads }, waiter);
    let many = vec![MailboxId::from_bytes([1; 32]); 100_000];
    let (also, mut also_told) = self::waiter();
    played.0.ask(Ask::Request(Request::Unsubscribe(many)), also);
    let _kept = played.submit(2);
    played.connected_to(1);
    assert!(matches!(played.written(), Some((_, Request::Submit(_)))));
    for told in [&mut told, &mut also_told] {
        let why = told.try_recv().unwrap().err();
        assert!(matches!(why, Some(ClientError::TooLarge { .. })), "{why:?}");
    }
}

#[test]
fn an_acknowledgement_that_comes_too_fast_is_repeated_when_the_relay_says() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    let mut told = played.acknowledge(item);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, refused("rate_limited", Some(Duration::from_secs(3))));
    let Next::Idle(Some(due)) = played.0.next(played.1) else {
        panic!("it comes back")
    };
    assert!(due >= played.1 + Duration::from_secs(3) && due < played.1 + Duration::from_secs(4));
    played.1 = due;
    let (tag, _) = played.written().unwrap();
    played.hear(tag, Answer::Done(Done::Acknowledged));
    assert!(told.try_recv().unwrap().is_ok());
}

#[test]
fn a_new_connection_is_filled_as_answers_come() {
    let mut played = Played::new();
    let _told: Vec<_> = (0..100).map(|n| played.submit(n)).collect();
    played.connected_to(1);
    let mut out: Vec<_> = std::iter::from_fn(|| played.written()).collect();
    assert_eq!(out.len(), 4);
    let mut all = 0;
    while !out.is_empty() {
        let before = out.len();
        for (tag, _) in out.drain(..) {
            all += 1;
            played.hear(tag, stored());
        }
        out = std::iter::from_fn(|| played.written()).collect();
        assert!(out.len() == 2 * before || all + out.len() == 100);
    }
    assert_eq!(all, 100);
}

#[test]
fn whoever_is_sent_away_leaves_when_nothing_is_in_hand() {
    let (mut played, mailbox) = Played::with_a_mailbox();
    let item = played.deliver(mailbox, 1);
    played.0.sent_away();
    let _waits = played.submit(1);
    assert!(matches!(played.0.next(played.1), Next::Idle(None)));
    let _told = played.acknowledge(item);
    let (tag, _) = played.written().unwrap();
    assert!(matches!(played.0.next(played.1), Next::Idle(None)));
    played.hear(tag, Answer::Done(Done::Acknowledged));
    assert!(matches!(played.0.next(played.1), Next::Leave));
}

#[test]
fn the_end_is_told_to_everybody_and_to_who_comes_after() {
    let mut played = Played::new();
    let mut told = played.submit(1);
    played.0.end(ClientError::Timeout);
    let mut after = played.submit(2);
    for told in [&mut told, &mut after] {
        assert_eq!(told.try_recv().unwrap().err(), Some(ClientError::Timeout));
    }
}

#[test]
fn who_loses_patience_over_a_refusal_is_told_the_refusal_unless_it_is_asked_again_by_then() {
    let mut played = Played::new();
    played.connected_to(1);
    let (number, _told) = played.submit_numbered(1);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, refused("unavailable", Some(Duration::from_secs(5))));
    let Some(ClientError::Refused { code, .. }) = played.0.abandon(number.unwrap()) else {
        panic!("it is known that it was not done")
    };
    assert_eq!(code, "unavailable");

    let (number, _told) = played.submit_numbered(2);
    let (tag, _) = played.written().unwrap();
    played.hear(tag, refused("unavailable", Some(Duration::from_secs(5))));
    played.1 += Duration::from_secs(10);
    played.written().unwrap();
    assert_eq!(played.0.abandon(number.unwrap()), None);
}
