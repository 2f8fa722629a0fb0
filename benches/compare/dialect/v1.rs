//! The relay's protocol v1, a sender's side.

use std::collections::VecDeque;
use std::net::SocketAddr;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::MailboxId;
use vauchi_relay::protocol::v1::Tag;
use vauchi_relay::protocol::v1::client::{
    ClientHandshake, ClientRequest, ServerFrame, Status, decode_server_frame, encode_request,
};
use vauchi_relay::protocol::v1::message::HandshakeProof;

use super::websocket::WebSocket;
use super::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox};

const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);

pub struct V1 {
    socket: WebSocket,
    number: usize,
    asked: usize,
    /// Submits without an answer, oldest first.
    submitted: VecDeque<Tag>,
}

impl V1 {
    pub fn sender(address: SocketAddr, number: usize) -> Self {
        Self {
            socket: WebSocket::new(address.to_string(), None),
            number,
            asked: 0,
            submitted: VecDeque::new(),
        }
    }

    fn name(&mut self) -> Tag {
        self.asked += 1;
        let (number, asked) = (self.number, self.asked);
        Tag::new(&format!("22222222-2222-4222-{number:04}-{asked:012}"))
    }
}

impl Dialect for V1 {
    /// The handshake may follow the upgrade at once.
    fn greet(&mut self, out: &mut Vec<u8>) {
        self.socket.upgrade(out);
        let handshake = ClientHandshake {
            client_id: MailboxId::from_bytes([self.number as u8; 32]),
            routing_token: None,
            // v2 has no notices; receipts are asked for.
            suppress_presence: true,
            proof: HandshakeProof::Unsigned,
        };
        let request = ClientRequest::Handshake(&handshake);
        let frame = encode_request(&self.name(), request, NOW);
        self.socket.send(&frame, out);
    }

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>) {
        let mut blob = Vec::with_capacity(body.len());
        body.write(&mut blob);
        let name = self.name();
        let submit = ClientRequest::Submit {
            recipient: to.id,
            body: &blob,
        };
        self.socket.send(&encode_request(&name, submit, NOW), out);
        self.submitted.push_back(name);
    }

    fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some(message) = self.socket.next(input, &mut used, out)? {
            match decode_server_frame(message).map_err(|bad| bad.to_string())? {
                ServerFrame::HandshakeAck { .. } => heard.push(Heard::Open),
                ServerFrame::Acknowledgment {
                    request,
                    status: Status::Stored,
                } if self.submitted.pop_front().as_ref() == Some(&request) => {
                    heard.push(Heard::Stored)
                }
                other => return Err(format!("the relay said {other:?}")),
            }
        }
        Ok(used)
    }

    fn acknowledge(&mut self, _out: &mut Vec<u8>) {}
}
