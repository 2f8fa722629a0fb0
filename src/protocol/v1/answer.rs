//! What the relay tells a v1 client: each answer and push as one frame of JSON.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use uuid::Uuid;

use super::frame::{Builder, VERSION, room_for_bytes};
use super::message::{Answer, Delivery, DeviceSyncDelivery, NoticeStatus, Tag};
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::protocol::message::{RecoveryProof, Refused};

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
pub const PROTOCOL_VERSION: u8 = VERSION;

/// Stands for a request whose name could not be read; one old client cannot bear a shorter name.
const UNKNOWN_MESSAGE_ID: &str = "00000000-0000-0000-0000-000000000000";

/// Writes one frame to a client: the answer to the request of this name, `None` when that could not be
/// read. Deliveries have names of their own.
pub fn encode(tag: Option<&Tag>, answer: &Answer, now: Timestamp) -> Bytes {
    let request = tag.map_or(UNKNOWN_MESSAGE_ID, Tag::name);
    match answer {
        Answer::HandshakeAccepted => begin(now, "HandshakeAck", 256)
            .raw("protocol_version", PROTOCOL_VERSION)
            .text("server_version", env!("CARGO_PKG_VERSION"))
            .texts("features", FEATURES)
            .finish(),
        Answer::Stored => acknowledgment(now, request, "Stored").finish(),
        Answer::Refused(refused) => encode_refused(request, refused, now),
        Answer::RecoveryProofs(proofs) => encode_recovery_proofs(proofs, now),
        Answer::Purged {
            blobs_deleted,
            device_sync_deleted,
            recovery_proofs_deleted,
        } => Builder::new(request, now, "PurgeResponse", 256)
            .raw("blobs_deleted", blobs_deleted)
            .raw("device_sync_deleted", device_sync_deleted)
            .raw("recovery_proofs_deleted", recovery_proofs_deleted)
            .finish(),
        Answer::Delivery(delivery) => encode_delivery(delivery, now),
        Answer::DeviceSync(delivery) => encode_device_sync(delivery, now),
        Answer::Notice { blob_id, status } => acknowledgment(now, request, notice_word(*status))
            .text("blob_id", &spell_blob_id(blob_id))
            .finish(),
    }
}

fn encode_refused(request: &str, refused: &Refused, now: Timestamp) -> Bytes {
    let frame = acknowledgment(now, request, "Failed")
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
    // Left out rather than empty: some clients cut it up, others acknowledge what they cannot
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

/// A blob's id as v1 spells it, 8-4-4-4-12 digits; `request` reads it back.
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

    use super::super::decode;
    use super::super::tests::ID;
    use super::*;
    use crate::ids::MailboxId;
    use crate::protocol::v1::{Incoming, Request};

    pub(in crate::protocol) const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_500);

    pub(in crate::protocol) fn parsed(bytes: &[u8]) -> Value {
        let (prefix, body) = bytes.split_first_chunk().unwrap();
        assert_eq!(u32::from_be_bytes(*prefix) as usize, body.len());
        let value: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["timestamp"], 1_795_220_095);
        value
    }

    #[test]
    fn a_refusal_says_what_and_when() {
        let refused = Refused {
            code: "quota",
            message: "the mailbox is \"full\"".into(),
            retry_after: Some(Duration::from_millis(1_500)),
        };
        let refusal = Answer::Refused(refused.clone());
        let answer = parsed(&encode(Some(&Tag::new("m-1")), &refusal, NOW));
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
        let answer = parsed(&encode(None, &Answer::Refused(refused), NOW));
        assert_eq!(answer["payload"]["message_id"], UNKNOWN_MESSAGE_ID);
        assert_eq!(answer["payload"].get("retry_after_ms"), None);
    }

    #[test]
    fn a_notice_names_the_senders_request_and_the_blob() {
        for (status, word) in [
            (NoticeStatus::Delivered, "Delivered"),
            (NoticeStatus::ReceivedByRecipient, "ReceivedByRecipient"),
        ] {
            let notice = Answer::Notice {
                blob_id: BlobId::from_bytes([0xCD; 16]),
                status,
            };
            assert_eq!(
                parsed(&encode(Some(&Tag::new("m-1")), &notice, NOW))["payload"],
                json!({
                    "type": "Acknowledgment", "message_id": "m-1", "status": word,
                    "blob_id": "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd",
                })
            );
        }
    }

    #[test]
    fn a_purge_is_answered_under_its_name() {
        let purged = Answer::Purged {
            blobs_deleted: 1,
            device_sync_deleted: 2,
            recovery_proofs_deleted: 3,
        };
        let answer = parsed(&encode(Some(&Tag::new("m-1")), &purged, NOW));
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
            parsed(&encode(None, &Answer::Delivery(delivery), NOW))["payload"].clone()
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
            let frame = encode(None, &Answer::RecoveryProofs(proofs), NOW);
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
            let bytes = encode(None, &Answer::DeviceSync(delivery.clone()), NOW);
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
            let answer = parsed(&encode(None, &Answer::RecoveryProofs(proofs.clone()), NOW));
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
            let bytes = encode(None, &Answer::Delivery(delivery.clone()), NOW);
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
