//! v2: who does not read, reads late or says nothing costs a bounded amount, and only itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_tungstenite::tungstenite::Message;
use vauchi_relay::config::Config;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery};
use vauchi_relay::protocol::v2::message::Done;
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{Relay, SILENCE, eventually};
use crate::store::faulty::{Call, Faults};
use crate::v1::hostile::{frames, rest_of};
use crate::v2::client::{Guest, Owned, submit};

const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

/// A relay that waits for slow clients as long as a test takes.
async fn patient_relay(change: impl FnOnce(&mut Config)) -> (Relay, Arc<Faults>) {
    let mut faulty = None;
    let relay = Relay::start_with(
        &[("RELAY_STORAGE_BACKEND", "memory")],
        |config| {
            config.write_timeout = Duration::from_secs(600);
            change(config);
        },
        |opened| {
            let (faults, opened) = Faults::under(opened);
            faulty = Some(faults);
            opened
        },
    )
    .await;
    (relay, faulty.unwrap())
}

/// Waits until a series that moves has come to rest; returns its value.
async fn at_rest(relay: &Relay, series: &str) -> f64 {
    let mut value = 0.0;
    eventually("it comes to rest", async || {
        tokio::time::sleep(SILENCE).await;
        let now = relay.metric(series).await;
        std::mem::replace(&mut value, now) == now && now > 0.0
    })
    .await;
    value
}

/// A blob goes to another mailbox and is collected.
async fn others_are_served(relay: &Relay) {
    let secret: [u8; 32] = rand::random();
    let (owned, mut other) = (Owned::from_seed(secret), Guest::connect(relay).await);
    other.open_empty(&owned).await;
    let mut sender = Guest::connect(relay).await;
    sender.store(submit(&owned.id(), 1, b"still served")).await;
    let blob = other.blob().await;
    other.acknowledge(owned.id(), blob.id).await;
    sender.peer.leave().await;
    other.peer.leave().await;
}

#[tokio::test]
async fn large_answers_that_nobody_takes_are_few_and_each_comes_once_when_it_is_read() {
    let (relay, _) = patient_relay(|_| {}).await;
    // Not quite a megabyte under two hashes.
    for number in 0..15 {
        let mut owner = Guest::connect(&relay).await;
        owner.open_empty(&Owned::v2_only(number)).await;
        let put = Request::RecoveryStore(RecoveryProof {
            key_hash: [5 + number / 8; 32],
            proof: vec![number; 65_000].into(),
        });
        let kept = owner.answer(put).await;
        assert!(matches!(kept, Answer::RecoveryKept { .. }));
    }
    let read = "relay_messages_received_total";
    let before = relay.metric(read).await;
    let mut deaf = Guest::with_small_buffers(&relay, 64 * 1_024).await;
    let get = Request::RecoveryQuery(RecoveryQuery {
        key_hashes: vec![[5; 32], [6; 32]],
    });
    let mut asked = Vec::new();
    // Eight to ten fill the lane and the sockets; what comes behind is cheap and as good.
    for _ in 0..11 {
        asked.push(deaf.ask(get.clone()).await);
    }
    for _ in 0..100 {
        asked.push(deaf.ask(Request::Ping).await);
    }
    at_rest(&relay, "relay_answer_lane_full_total").await;
    // Four megabytes in the lane and one more; what the system's buffers hold is not ours.
    let taken = at_rest(&relay, read).await - before;
    assert!((5.0..=20.0).contains(&taken), "{taken} requests were read");
    others_are_served(&relay).await;

    for number in asked {
        let (number_told, answer) = deaf.receive_numbered().await;
        assert_eq!(number_told, Some(number));
        match answer {
            Answer::RecoveryFound { proofs, more, .. } => {
                assert_eq!((proofs.len(), more), (15, false));
            }
            answer => assert!(matches!(answer, Answer::Done { .. }), "{answer:?}"),
        }
    }
    deaf.expect_nothing().await;
    assert_eq!(deaf.done(Request::Ping).await, Done::Pong);
}

#[tokio::test]
async fn a_slow_reader_is_sent_its_window_and_the_rest_when_it_makes_room() {
    const BLOBS: u32 = 60;
    const WINDOW: u32 = 8;
    let (relay, faulty) = patient_relay(|_| {}).await;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 0..BLOBS {
        let blob = vec![number as u8; 100_000];
        sender.store(submit(&owned.id(), number, &blob)).await;
    }
    let mut slow = Guest::with_small_buffers(&relay, 32 * 1_024).await;
    slow.answer(Request::Window {
        blobs: WINDOW,
        bytes: 16 << 20,
    })
    .await;
    let pages_before = faulty.calls(Call::Page);
    slow.ask(Request::Subscribe(slow.subscribe_to(&[&owned], false)))
        .await;
    let sent = at_rest(&relay, "relay_blobs_delivered_total").await;
    assert!(sent <= f64::from(WINDOW), "{sent}");
    // Two blobs to a page; one page may wait behind the window.
    let pages = faulty.calls(Call::Page) - pages_before;
    assert!(pages <= u64::from(WINDOW / 2) + 1, "{pages} pages");
    others_are_served(&relay).await;

    // It reads what it was sent, which is its window and nothing more.
    assert!(matches!(slow.receive().await, Answer::Subscribed { .. }));
    let mut came: Vec<BlobId> = Vec::new();
    for number in 0..WINDOW {
        let blob = slow.blob().await;
        assert_eq!(u32::from(blob.body[0]), number);
        came.push(blob.id);
    }
    slow.expect_nothing().await;
    // Each acknowledgement lets one more go, in order, once.
    let mut next = WINDOW;
    for at in 0..BLOBS as usize {
        slow.ask(Request::Acknowledge(vec![(owned.id(), came[at])]))
            .await;
        let mut waits = 1 + usize::from(next < BLOBS);
        let mut is_last = next == BLOBS - 1;
        while waits > 0 {
            match slow.receive().await {
                Answer::Blob(blob) => {
                    assert_eq!((u32::from(blob.body[0]), blob.redelivered), (next, false));
                    came.push(blob.id);
                    next += 1;
                }
                Answer::Done(done) => assert_eq!(done, Done::Acknowledged),
                Answer::CaughtUp(mailboxes) => {
                    assert!(std::mem::replace(&mut is_last, false) || next == BLOBS);
                    assert_eq!(mailboxes, [owned.id()]);
                    continue;
                }
                other => panic!("{other:?}"),
            }
            waits -= 1;
        }
    }
    assert_eq!(relay.metric("relay_blobs_stored").await, 0.0);
    let delivered = relay.metric("relay_blobs_delivered_total").await;
    assert_eq!(delivered, f64::from(BLOBS) + 1.0, "one to the others");
}

#[tokio::test]
async fn a_reader_that_never_reads_is_given_up_and_loses_nothing() {
    let relay = Relay::configured(&[("RELAY_STORAGE_BACKEND", "memory")], |config| {
        config.write_timeout = Duration::from_millis(100)
    })
    .await;
    const BLOBS: u32 = 80;
    let (owned, mut sender) = (Owned::v2_only(1), Guest::connect(&relay).await);
    for number in 0..BLOBS {
        let blob = vec![number as u8; 60_000];
        sender.store(submit(&owned.id(), number, &blob)).await;
    }
    sender.peer.leave().await;
    let mut deaf = Guest::with_small_buffers(&relay, 32 * 1_024).await;
    let widest = Request::Window {
        blobs: 1_024,
        bytes: 16 << 20,
    };
    deaf.answer(widest.clone()).await;
    deaf.ask(Request::Subscribe(deaf.subscribe_to(&[&owned], false)))
        .await;
    // What it still says is heard.
    let other = Owned::v2_only(2);
    deaf.ask(Request::Submit(submit(&other.id(), 1, b"stored")))
        .await;
    others_are_served(&relay).await;
    relay
        .metric_becomes("relay_connection_errors_total", 1.0)
        .await;
    let mut owner = Guest::connect(&relay).await;
    owner.answer(widest).await;
    assert_eq!(owner.open(&owned).await.pending, BLOBS);
    for number in 0..BLOBS {
        assert_eq!(owner.blob().await.body[0], number as u8);
    }
    owner.caught_up().await;
    assert_eq!(owner.open(&other).await.pending, 1);
}

/// Whatever the client says counts as a sign of life, and so do the pongs of who only listens.
#[tokio::test]
async fn two_and_a_half_silent_intervals_end_a_session_and_any_sign_keeps_it() {
    let (relay, _) = patient_relay(|config| config.keepalive = Duration::from_millis(200)).await;
    let mut silent = Guest::connect(&relay).await;
    let mut listening = Guest::connect(&relay).await;
    let mut busy = Guest::connect(&relay).await;
    let staying = async {
        let mut pings = 0;
        // A second and a half: three times as long as silence is borne.
        while pings < 8 {
            match listening.peer.socket.next().await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                other => panic!("{other:?}"),
            }
        }
    };
    let talking = async {
        let nothing = Request::Unsubscribe(vec![MailboxId::from_bytes([1; 32])]);
        loop {
            // It reads nothing, so it answers no ping.
            busy.ask_as(0, &nothing).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (wire, ()) = tokio::select! {
        both = async { tokio::join!(rest_of(&mut silent.peer), staying) } => both,
        () = talking => unreachable!(),
    };
    let mut wire = frames(&wire);
    let (first, goodbye) = wire.pop().unwrap();
    assert_eq!((first, &goodbye[..2]), (CLOSE, &4408_u16.to_be_bytes()[..]));
    assert!(!wire.is_empty(), "pings came before");
    assert!(wire.iter().all(|(first, _)| *first == PING), "{wire:?}");
    for guest in [&mut listening, &mut busy] {
        assert_eq!(guest.done(Request::Ping).await, Done::Pong);
    }
}
