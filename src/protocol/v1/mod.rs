//! Vauchi's length-prefixed JSON, the relay's side: [`decode`] what clients send, [`encode`] what
//! they get.
//!
//! A frame is 4 bytes of length, big-endian, and one JSON object: `version`, `message_id`,
//! `timestamp`, and a `payload` whose `type` says what it is. Byte strings are arrays of integers, ids
//! are hexadecimal. Fields that we do not know are skipped.
//!
//! - [`message`]: what the two say to each other, as values
//! - `request`: what each of a client's frames asks; `answer`: how the relay's are written
//! - [`client`]: the client's side
//! - `frame`: what both sides share; `json`, `int_array`: how frames are read and written without a
//!   general parser

mod answer;
pub mod client;
mod frame;
mod int_array;
mod json;
pub mod message;
mod request;

pub use self::answer::{FEATURES, PROTOCOL_VERSION, encode, proofs_that_fit};
use self::frame::{Frame, message_id_of};
pub use self::message::{Answer, Incoming, Request, Tag};
use self::request::Asked;

/// Reads one frame from a client. Never fails: what cannot be read is a value too.
pub fn decode(bytes: &[u8]) -> Incoming {
    let mut frame = Frame::default();
    let outcome = frame.read(bytes).and_then(|()| request::read(&mut frame));
    match (outcome, frame.message_id.as_deref()) {
        (Ok(None), _) => Incoming::Ignored,
        (Ok(Some(Asked::Handshake(handshake))), _) => Incoming::Handshake(handshake),
        (Ok(Some(Asked::Request(request))), Some(message_id)) => Incoming::Request {
            tag: Tag::new(message_id),
            request,
        },
        (Ok(Some(Asked::Request(_))), None) => Incoming::Garbage {
            why: "message_id is missing",
        },
        (Err(why), message_id) => {
            // The fault may stand before the name.
            match message_id.map(Tag::new).or_else(|| tag_of(bytes)) {
                Some(tag) => Incoming::Invalid { tag, why },
                None => Incoming::Garbage { why },
            }
        }
    }
}

/// The name of a frame that is too large to be read whole; stops at the name, which clients write
/// near the beginning.
pub fn tag_of(frame: &[u8]) -> Option<Tag> {
    message_id_of(frame).as_deref().map(Tag::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::answer::tests::{NOW, parsed};
    use super::*;

    pub(in crate::protocol) const ID: &str =
        "ABcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";

    pub(in crate::protocol) fn frame(text: &str) -> Vec<u8> {
        let mut frame = (text.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    pub(in crate::protocol) fn envelope(payload: Value) -> Vec<u8> {
        let whole = json!({"version": 1, "message_id": "m-1", "timestamp": 5, "payload": payload});
        frame(&whole.to_string())
    }

    pub(in crate::protocol) fn request(payload: Value) -> Request {
        match decode(&envelope(payload)) {
            Incoming::Request { tag, request } => {
                assert_eq!(tag.name(), "m-1");
                request
            }
            other => panic!("{other:?}"),
        }
    }

    pub(in crate::protocol) fn refused_because(bytes: &[u8]) -> &'static str {
        match decode(bytes) {
            Incoming::Invalid { tag, why } => {
                assert_eq!(tag.name(), "m-1");
                why
            }
            other => panic!("{other:?}"),
        }
    }

    /// Names of fields, of every shape.
    const NAMES: [&str; 14] = [
        "client_id",
        "recipient_id",
        "sender_id",
        "ciphertext",
        "identity_id",
        "target_device_id",
        "sender_device_id",
        "encrypted_payload",
        "version",
        "key_hash",
        "key_hashes",
        "proof_data",
        "recovery_key_hash",
        "include_recovery_proofs",
    ];

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|flag| json!(flag)),
            any::<i64>().prop_map(|number| json!(number)),
            any::<String>().prop_map(|text| json!(text)),
            Just(json!(ID)),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| json!(bytes)),
            Just(json!([ID, "zz", ID])),
            Just(json!([[ID], 7])),
        ]
    }

    fn is_garbage(bytes: &[u8]) -> bool {
        matches!(decode(bytes), Incoming::Garbage { .. })
    }

    #[test]
    fn unknown_and_unserved_types_are_ignored() {
        for kind in request::not_served().chain(["", "handshake", "Later"]) {
            let bytes =
                envelope(json!({"type": kind, "ciphertext": {"any": "shape"}, "client_id": 7}));
            assert_eq!(decode(&bytes), Incoming::Ignored, "{kind}");
        }
        refused_because(&envelope(json!({"Handshake": {}})));
        refused_because(&envelope(json!({"type": 7})));
        refused_because(&envelope(json!([])));
    }

    #[test]
    fn the_envelope_must_be_whole() {
        let whole = r#"{"version":7,"message_id":"m-1","timestamp":5,"payload":{"type":"X"}}"#;
        assert_eq!(decode(&frame(whole)), Incoming::Ignored);
        for (from, to) in [
            ("7", "-1"),
            ("7", "256"),
            ("7", "\"1\""),
            ("\"version\":7,", ""),
            ("5", "-5"),
            ("5", "5.0"),
            ("\"timestamp\":5,", ""),
            (",\"payload\":{\"type\":\"X\"}", ""),
            ("{\"type\":\"X\"}", "null"),
            ("}}", "}"),
            ("}}", "}} x"),
            ("5,", "5,\"timestamp\":6,"),
        ] {
            refused_because(&frame(&whole.replacen(from, to, 1)));
        }
        for (from, to) in [
            ("\"m-1\"", "7"),
            ("\"m-1\"", "null"),
            ("\"message_id\":\"m-1\",", ""),
            ("{\"version\"", "{\"version"),
        ] {
            assert!(is_garbage(&frame(&whole.replacen(from, to, 1))), "{to}");
        }
        // The name comes after the fault.
        refused_because(&frame(
            r#"{"version":-1,"payload":[],"timestamp":5,"message_id":"m-1"}"#,
        ));
    }

    #[test]
    fn the_length_prefix_must_be_right() {
        let mut bytes = envelope(json!({"type": "X"}));
        bytes[3] ^= 1;
        assert_eq!(
            refused_because(&bytes),
            "the length prefix does not match the frame"
        );
        for short in [&[][..], &[0], &[0, 0, 0], &[0, 0, 0, 0], b"\0\0\0\x02{}"] {
            assert!(is_garbage(short), "{short:?}");
        }
        assert!(is_garbage(b"\0\0\0\x01\xff"));
    }

    #[test]
    fn deep_nesting_is_an_answer_not_a_crash() {
        let deep = "[".repeat(400_000) + &"]".repeat(400_000);
        let text = format!(
            r#"{{"version":1,"message_id":"m-1","timestamp":5,"payload":{{"type":"X","x":{deep}}}}}"#
        );
        refused_because(&frame(&text));
        let text = format!(r#"{{"x":{deep},"message_id":"m-1"}}"#);
        assert!(is_garbage(&frame(&text)));
    }

    #[test]
    fn a_name_is_kept_as_it_is_and_bounded() {
        for name in ["", "a", "ü\"\\\n\u{1}", &"x".repeat(1024)] {
            let text =
                json!({"version": 1, "message_id": name, "timestamp": 5, "payload": 0}).to_string();
            let Incoming::Invalid { tag, .. } = decode(&frame(&text)) else {
                panic!("{name}")
            };
            assert_eq!(tag.name(), name);
            assert_eq!(tag_of(&frame(&text)), Some(tag.clone()));
            let answer = parsed(&encode(Some(&tag), &Answer::Stored, NOW));
            assert_eq!(answer["payload"]["message_id"], name);
        }
        let long = json!({"message_id": "x".repeat(1025)}).to_string();
        assert!(is_garbage(&frame(&long)));
        assert_eq!(tag_of(&frame(&long)), None);
    }

    #[test]
    fn the_name_of_a_cut_frame_can_be_read() {
        let bytes = envelope(json!({"type": "EncryptedUpdate", "ciphertext": vec![7; 99]}));
        // serde_json sorts the keys, so the name stands first.
        assert_eq!(tag_of(&bytes[..60]), Some(Tag::new("m-1")));
        assert_eq!(tag_of(&bytes[..10]), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
            tag_of(&bytes);
        }

        #[test]
        fn a_damaged_frame_never_panics(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = envelope(json!({
                "type": "EncryptedUpdate", "recipient_id": ID, "ciphertext": [0, 10, 200, 255],
                "signature": "ab", "other": [{"a": "\u{e9}\n"}, 1.5e3, null],
            }));
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            decode(&bytes);
            tag_of(&bytes);
        }

        #[test]
        fn any_payload_under_any_type_never_panics(
            kind in prop::sample::select(request::kinds().collect::<Vec<_>>()),
            fields in proptest::collection::btree_map(
                prop::sample::select(NAMES.to_vec()), any_value(), 0..8),
        ) {
            let mut payload = json!({"type": kind});
            for (name, value) in fields {
                payload[name] = value;
            }
            let read = decode(&envelope(payload));
            prop_assert!(!matches!(read, Incoming::Garbage { .. }), "it has a name");
        }
    }
}
