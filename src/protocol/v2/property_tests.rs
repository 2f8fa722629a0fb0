//! Both sides of v2 against each other, and against bytes that nobody means.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::client::{ServerFrame, decode_server_frame, encode_request};
use super::message::{
    BlobDelivery, Done, FoundProof, GoAway, GoAwayReason, Introduce, Limits, Opened, Opening,
    PurgedMailbox, ReceiptDelivery, ReceiptKind, Submit, SubmitTerms, Subscribe, Welcome,
    Withdrawal, WithdrawalKind,
};
use super::{Answer, Incoming, Request, Tag, codes, decode, encode, tag_of};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{RecoveryProof, RecoveryQuery, Refused};

fn mailbox() -> impl Strategy<Value = MailboxId> {
    any::<[u8; 32]>().prop_map(MailboxId::from_bytes)
}

fn blob_id() -> impl Strategy<Value = BlobId> {
    any::<[u8; 16]>().prop_map(BlobId::from_bytes)
}

fn body() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_millis)
}

fn seconds() -> impl Strategy<Value = Duration> {
    (1..=u32::MAX).prop_map(|secs| Duration::from_secs(secs.into()))
}

/// A count as it fits on the wire.
fn count() -> impl Strategy<Value = u64> {
    any::<u32>().prop_map(u64::from)
}

fn code() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(codes().collect::<Vec<_>>())
}

fn kept_terms() -> impl Strategy<Value = SubmitTerms> {
    let optional = || proptest::option::of(any::<[u8; 32]>());
    (
        proptest::option::of(seconds()),
        optional(),
        proptest::option::of(mailbox()),
        any::<bool>(),
        optional(),
    )
        .prop_map(|(ttl, topic, receipt_to, v1_ok, relay)| SubmitTerms {
            ttl,
            topic,
            receipt_to,
            live_only: false,
            v1_ok,
            relay,
        })
}

fn terms() -> impl Strategy<Value = SubmitTerms> {
    let live = SubmitTerms {
        live_only: true,
        ..SubmitTerms::default()
    };
    prop_oneof![4 => kept_terms(), 1 => Just(live)]
}

fn submit() -> impl Strategy<Value = Submit> {
    (mailbox(), blob_id(), terms(), body()).prop_map(|(recipient, id, terms, body)| Submit {
        recipient,
        id,
        terms,
        body,
    })
}

fn opening() -> impl Strategy<Value = Opening> {
    let signature = proptest::option::of(signature());
    let both = any::<(bool, bool)>();
    (mailbox(), signature, both).prop_map(|(mailbox, signature, (tells_senders, no_pin))| Opening {
        mailbox,
        signature,
        tells_senders,
        no_pin,
    })
}

fn signature() -> impl Strategy<Value = [u8; 64]> {
    any::<([u8; 32], [u8; 32])>().prop_map(|(left, right)| {
        let both = [left, right].concat();
        both.try_into().unwrap()
    })
}

fn introduce() -> impl Strategy<Value = Introduce> {
    (any::<[u8; 32]>(), origin()).prop_map(|(nonce, origin)| Introduce {
        nonce,
        origin: origin.into(),
    })
}

fn origin() -> impl Strategy<Value = String> {
    "[a-z0-9.\\-]{1,50}(:8[1-9][0-9]{0,2})?"
}

fn subscribe() -> impl Strategy<Value = Subscribe> {
    (origin(), vec(opening(), 0..5)).prop_map(|(origin, openings)| Subscribe {
        origin: origin.into(),
        openings,
    })
}

fn withdrawal() -> impl Strategy<Value = Withdrawal> {
    let kind = prop_oneof![
        seconds().prop_map(WithdrawalKind::Extend),
        Just(WithdrawalKind::Cancel)
    ];
    (mailbox(), any::<[u8; 32]>(), kind).prop_map(|(mailbox, shown, kind)| Withdrawal {
        mailbox,
        shown,
        kind,
    })
}

fn query() -> impl Strategy<Value = RecoveryQuery> {
    proptest::collection::hash_set(any::<[u8; 32]>(), 0..5).prop_map(|hashes| RecoveryQuery {
        key_hashes: hashes.into_iter().collect(),
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        proptest::option::of(introduce()).prop_map(Request::Hello),
        Just(Request::Ping),
        submit().prop_map(Request::Submit),
        subscribe().prop_map(Request::Subscribe),
        vec(mailbox(), 0..5).prop_map(Request::Unsubscribe),
        vec(mailbox(), 0..5).prop_map(Request::Purge),
        (any::<u32>(), any::<u64>()).prop_map(|(blobs, bytes)| Request::Window { blobs, bytes }),
        vec((mailbox(), blob_id()), 0..5).prop_map(Request::Acknowledge),
        withdrawal().prop_map(Request::Withdraw),
        mailbox().prop_map(Request::Unpin),
        (any::<[u8; 32]>(), body()).prop_map(|(key_hash, proof)| {
            Request::RecoveryStore(RecoveryProof { key_hash, proof })
        }),
        query().prop_map(Request::RecoveryQuery),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let window = || (any::<u32>(), any::<u64>());
    (
        any::<(u64, u32, u32, u64)>(),
        (seconds(), seconds()),
        (window(), window()),
        count(),
    )
        .prop_map(|(numbers, ttls, windows, mailbox_blobs_max)| Limits {
            blob_bytes_max: numbers.0,
            submits_per_minute: numbers.1,
            ttl_default: ttls.0,
            ttl_max: ttls.1,
            mailboxes_max: numbers.2,
            window_default: windows.0,
            window_max: windows.1,
            mailbox_blobs_max,
            mailbox_bytes_max: numbers.3,
        })
}

fn welcome() -> impl Strategy<Value = Welcome> {
    (
        any::<([u8; 32], [u8; 32])>(),
        ".{0,20}",
        limits(),
        seconds(),
        vec("[a-z]{0,9}", 0..3),
        proptest::option::of(signature()),
    )
        .prop_map(
            |(keys, version, limits, keepalive, features, proof)| Welcome {
                relay_id: keys.0,
                server_version: version.into(),
                challenge: keys.1,
                limits,
                keepalive,
                features: features.into_iter().map(Into::into).collect(),
                proof,
            },
        )
}

fn refused() -> impl Strategy<Value = Refused> {
    let wait = (1..=u64::MAX).prop_map(Duration::from_millis);
    (code(), ".{0,40}", proptest::option::of(wait)).prop_map(|(code, message, retry_after)| {
        Refused {
            code,
            message: message.into(),
            retry_after,
        }
    })
}

fn opened() -> impl Strategy<Value = Result<Opened, &'static str>> {
    let opened = (any::<u32>(), count(), any::<u64>()).prop_map(|(pending, blobs, bytes)| {
        Ok(Opened {
            pending,
            blobs,
            bytes,
        })
    });
    prop_oneof![opened, code().prop_map(Err)]
}

fn purged() -> impl Strategy<Value = PurgedMailbox> {
    (mailbox(), count(), count()).prop_map(|(mailbox, blobs, receipts)| PurgedMailbox {
        mailbox,
        blobs,
        receipts,
    })
}

fn found() -> impl Strategy<Value = FoundProof> {
    (any::<[u8; 32]>(), body(), time()).prop_map(|(key_hash, proof, stored_at)| FoundProof {
        key_hash,
        proof,
        stored_at,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let done = proptest::sample::select(vec![
        Done::Unsubscribed,
        Done::Acknowledged,
        Done::Extended,
        Done::Cancelled,
        Done::Unpinned,
        Done::Pong,
    ]);
    prop_oneof![
        (time(), any::<bool>()).prop_map(|(expires_at, duplicate)| Answer::Stored {
            expires_at,
            duplicate,
        }),
        refused().prop_map(Answer::Refused),
        Just(Answer::Handed),
        vec(opened(), 0..5).prop_map(Answer::Subscribed),
        (any::<u32>(), any::<u64>()).prop_map(|(blobs, bytes)| Answer::Windowed { blobs, bytes }),
        done.prop_map(Answer::Done),
        vec(purged(), 0..5).prop_map(Answer::Purged),
        time().prop_map(|expires_at| Answer::RecoveryKept { expires_at }),
        (vec(found(), 0..5), any::<bool>())
            .prop_map(|(proofs, more)| Answer::RecoveryFound { proofs, more }),
    ]
}

fn receipt() -> impl Strategy<Value = ReceiptDelivery> {
    let kind = proptest::sample::select(vec![
        ReceiptKind::Delivered,
        ReceiptKind::Acknowledged,
        ReceiptKind::Expired,
        ReceiptKind::Removed,
        ReceiptKind::Lost,
    ]);
    (mailbox(), blob_id(), blob_id(), kind, time()).prop_map(
        |(mailbox, receipt_id, id, kind, at)| ReceiptDelivery {
            mailbox,
            receipt_id,
            id,
            kind,
            at,
        },
    )
}

fn go_away() -> impl Strategy<Value = GoAway> {
    let reason = prop_oneof![Just(GoAwayReason::Draining), Just(GoAwayReason::Overloaded)];
    (reason, any::<u64>(), vec(".{0,20}", 0..3)).prop_map(|(reason, wait, alternates)| GoAway {
        reason,
        reconnect_after: Duration::from_millis(wait),
        alternates: alternates.into(),
    })
}

fn push() -> impl Strategy<Value = Answer> {
    let expires_at = proptest::option::of((1..=u64::MAX).prop_map(Timestamp::from_millis));
    let delivery = (
        blob_id(),
        mailbox(),
        time(),
        expires_at,
        any::<bool>(),
        body(),
    )
        .prop_map(
            |(id, mailbox, stored_at, expires_at, redelivered, body)| BlobDelivery {
                id,
                mailbox,
                stored_at,
                expires_at,
                redelivered,
                body,
            },
        );
    prop_oneof![
        welcome().prop_map(|welcome| Answer::Welcome(Box::new(welcome))),
        delivery.prop_map(Answer::Blob),
        receipt().prop_map(Answer::Receipt),
        vec(mailbox(), 0..5).prop_map(Answer::CaughtUp),
        go_away().prop_map(Answer::GoAway),
    ]
}

/// Bytes that are nearly a frame.
fn damaged(frame: &Bytes, at: usize, byte: u8, cut: bool) -> Bytes {
    let mut damaged = frame.to_vec();
    if !damaged.is_empty() {
        let at = at % damaged.len();
        damaged[at] = byte;
        if cut {
            damaged.truncate(at);
        }
    }
    damaged.into()
}

proptest! {
    #[test]
    fn the_relay_reads_what_a_client_asks(number in 1..=u32::MAX, request in request()) {
        let tag = Tag::new(number);
        let frame = encode_request(tag, &request);
        prop_assert_eq!(tag_of(&frame), tag);
        prop_assert_eq!(decode(&frame), Incoming::Request { tag, request });
    }

    #[test]
    fn a_client_reads_what_the_relay_says(
        number in any::<u32>(),
        answer in prop_oneof![answer(), push()],
    ) {
        for answers in [None, Tag::new(number)] {
            let read = decode_server_frame(&encode(answers, &answer));
            let answer = answer.clone();
            prop_assert_eq!(read, Ok(ServerFrame::Known { answers, answer }));
        }
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let frame = Bytes::from(bytes);
        tag_of(&frame);
        decode(&frame);
        drop(decode_server_frame(&frame));
    }

    #[test]
    fn a_damaged_frame_never_panics(
        request in request(),
        said in prop_oneof![answer(), push()],
        at in any::<usize>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let frame = damaged(&encode_request(Tag::new(7), &request), at, byte, cut);
        let read = decode(&frame);
        // What is understood in spite of the damage is understood the same when it is said again.
        if let Incoming::Request { tag, request } = &read {
            prop_assert_eq!(&decode(&encode_request(*tag, request)), &read);
        }
        drop(decode_server_frame(&damaged(&encode(None, &said), at, byte, cut)));
    }
}
