//! The frames in `proto/golden`, against our codec in both directions, and against their readable twins.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value};

use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use vauchi_relay::protocol::v2::message::Subscribe;
use vauchi_relay::protocol::v2::{Answer, Incoming, Request, Tag, codes, decode, encode};
use vauchi_relay::service::refusal::Refusal;

use crate::v2::vectors::{
    TAG, answers, blob_id, delivery, derived, derived_opening, kept, pushes, refused, requests,
    submit,
};

/// Frames beside those that the tables have, one for each kind.
const UNANSWERED: &str = "acknowledge_unanswered";
const NAMED_HELLO: &str = "hello_with_features";
const FROM_A_LATER_CLIENT: &str = "submit_from_a_later_client";
const FROM_A_LATER_RELAY: &str = "delivery_from_a_later_relay";
const UNKNOWN_REQUEST: &str = "request_of_a_later_version";
const UNKNOWN_PUSH: &str = "push_of_a_later_version";
const UNKNOWN_ANSWER: &str = "answer_of_a_later_version";
const LATER_RECEIPTS: &str = "subscribe_from_a_later_client";
const LATER_CODE: &str = "refused_by_a_later_relay";

/// Those of them that a client sends.
const ASKED: [&str; 5] = [
    UNANSWERED,
    NAMED_HELLO,
    FROM_A_LATER_CLIENT,
    UNKNOWN_REQUEST,
    LATER_RECEIPTS,
];
/// Those that a relay sends.
const SAID: [&str; 4] = [FROM_A_LATER_RELAY, UNKNOWN_PUSH, UNKNOWN_ANSWER, LATER_CODE];

fn understood(request: Request) -> Incoming {
    Incoming::Request { tag: TAG, request }
}

#[test]
fn requests_are_written_and_read_as_ever() {
    for (name, request) in requests() {
        assert_eq!(encode_request(TAG, &request), golden(name), "{name}");
        assert_eq!(decode(&golden(name)), understood(request), "{name}");
    }
}

#[test]
fn pushes_and_answers_are_written_and_read_as_ever() {
    for (name, answers, answer) in said() {
        assert_eq!(encode(answers, &answer), golden(name), "{name}");
        let read = decode_server_frame(&golden(name));
        let known = ServerFrame::Known { answers, answer };
        assert_eq!(read, Ok(known), "{name}");
    }
}

/// Every kind of frame that a relay sends, by its name.
fn said() -> impl Iterator<Item = (&'static str, Option<Tag>, Answer)> {
    let pushes = pushes().into_iter().map(|(name, push)| (name, None, push));
    let answers = answers().into_iter();
    pushes.chain(answers.map(|(name, answer)| (name, TAG, answer)))
}

#[test]
fn an_acknowledgement_needs_no_answer() {
    let request = Request::Acknowledge(vec![(derived(), blob_id())]);
    let frame = golden(UNANSWERED);
    assert_eq!(encode_request(None, &request), frame);
    let tag = None;
    assert_eq!(decode(&frame), Incoming::Request { tag, request });
}

#[test]
fn a_hello_with_features_that_nobody_knows_is_a_hello() {
    assert_eq!(
        decode(&golden(NAMED_HELLO)),
        understood(Request::Hello(None))
    );
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let read = decode(&golden(FROM_A_LATER_CLIENT));
    assert_eq!(read, understood(submit(kept())));
    let read = decode_server_frame(&golden(FROM_A_LATER_RELAY));
    let known = ServerFrame::Known {
        answers: None,
        answer: delivery(),
    };
    assert_eq!(read, Ok(known));
}

#[test]
fn frames_of_a_later_version_are_answered_or_passed_over() {
    let read = decode(&golden(UNKNOWN_REQUEST));
    assert_eq!(read, Incoming::Unsupported { tag: TAG });
    let read = decode_server_frame(&golden(UNKNOWN_PUSH));
    assert_eq!(read, Ok(ServerFrame::Unknown { answers: None }));
    let read = decode_server_frame(&golden(UNKNOWN_ANSWER));
    assert_eq!(read, Ok(ServerFrame::Unknown { answers: TAG }));
}

#[test]
fn enum_values_of_a_later_version_mean_the_least() {
    // Receipts of a kind that is not known are none.
    let read = decode(&golden(LATER_RECEIPTS));
    assert_eq!(read, understood(Request::Subscribe(one_opening(false))));
    // A code that is not known is handled by when to come back.
    let read = decode_server_frame(&golden(LATER_CODE));
    let Ok(ServerFrame::Known {
        answers: TAG,
        answer: Answer::Refused(refused),
    }) = read
    else {
        panic!("{read:?}")
    };
    assert_eq!(refused.code, "unspecified");
    assert_eq!(refused.retry_after, Some(Duration::from_secs(60)));
}

#[test]
fn every_golden_frame_has_a_readable_twin() {
    let mut frames = 0;
    for name in names() {
        let twin = folder().join(format!("{name}.txt"));
        let text = readable(&name, golden(&name));
        if is_to_be_written(&twin) {
            fs::write(&twin, &text).unwrap();
        }
        assert_eq!(fs::read_to_string(&twin).unwrap(), text, "{name}");
        frames += 1;
    }
    assert_eq!(
        frames,
        requests().len() + pushes().len() + answers().len() + ASKED.len() + SAID.len()
    );
}

/// The schema names every kind of frame; each has a golden one.
#[test]
fn every_kind_of_frame_is_there() {
    for of in ["ClientFrame", "ServerFrame"] {
        let message = schema().get_message_by_name(&full(of)).unwrap();
        let kinds = message.oneofs().next().unwrap();
        for kind in kinds.fields() {
            let file = folder().join(format!("{}.txt", kind.name()));
            let text = fs::read_to_string(&file).unwrap_or_default();
            assert!(text.starts_with(of), "{}", kind.name());
        }
    }
}

#[test]
fn every_refusal_of_the_rules_has_a_code() {
    let words: Vec<_> = codes().collect();
    for code in Refusal::CODES {
        assert!(words.contains(&code), "{code}");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/golden")
}

fn is_to_be_written(path: &Path) -> bool {
    env::var_os("WRITE_GOLDEN").is_some() && !path.exists()
}

/// The frame with this name. `WRITE_GOLDEN=1` writes one that is missing; one that is there is for ever.
fn golden(name: &str) -> Bytes {
    let path = folder().join(format!("{name}.bin"));
    if is_to_be_written(&path) {
        fs::write(&path, new_frame(name)).unwrap();
    }
    fs::read(&path).unwrap().into()
}

fn new_frame(name: &str) -> Bytes {
    if let Some((_, request)) = requests().into_iter().find(|(known, _)| *known == name) {
        return encode_request(TAG, &request);
    }
    if let Some((_, answers, answer)) = said().find(|(known, ..)| *known == name) {
        return encode(answers, &answer);
    }
    match name {
        UNANSWERED => {
            let items = vec![(derived(), blob_id())];
            encode_request(None, &Request::Acknowledge(items))
        }
        FROM_A_LATER_CLIENT => later(&encode_request(TAG, &submit(kept())), 3),
        FROM_A_LATER_RELAY => later(&encode(None, &delivery()), 0),
        NAMED_HELLO => Bytes::from_static(b"\x08\xac\x02\x42\x15\x0a\x0aclient/1.0\x12\x07feature"),
        // Number 300 and a frame of kind 100; a frame of kind 100.
        UNKNOWN_REQUEST => Bytes::from_static(&[0x08, 0xac, 2, 0xa2, 6, 2, 0x08, 1]),
        UNKNOWN_ANSWER => Bytes::from_static(&[0x08, 0xac, 2, 0xa2, 6, 2, 0x08, 1]),
        UNKNOWN_PUSH => Bytes::from_static(&[0xa2, 6, 2, 0x08, 1]),
        // `receipts` stands before `no_pin`, of two bytes, which is the last field.
        LATER_RECEIPTS => {
            let known = encode_request(TAG, &Request::Subscribe(one_opening(true)));
            with_byte(&known, known.len() - 3, 9)
        }
        // Behind the number, the kind with its length, and the key of `code`.
        LATER_CODE => with_byte(
            &encode(TAG, &refused("rate_limited", Some(Duration::from_secs(60)))),
            6,
            99,
        ),
        _ => panic!("nobody knows {name}"),
    }
}

fn with_byte(frame: &[u8], at: usize, byte: u8) -> Bytes {
    let mut frame = frame.to_vec();
    frame[at] = byte;
    frame.into()
}

fn one_opening(tells_senders: bool) -> Subscribe {
    Subscribe {
        origin: "relay.example".into(),
        openings: vec![derived_opening(tells_senders)],
    }
}

/// The frame with fields that nobody knows yet, four inside the message that begins at `at` and one behind it.
fn later(frame: &[u8], at: usize) -> Bytes {
    let (head, mut message) = frame.split_at(at + 1);
    let length = prost::decode_length_delimiter(&mut message).unwrap();
    assert_eq!(length, message.len());
    // Fields 100 to 103: a number, 8 bytes, bytes, 4 bytes.
    let inside: &[u8] = &[
        0xa0, 6, 1, 0xa9, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0xb2, 6, 2, 9, 9, 0xbd, 6, 1, 2, 3, 4,
    ];
    let mut later = head.to_vec();
    prost::encode_length_delimiter(length + inside.len(), &mut later).unwrap();
    [&later[..], message, inside, &[0xa0, 6, 1]].concat().into()
}

/// The names of the frames in the folder, and of those that the tests ask for.
fn names() -> Vec<String> {
    let ours = requests().into_iter().map(|(name, _)| name);
    let theirs = said().map(|(name, ..)| name);
    let special = ASKED.into_iter().chain(SAID);
    let mut names: Vec<_> = ours
        .chain(theirs)
        .chain(special)
        .map(str::to_owned)
        .collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn full(name: &str) -> String {
    format!("vauchi.relay.v2.{name}")
}

fn schema() -> DescriptorPool {
    let descriptors = include_bytes!(concat!(env!("OUT_DIR"), "/relay.descriptors"));
    DescriptorPool::decode(descriptors.as_slice()).unwrap()
}

/// The frame as text, with the names that the schema gives.
fn readable(name: &str, frame: Bytes) -> String {
    let is_request = ASKED.contains(&name) || requests().iter().any(|(known, _)| *known == name);
    let kind = if is_request {
        "ClientFrame"
    } else {
        "ServerFrame"
    };
    let message = schema().get_message_by_name(&full(kind)).unwrap();
    let message = DynamicMessage::decode(message, frame).unwrap();
    let mut text = format!("{kind} {{\n");
    write_fields(&mut text, &message, 1);
    text.push_str("}\n");
    text
}

fn write_fields(text: &mut String, message: &DynamicMessage, depth: usize) {
    for (field, value) in message.fields() {
        match value {
            Value::List(values) => {
                for value in values {
                    write_field(text, field.name(), &field.kind(), value, depth);
                }
            }
            value => write_field(text, field.name(), &field.kind(), value, depth),
        }
    }
    for field in message.unknown_fields() {
        indent(text, depth);
        writeln!(text, "{}: unknown", field.number()).unwrap();
    }
}

fn write_field(text: &mut String, name: &str, kind: &Kind, value: &Value, depth: usize) {
    indent(text, depth);
    match (kind, value) {
        (_, Value::Message(message)) => {
            writeln!(text, "{name} {{").unwrap();
            write_fields(text, message, depth + 1);
            indent(text, depth);
            text.push_str("}\n");
        }
        (Kind::Enum(names), Value::EnumNumber(number)) => match names.get_value(*number) {
            Some(value) => writeln!(text, "{name}: {}", value.name()).unwrap(),
            None => writeln!(text, "{name}: {number}").unwrap(),
        },
        (_, Value::Bytes(bytes)) => {
            let hex = data_encoding::HEXLOWER.encode(bytes);
            writeln!(text, "{name}: {hex}").unwrap();
        }
        (_, Value::String(string)) => writeln!(text, "{name}: {string:?}").unwrap(),
        (_, Value::Bool(value)) => writeln!(text, "{name}: {value}").unwrap(),
        (_, Value::U32(number)) => writeln!(text, "{name}: {number}").unwrap(),
        (_, Value::U64(number)) => writeln!(text, "{name}: {number}").unwrap(),
        other => panic!("the schema has no {other:?}"),
    }
}

fn indent(text: &mut String, depth: usize) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}
