//! Frames captured between a client and a Vauchi relay 1.1.0, against our codec in both directions.

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{
    Delivery, Handshake, HandshakeProof, Incoming, Outgoing, Request, Submit, Tag,
};
use vauchi_relay::protocol::v1::{self, FEATURES};
use vauchi_relay::protocol::v1_client::{
    ClientHandshake, ClientRequest, ServerFrame, Status, decode_server_frame, encode_request,
};

const HANDSHAKE: &[u8] = include_bytes!("../fixtures/v1/1_handshake.bin");
const HANDSHAKE_ACK: &[u8] = include_bytes!("../fixtures/v1/2_handshake_ack.bin");
const UPDATE: &[u8] = include_bytes!("../fixtures/v1/3_update.bin");
const STORED: &[u8] = include_bytes!("../fixtures/v1/4_stored.bin");
const DELIVERY: &[u8] = include_bytes!("../fixtures/v1/5_delivery.bin");

const CLIENT: &str = "2cac68133203c91499233559341e200b260e78d7e95a750794e5f88119e791d3";
const RECIPIENT: &str = "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c";
const BODY: [u8; 5] = [0, 1, 127, 128, 255];
const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);

fn mailbox(hex: &str) -> MailboxId {
    MailboxId::parse(hex).unwrap()
}

fn tag(name: &str) -> Tag {
    Tag(name.into())
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
    let request = Request::Handshake(Box::new(Handshake {
        client_id: mailbox(CLIENT),
        client_as_spelt: CLIENT.into(),
        device_id: None,
        device_as_spelt: None,
        routing_token: None,
        mailbox_as_spelt: CLIENT.into(),
        suppress_presence: false,
        proof: HandshakeProof::Unsigned,
    }));
    let read = Incoming::Request {
        tag: name.clone(),
        request,
    };
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
    let written = v1::encode(&Outgoing::Welcome, NOW);
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
    let written = v1::encode(
        &Outgoing::Stored {
            tag: request.clone(),
        },
        NOW,
    );
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
    let id = BlobId::from_bytes([
        0x26, 0xfa, 0x8c, 0x15, 0x4b, 0x15, 0x4f, 0xc7, 0x9e, 0x12, 0x16, 0x76, 0xf8, 0x3b, 0xe1,
        0x52,
    ]);
    let delivery = Delivery {
        id,
        mailbox_as_spelt: RECIPIENT.into(),
        sender_id: None,
        body: BODY.to_vec().into(),
    };
    assert_eq!(v1::encode(&Outgoing::Delivery(delivery), NOW), DELIVERY);

    let delivery = tag("26fa8c15-4b15-4fc7-9e12-1676f83be152");
    let body = BODY.to_vec().into();
    assert_eq!(
        decode_server_frame(DELIVERY),
        Ok(ServerFrame::Delivery {
            delivery: delivery.clone(),
            body
        })
    );

    // What the client then acknowledges is the blob that was delivered.
    let acknowledge = ClientRequest::Acknowledge {
        delivery: &delivery,
    };
    let written = encode_request(&tag("a"), acknowledge, NOW);
    assert_eq!(
        v1::decode(&written),
        Incoming::Request {
            tag: tag("a"),
            request: Request::Acknowledge(Some(id))
        }
    );
}
