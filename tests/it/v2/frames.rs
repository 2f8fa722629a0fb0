//! v2: frames that are too large, unnumbered, or of a later version.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery};
use vauchi_relay::protocol::v2::client::encode_request;
use vauchi_relay::protocol::v2::message::{Done, Withdrawal, WithdrawalKind};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};

use crate::harness::{Goodbye, Relay};
use crate::v2::client::{Guest, Owned, submit};

fn to(byte: u8) -> MailboxId {
    MailboxId::from_bytes([byte; 32])
}

/// One of each kind that needs an answer.
fn answered(guest: &Guest) -> Vec<Request> {
    let withdraw = |kind| {
        Request::Withdraw(Withdrawal {
            mailbox: to(1),
            shown: [1; 32],
            kind,
        })
    };
    vec![
        Request::Hello(None),
        Request::Submit(submit(&to(1), 1, b"x")),
        Request::Subscribe(guest.subscribe_to(&[&Owned::v2_only(1)], false)),
        Request::Window { blobs: 1, bytes: 1 },
        withdraw(WithdrawalKind::Cancel),
        withdraw(WithdrawalKind::Extend(Duration::from_secs(60))),
        Request::Purge(vec![to(1)]),
        Request::Unpin(to(1)),
        Request::RecoveryStore(RecoveryProof {
            key_hash: [1; 32],
            proof: Bytes::from_static(b"x"),
        }),
        Request::RecoveryQuery(RecoveryQuery {
            key_hashes: vec![[1; 32]],
        }),
        Request::Ping,
    ]
}

/// Sends a frame that ends the connection; what came before the close.
async fn expect_end(mut guest: Guest, frame: Bytes, code: u16) -> Vec<(Option<u32>, Answer)> {
    guest.send(frame).await;
    let mut came = Vec::new();
    loop {
        match guest.next_frame().await {
            Ok(frame) => came.push(frame),
            Err(Goodbye::Frame(given, reason)) => {
                assert_eq!(given, code, "{reason}");
                assert!(!reason.is_empty());
                return came;
            }
            Err(Goodbye::Bare) => panic!("closed without a close frame"),
        }
    }
}

#[tokio::test]
async fn only_acknowledge_and_unsubscribe_may_go_without_an_answer() {
    let relay = Relay::start(&[]).await;
    let kinds = answered(&Guest::connect(&relay).await).len();
    for place in 0..kinds {
        let guest = Guest::connect(&relay).await;
        let request = answered(&guest).remove(place);
        let frame = encode_request(None, &request);
        let came = expect_end(guest, frame, 4400).await;
        // Why is said before, as a push.
        let [(None, Answer::Refused(refused))] = &came[..] else {
            panic!("{request:?}: {came:?}")
        };
        assert_eq!(refused.code, "invalid");
    }
    assert_eq!(relay.metric("relay_blobs_created_total").await, 0.0);

    let mut guest = Guest::connect(&relay).await;
    let foreign = Request::Acknowledge(vec![(to(1), BlobId::from_bytes([1; 16]))]);
    for request in [foreign, Request::Unsubscribe(vec![to(1)])] {
        guest.ask_as(0, &request).await;
    }
    // Not even the refusal of the first one is told; it is counted.
    guest.expect_nothing().await;
    let refusals = "relay_refusals_total{code=\"unauthorized\"}";
    assert_eq!(relay.metric(refusals).await, 1.0);
}

#[tokio::test]
async fn a_frame_is_refused_up_to_the_hard_cap_and_beyond_it_ends_the_connection() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "1024")]).await;
    let with_body = |number, length| {
        let request = Request::Submit(submit(&to(1), 1, &vec![7; length]));
        encode_request(Tag::new(number), &request)
    };
    let of_length = |number, length: usize| {
        let around = with_body(number, 200).len() - 200;
        let frame = with_body(number, length - around);
        assert_eq!(frame.len(), length);
        frame
    };
    let mut guest = Guest::connect(&relay).await;
    // 2 × 1,024 + 4,096 is the most that is read.
    for length in [1_200, 2_047, 2_049, 6_144] {
        guest.send(of_length(9, length)).await;
        let (number_told, answer) = guest.receive_numbered().await;
        assert_eq!(number_told, Some(9));
        let Answer::Refused(refused) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((refused.code, refused.retry_after), ("too_large", None));
    }
    guest.store(submit(&to(1), 1, &[7; 1_024])).await;
    let came = expect_end(guest, of_length(9, 6_145), 1009).await;
    assert!(came.is_empty(), "{came:?}");
    // Too large, and nobody to answer.
    for frame in [of_length(0, 3_000), Bytes::from_static(&[0xFF; 3_000])] {
        expect_end(Guest::connect(&relay).await, frame, 4400).await;
    }
}

#[tokio::test]
async fn a_frame_that_asks_for_two_things_ends_the_connection_and_does_neither() {
    let relay = Relay::start(&[]).await;
    let mut frame = encode_request(Tag::new(1), &Request::Ping).to_vec();
    frame.extend(encode_request(
        Tag::new(2),
        &Request::Submit(submit(&to(1), 1, b"x")),
    ));
    expect_end(Guest::connect(&relay).await, frame.into(), 4400).await;
    assert_eq!(relay.metric("relay_blobs_created_total").await, 0.0);
}

fn golden(name: &str) -> Bytes {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/golden");
    std::fs::read(folder.join(name)).unwrap().into()
}

#[tokio::test]
async fn a_later_client_is_served_as_far_as_this_relay_goes() {
    let relay = Relay::start(&[]).await;
    let mut guest = Guest::connect(&relay).await;
    guest.send(golden("hello_with_features.bin")).await;
    assert!(matches!(guest.receive().await, Answer::Welcome { .. }));
    // It is read, in spite of fields of a later version: what is refused is that it names another relay.
    guest.send(golden("submit_from_a_later_client.bin")).await;
    let Answer::Refused(refused) = guest.receive().await else {
        panic!()
    };
    assert_eq!(refused.code, "unknown_relay");
    // The same fields behind a submit that may be stored.
    let later: &[u8] = &[
        0xA0, 6, 1, 0xA9, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0xB2, 6, 2, 9, 9,
    ];
    let stored = encode_request(Tag::new(7), &Request::Submit(submit(&to(1), 1, b"x")));
    guest.send([&stored, later].concat().into()).await;
    let (number_told, answer) = guest.receive_numbered().await;
    assert_eq!(number_told, Some(7));
    assert!(matches!(answer, Answer::Stored { .. }), "{answer:?}");

    guest.send(golden("request_of_a_later_version.bin")).await;
    let (number_told, answer) = guest.receive_numbered().await;
    assert_eq!(number_told, Some(300));
    let Answer::Refused(refused) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((refused.code, refused.retry_after), ("unsupported", None));
    assert_eq!(guest.done(Request::Ping).await, Done::Pong);
}
