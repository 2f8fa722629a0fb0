//! WebSocket frames, a client's side (RFC 6455), as far as the relay uses them: no fragments.

use std::io::Write as _;
use std::ops::Range;

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

pub struct WebSocket {
    host: String,
    subprotocol: Option<&'static str>,
    is_upgraded: bool,
    mask: [u8; 4],
}

impl WebSocket {
    pub fn new(host: String, subprotocol: Option<&'static str>) -> Self {
        Self {
            host,
            subprotocol,
            is_upgraded: false,
            mask: rand::random(),
        }
    }

    /// The host that it dials.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn upgrade(&self, out: &mut Vec<u8>) {
        write!(
            out,
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            self.host
        )
        .unwrap();
        if let Some(name) = self.subprotocol {
            write!(out, "Sec-WebSocket-Protocol: {name}\r\n").unwrap();
        }
        out.extend_from_slice(b"\r\n");
    }

    pub fn send(&self, message: &[u8], out: &mut Vec<u8>) {
        self.write(BINARY, message, out);
    }

    /// The next binary message and how far into `input` it ends; `None` while a part of it is missing.
    /// `used` grows by all that came before it.
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
        used: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, String> {
        if !self.is_upgraded {
            let Some(bytes) = answered_upgrade(&input[*used..])? else {
                return Ok(None);
            };
            self.is_upgraded = true;
            *used += bytes;
        }
        while let Some((kind, body)) = frame(&input[*used..]) {
            let message = &input[*used..][body.clone()];
            *used += body.end;
            match kind & 0x0F {
                BINARY => return Ok(Some(message)),
                PING => self.write(PONG, message, out),
                PONG => {}
                CLOSE => {
                    let reason = String::from_utf8_lossy(message.get(2..).unwrap_or_default());
                    return Err(format!("the relay closed the connection: {reason}"));
                }
                other => return Err(format!("a WebSocket frame of kind {other}")),
            }
        }
        Ok(None)
    }

    fn write(&self, kind: u8, message: &[u8], out: &mut Vec<u8>) {
        out.push(0x80 | kind);
        match message.len() {
            short @ 0..126 => out.push(0x80 | short as u8),
            middle @ 126..65_536 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(middle as u16).to_be_bytes());
            }
            long => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&self.mask);
        let begin = out.len();
        out.extend_from_slice(message);
        let (fours, rest) = out[begin..].as_chunks_mut::<4>();
        let mask = u32::from_ne_bytes(self.mask);
        for four in fours {
            *four = (u32::from_ne_bytes(*four) ^ mask).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(self.mask) {
            *byte ^= mask;
        }
    }
}

/// The length of the answer to the upgrade; `None` while a part of it is missing.
fn answered_upgrade(input: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    if !input.starts_with(b"HTTP/1.1 101 ") {
        return Err(String::from_utf8_lossy(&input[..end]).into_owned());
    }
    Ok(Some(end + 4))
}

/// The first byte of the first frame and where its body is; `None` while a part of it is missing.
fn frame(input: &[u8]) -> Option<(u8, Range<usize>)> {
    let (begin, length) = match *input.get(1)? {
        126 => (
            4,
            u16::from_be_bytes(*input.get(2..)?.first_chunk()?).into(),
        ),
        127 => (
            10,
            u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize,
        ),
        short => (2, usize::from(short)),
    };
    (input.len() >= begin + length).then_some((input[0], begin..begin + length))
}
