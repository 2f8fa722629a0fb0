//! The rules that stand in the schema's comments, one by one.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::client::{ServerFrame, decode_server_frame};
use super::message::FoundProof;
use super::schema::client_frame::Frame;
use super::schema::{self, field, server_frame};
use super::wire::{ACKNOWLEDGEMENTS_MAX, Fault, Outline};
use super::{Answer, Incoming, Request, Tag, decode, encode, proofs_that_fit, tag_of};
use crate::clock::Timestamp;
use crate::protocol::message::{BadFrame, Refused};

fn client_frame(request: u32, frame: Option<Frame>) -> Bytes {
    schema::ClientFrame { request, frame }
        .encode_to_vec()
        .into()
}

fn asked(frame: Frame) -> Incoming {
    decode(&client_frame(7, Some(frame)))
}

fn understood(frame: Frame) -> Request {
    match asked(frame) {
        Incoming::Request { tag, request } => {
            assert_eq!(tag, Tag::new(7));
            request
        }
        other => panic!("{other:?}"),
    }
}

fn refused_because(frame: Frame) -> &'static str {
    match asked(frame) {
        Incoming::Invalid { tag, why } => {
            assert_eq!(tag, Tag::new(7));
            why
        }
        other => panic!("{other:?}"),
    }
}

fn is_garbage(frame: &[u8]) -> bool {
    matches!(
        decode(&Bytes::copy_from_slice(frame)),
        Incoming::Garbage { .. }
    )
}

fn id(length: usize) -> Bytes {
    field(&vec![9; length])
}

fn submit() -> schema::Submit {
    schema::Submit {
        id: id(16),
        mailbox: id(32),
        blob: id(500),
        ..schema::Submit::default()
    }
}

fn opening() -> schema::Opening {
    schema::Opening {
        mailbox: id(32),
        signature: id(64),
        receipts: 0,
        no_pin: false,
    }
}

fn subscribe(openings: Vec<schema::Opening>) -> Frame {
    let origin = "relay.example:8443".to_owned();
    Frame::Subscribe(schema::Subscribe { origin, openings })
}

fn acknowledge(items: usize) -> Frame {
    let item = schema::Item {
        mailbox: id(32),
        id: id(16),
    };
    Frame::Acknowledge(schema::Acknowledge {
        items: vec![item; items],
    })
}

#[test]
fn a_blob_is_not_copied_out_of_its_frame() {
    let frame = client_frame(7, Some(Frame::Submit(submit())));
    let Incoming::Request {
        request: Request::Submit(submit),
        ..
    } = decode(&frame)
    else {
        panic!()
    };
    assert!(frame.as_ptr_range().contains(&submit.body.as_ptr()));

    let put = schema::RecoveryPut {
        key_hash: id(32),
        proof: id(500),
    };
    let frame = client_frame(7, Some(Frame::RecoveryPut(put)));
    let Incoming::Request {
        request: Request::RecoveryStore(stored),
        ..
    } = decode(&frame)
    else {
        panic!()
    };
    assert!(frame.as_ptr_range().contains(&stored.proof.as_ptr()));
}

/// In queues and in memory a blob counts by its own bytes.
#[test]
fn a_small_blob_does_not_keep_a_frame_full_of_unknown_fields_alive() {
    let mut frame = client_frame(7, Some(Frame::Submit(submit()))).to_vec();
    // Field 900 with 20,000 bytes.
    frame.extend_from_slice(&[0xA2, 0x38, 0xA0, 0x9C, 0x01]);
    frame.extend_from_slice(&[0; 20_000]);
    let frame = Bytes::from(frame);
    let Incoming::Request {
        request: Request::Submit(submit),
        ..
    } = decode(&frame)
    else {
        panic!()
    };
    assert_eq!(submit.body, id(500));
    assert!(!frame.as_ptr_range().contains(&submit.body.as_ptr()));
}

#[test]
fn number_zero_is_for_acknowledge_and_unsubscribe_only() {
    let unsubscribe = Frame::Unsubscribe(schema::Unsubscribe::default());
    for frame in [acknowledge(1), unsubscribe] {
        let frame = client_frame(0, Some(frame));
        assert!(matches!(
            decode(&frame),
            Incoming::Request { tag: None, .. }
        ));
    }
    for frame in [
        Frame::Hello(schema::Hello::default()),
        Frame::Submit(submit()),
        subscribe(vec![opening()]),
        Frame::Window(schema::Window::default()),
        Frame::Extend(schema::Extend::default()),
        Frame::Cancel(schema::Cancel::default()),
        Frame::Purge(schema::Purge::default()),
        Frame::Unpin(schema::Unpin::default()),
        Frame::RecoveryPut(schema::RecoveryPut::default()),
        Frame::RecoveryGet(schema::RecoveryGet::default()),
        Frame::Ping(schema::Ping {}),
    ] {
        assert!(is_garbage(&client_frame(0, Some(frame))));
    }
    assert!(is_garbage(&client_frame(0, None)));
}

#[test]
fn a_frame_that_asks_for_nothing_known_is_answered() {
    let unsupported = Incoming::Unsupported { tag: Tag::new(7) };
    assert_eq!(decode(&client_frame(7, None)), unsupported);
    // Field 15 of a later version: its key, one byte.
    let later = [&client_frame(7, None)[..], &[15 << 3 | 2, 1, 0xff]].concat();
    assert_eq!(decode(&later.into()), unsupported);
}

#[test]
fn what_is_no_frame_is_garbage() {
    let ping = client_frame(7, Some(Frame::Ping(schema::Ping {})));
    let twice = [&ping[..], &ping[2..]].concat();
    assert!(is_garbage(&twice), "asks for two things");
    assert!(is_garbage(b"\x00\x01"), "field 0");
    assert!(is_garbage(&[0x08]), "cut off");
    assert!(is_garbage(&[0x08, 7, 0x0b, 0x0c]), "a group");
    assert!(is_garbage(&[0x08, 7, 0x3a, 5, 0]), "longer than the frame");
    assert!(is_garbage(&[0x08, 7, 0x38, 0]), "a ping that is a number");
    assert!(is_garbage(&[0x08, 7, 0x2a, 2, 0x0a, 9]), "a cut list");
    assert!(is_garbage(&[]), "nothing, and no number");
    // Text that is no UTF-8.
    assert!(is_garbage(&[0x08, 7, 0x42, 3, 0x0a, 1, 0xff]));
}

#[test]
fn ids_and_keys_of_another_length_are_refused() {
    let with = |change: fn(&mut schema::Submit)| {
        let mut submit = submit();
        change(&mut submit);
        Frame::Submit(submit)
    };
    for frame in [
        with(|submit| submit.id = id(15)),
        with(|submit| submit.id = Bytes::new()),
        with(|submit| submit.mailbox = id(33)),
        with(|submit| submit.mailbox = Bytes::new()),
        with(|submit| submit.topic = id(31)),
        with(|submit| submit.receipt_to = id(1)),
        with(|submit| submit.relay = id(33)),
        Frame::Cancel(schema::Cancel {
            mailbox: id(32),
            secret: id(31),
        }),
        Frame::Cancel(schema::Cancel {
            mailbox: id(31),
            secret: id(32),
        }),
        Frame::Extend(schema::Extend {
            mailbox: id(32),
            key: Bytes::new(),
            ttl_seconds: 1,
        }),
        Frame::Extend(schema::Extend {
            mailbox: id(32),
            key: id(32),
            ttl_seconds: 0,
        }),
        Frame::Unpin(schema::Unpin { mailbox: id(31) }),
        Frame::Purge(schema::Purge {
            mailboxes: vec![id(32), id(31)],
        }),
        Frame::Unsubscribe(schema::Unsubscribe {
            mailboxes: vec![id(33)],
        }),
        Frame::RecoveryPut(schema::RecoveryPut {
            key_hash: id(31),
            proof: id(1),
        }),
        Frame::RecoveryGet(schema::RecoveryGet {
            key_hashes: vec![Bytes::new()],
        }),
        Frame::Acknowledge(schema::Acknowledge {
            items: vec![schema::Item {
                mailbox: id(33),
                id: id(15),
            }],
        }),
        subscribe(vec![schema::Opening {
            mailbox: id(33),
            ..opening()
        }]),
    ] {
        refused_because(frame);
    }
}

#[test]
fn a_proof_of_another_length_is_as_good_as_a_wrong_one() {
    for signature in [Bytes::new(), id(63), id(65)] {
        let opening = schema::Opening {
            signature,
            ..opening()
        };
        let Request::Subscribe(read) = understood(subscribe(vec![opening])) else {
            panic!()
        };
        assert_eq!(read.openings[0].signature, None);
    }
}

#[test]
fn live_only_goes_without_what_would_keep_it() {
    let live = |change: fn(&mut schema::Submit)| {
        let mut submit = schema::Submit {
            live_only: true,
            ..submit()
        };
        change(&mut submit);
        Frame::Submit(submit)
    };
    understood(live(|submit| submit.v1_ok = true));
    for frame in [
        live(|submit| submit.ttl_seconds = 1),
        live(|submit| submit.topic = id(32)),
        live(|submit| submit.receipt_to = id(32)),
    ] {
        refused_because(frame);
    }
}

#[test]
fn an_origin_is_a_short_host_in_lower_case() {
    let from = |origin: &str| {
        Frame::Subscribe(schema::Subscribe {
            origin: origin.to_owned(),
            openings: vec![opening(), opening()],
        })
    };
    for good in ["relay.example", "[::1]:8080", &"a".repeat(255)] {
        let Request::Subscribe(read) = understood(from(good)) else {
            panic!()
        };
        assert_eq!(&*read.origin, good);
        assert_eq!(read.openings.len(), 2, "the same mailbox twice is fine");
    }
    for bad in [
        "",
        "Relay.example",
        "relay example",
        "rélay.example",
        &"a".repeat(256),
    ] {
        refused_because(from(bad));
    }
}

#[test]
fn receipts_are_told_only_where_they_are_asked_for() {
    for (receipts, tells_senders) in [(0, false), (1, false), (2, true), (3, false)] {
        let opening = schema::Opening {
            receipts,
            ..opening()
        };
        let Request::Subscribe(read) = understood(subscribe(vec![opening])) else {
            panic!()
        };
        assert_eq!(read.openings[0].tells_senders, tells_senders);
    }
}

#[test]
fn long_lists_are_refused() {
    understood(acknowledge(ACKNOWLEDGEMENTS_MAX));
    refused_because(acknowledge(ACKNOWLEDGEMENTS_MAX + 1));
    let hashes = |count: u8| {
        let key_hashes = (0..count).map(|n| field(&[n; 32])).collect();
        Frame::RecoveryGet(schema::RecoveryGet { key_hashes })
    };
    understood(hashes(50));
    refused_because(hashes(51));
    let hello = |features, client: usize| {
        Frame::Hello(schema::Hello {
            client: "c".repeat(client),
            features,
            ..schema::Hello::default()
        })
    };
    understood(hello(vec!["f".repeat(64); 64], 255));
    refused_because(hello(vec![String::new(); 65], 0));
    refused_because(hello(vec!["f".repeat(65)], 0));
    refused_because(hello(Vec::new(), 256));
}

#[test]
fn a_nonce_has_32_bytes_and_an_origin() {
    let hello = |nonce, origin: &str| {
        let (client, features) = Default::default();
        Frame::Hello(schema::Hello {
            client,
            features,
            nonce,
            origin: origin.to_owned(),
        })
    };
    let Request::Hello(Some(introduce)) = understood(hello(id(32), "relay.example")) else {
        panic!()
    };
    assert_eq!(&*introduce.origin, "relay.example");
    assert_eq!(understood(hello(id(0), "")), Request::Hello(None));
    refused_because(hello(id(31), "relay.example"));
    refused_because(hello(id(32), ""));
    refused_because(hello(id(32), "ws://relay.example"));
}

#[test]
fn a_key_hash_asked_for_twice_is_asked_once() {
    let get = schema::RecoveryGet {
        key_hashes: vec![id(32), field(&[1; 32]), id(32)],
    };
    let Request::RecoveryQuery(query) = understood(Frame::RecoveryGet(get)) else {
        panic!()
    };
    assert_eq!(query.key_hashes, [[9; 32], [1; 32]]);
}

/// Two bytes on the wire would become a hundred in memory, were they decoded first.
#[test]
fn lists_of_nothing_are_refused_before_they_are_decoded() {
    let nothings = [0x0a, 0].repeat(500_000);
    let openings = [0x12, 0].repeat(500_000);
    for (kind, list) in [
        (3_u8, &nothings),
        (4, &openings),
        (5, &nothings),
        (8, &openings),
        (11, &nothings),
        (14, &nothings),
    ] {
        let mut frame = vec![0x08, 7, kind << 3 | 2];
        prost::encode_length_delimiter(list.len(), &mut frame).unwrap();
        frame.extend_from_slice(list);
        let frame = Bytes::from(frame);
        let outline = Outline::of(&frame).unwrap();
        let judged = outline.check_lists();
        assert!(matches!(judged, Err(Fault::Refused(_))), "kind {kind}");
        let read = decode(&frame);
        assert!(matches!(read, Incoming::Invalid { .. }), "kind {kind}");
    }
    // The outermost fields are looked at one by one, and nothing is kept of them.
    let unknown = [0x7a, 0].repeat(500_000);
    let frame = [&[0x08, 7][..], &unknown].concat();
    assert_eq!(
        decode(&frame.into()),
        Incoming::Unsupported { tag: Tag::new(7) }
    );
}

#[test]
fn a_client_does_not_decode_endless_lists_either() {
    let list = [0x0a, 0].repeat(70_000);
    let mut frame = vec![0x22];
    prost::encode_length_delimiter(list.len(), &mut frame).unwrap();
    frame.extend_from_slice(&list);
    assert!(decode_server_frame(&frame.into()).is_err());
}

#[test]
fn the_number_of_a_frame_that_is_too_large_is_found_at_its_beginning() {
    let frame = client_frame(300, Some(Frame::Submit(submit())));
    assert_eq!(tag_of(&frame), Tag::new(300));
    assert_eq!(tag_of(&frame[..20]), Tag::new(300));
    for nameless in [&b"\x08\x00"[..], b"", b"\x12\x05", b"\xff\xff"] {
        assert_eq!(tag_of(nameless), None);
    }
}

fn known(answers: Option<Tag>, answer: Answer) -> Result<ServerFrame, BadFrame> {
    Ok(ServerFrame::Known { answers, answer })
}

#[test]
fn an_opening_that_was_refused_never_looks_open() {
    let openings = vec![Err("a word of a later rule")];
    let frame = encode(Tag::new(7), &Answer::Subscribed(openings));
    let answer = Answer::Subscribed(vec![Err("unavailable")]);
    assert_eq!(decode_server_frame(&frame), known(Tag::new(7), answer));
}

#[test]
fn a_short_wait_is_not_forever() {
    let refused = Refused {
        code: "rate_limited",
        message: "".into(),
        retry_after: Some(Duration::from_micros(1)),
    };
    let frame = encode(None, &Answer::Refused(refused.clone()));
    let answer = Answer::Refused(Refused {
        retry_after: Some(Duration::from_millis(1)),
        ..refused
    });
    assert_eq!(decode_server_frame(&frame), known(None, answer));
}

#[test]
fn what_a_later_relay_says_is_passed_over() {
    let receipt = schema::Receipt {
        mailbox: id(32),
        receipt_id: id(16),
        id: id(16),
        kind: 99,
        at: 0,
    };
    let frame = schema::ServerFrame {
        answers: 0,
        frame: Some(server_frame::Frame::Receipt(receipt)),
    };
    let unknown = |number| {
        let answers = Tag::new(number);
        Ok(ServerFrame::Unknown { answers })
    };
    assert_eq!(
        decode_server_frame(&frame.encode_to_vec().into()),
        unknown(0)
    );
    assert_eq!(
        decode_server_frame(&Bytes::from_static(&[0x08, 5, 0xfa, 0x01, 0])),
        unknown(5)
    );
    assert_eq!(decode_server_frame(&Bytes::new()), unknown(0));
}

#[test]
fn proofs_that_are_said_to_fit_do() {
    let found = FoundProof {
        key_hash: [1; 32],
        proof: id(1000),
        stored_at: Timestamp::from_millis(u64::MAX),
    };
    let all = vec![found; 50];
    for frame_bytes_max in [0, 500, 1_500, 10_000, 30_000, 60_000] {
        let fits = proofs_that_fit(&all, frame_bytes_max);
        let answer = Answer::RecoveryFound {
            proofs: all[..fits].to_vec(),
            more: true,
        };
        assert!(fits == 0 || encode(Tag::new(u32::MAX), &answer).len() <= frame_bytes_max);
        assert!(fits == 50 || fits + 2 > frame_bytes_max / 1_100);
    }
}
