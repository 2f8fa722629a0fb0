//! The relay's protocol v2.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use ed25519_dalek::Signer as _;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use vauchi_relay::protocol::v2::message::{Done, Opening, Submit, SubmitTerms, Subscribe, Welcome};
use vauchi_relay::protocol::v2::{Answer, Request, SUBPROTOCOL, Tag};

use super::websocket::WebSocket;
use super::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox, stamp_of};

/// Whether what it submits is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Stored,
    LiveOnly,
}

pub struct V2 {
    socket: WebSocket,
    keep: Keep,
    opens: Option<Mailbox>,
    /// The number of the last request.
    asked: u32,
    /// Submits without an answer, oldest first.
    submitted: VecDeque<Tag>,
    arrived: Vec<(MailboxId, BlobId)>,
    /// Acknowledgements without an answer, and how many blobs each has.
    acknowledged: Vec<(Tag, usize)>,
}

impl V2 {
    pub fn sender(address: SocketAddr, keep: Keep) -> Self {
        Self::new(address, keep, None)
    }

    pub fn recipient(address: SocketAddr, keep: Keep, mailbox: &Mailbox) -> Self {
        Self::new(address, keep, Some(mailbox.clone()))
    }

    fn new(address: SocketAddr, keep: Keep, opens: Option<Mailbox>) -> Self {
        Self {
            socket: WebSocket::new(address.to_string(), Some(SUBPROTOCOL)),
            keep,
            opens,
            asked: 0,
            submitted: VecDeque::new(),
            arrived: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    fn ask(&mut self, request: &Request, out: &mut Vec<u8>) -> Tag {
        self.asked += 1;
        let tag = Tag::new(self.asked).unwrap();
        self.socket.send(&encode_request(Some(tag), request), out);
        tag
    }

    fn hear(
        &mut self,
        answers: Option<Tag>,
        answer: Answer,
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<(), String> {
        match answer {
            Answer::Welcome(welcome) => self.meet(&welcome, out, heard),
            Answer::Subscribed(openings) => match openings[..] {
                [Ok(_)] => heard.push(Heard::Open),
                _ => return Err("the relay did not open the mailbox".to_owned()),
            },
            Answer::Stored {
                duplicate: false, ..
            } if self.keep == Keep::Stored => self.submitted(answers, heard)?,
            Answer::Handed if self.keep == Keep::LiveOnly => self.submitted(answers, heard)?,
            Answer::Blob(delivery) => {
                self.arrived.push((delivery.mailbox, delivery.id));
                heard.push(Heard::Blob(stamp_of(&delivery.body)?));
            }
            Answer::Done(Done::Acknowledged) => {
                let which = |(tag, _): &(Tag, usize)| Some(*tag) == answers;
                let place = self.acknowledged.iter().position(which);
                let place = place.ok_or("an answer to no acknowledgement")?;
                heard.push(Heard::Gone(self.acknowledged.swap_remove(place).1));
            }
            Answer::CaughtUp(_) => {}
            other => return Err(format!("the relay said {other:?}")),
        }
        Ok(())
    }

    /// Answers to submits come in order.
    fn submitted(&mut self, answers: Option<Tag>, heard: &mut Vec<Heard>) -> Result<(), String> {
        if self.submitted.pop_front() != answers {
            return Err("an answer to another submit".to_owned());
        }
        heard.push(Heard::Stored);
        Ok(())
    }

    fn meet(&mut self, welcome: &Welcome, out: &mut Vec<u8>, heard: &mut Vec<Heard>) {
        let Some(mailbox) = &self.opens else {
            heard.push(Heard::Open);
            return;
        };
        let origin: Box<str> = self.socket.host().into();
        let (relay, challenge) = (&welcome.relay_id, &welcome.challenge);
        let signed = proof::v2_subscribe(relay, challenge, &origin, &mailbox.id);
        let key = mailbox.key.as_ref().unwrap();
        let opening = Opening {
            mailbox: mailbox.id,
            signature: Some(key.sign(&signed).to_bytes()),
            // Without it nothing comes that is not stored.
            tells_senders: self.keep == Keep::LiveOnly,
            no_pin: true,
        };
        let openings = vec![opening];
        self.ask(&Request::Subscribe(Subscribe { origin, openings }), out);
    }
}

impl Dialect for V2 {
    fn greet(&mut self, out: &mut Vec<u8>) {
        self.socket.upgrade(out);
    }

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>) {
        let mut blob = Vec::with_capacity(body.len());
        body.write(&mut blob);
        let submit = Submit {
            recipient: to.id,
            id: BlobId::from_bytes(rand::random()),
            terms: SubmitTerms {
                live_only: self.keep == Keep::LiveOnly,
                ..SubmitTerms::default()
            },
            body: Bytes::from(blob),
        };
        let tag = self.ask(&Request::Submit(submit), out);
        self.submitted.push_back(tag);
    }

    fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some(message) = self.socket.next(input, &mut used, out)? {
            let frame = decode_server_frame(&Bytes::copy_from_slice(message));
            match frame.map_err(|bad| bad.to_string())? {
                ServerFrame::Known { answers, answer } => self.hear(answers, answer, out, heard)?,
                ServerFrame::Unknown { .. } => return Err("a frame of a later version".to_owned()),
            }
        }
        Ok(used)
    }

    /// In one frame, as the client library does.
    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        let arrived = std::mem::take(&mut self.arrived);
        // A frame may have a thousand.
        for items in arrived.chunks(1_000) {
            let tag = self.ask(&Request::Acknowledge(items.to_vec()), out);
            self.acknowledged.push((tag, items.len()));
        }
    }
}
