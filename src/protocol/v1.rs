//! Vauchi's length-prefixed JSON, the relay's side: [`decode`] what clients send, [`encode`] what
//! they get.
//!
//! A frame is 4 bytes of length, big-endian, and one JSON object: `version`, `message_id`,
//! `timestamp`, and a `payload` whose `type` says what it is. Byte strings are arrays of integers, ids
//! are hexadecimal. Fields that we do not know are skipped.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use super::json::Why;
use super::message::{
    Delivery, Handshake, HandshakeProof, Incoming, Outgoing, Refused, Request, Submit, Tag,
};
use super::v1_frame::{Builder, Frame, Payload, message_id_of, room_for_bytes, tag};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId, parse_hex};

/// What the welcome says that this relay serves. A feature is added here when its frames are served,
/// in the order that Vauchi lists them: routing_token, suppress_presence, purge, device_sync,
/// recovery_proof, account_revoked, authenticated_handshake.
pub const FEATURES: &[&str] = &["routing_token", "authenticated_handshake"];

/// The version that the welcome names.
pub const PROTOCOL_VERSION: u8 = super::v1_frame::VERSION;

/// Stands for a request whose name could not be read; one old client can not bear a shorter name.
const UNKNOWN_MESSAGE_ID: &str = "00000000-0000-0000-0000-000000000000";

/// What a frame's `type` means to this relay.
enum Kind {
    Handshake,
    EncryptedUpdate,
    Acknowledgment,
    /// Exists in v1, but nothing is done for it.
    NotServed,
}

/// Every type of v1.
const KINDS: [(&str, Kind); 14] = [
    ("Handshake", Kind::Handshake),
    ("EncryptedUpdate", Kind::EncryptedUpdate),
    ("Acknowledgment", Kind::Acknowledgment),
    // Clients send these; this relay does not serve them yet.
    ("DeviceSyncMessage", Kind::NotServed),
    ("DeviceSyncAck", Kind::NotServed),
    ("RecoveryProofStore", Kind::NotServed),
    ("RecoveryProofQuery", Kind::NotServed),
    ("PurgeRequest", Kind::NotServed),
    ("AccountRevoked", Kind::NotServed),
    // Only a relay sends these.
    ("HandshakeAck", Kind::NotServed),
    ("RecoveryProofResponse", Kind::NotServed),
    ("PurgeResponse", Kind::NotServed),
    ("ForwardingHints", Kind::NotServed),
    // Between relays.
    ("OffloadBlob", Kind::NotServed),
];

/// Reads one frame from a client. Never fails: what can not be read is a value too.
pub fn decode(bytes: &[u8]) -> Incoming {
    let mut frame = Frame::default();
    let outcome = frame
        .read(bytes)
        .and_then(|()| read_request(&mut frame.payload));
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

/// `None`: well formed, but not served.
fn read_request(payload: &mut Payload<'_>) -> Result<Option<Request>, Why> {
    let kind = payload
        .text("type")
        .ok_or("type is missing or not a string")?;
    let kind = KINDS.iter().find(|(name, _)| *name == kind);
    match kind.map(|(_, kind)| kind) {
        Some(Kind::Handshake) => read_handshake(payload).map(Some),
        Some(Kind::EncryptedUpdate) => read_submit(payload).map(Some),
        Some(Kind::Acknowledgment) => read_acknowledgment(payload).map(Some),
        Some(Kind::NotServed) | None => Ok(None),
    }
}

fn read_handshake(payload: &Payload<'_>) -> Result<Request, Why> {
    let client = payload.text("client_id").ok_or("client_id is missing")?;
    let client_id = MailboxId::parse(&client).map_err(|_| "client_id is not 64 hex digits")?;
    let device = optional_id(payload, "device_id", "device_id is not 64 hex digits")?;
    let routing = optional_id(
        payload,
        "routing_token",
        "routing_token is not 64 hex digits",
    )?;
    let (spelt, routing_token) = match routing {
        Some((spelt, id)) => (spelt, Some(id)),
        None => (client, None),
    };
    Ok(Request::Handshake(Box::new(Handshake {
        client_id,
        device_id: device.map(|(_, id)| id),
        routing_token,
        mailbox_as_spelt: spelt.into(),
        suppress_presence: payload
            .flag("suppress_presence")
            .ok_or("suppress_presence is neither true nor false")?,
        proof: read_proof(payload),
    })))
}

fn optional_id<'a>(
    payload: &Payload<'a>,
    name: &str,
    why: Why,
) -> Result<Option<(Cow<'a, str>, MailboxId)>, Why> {
    if !payload.has(name) {
        return Ok(None);
    }
    let spelt = payload.text(name).ok_or(why)?;
    let id = MailboxId::parse(&spelt).map_err(|_| why)?;
    Ok(Some((spelt, id)))
}

fn read_proof(payload: &Payload<'_>) -> HandshakeProof {
    let parts = ["identity_public_key", "nonce", "signature", "timestamp"];
    if !parts.iter().any(|part| payload.has(part)) {
        return HandshakeProof::Unsigned;
    }
    read_signature(payload).unwrap_or(HandshakeProof::Partial)
}

fn read_signature(payload: &Payload<'_>) -> Option<HandshakeProof> {
    Some(HandshakeProof::Signed {
        public_key: parse_hex(&payload.text("identity_public_key")?).ok()?,
        nonce: parse_hex(&payload.text("nonce")?).ok()?,
        timestamp_secs: payload.number("timestamp")?,
        signature: parse_hex(&payload.text("signature")?).ok()?,
    })
}

fn read_submit(payload: &mut Payload<'_>) -> Result<Request, Why> {
    let recipient = payload
        .text("recipient_id")
        .and_then(|spelt| MailboxId::parse(&spelt).ok())
        .ok_or("recipient_id is not 64 hex digits")?;
    let body = payload.take_ciphertext()?;
    Ok(Request::Submit(Submit { recipient, body }))
}

fn read_acknowledgment(payload: &Payload<'_>) -> Result<Request, Why> {
    let blob = payload
        .text("message_id")
        .ok_or("message_id of the acknowledgment is missing")?;
    let status = payload.text("status").ok_or("status is missing")?;
    // Whatever the status, the blob has arrived; but an unknown one may mean something else.
    if !["Stored", "Delivered", "ReceivedByRecipient", "Failed"].contains(&&*status) {
        return Err("status is unknown");
    }
    Ok(Request::Acknowledge(parse_blob_id(&blob)))
}

/// Reads 8-4-4-4-12 digits of either case.
fn parse_blob_id(text: &str) -> Option<BlobId> {
    // Of the spellings that `Uuid` reads, this is the only one of 36 characters.
    if text.len() != 36 {
        return None;
    }
    let uuid = Uuid::try_parse(text).ok()?;
    Some(BlobId::from_bytes(uuid.into_bytes()))
}

/// Writes one frame to a client.
pub fn encode(outgoing: &Outgoing, now: Timestamp) -> Bytes {
    match outgoing {
        Outgoing::Welcome => begin(now, "HandshakeAck", 256)
            .raw("protocol_version", PROTOCOL_VERSION)
            .text("server_version", env!("CARGO_PKG_VERSION"))
            .texts("features", FEATURES)
            .finish(),
        Outgoing::Stored { tag } => acknowledgment(now, &tag.0, "Stored").finish(),
        Outgoing::Refused { tag, refused } => {
            let tag = tag.as_ref().map_or(UNKNOWN_MESSAGE_ID, |tag| &tag.0);
            encode_refused(tag, refused, now)
        }
        Outgoing::Delivery(delivery) => encode_delivery(delivery, now),
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
    let message_id = Uuid::from_bytes(*delivery.id.as_bytes()).to_string();
    let room = 64 + delivery.mailbox_as_spelt.len() + room_for_bytes(&delivery.body);
    Builder::new(&message_id, now, "EncryptedUpdate", room)
        .text("recipient_id", &delivery.mailbox_as_spelt)
        .bytes("ciphertext", &delivery.body)
        .finish()
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "ABcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
    const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_500);

    fn frame(text: &str) -> Vec<u8> {
        let mut frame = (text.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    fn envelope(payload: Value) -> Vec<u8> {
        let whole = json!({"version": 1, "message_id": "m-1", "timestamp": 5, "payload": payload});
        frame(&whole.to_string())
    }

    fn request(payload: Value) -> Request {
        match decode(&envelope(payload)) {
            Incoming::Request { tag, request } => {
                assert_eq!(&*tag.0, "m-1");
                request
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused_because(bytes: &[u8]) -> &'static str {
        match decode(bytes) {
            Incoming::Invalid { tag, why } => {
                assert_eq!(&*tag.0, "m-1");
                why
            }
            other => panic!("{other:?}"),
        }
    }

    fn is_garbage(bytes: &[u8]) -> bool {
        matches!(decode(bytes), Incoming::Garbage { .. })
    }

    fn handshake(payload: Value) -> Handshake {
        match request(payload) {
            Request::Handshake(handshake) => *handshake,
            other => panic!("{other:?}"),
        }
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
    fn a_handshake_opens_the_routing_token_or_else_the_client_id() {
        let plain = handshake(json!({"type": "Handshake", "client_id": ID}));
        assert_eq!(plain.client_id, MailboxId::parse(ID).unwrap());
        assert_eq!(&*plain.mailbox_as_spelt, ID);
        assert_eq!(plain.proof, HandshakeProof::Unsigned);
        assert!(!plain.suppress_presence);

        let token = "Cd".repeat(32);
        let routed = handshake(json!({
            "payload_size": [[{}]], "client_id": ID, "device_id": ID, "routing_token": token,
            "suppress_presence": true, "type": "Handshake",
        }));
        assert_eq!(routed.mailbox(), MailboxId::parse(&token).unwrap());
        assert_eq!(*routed.mailbox_as_spelt, token);
        assert_eq!(routed.device_id, Some(routed.client_id));
        assert!(routed.suppress_presence);
    }

    #[test]
    fn null_is_absent_in_a_handshake() {
        let nothing = json!({
            "type": "Handshake", "client_id": ID, "device_id": null, "routing_token": null,
            "suppress_presence": null, "identity_public_key": null, "nonce": null, "signature": null,
            "timestamp": null,
        });
        assert_eq!(
            handshake(nothing),
            handshake(json!({"type": "Handshake", "client_id": ID}))
        );
    }

    #[test]
    fn a_signature_is_whole_or_partial() {
        let signed = json!({
            "type": "Handshake", "client_id": ID, "identity_public_key": "01".repeat(32),
            "nonce": "02".repeat(32), "signature": "03".repeat(64), "timestamp": 9,
        });
        assert_eq!(
            handshake(signed.clone()).proof,
            HandshakeProof::Signed {
                public_key: [1; 32],
                nonce: [2; 32],
                timestamp_secs: 9,
                signature: [3; 64],
            }
        );
        for part in ["identity_public_key", "nonce", "signature", "timestamp"] {
            for wrong in [json!(null), json!("zz"), json!(-1), json!([1])] {
                let mut broken = signed.clone();
                broken[part] = wrong;
                assert_eq!(handshake(broken).proof, HandshakeProof::Partial, "{part}");
            }
        }
    }

    #[test]
    fn a_bad_id_is_invalid() {
        for wrong in [json!("ab"), json!("zz".repeat(32)), json!(5), json!(["ab"])] {
            for name in ["client_id", "device_id", "routing_token"] {
                let mut payload = json!({"type": "Handshake", "client_id": ID});
                payload[name] = wrong.clone();
                refused_because(&envelope(payload));
            }
            refused_because(&envelope(
                json!({"type": "EncryptedUpdate", "recipient_id": wrong, "ciphertext": [1]}),
            ));
        }
        refused_because(&envelope(json!({"type": "Handshake"})));
        refused_because(&envelope(
            json!({"type": "Handshake", "client_id": ID, "suppress_presence": "yes"}),
        ));
    }

    #[test]
    fn an_update_is_a_submit_whatever_else_old_clients_put_into_it() {
        let update = request(json!({
            "type": "EncryptedUpdate", "recipient_id": ID, "sender_id": "x",
            "ratchet_header": {"ciphertext": [256]}, "ciphertext": [0, 1, 127, 128, 255],
        }));
        let Request::Submit(submit) = update else {
            panic!("{update:?}")
        };
        assert_eq!(submit.recipient, MailboxId::parse(ID).unwrap());
        assert_eq!(submit.body, [0, 1, 127, 128, 255][..]);
        let empty =
            request(json!({"type": "EncryptedUpdate", "recipient_id": ID, "ciphertext": []}));
        assert!(matches!(empty, Request::Submit(submit) if submit.body.is_empty()));
        for wrong in [
            json!(null),
            json!("AAAA"),
            json!([256]),
            json!([1.5]),
            json!([[1]]),
        ] {
            refused_because(&envelope(
                json!({"type": "EncryptedUpdate", "recipient_id": ID, "ciphertext": wrong}),
            ));
        }
        refused_because(&envelope(
            json!({"type": "EncryptedUpdate", "recipient_id": ID}),
        ));
    }

    #[test]
    fn an_acknowledgment_names_a_blob_or_none_that_we_made() {
        let acknowledged = |id: &str, status: &str| {
            decode(&envelope(
                json!({"type": "Acknowledgment", "message_id": id, "status": status}),
            ))
        };
        let expect = |id, blob| {
            for status in ["Stored", "Delivered", "ReceivedByRecipient", "Failed"] {
                let request = Request::Acknowledge(blob);
                let tag = Tag("m-1".into());
                assert_eq!(acknowledged(id, status), Incoming::Request { tag, request });
            }
        };
        let blob = BlobId::from_bytes([0xab; 16]);
        expect("abababab-abab-abab-abab-abababababab", Some(blob));
        expect("ABABABAB-abab-ABAB-abab-abababababab", Some(blob));
        for other in [
            "",
            "abababababababababababababababab",
            "{abababab-abab-abab-abab-abababababab}",
            "abababab-abab-abab-abab-abababababa",
            "abababababab-abab-abab-abab-abababab",
            "gbababab-abab-abab-abab-abababababab",
        ] {
            expect(other, None);
        }
        assert!(matches!(
            acknowledged("x", "Expired"),
            Incoming::Invalid { .. }
        ));
    }

    #[test]
    fn unknown_and_unserved_types_are_ignored() {
        let unserved = KINDS
            .iter()
            .filter(|(_, kind)| matches!(kind, Kind::NotServed))
            .map(|(name, _)| *name);
        for kind in unserved.chain(["", "handshake", "Later"]) {
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
            assert_eq!(&*tag.0, name);
            assert_eq!(tag_of(&frame(&text)), Some(tag.clone()));
            let answer = parsed(&encode(&Outgoing::Stored { tag }, NOW));
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
        assert_eq!(tag_of(&bytes[..60]), Some(Tag("m-1".into())));
        assert_eq!(tag_of(&bytes[..10]), None);
    }

    #[test]
    fn a_refusal_says_what_and_when() {
        let refused = Refused {
            code: "quota",
            message: "the mailbox is \"full\"".into(),
            retry_after: Some(Duration::from_millis(1_500)),
        };
        let tag = Some(Tag("m-1".into()));
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
        fn what_is_delivered_is_what_was_submitted(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            let delivery = Delivery {
                id: BlobId::from_bytes([0xCD; 16]),
                mailbox_as_spelt: ID.into(),
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
