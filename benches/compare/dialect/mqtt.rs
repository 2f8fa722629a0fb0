//! MQTT 3.1.1 with QoS 1: a mailbox is a topic, with one persistent session that subscribes to it.

use super::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox, stamp_of};

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xC0;
const PINGRESP: u8 = 0xD0;
const DISCONNECT: u8 = 0xE0;
const QOS_1: u8 = 0x02;

pub struct Mqtt {
    client: String,
    opens: Option<String>,
    /// The number of the last PUBLISH, and of the last that was answered.
    sent: u16,
    answered: u16,
    arrived: Vec<u16>,
    /// Acknowledged since the last answer to a PINGREQ.
    acknowledged: usize,
}

impl Mqtt {
    /// Its session ends with the connection.
    pub fn sender(number: usize) -> Self {
        Self::new(format!("sender-{number}"), None)
    }

    /// Its session stays.
    pub fn recipient(mailbox: &Mailbox) -> Self {
        Self::new(
            format!("recipient-{}", mailbox.number),
            Some(topic(mailbox)),
        )
    }

    fn new(client: String, opens: Option<String>) -> Self {
        Self {
            client,
            opens,
            sent: 0,
            answered: 0,
            arrived: Vec::new(),
            acknowledged: 0,
        }
    }

    fn hear(
        &mut self,
        kind: u8,
        body: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<(), String> {
        match (kind & 0xF0, body) {
            (CONNACK, [_, 0]) => match &self.opens {
                Some(topic) => subscribe(topic, out),
                None => heard.push(Heard::Open),
            },
            (SUBACK, [_, _, 1]) => heard.push(Heard::Open),
            (PUBACK, number) if number == next(self.answered).to_be_bytes() => {
                self.answered = next(self.answered);
                heard.push(Heard::Stored);
            }
            (PUBLISH, body) if kind & 0x06 == QOS_1 => {
                let (number, body) = published(body).ok_or("mqtt: a short PUBLISH")?;
                self.arrived.push(number);
                heard.push(Heard::Blob(stamp_of(body)?));
            }
            (PINGRESP, []) => heard.push(Heard::Gone(std::mem::take(&mut self.acknowledged))),
            _ => return Err(format!("mqtt: unexpected packet {kind:#x}")),
        }
        Ok(())
    }
}

impl Dialect for Mqtt {
    fn greet(&mut self, out: &mut Vec<u8>) {
        let clean = u8::from(self.opens.is_none()) << 1;
        let mut body = Vec::new();
        text("MQTT", &mut body);
        // Protocol level 4; no keep-alive.
        body.extend_from_slice(&[4, clean, 0, 0]);
        text(&self.client, &mut body);
        head(CONNECT, body.len(), out);
        out.extend_from_slice(&body);
    }

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>) {
        let topic = topic(to);
        self.sent = next(self.sent);
        head(PUBLISH | QOS_1, 2 + topic.len() + 2 + body.len(), out);
        text(&topic, out);
        out.extend_from_slice(&self.sent.to_be_bytes());
        body.write(out);
    }

    fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((kind, body)) = packet(&input[used..]) {
            let whole = used + body.end;
            self.hear(kind, &input[used..][body], out, heard)?;
            used = whole;
        }
        Ok(used)
    }

    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        self.acknowledged += self.arrived.len();
        for number in self.arrived.drain(..) {
            head(PUBACK, 2, out);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }

    /// A broker answers a PINGREQ after it has handled the PUBACKs before it.
    fn settle(&mut self, out: &mut Vec<u8>) {
        head(PINGREQ, 0, out);
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        head(DISCONNECT, 0, out);
    }
}

fn topic(mailbox: &Mailbox) -> String {
    format!("mailbox/{}", mailbox.number)
}

/// Packet numbers are never 0.
fn next(number: u16) -> u16 {
    number.checked_add(1).unwrap_or(1)
}

fn subscribe(topic: &str, out: &mut Vec<u8>) {
    head(SUBSCRIBE, 2 + 2 + topic.len() + 1, out);
    out.extend_from_slice(&[0, 1]);
    text(topic, out);
    out.push(1);
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The kind and the length, seven bits a byte.
fn head(kind: u8, mut length: usize, out: &mut Vec<u8>) {
    out.push(kind);
    while length > 0x7F {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// The kind of the first packet and where its body is; `None` while a part of it is missing.
fn packet(input: &[u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (mut length, mut at) = (0, 1);
    loop {
        let byte = *input.get(at)?;
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (input.len() >= at + length).then_some((input[0], at..at + length))
}

/// The number and the content of a PUBLISH.
fn published(body: &[u8]) -> Option<(u16, &[u8])> {
    let (topic, rest) = body.split_first_chunk()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*topic))..)?;
    let (number, content) = rest.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), content))
}
