//! Vauchi's length-prefixed JSON, the client's side: [`encode_request`] what a relay is asked,
//! [`decode_server_frame`] what it says.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;

use super::frame::{Builder, Frame, Payload, room_for_bytes};
use super::message::{HandshakeProof, Tag};
use crate::clock::Timestamp;
use crate::ids::MailboxId;
use crate::protocol::message::BadFrame;

/// What a client asks of a relay.
#[derive(Debug, Clone, Copy)]
pub enum ClientRequest<'a> {
    /// Who is there; the first frame.
    Handshake(&'a ClientHandshake),
    /// Take this blob.
    Submit {
        /// Whose mailbox.
        recipient: MailboxId,
        /// The blob.
        body: &'a [u8],
    },
    /// The delivery with this name has arrived.
    Acknowledge {
        /// The delivery's name, as the relay spelt it.
        delivery: &'a Tag,
    },
}

/// A handshake to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHandshake {
    /// Who is there, and the mailbox to open unless `routing_token` names another.
    pub client_id: MailboxId,
    /// The mailbox to open instead of `client_id`.
    pub routing_token: Option<MailboxId>,
    /// Senders shall get no notice because of this connection.
    pub suppress_presence: bool,
    /// [`HandshakeProof::Unsigned`] or [`HandshakeProof::Signed`].
    pub proof: HandshakeProof,
}

/// A frame from a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// The handshake was accepted.
    HandshakeAck {
        /// The relay's version.
        server_version: String,
        /// What it serves.
        features: Vec<String>,
    },
    /// What became of a request, or a notice about a blob.
    Acknowledgment {
        /// The request's name.
        request: Tag,
        /// What became of it.
        status: Status,
    },
    /// A blob for the client.
    Delivery {
        /// The delivery's name, by which it is acknowledged.
        delivery: Tag,
        /// The blob.
        body: Bytes,
    },
    /// Anything else; a client ignores it.
    Other,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The relay keeps the blob.
    Stored,
    /// A notice: the blob was delivered.
    Delivered,
    /// A notice: the recipient has acknowledged the blob.
    ReceivedByRecipient,
    /// The request was refused.
    Failed {
        /// One word saying why; empty when the relay does not say.
        code: String,
        /// What is wrong and what to do; empty when the relay does not say.
        message: String,
        /// When to try again, if that helps.
        retry_after: Option<Duration>,
    },
}

/// Writes a request with the name `tag`.
pub fn encode_request(tag: &Tag, request: ClientRequest<'_>, now: Timestamp) -> Bytes {
    match request {
        ClientRequest::Handshake(handshake) => encode_handshake(tag, handshake, now),
        ClientRequest::Submit { recipient, body } => Builder::new(
            tag.name(),
            now,
            "EncryptedUpdate",
            128 + room_for_bytes(body),
        )
        .text("recipient_id", &recipient.to_hex())
        .bytes("ciphertext", body)
        .finish(),
        ClientRequest::Acknowledge { delivery } => {
            Builder::new(tag.name(), now, "Acknowledgment", 128)
                .text("message_id", delivery.name())
                .text("status", "ReceivedByRecipient")
                .finish()
        }
    }
}

fn encode_handshake(tag: &Tag, handshake: &ClientHandshake, now: Timestamp) -> Bytes {
    let mut frame = Builder::new(tag.name(), now, "Handshake", 512)
        .text("client_id", &handshake.client_id.to_hex());
    if let Some(token) = handshake.routing_token {
        frame = frame.text("routing_token", &token.to_hex());
    }
    if handshake.suppress_presence {
        frame = frame.raw("suppress_presence", true);
    }
    if let HandshakeProof::Signed {
        public_key,
        nonce,
        timestamp_secs,
        signature,
    } = &handshake.proof
    {
        frame = frame
            .text("identity_public_key", &HEXLOWER.encode(public_key))
            .text("nonce", &HEXLOWER.encode(nonce))
            .text("signature", &HEXLOWER.encode(signature))
            .raw("timestamp", timestamp_secs);
    }
    frame.finish()
}

/// Reads a frame from a relay.
pub fn decode_server_frame(bytes: &[u8]) -> Result<ServerFrame, BadFrame> {
    let mut frame = Frame::default();
    frame.read(bytes).map_err(BadFrame)?;
    let name = frame.message_id.as_deref().map(Tag::new);
    let payload = &mut frame.payload;
    let kind = payload
        .text("type")
        .ok_or(BadFrame("type is missing or not a string"))?;
    match &*kind {
        "HandshakeAck" => Ok(ServerFrame::HandshakeAck {
            server_version: text(payload, "server_version"),
            features: payload.texts("features"),
        }),
        "Acknowledgment" => read_acknowledgment(payload),
        "EncryptedUpdate" => Ok(ServerFrame::Delivery {
            delivery: name.ok_or(BadFrame("message_id of the delivery is missing"))?,
            body: payload
                .take_bytes("ciphertext", "ciphertext is missing")
                .map_err(BadFrame)?,
        }),
        _ => Ok(ServerFrame::Other),
    }
}

fn read_acknowledgment(payload: &Payload<'_>) -> Result<ServerFrame, BadFrame> {
    let request = payload
        .text("message_id")
        .ok_or(BadFrame("message_id of the acknowledgment is missing"))?;
    let status = match payload.text("status").as_deref() {
        Some("Stored") => Status::Stored,
        Some("Delivered") => Status::Delivered,
        Some("ReceivedByRecipient") => Status::ReceivedByRecipient,
        Some("Failed") => Status::Failed {
            code: text(payload, "error"),
            message: text(payload, "message"),
            retry_after: payload.number("retry_after_ms").map(Duration::from_millis),
        },
        _ => return Err(BadFrame("status is unknown")),
    };
    Ok(ServerFrame::Acknowledgment {
        request: Tag::new(&request),
        status,
    })
}

/// A string that a relay may leave out.
fn text(payload: &Payload<'_>, name: &str) -> String {
    payload.text(name).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FEATURES, decode, encode};
    use super::*;
    use crate::protocol::message::Refused;
    use crate::protocol::v1::{Answer, Incoming, Request};

    const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);

    fn name() -> Tag {
        Tag::new("11111111-1111-4111-8111-111111111111")
    }

    fn asked(request: ClientRequest<'_>) -> Request {
        match decode(&encode_request(&name(), request, NOW)) {
            Incoming::Request { tag, request } => {
                assert_eq!(tag, name());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_relay_understands_every_handshake() {
        let token = MailboxId::from_bytes([9; 32]);
        let signed = HandshakeProof::Signed {
            public_key: [1; 32],
            nonce: [2; 32],
            timestamp_secs: 3,
            signature: [4; 64],
        };
        for proof in [HandshakeProof::Unsigned, signed] {
            for routing_token in [None, Some(token)] {
                let sent = ClientHandshake {
                    client_id: MailboxId::from_bytes([0xAB; 32]),
                    routing_token,
                    suppress_presence: routing_token.is_some(),
                    proof: proof.clone(),
                };
                let greeting = encode_request(&name(), ClientRequest::Handshake(&sent), NOW);
                let Incoming::Handshake(read) = decode(&greeting) else {
                    panic!()
                };
                assert_eq!(read.client_id, sent.client_id);
                assert_eq!(read.routing_token, sent.routing_token);
                assert_eq!(read.suppress_presence, sent.suppress_presence);
                assert_eq!(read.proof, sent.proof);
            }
        }
    }

    #[test]
    fn the_client_understands_every_answer() {
        let answer = |answer| {
            let frame = encode(Some(&name()), &answer, NOW);
            decode_server_frame(&frame).unwrap()
        };
        assert_eq!(
            answer(Answer::HandshakeAccepted),
            ServerFrame::HandshakeAck {
                server_version: env!("CARGO_PKG_VERSION").to_owned(),
                features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            }
        );
        let request = name();
        let status = Status::Stored;
        assert_eq!(
            answer(Answer::Stored),
            ServerFrame::Acknowledgment { request, status }
        );
        let refused = Refused {
            code: "quota",
            message: "full".into(),
            retry_after: Some(Duration::from_secs(2)),
        };
        assert_eq!(
            answer(Answer::Refused(refused)),
            ServerFrame::Acknowledgment {
                request: name(),
                status: Status::Failed {
                    code: "quota".to_owned(),
                    message: "full".to_owned(),
                    retry_after: Some(Duration::from_secs(2)),
                },
            }
        );
    }

    proptest! {
        #[test]
        fn garbage_from_a_relay_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_server_frame(&bytes).is_err());
        }

        #[test]
        fn a_submitted_blob_arrives_whole(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let recipient = MailboxId::from_bytes([7; 32]);
            let Request::Submit(read) = asked(ClientRequest::Submit { recipient, body: &body }) else {
                panic!()
            };
            prop_assert_eq!(read.recipient, recipient);
            prop_assert_eq!(&read.body[..], &body[..]);
        }
    }
}
