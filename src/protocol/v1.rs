//! Vauchi's length-prefixed JSON, the relay's side: [`decode`] what clients send, [`encode`] what
//! they get.
//!
//! A frame is 4 bytes of length, big-endian, and one JSON object: `version`, `message_id`,
//! `timestamp`, and a `payload` whose `type` says what it is. Byte strings are arrays of integers, ids
//! are hexadecimal. Fields that we do not know are skipped.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use uuid::Uuid;

use super::message::{
    Delivery, DeviceSyncDelivery, Incoming, NoticeStatus, Outgoing, RecoveryProof, Refused, Tag,
};
use super::v1_frame::{Builder, Frame, message_id_of, room_for_bytes, tag};
use super::v1_request;
use crate::clock::Timestamp;
use crate::ids::BlobId;

/// What the welcome says that this relay serves, in the order that Vauchi lists it. A feature is
/// added when the session serves what it stands for; reading its frames is not enough.
pub const FEATURES: &[&str] = &[
    "routing_token",
    "suppress_presence",
    "purge",
    "device_sync",
    "recovery_proof",
    "account_revoked",
    "authenticated_handshake",
];

/// The version that the welcome names.
pub const PROTOCOL_VERSION: u8 = super::v1_frame::VERSION;

/// Stands for a request whose name could not be read; one old client can not bear a shorter name.
const UNKNOWN_MESSAGE_ID: &str = "00000000-0000-0000-0000-000000000000";

/// Reads one frame from a client. Never fails: what can not be read is a value too.
pub fn decode(bytes: &[u8]) -> Incoming {
    let mut frame = Frame::default();
    let outcome = frame
        .read(bytes)
        .and_then(|()| v1_request::read(&mut frame));
    match (outcome, frame.message_id.as_deref()) {
        (Ok(None), _) => Incoming::Ignored,
        (Ok(Some(request)), Some(message_id)) => Incoming::Request {
            tag: tag(message_id),
            request,
        },
        (Ok(Some(_)), None) => Incoming::Garbage {
            why: "message_id is missing",
        },
        (Err(why), message_id) => {
            // The fault may stand before the name.
            match message_id.map(tag).or_else(|| tag_of(bytes)) {
                Some(tag) => Incoming::Invalid { tag, why },
                None => Incoming::Garbage { why },
            }
        }
    }
}

/// The name of a frame that is too large to be read whole; stops at the name, which clients write
/// near the beginning.
pub fn tag_of(frame: &[u8]) -> Option<Tag> {
    message_id_of(frame).as_deref().map(tag)
}

/// Writes one frame to a client.
pub fn encode(outgoing: &Outgoing, now: Timestamp) -> Bytes {
    match outgoing {
        Outgoing::HandshakeAccepted => begin(now, "HandshakeAck", 256)
            .raw("protocol_version", PROTOCOL_VERSION)
            .text("server_version", env!("CARGO_PKG_VERSION"))
            .texts("features", FEATURES)
            .finish(),
        Outgoing::Stored { tag, .. } | Outgoing::RecoveryKept { tag, .. } => {
            acknowledgment(now, tag.name(), "Stored").finish()
        }
        Outgoing::Refused { tag, refused } => {
            let tag = tag.as_ref().map_or(UNKNOWN_MESSAGE_ID, Tag::name);
            encode_refused(tag, refused, now)
        }
        Outgoing::Delivery(delivery) => encode_delivery(delivery, now),
        Outgoing::DeviceSync(delivery) => encode_device_sync(delivery, now),
        Outgoing::Notice {
            tag,
            blob_id,
            status,
        } => acknowledgment(now, tag.name(), notice_word(*status))
            .text("blob_id", &spell_blob_id(blob_id))
            .finish(),
        Outgoing::RecoveryProofs { proofs } => encode_recovery_proofs(proofs, now),
        Outgoing::Purged {
            tag,
            blobs_deleted,
            device_sync_deleted,
            recovery_proofs_deleted,
        } => Builder::new(tag.name(), now, "PurgeResponse", 256)
            .raw("blobs_deleted", blobs_deleted)
            .raw("device_sync_deleted", device_sync_deleted)
            .raw("recovery_proofs_deleted", recovery_proofs_deleted)
            .finish(),
        // A v1 session makes none of these; a frame of a type that v1 clients pass over, if one did.
        Outgoing::Welcome { .. }
        | Outgoing::Handed { .. }
        | Outgoing::Subscribed { .. }
        | Outgoing::Windowed { .. }
        | Outgoing::Done { .. }
        | Outgoing::PurgedMailboxes { .. }
        | Outgoing::RecoveryFound { .. }
        | Outgoing::Blob(_)
        | Outgoing::Receipt(_)
        | Outgoing::CaughtUp { .. }
        | Outgoing::GoAway(_) => begin(now, "Unknown", 256).finish(),
    }
}

fn encode_refused(tag: &str, refused: &Refused, now: Timestamp) -> Bytes {
    let frame = acknowledgment(now, tag, "Failed")
        .text("error", refused.code)
        .text("message", &refused.message);
    match refused.retry_after {
        Some(after) => frame.raw("retry_after_ms", after.as_millis()).finish(),
        None => frame.finish(),
    }
}

fn encode_delivery(delivery: &Delivery, now: Timestamp) -> Bytes {
    let sender_bytes = delivery.sender_id.as_ref().map_or(0, |id| 16 + id.len());
    let room = 64 + delivery.mailbox_as_spelt.len() + sender_bytes + room_for_bytes(&delivery.body);
    let mut frame = Builder::new(&spell_blob_id(&delivery.id), now, "EncryptedUpdate", room)
        .text("recipient_id", &delivery.mailbox_as_spelt);
    // Left out rather than empty: some clients cut it up, others acknowledge what they can not
    // attribute, which would destroy the only copy.
    if let Some(sender_id) = &delivery.sender_id {
        frame = frame.text("sender_id", sender_id);
    }
    frame.bytes("ciphertext", &delivery.body).finish()
}

fn encode_device_sync(delivery: &DeviceSyncDelivery, now: Timestamp) -> Bytes {
    let room = 384 + delivery.sender_device.len() + room_for_bytes(&delivery.body);
    Builder::new(&spell_blob_id(&delivery.id), now, "DeviceSyncMessage", room)
        .text("identity_id", &delivery.identity_as_spelt)
        .text("target_device_id", &delivery.target_as_spelt)
        .text("sender_device_id", &delivery.sender_device)
        .bytes("encrypted_payload", &delivery.body)
        .raw("version", delivery.version)
        .finish()
}

fn encode_recovery_proofs(proofs: &[RecoveryProof], now: Timestamp) -> Bytes {
    let room = 64 + proofs.iter().map(room_for_proof).sum::<usize>();
    begin(now, "RecoveryProofResponse", room)
        .objects("proofs", proofs, |object, proof| {
            object
                .text("key_hash", &HEXLOWER.encode(&proof.key_hash))
                .bytes("proof_data", &proof.proof)
        })
        .finish()
}

/// How many of `proofs`, from the first on, fit into one answer of at most `frame_bytes_max`.
pub fn proofs_that_fit(proofs: &[RecoveryProof], frame_bytes_max: usize) -> usize {
    // The envelope with a name of 36 characters, and the empty list.
    let mut left = frame_bytes_max.saturating_sub(256);
    proofs
        .iter()
        .take_while(|proof| match left.checked_sub(room_for_proof(proof)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .count()
}

fn room_for_proof(proof: &RecoveryProof) -> usize {
    // `{"key_hash":"…64…","proof_data":…},` is 94 bytes beside the proof.
    96 + room_for_bytes(&proof.proof)
}

fn notice_word(status: NoticeStatus) -> &'static str {
    match status {
        NoticeStatus::Delivered => "Delivered",
        NoticeStatus::ReceivedByRecipient => "ReceivedByRecipient",
    }
}

/// A blob's id as v1 spells it, 8-4-4-4-12 digits; `v1_request` reads it back.
fn spell_blob_id(id: &BlobId) -> String {
    Uuid::from_bytes(*id.as_bytes()).to_string()
}

fn acknowledgment(now: Timestamp, request: &str, status: &str) -> Builder {
    begin(now, "Acknowledgment", 256 + request.len())
        .text("message_id", request)
        .text("status", status)
}

/// A frame with a name of its own, which nobody refers to.
fn begin(now: Timestamp, kind: &str, room: usize) -> Builder {
    Builder::new(&Uuid::new_v4().to_string(), now, kind, room)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::message::Request;
    use super::*;
    use crate::ids::MailboxId;

    pub(in crate::protocol) const ID: &str =
        "ABcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
    const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_500);

    fn frame(text: &str) -> Vec<u8> {
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

    fn parsed(bytes: &[u8]) -> Value {
        let (prefix, body) = bytes.split_first_chunk().unwrap();
        assert_eq!(u32::from_be_bytes(*prefix) as usize, body.len());
        let value: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["timestamp"], 1_795_220_095);
        value
    }

    #[test]
    fn unknown_and_unserved_types_are_ignored() {
        for kind in v1_request::not_served().chain(["", "handshake", "Later"]) {
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
            let answer = parsed(&encode(
                &Outgoing::Stored {
                    tag,
                    expires_at: Timestamp::default(),
                    duplicate: false,
                },
                NOW,
            ));
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
        assert_eq!(tag_of(&bytes[..60]), Some(Tag::Name("m-1".into())));
        assert_eq!(tag_of(&bytes[..10]), None);
    }

    #[test]
    fn a_refusal_says_what_and_when() {
        let refused = Refused {
            code: "quota",
            message: "the mailbox is \"full\"".into(),
            retry_after: Some(Duration::from_millis(1_500)),
        };
        let tag = Some(Tag::Name("m-1".into()));
        let answer = parsed(&encode(
            &Outgoing::Refused {
                tag,
                refused: refused.clone(),
            },
            NOW,
        ));
        assert_eq!(
            answer["payload"],
            json!({
                "type": "Acknowledgment", "message_id": "m-1", "status": "Failed", "error": "quota",
                "message": "the mailbox is \"full\"", "retry_after_ms": 1500,
            })
        );
        let refused = Refused {
            retry_after: None,
            ..refused
        };
        let answer = parsed(&encode(&Outgoing::Refused { tag: None, refused }, NOW));
        assert_eq!(answer["payload"]["message_id"], UNKNOWN_MESSAGE_ID);
        assert_eq!(answer["payload"].get("retry_after_ms"), None);
    }

    #[test]
    fn a_notice_names_the_senders_request_and_the_blob() {
        for (status, word) in [
            (NoticeStatus::Delivered, "Delivered"),
            (NoticeStatus::ReceivedByRecipient, "ReceivedByRecipient"),
        ] {
            let notice = Outgoing::Notice {
                tag: Tag::Name("m-1".into()),
                blob_id: BlobId::from_bytes([0xCD; 16]),
                status,
            };
            assert_eq!(
                parsed(&encode(&notice, NOW))["payload"],
                json!({
                    "type": "Acknowledgment", "message_id": "m-1", "status": word,
                    "blob_id": "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd",
                })
            );
        }
    }

    #[test]
    fn a_purge_is_answered_under_its_name() {
        let purged = Outgoing::Purged {
            tag: Tag::Name("m-1".into()),
            blobs_deleted: 1,
            device_sync_deleted: 2,
            recovery_proofs_deleted: 3,
        };
        let answer = parsed(&encode(&purged, NOW));
        assert_eq!(answer["message_id"], "m-1");
        assert_eq!(
            answer["payload"],
            json!({
                "type": "PurgeResponse", "blobs_deleted": 1, "device_sync_deleted": 2,
                "recovery_proofs_deleted": 3,
            })
        );
    }

    #[test]
    fn a_delivery_names_the_sender_that_the_submit_named_or_nobody() {
        let delivered = |sender_id: Option<&str>| {
            let delivery = Delivery {
                id: BlobId::from_bytes([1; 16]),
                mailbox_as_spelt: ID.into(),
                sender_id: sender_id.map(Into::into),
                body: Bytes::from_static(&[1]),
            };
            parsed(&encode(&Outgoing::Delivery(delivery), NOW))["payload"].clone()
        };
        assert_eq!(delivered(None).get("sender_id"), None);
        assert_eq!(delivered(Some("a \"b\"\n"))["sender_id"], "a \"b\"\n");
    }

    fn proofs(lengths: &[usize]) -> Vec<RecoveryProof> {
        let proof = |length: &usize| RecoveryProof {
            key_hash: [0xAB; 32],
            proof: vec![200; *length].into(),
        };
        lengths.iter().map(proof).collect()
    }

    #[test]
    fn as_many_proofs_as_fit_are_in_an_answer() {
        let all = proofs(&[0, 1, 1_000, 10]);
        for bytes_max in [0, 255, 256, 400, 1_000, 4_000, 4_500, 5_000, 10_000] {
            let fitting = proofs_that_fit(&all, bytes_max);
            let proofs = all[..fitting].to_vec();
            let frame = encode(&Outgoing::RecoveryProofs { proofs }, NOW);
            assert!(fitting == 0 || frame.len() <= bytes_max, "{bytes_max}");
        }
        assert_eq!(proofs_that_fit(&all, 256), 0);
        assert_eq!(proofs_that_fit(&all, 1_000), 2);
        assert_eq!(proofs_that_fit(&all, 10_000), 4);
    }

    #[test]
    fn a_delivery_is_allocated_once() {
        for length in [0, 1, 1_000] {
            let body = vec![200; length];
            let room = 64 + 64 + room_for_bytes(&body);
            let built = Builder::new(UNKNOWN_MESSAGE_ID, NOW, "EncryptedUpdate", room);
            let before = built.capacity();
            let built = built.text("recipient_id", ID).bytes("ciphertext", &body);
            assert_eq!(built.capacity(), before);
        }
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
            kind in prop::sample::select(v1_request::kinds().collect::<Vec<_>>()),
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

        #[test]
        fn what_one_device_gets_is_what_the_other_handed_in(
            body in proptest::collection::vec(any::<u8>(), 0..600),
            sender_device in any::<String>(),
            version in any::<u64>(),
        ) {
            let delivery = DeviceSyncDelivery {
                id: BlobId::from_bytes([0xCD; 16]),
                identity_as_spelt: ID.into(),
                target_as_spelt: ID.to_lowercase().into(),
                sender_device: sender_device.into(),
                version,
                body: body.into(),
            };
            let bytes = encode(&Outgoing::DeviceSync(delivery.clone()), NOW);
            // A delivery has the form of a request.
            let Incoming::Request { tag, request: Request::DeviceSync(sync) } = decode(&bytes) else {
                panic!()
            };
            prop_assert_eq!(tag.name(), "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd");
            prop_assert_eq!(sync.identity, MailboxId::parse(ID).unwrap());
            prop_assert_eq!(sync.target_device, sync.identity);
            prop_assert_eq!(sync.sender_device, delivery.sender_device);
            prop_assert_eq!(sync.version, version);
            prop_assert_eq!(sync.body, delivery.body);
        }

        #[test]
        fn found_proofs_are_told_whole(lengths in proptest::collection::vec(0usize..200, 0..5)) {
            let proofs = proofs(&lengths);
            let answer = parsed(&encode(&Outgoing::RecoveryProofs { proofs: proofs.clone() }, NOW));
            let told: Vec<Value> = proofs
                .iter()
                .map(|found| json!({"key_hash": "ab".repeat(32), "proof_data": found.proof.to_vec()}))
                .collect();
            prop_assert_eq!(&answer["payload"], &json!({"type": "RecoveryProofResponse", "proofs": told}));
        }

        #[test]
        fn what_is_delivered_is_what_was_submitted(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            let delivery = Delivery {
                id: BlobId::from_bytes([0xCD; 16]),
                mailbox_as_spelt: ID.into(),
                sender_id: None,
                body: body.into(),
            };
            let bytes = encode(&Outgoing::Delivery(delivery.clone()), NOW);
            let value = parsed(&bytes);
            prop_assert_eq!(&value["message_id"], "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd");
            prop_assert_eq!(&value["payload"], &json!({
                "type": "EncryptedUpdate", "recipient_id": ID, "ciphertext": delivery.body.to_vec(),
            }));
            // A delivery has the form of a submit.
            let Incoming::Request { request: Request::Submit(submit), .. } = decode(&bytes) else {
                panic!()
            };
            prop_assert_eq!(submit.body, delivery.body);
        }
    }
}
