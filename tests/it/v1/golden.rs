//! Frames captured between a client and a Vauchi relay 1.1.0, against our codec in both directions.

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::RecoveryProof;
use vauchi_relay::protocol::v1::client::{
    ClientHandshake, ClientRequest, ServerFrame, Status, decode_server_frame, encode_request,
};
use vauchi_relay::protocol::v1::message::{
    Delivery, DeviceSync, DeviceSyncDelivery, Handshake, HandshakeProof, NoticeStatus, Submit,
};
use vauchi_relay::protocol::v1::{self, Answer, FEATURES, Incoming, Request, Tag};

const HANDSHAKE: &[u8] = include_bytes!("../../fixtures/v1/1_handshake.bin");
const HANDSHAKE_ACK: &[u8] = include_bytes!("../../fixtures/v1/2_handshake_ack.bin");
const UPDATE: &[u8] = include_bytes!("../../fixtures/v1/3_update.bin");
const STORED: &[u8] = include_bytes!("../../fixtures/v1/4_stored.bin");
const DELIVERY: &[u8] = include_bytes!("../../fixtures/v1/5_delivery.bin");
const DELIVERED_NOTICE: &[u8] = include_bytes!("../../fixtures/v1/6_delivered_notice.bin");
const ACKNOWLEDGMENT: &[u8] = include_bytes!("../../fixtures/v1/7_acknowledgment.bin");
const DEVICE_SYNC: &[u8] = include_bytes!("../../fixtures/v1/8_device_sync.bin");
const RECOVERY_PROOFS: &[u8] = include_bytes!("../../fixtures/v1/9_recovery_proofs.bin");
const PURGED: &[u8] = include_bytes!("../../fixtures/v1/10_purged.bin");

const CLIENT: &str = "2cac68133203c91499233559341e200b260e78d7e95a750794e5f88119e791d3";
const RECIPIENT: &str = "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c";
const BODY: [u8; 5] = [0, 1, 127, 128, 255];
const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);
const A_SECOND_LATER: Timestamp = Timestamp::from_millis(1_795_220_096_000);
const BLOB: BlobId = BlobId::from_bytes([
    0x26, 0xfa, 0x8c, 0x15, 0x4b, 0x15, 0x4f, 0xc7, 0x9e, 0x12, 0x16, 0x76, 0xf8, 0x3b, 0xe1, 0x52,
]);
const BLOB_AS_SPELT: &str = "26fa8c15-4b15-4fc7-9e12-1676f83be152";

fn mailbox(hex: &str) -> MailboxId {
    MailboxId::parse(hex).unwrap()
}

fn tag(name: &str) -> Tag {
    Tag::new(name)
}

/// The frame with `from` replaced by `to` in its text and the prefix set right.
fn replaced(frame: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(&frame[4..]).unwrap();
    assert!(text.contains(from), "{from}");
    let text = text.replace(from, to);
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// The name in the envelope, which is the first one.
fn message_id(frame: &[u8]) -> String {
    let text = std::str::from_utf8(&frame[4..]).unwrap();
    text.split('"').nth(5).unwrap().to_owned()
}

#[test]
fn handshake() {
    let name = tag("11111111-1111-4111-8111-111111111111");
    let read = Incoming::Handshake(Box::new(Handshake {
        client_id: mailbox(CLIENT),
        client_as_spelt: CLIENT.into(),
        device_id: None,
        device_as_spelt: None,
        routing_token: None,
        mailbox_as_spelt: CLIENT.into(),
        suppress_presence: false,
        proof: HandshakeProof::Unsigned,
    }));
    assert_eq!(v1::decode(HANDSHAKE), read);

    let handshake = ClientHandshake {
        client_id: mailbox(CLIENT),
        routing_token: None,
        suppress_presence: false,
        proof: HandshakeProof::Unsigned,
    };
    let written = encode_request(&name, ClientRequest::Handshake(&handshake), NOW);
    assert_eq!(written, HANDSHAKE);
}

#[test]
fn handshake_ack() {
    let theirs = "\"routing_token\",\"suppress_presence\",\"purge\",\"device_sync\",\"recovery_proof\",\
                  \"account_revoked\",\"forwarding_hints\",\"authenticated_handshake\"";
    let ours: Vec<String> = FEATURES.iter().map(|name| format!("\"{name}\"")).collect();
    let written = v1::encode(None, &Answer::HandshakeAccepted, NOW);
    let golden = replaced(HANDSHAKE_ACK, theirs, &ours.join(","));
    let golden = replaced(&golden, "1.1.0", env!("CARGO_PKG_VERSION"));
    let golden = replaced(&golden, &message_id(&golden), &message_id(&written));
    assert_eq!(written, golden);

    let Ok(ServerFrame::HandshakeAck {
        server_version,
        features,
    }) = decode_server_frame(HANDSHAKE_ACK)
    else {
        panic!()
    };
    assert_eq!(server_version, "1.1.0");
    assert_eq!(features.len(), 8);
}

#[test]
fn update() {
    let name = tag("22222222-2222-4222-8222-222222222222");
    let recipient = mailbox(RECIPIENT);
    let read = Incoming::Request {
        tag: name.clone(),
        request: Request::Submit(Submit {
            recipient,
            sender_id: None,
            body: BODY.to_vec().into(),
        }),
    };
    assert_eq!(v1::decode(UPDATE), read);

    let submit = ClientRequest::Submit {
        recipient,
        body: &BODY,
    };
    assert_eq!(encode_request(&name, submit, NOW), UPDATE);
}

#[test]
fn stored() {
    let request = tag("22222222-2222-4222-8222-222222222222");
    let written = v1::encode(Some(&request), &Answer::Stored, NOW);
    assert_eq!(
        written,
        replaced(STORED, &message_id(STORED), &message_id(&written))
    );

    let status = Status::Stored;
    assert_eq!(
        decode_server_frame(STORED),
        Ok(ServerFrame::Acknowledgment { request, status })
    );
}

#[test]
fn delivery() {
    let delivery = Delivery {
        id: BLOB,
        mailbox_as_spelt: RECIPIENT.into(),
        sender_id: None,
        body: BODY.to_vec().into(),
    };
    assert_eq!(v1::encode(None, &Answer::Delivery(delivery), NOW), DELIVERY);

    let delivery = tag(BLOB_AS_SPELT);
    let body = BODY.to_vec().into();
    assert_eq!(
        decode_server_frame(DELIVERY),
        Ok(ServerFrame::Delivery {
            delivery: delivery.clone(),
            body
        })
    );
}

#[test]
fn delivery_with_a_sender_id_is_read_by_clients_that_need_it() {
    let update = replaced(
        UPDATE,
        ",\"ciphertext\"",
        &format!(",\"sender_id\":\"{CLIENT}\",\"ciphertext\""),
    );
    let Incoming::Request {
        request: Request::Submit(submit),
        ..
    } = v1::decode(&update)
    else {
        panic!()
    };
    let delivery = Delivery {
        id: BLOB,
        mailbox_as_spelt: RECIPIENT.into(),
        sender_id: submit.sender_id,
        body: submit.body,
    };
    assert_eq!(
        v1::encode(None, &Answer::Delivery(delivery), NOW),
        replaced(&update, &message_id(&update), BLOB_AS_SPELT)
    );
}

/// Vauchi's relay names the blob, which the sender was never told. Ours names the sender's request,
/// and the blob beside it.
#[test]
fn delivered_notice() {
    let request = tag("22222222-2222-4222-8222-222222222222");
    let notice = Answer::Notice {
        blob_id: BLOB,
        status: NoticeStatus::Delivered,
    };
    let written = v1::encode(Some(&request), &notice, NOW);
    let golden = replaced(DELIVERED_NOTICE, BLOB_AS_SPELT, request.name());
    let golden = replaced(
        &golden,
        "\"Delivered\"",
        &format!("\"Delivered\",\"blob_id\":\"{BLOB_AS_SPELT}\""),
    );
    let golden = replaced(&golden, &message_id(&golden), &message_id(&written));
    assert_eq!(written, golden);

    for (frame, named) in [(DELIVERED_NOTICE, tag(BLOB_AS_SPELT)), (&written, request)] {
        assert_eq!(
            decode_server_frame(frame),
            Ok(ServerFrame::Acknowledgment {
                request: named,
                status: Status::Delivered
            })
        );
    }
}

#[test]
fn acknowledgment() {
    let name = tag("44444444-4444-4444-8444-444444444444");
    let read = Incoming::Request {
        tag: name.clone(),
        request: Request::Acknowledge(BLOB),
    };
    assert_eq!(v1::decode(ACKNOWLEDGMENT), read);

    let delivery = &tag(BLOB_AS_SPELT);
    let acknowledge = ClientRequest::Acknowledge { delivery };
    assert_eq!(encode_request(&name, acknowledge, NOW), ACKNOWLEDGMENT);
}

#[test]
fn device_sync() {
    let read = Incoming::Request {
        tag: tag("55555555-5555-4555-8555-555555555555"),
        request: Request::DeviceSync(DeviceSync {
            identity: mailbox(RECIPIENT),
            target_device: MailboxId::from_bytes([0xd1; 32]),
            sender_device: "d2".repeat(32).into(),
            version: 3,
            body: vec![9, 8].into(),
        }),
    };
    assert_eq!(v1::decode(DEVICE_SYNC), read);

    // The other device gets the same fields under the blob's id.
    let delivery = DeviceSyncDelivery {
        id: BLOB,
        identity_as_spelt: RECIPIENT.into(),
        target_as_spelt: "d1".repeat(32).into(),
        sender_device: "d2".repeat(32).into(),
        version: 3,
        body: vec![9, 8].into(),
    };
    assert_eq!(
        v1::encode(None, &Answer::DeviceSync(delivery), A_SECOND_LATER),
        replaced(DEVICE_SYNC, &message_id(DEVICE_SYNC), BLOB_AS_SPELT)
    );
}

#[test]
fn recovery_proofs() {
    let proofs = vec![RecoveryProof {
        key_hash: [0xab; 32],
        proof: vec![1, 2].into(),
    }];
    let written = v1::encode(None, &Answer::RecoveryProofs(proofs), A_SECOND_LATER);
    let name = message_id(RECOVERY_PROOFS);
    assert_eq!(
        written,
        replaced(RECOVERY_PROOFS, &name, &message_id(&written))
    );
    // Only a relay sends this.
    assert_eq!(v1::decode(RECOVERY_PROOFS), Incoming::Ignored);
}

#[test]
fn purged() {
    let request = tag("99999999-9999-4999-8999-999999999999");
    let purged = Answer::Purged {
        blobs_deleted: 0,
        device_sync_deleted: 1,
        recovery_proofs_deleted: 1,
    };
    let written = v1::encode(Some(&request), &purged, A_SECOND_LATER);
    assert_eq!(written, PURGED);
    // Only a relay sends this.
    assert_eq!(v1::decode(PURGED), Incoming::Ignored);
}

/// The fields as Vauchi's relay writes them; not captured.
#[test]
fn a_revoked_account_arrives_as_the_frame_that_was_sent() {
    let signature: Vec<String> = (0..64).map(|n| (n * 4).to_string()).collect();
    let text = format!(
        "{{\"version\":1,\"message_id\":\"77777777-7777-4777-8777-777777777777\",\
         \"timestamp\":1795220095,\"payload\":{{\"type\":\"AccountRevoked\",\
         \"sender_id\":\"{CLIENT}\",\"recipient_id\":\"{RECIPIENT}\",\
         \"timestamp\":1795220094,\"signature\":[{}]}}}}",
        signature.join(",")
    );
    let sent = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let Incoming::Request {
        request: Request::AccountRevoked(revoked),
        ..
    } = v1::decode(&sent)
    else {
        panic!()
    };
    assert_eq!(revoked.recipient, mailbox(RECIPIENT));
    assert_eq!(revoked.frame, sent);

    let delivery = Delivery {
        id: BLOB,
        mailbox_as_spelt: RECIPIENT.into(),
        sender_id: None,
        body: revoked.frame,
    };
    let delivered = v1::encode(None, &Answer::Delivery(delivery), NOW);
    let Ok(ServerFrame::Delivery { body, .. }) = decode_server_frame(&delivered) else {
        panic!()
    };
    assert_eq!(body, sent);
}
