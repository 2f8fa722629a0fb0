//! What a client's frame asks: its payload, already taken apart, as a [`Request`].
//!
//! What has the wrong shape is refused and never guessed; what Vauchi's relay accepts from its own
//! clients is accepted.

use std::sync::Arc;

use uuid::Uuid;

use super::frame::{Builder, Frame, Payload, TEXT_BYTES_MAX, room_for_bytes};
use super::json::Why;
use super::message::{
    AccountRevoked, DeviceSync, Handshake, HandshakeProof, Purge, Request, Submit,
};
use crate::ids::{BlobId, MailboxId, parse_hex};
use crate::protocol::message::{RECOVERY_HASHES_MAX, RecoveryProof, RecoveryQuery};

/// What a frame's `type` means to this relay.
enum Kind {
    Handshake,
    EncryptedUpdate,
    Acknowledgment,
    DeviceSyncMessage,
    DeviceSyncAck,
    RecoveryProofStore,
    RecoveryProofQuery,
    PurgeRequest,
    AccountRevoked,
    /// Exists in v1, but nothing is done for it.
    NotServed,
}

/// Every type of v1.
const KINDS: [(&str, Kind); 14] = [
    ("Handshake", Kind::Handshake),
    ("EncryptedUpdate", Kind::EncryptedUpdate),
    ("Acknowledgment", Kind::Acknowledgment),
    ("DeviceSyncMessage", Kind::DeviceSyncMessage),
    ("DeviceSyncAck", Kind::DeviceSyncAck),
    ("RecoveryProofStore", Kind::RecoveryProofStore),
    ("RecoveryProofQuery", Kind::RecoveryProofQuery),
    ("PurgeRequest", Kind::PurgeRequest),
    ("AccountRevoked", Kind::AccountRevoked),
    // Only a relay sends these.
    ("HandshakeAck", Kind::NotServed),
    ("RecoveryProofResponse", Kind::NotServed),
    ("PurgeResponse", Kind::NotServed),
    ("ForwardingHints", Kind::NotServed),
    // Between relays.
    ("OffloadBlob", Kind::NotServed),
];

/// What a whole frame asks.
pub(super) enum Asked {
    Handshake(Box<Handshake>),
    Request(Request),
}

/// Reads what a whole frame asks. `None`: well formed, and nothing is done for it.
pub(super) fn read(frame: &mut Frame<'_>) -> Result<Option<Asked>, Why> {
    let payload = &mut frame.payload;
    let kind = payload
        .text("type")
        .ok_or("type is missing or not a string")?;
    let kind = KINDS.iter().find(|(name, _)| *name == kind);
    let request = match kind.map_or(&Kind::NotServed, |(_, kind)| kind) {
        Kind::Handshake => return read_handshake(payload).map(Some),
        Kind::EncryptedUpdate => read_submit(payload),
        Kind::Acknowledgment => {
            let blob = read_acknowledgment(payload)?;
            return Ok(blob.map(Request::Acknowledge).map(Asked::Request));
        }
        Kind::DeviceSyncMessage => read_device_sync(payload),
        Kind::DeviceSyncAck => {
            let blob = read_device_sync_acknowledgment(payload)?;
            return Ok(blob.map(Request::DeviceSyncAcknowledge).map(Asked::Request));
        }
        Kind::RecoveryProofStore => read_recovery_store(payload),
        Kind::RecoveryProofQuery => read_recovery_query(payload),
        Kind::PurgeRequest => read_purge(payload),
        Kind::AccountRevoked => read_account_revoked(frame),
        Kind::NotServed => return Ok(None),
    };
    Ok(Some(Asked::Request(request?)))
}

fn read_handshake(payload: &Payload<'_>) -> Result<Asked, Why> {
    // A connection that begins with one of these faults ends with these words alone, so they say
    // which frame they are about.
    const CLIENT: Why = "the Handshake's client_id is not 64 hex digits";
    const DEVICE: Why = "the Handshake's device_id is not 64 hex digits";
    const ROUTING: Why = "the Handshake's routing_token is not 64 hex digits";
    let client = payload.text("client_id").ok_or(CLIENT)?;
    let client_id = MailboxId::parse(&client).map_err(|_| CLIENT)?;
    let device = optional_id(payload, "device_id", DEVICE)?;
    let routing = optional_id(payload, "routing_token", ROUTING)?;
    let client_as_spelt: Arc<str> = client.into();
    let (device_as_spelt, device_id) = device.unzip();
    let (mailbox_as_spelt, routing_token) = match routing {
        Some((spelt, id)) => (spelt, Some(id)),
        None => (Arc::clone(&client_as_spelt), None),
    };
    Ok(Asked::Handshake(Box::new(Handshake {
        client_id,
        client_as_spelt,
        device_id,
        device_as_spelt,
        routing_token,
        mailbox_as_spelt,
        suppress_presence: payload
            .flag("suppress_presence")
            .ok_or("the Handshake's suppress_presence is neither true nor false")?,
        proof: read_proof(payload),
    })))
}

/// An id and its spelling.
fn optional_id(
    payload: &Payload<'_>,
    name: &str,
    why: Why,
) -> Result<Option<(Arc<str>, MailboxId)>, Why> {
    if !payload.has(name) {
        return Ok(None);
    }
    let spelt = payload.text(name).ok_or(why)?;
    let id = MailboxId::parse(&spelt).map_err(|_| why)?;
    Ok(Some((spelt.into(), id)))
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
    Ok(Request::Submit(Submit {
        recipient: read_recipient(payload)?,
        sender_id: read_sender_id(payload),
        body: payload.take_bytes("ciphertext", "ciphertext is missing")?,
    }))
}

fn read_recipient(payload: &Payload<'_>) -> Result<MailboxId, Why> {
    read_id(payload, "recipient_id").ok_or("recipient_id is not 64 hex digits")
}

fn read_id(payload: &Payload<'_>, name: &str) -> Option<MailboxId> {
    MailboxId::parse(&payload.text(name)?).ok()
}

/// A `sender_id` of any other shape is none: newer relays do not look at it, so it is no reason to
/// refuse a blob.
fn read_sender_id(payload: &Payload<'_>) -> Option<Box<str>> {
    let sender_id = payload.text("sender_id")?;
    (1..=TEXT_BYTES_MAX)
        .contains(&sender_id.len())
        .then(|| sender_id.into())
}

/// The blob that has arrived; `None` when its id is none that a relay ever made.
fn read_acknowledgment(payload: &Payload<'_>) -> Result<Option<BlobId>, Why> {
    let blob = payload
        .text("message_id")
        .ok_or("message_id of the acknowledgment is missing")?;
    let status = payload.text("status").ok_or("status is missing")?;
    // Whatever the status, the blob has arrived; but an unknown one may mean something else.
    if !["Stored", "Delivered", "ReceivedByRecipient", "Failed"].contains(&&*status) {
        return Err("status is unknown");
    }
    Ok(parse_blob_id(&blob))
}

fn read_device_sync(payload: &mut Payload<'_>) -> Result<Request, Why> {
    let identity = read_id(payload, "identity_id").ok_or("identity_id is not 64 hex digits")?;
    // Only a handshake's device_id, 64 digits, ever fetches it.
    let target_device =
        read_id(payload, "target_device_id").ok_or("target_device_id is not 64 hex digits")?;
    let sender_device = payload
        .text("sender_device_id")
        .filter(|device| device.len() <= TEXT_BYTES_MAX)
        .ok_or("sender_device_id is not a string of at most 1024 bytes")?;
    Ok(Request::DeviceSync(DeviceSync {
        identity,
        target_device,
        sender_device: sender_device.into(),
        version: payload
            .number("version")
            .ok_or("version is not an unsigned number")?,
        body: payload.take_bytes("encrypted_payload", "encrypted_payload is missing")?,
    }))
}

fn read_device_sync_acknowledgment(payload: &Payload<'_>) -> Result<Option<BlobId>, Why> {
    let blob = payload
        .text("message_id")
        .ok_or("message_id of the acknowledgment is missing")?;
    // Required as by the relays that clients know; the blob's id says all.
    payload
        .number("synced_version")
        .ok_or("synced_version is not an unsigned number")?;
    Ok(parse_blob_id(&blob))
}

fn read_recovery_store(payload: &mut Payload<'_>) -> Result<Request, Why> {
    let key_hash = payload
        .text("key_hash")
        .and_then(|text| parse_hex(&text).ok())
        .ok_or("key_hash is not 64 hex digits")?;
    let proof = payload.take_bytes("proof_data", "proof_data is missing")?;
    Ok(Request::RecoveryStore(RecoveryProof { key_hash, proof }))
}

fn read_recovery_query(payload: &Payload<'_>) -> Result<Request, Why> {
    let mut key_hashes = Vec::new();
    payload
        .each_text("key_hashes", |text| {
            let Ok(key_hash) = parse_hex(text) else {
                return;
            };
            if key_hashes.len() < RECOVERY_HASHES_MAX && !key_hashes.contains(&key_hash) {
                key_hashes.push(key_hash);
            }
        })
        .ok_or("key_hashes is not a list of strings")?;
    Ok(Request::RecoveryQuery(RecoveryQuery { key_hashes }))
}

fn read_purge(payload: &Payload<'_>) -> Result<Request, Why> {
    let flag = |name, why| payload.flag(name).ok_or(why);
    let device_sync = flag(
        "include_device_sync",
        "include_device_sync is neither true nor false",
    )?;
    let with_recovery = flag(
        "include_recovery_proofs",
        "include_recovery_proofs is neither true nor false",
    )?;
    // Without a hash there is no proof to delete, and without the flag the hash says nothing.
    let recovery = if with_recovery && payload.has("recovery_key_hash") {
        let hash = payload
            .text("recovery_key_hash")
            .and_then(|text| parse_hex(&text).ok())
            .ok_or("recovery_key_hash is not 64 hex digits")?;
        Some(hash)
    } else {
        None
    };
    Ok(Request::Purge(Purge {
        device_sync,
        recovery,
    }))
}

/// The frame is written anew from what was understood, so that its recipient gets nothing else.
fn read_account_revoked(frame: &Frame<'_>) -> Result<Request, Why> {
    let payload = &frame.payload;
    let recipient = read_recipient(payload)?;
    let sender_id = payload
        .text("sender_id")
        .filter(|sender| sender.len() <= TEXT_BYTES_MAX)
        .ok_or("sender_id is not a string of at most 1024 bytes")?;
    let recipient_id = payload.text("recipient_id").unwrap_or_default();
    let timestamp = payload
        .number("timestamp")
        .ok_or("timestamp of the payload is not an unsigned number")?;
    let signature = payload
        .bytes("signature")
        .ok_or("signature is not an array of integers from 0 to 255")?;
    let room = 256 + sender_id.len() + room_for_bytes(&signature);
    let again = Builder::dated(
        frame.message_id.as_deref().unwrap_or_default(),
        frame.timestamp.unwrap_or_default(),
        "AccountRevoked",
        room,
    )
    .text("sender_id", &sender_id)
    .text("recipient_id", &recipient_id)
    .raw("timestamp", timestamp)
    .bytes("signature", &signature);
    Ok(Request::AccountRevoked(AccountRevoked {
        recipient,
        frame: again.finish(),
    }))
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

/// The names of every type.
#[cfg(test)]
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// The names of those types for which nothing is done.
#[cfg(test)]
pub(super) fn not_served() -> impl Iterator<Item = &'static str> {
    KINDS
        .iter()
        .filter(|(_, kind)| matches!(kind, Kind::NotServed))
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::decode;
    use super::super::tests::{ID, envelope, frame, refused_because, request};
    use super::*;
    use crate::protocol::v1::{Incoming, Tag};

    fn handshake(payload: Value) -> Handshake {
        match decode(&envelope(payload)) {
            Incoming::Handshake(handshake) => *handshake,
            other => panic!("{other:?}"),
        }
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
        assert_eq!(&*routed.client_as_spelt, ID);
        assert_eq!(routed.device_as_spelt.as_deref(), Some(ID));
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
        assert_eq!(submit.sender_id.as_deref(), Some("x"));
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
        let expect = |id, expected: Incoming| {
            for status in ["Stored", "Delivered", "ReceivedByRecipient", "Failed"] {
                assert_eq!(acknowledged(id, status), expected);
            }
        };
        let blob = Incoming::Request {
            tag: Tag::new("m-1"),
            request: Request::Acknowledge(BlobId::from_bytes([0xab; 16])),
        };
        expect("abababab-abab-abab-abab-abababababab", blob.clone());
        expect("ABABABAB-abab-ABAB-abab-abababababab", blob);
        for other in [
            "",
            "abababababababababababababababab",
            "{abababab-abab-abab-abab-abababababab}",
            "abababab-abab-abab-abab-abababababa",
            "abababababab-abab-abab-abab-abababab",
            "gbababab-abab-abab-abab-abababababab",
        ] {
            expect(other, Incoming::Ignored);
        }
        let unnamed = r#"{"version":1,"timestamp":5,"payload":{"type":"Acknowledgment","message_id":"x","status":"Stored"}}"#;
        assert!(matches!(decode(&frame(unnamed)), Incoming::Garbage { .. }));
        assert!(matches!(
            acknowledged("x", "Expired"),
            Incoming::Invalid { .. }
        ));
    }

    #[test]
    fn a_sender_id_of_another_shape_is_none_and_the_blob_is_taken() {
        let sender_id = |value: Value| {
            let update = json!({
                "type": "EncryptedUpdate", "recipient_id": ID, "sender_id": value, "ciphertext": [1],
            });
            match request(update) {
                Request::Submit(submit) => submit.sender_id,
                other => panic!("{other:?}"),
            }
        };
        let longest = "x".repeat(TEXT_BYTES_MAX);
        for text in ["a", ID, "\u{e9} \"quoted\"\n", &longest] {
            assert_eq!(sender_id(json!(text)).as_deref(), Some(text));
        }
        let too_long = longest + "x";
        for none in [
            json!(null),
            json!(""),
            json!(7),
            json!([ID]),
            json!(too_long),
        ] {
            assert_eq!(sender_id(none), None);
        }
    }

    fn device_sync() -> Value {
        json!({
            "type": "DeviceSyncMessage", "identity_id": ID, "target_device_id": "d1".repeat(32),
            "sender_device_id": "any text", "encrypted_payload": [9, 8], "version": u64::MAX,
        })
    }

    #[test]
    fn a_device_hands_in_for_another() {
        let Request::DeviceSync(sync) = request(device_sync()) else {
            panic!()
        };
        assert_eq!(sync.identity, MailboxId::parse(ID).unwrap());
        assert_eq!(sync.target_device, MailboxId::from_bytes([0xd1; 32]));
        assert_eq!(&*sync.sender_device, "any text");
        assert_eq!(sync.version, u64::MAX);
        assert_eq!(sync.body, [9, 8][..]);
    }

    /// `payload` with each wrong value for the field is refused, and so it is without the field.
    fn needs(payload: &Value, field: &str, wrong: &[Value]) {
        for value in wrong.iter().chain([&json!(null)]) {
            let mut broken = payload.clone();
            broken[field] = value.clone();
            refused_because(&envelope(broken));
        }
        let mut broken = payload.clone();
        broken.as_object_mut().unwrap().remove(field);
        refused_because(&envelope(broken));
    }

    #[test]
    fn a_device_that_no_handshake_can_name_is_no_target() {
        let not_ids = [json!("laptop"), json!(""), json!("zz".repeat(32)), json!(7)];
        needs(&device_sync(), "identity_id", &not_ids);
        needs(&device_sync(), "target_device_id", &not_ids);
        let too_long = json!("x".repeat(TEXT_BYTES_MAX + 1));
        needs(&device_sync(), "sender_device_id", &[json!(7), too_long]);
        needs(
            &device_sync(),
            "encrypted_payload",
            &[json!("AAAA"), json!([256])],
        );
        let not_counts = [json!(-1), json!(1.5), json!("1"), json!(1e30)];
        needs(&device_sync(), "version", &not_counts);
    }

    #[test]
    fn a_device_acknowledges_a_blob_or_none_that_we_made() {
        let acknowledged =
            |id: &str| json!({"type": "DeviceSyncAck", "message_id": id, "synced_version": 3});
        let blob = "abababab-abab-abab-abab-abababababab";
        assert_eq!(
            request(acknowledged(blob)),
            Request::DeviceSyncAcknowledge(BlobId::from_bytes([0xab; 16]))
        );
        assert_eq!(decode(&envelope(acknowledged("m-1"))), Incoming::Ignored);
        needs(&acknowledged(blob), "message_id", &[json!(7)]);
        needs(
            &acknowledged(blob),
            "synced_version",
            &[json!(-1), json!("3")],
        );
    }

    #[test]
    fn a_recovery_proof_is_kept_under_a_hash() {
        let store = json!({"type": "RecoveryProofStore", "key_hash": ID, "proof_data": [1, 2]});
        let Request::RecoveryStore(stored) = request(store.clone()) else {
            panic!()
        };
        assert_eq!(stored.key_hash, parse_hex(ID).unwrap());
        assert_eq!(stored.proof, [1, 2][..]);
        needs(&store, "key_hash", &[json!("ab"), json!(7), json!([1])]);
        needs(
            &store,
            "proof_data",
            &[json!("AAAA"), json!([256]), json!({})],
        );
    }

    fn recovery_query(key_hashes: &[String]) -> RecoveryQuery {
        match request(json!({"type": "RecoveryProofQuery", "key_hashes": key_hashes})) {
            Request::RecoveryQuery(query) => query,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_keeps_what_is_a_hash_each_once_and_fifty_of_them() {
        let hash = |n: usize| format!("{n:064x}");
        let some = [hash(1), "ab".to_owned(), hash(2), hash(1), String::new()];
        let query = recovery_query(&some);
        assert_eq!(
            query.key_hashes,
            [1, 2].map(|n| parse_hex(&hash(n)).unwrap())
        );

        let fifty: Vec<String> = (0..50).map(hash).collect();
        let all = recovery_query(&fifty);
        assert_eq!(all.key_hashes.len(), RECOVERY_HASHES_MAX);
        for more in [&fifty[..], &[hash(50)]] {
            let query = recovery_query(&[&fifty[..], more].concat());
            assert_eq!(query, all);
        }

        let none = json!({"type": "RecoveryProofQuery", "key_hashes": []});
        needs(
            &none,
            "key_hashes",
            &[json!("ab"), json!([7]), json!({}), json!([["ab"]])],
        );
        assert!(
            matches!(request(none), Request::RecoveryQuery(query) if query.key_hashes.is_empty())
        );
    }

    #[test]
    fn a_purge_says_what_goes_beside_the_blobs() {
        let purge = |fields: Value| {
            let mut payload = fields;
            payload["type"] = json!("PurgeRequest");
            payload
        };
        let read = |fields: Value| match request(purge(fields)) {
            Request::Purge(purge) => (purge.device_sync, purge.recovery),
            other => panic!("{other:?}"),
        };
        let hash = parse_hex(ID).ok();
        assert_eq!(read(json!({})), (false, None));
        assert_eq!(read(json!({"include_device_sync": true})), (true, None));
        let with = json!({"include_recovery_proofs": true, "recovery_key_hash": ID});
        assert_eq!(read(with), (false, hash));
        // The flag and the hash say something only together.
        assert_eq!(
            read(json!({"include_recovery_proofs": true})),
            (false, None)
        );
        assert_eq!(read(json!({"recovery_key_hash": "ab"})), (false, None));
        for wrong in [
            json!({"include_device_sync": "yes"}),
            json!({"include_recovery_proofs": 1}),
            json!({"include_recovery_proofs": true, "recovery_key_hash": "ab"}),
        ] {
            refused_because(&envelope(purge(wrong)));
        }
    }

    #[test]
    fn word_of_a_revoked_account_is_written_anew() {
        let revoked = json!({
            "type": "AccountRevoked", "sender_id": "any \"text\"", "recipient_id": ID,
            "timestamp": 7, "signature": [1, 2], "other": [[]],
        });
        let Request::AccountRevoked(read) = request(revoked.clone()) else {
            panic!()
        };
        assert_eq!(read.recipient, MailboxId::parse(ID).unwrap());
        let (prefix, text) = read.frame.split_first_chunk().unwrap();
        assert_eq!(u32::from_be_bytes(*prefix) as usize, text.len());
        let mut payload = revoked.clone();
        payload.as_object_mut().unwrap().remove("other");
        assert_eq!(
            serde_json::from_slice::<Value>(text).unwrap(),
            json!({"version": 1, "message_id": "m-1", "timestamp": 5, "payload": payload})
        );
        let too_long = json!("x".repeat(TEXT_BYTES_MAX + 1));
        needs(&revoked, "sender_id", &[json!(7), too_long]);
        needs(&revoked, "recipient_id", &[json!("ab"), json!(7)]);
        needs(&revoked, "timestamp", &[json!(-1), json!("7")]);
        needs(&revoked, "signature", &[json!("ab"), json!([256])]);
    }

    #[test]
    fn debug_prints_nothing_of_what_a_client_sent() {
        let sync = request(device_sync());
        let store =
            json!({"type": "RecoveryProofStore", "key_hash": "77".repeat(32), "proof_data": [77]});
        let purge = json!({
            "type": "PurgeRequest", "include_recovery_proofs": true, "recovery_key_hash": "77".repeat(32),
        });
        let query = recovery_query(&["77".repeat(32)]);
        let printed = format!(
            "{sync:?} {:?} {:?} {query:?}",
            request(store),
            request(purge)
        );
        assert!(
            !printed.contains("any text") && !printed.contains("77"),
            "{printed}"
        );
        assert!(!printed.contains("119"), "{printed}");
    }
}
