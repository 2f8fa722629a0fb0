//! NATS with JetStream: one stream has all mailboxes, each a subject; a store is answered to an inbox.

use std::io::Write as _;

use super::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox};

pub struct Nats {
    /// Where the answers go.
    inbox: String,
}

impl Nats {
    pub fn sender(number: usize) -> Self {
        Self {
            inbox: format!("_INBOX.{number}"),
        }
    }

    fn hear(message: &Message<'_>, heard: &mut Vec<Heard>) -> Result<(), String> {
        let Message { line, content, .. } = message;
        match line.split(' ').next() {
            Some("INFO" | "+OK") => {}
            Some("PONG") => heard.push(Heard::Open),
            Some("MSG") if content.starts_with(br#"{"stream":"#) => heard.push(Heard::Stored),
            _ => {
                let content = String::from_utf8_lossy(content);
                return Err(format!("nats: unexpected {line} {content}"));
            }
        }
        Ok(())
    }
}

impl Dialect for Nats {
    fn greet(&mut self, out: &mut Vec<u8>) {
        greet(&self.inbox, out);
    }

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>) {
        let (number, inbox) = (to.number, &self.inbox);
        write!(out, "PUB mailbox.{number} {inbox} {}\r\n", body.len()).unwrap();
        body.write(out);
        out.extend_from_slice(b"\r\n");
    }

    fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some(message) = message(&input[used..])? {
            used += message.bytes;
            if message.line == "PING" {
                out.extend_from_slice(b"PONG\r\n");
            } else {
                Self::hear(&message, heard)?;
            }
        }
        Ok(used)
    }

    fn acknowledge(&mut self, _out: &mut Vec<u8>) {}
}

/// Says hello, and hears what comes to `inbox`.
pub fn greet(inbox: &str, out: &mut Vec<u8>) {
    write!(
        out,
        "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {inbox} 1\r\nPING\r\n"
    )
    .unwrap();
}

/// What the server says at once.
pub struct Message<'a> {
    pub line: &'a str,
    /// What a subject was sent; empty if the line is all.
    pub content: &'a [u8],
    /// The length of all of it.
    pub bytes: usize,
}

/// The first message; `None` while a part of it is missing.
pub fn message(input: &[u8]) -> Result<Option<Message<'_>>, String> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&input[..end]).map_err(|e| e.to_string())?;
    let (line, begin) = (line.trim_end(), end + 2);
    if !line.starts_with("MSG ") {
        return Ok(Some(Message {
            line,
            content: &[],
            bytes: begin,
        }));
    }
    let length = line.rsplit(' ').next().and_then(|word| word.parse().ok());
    let length: usize = length.ok_or("nats: a MSG without a length")?;
    let bytes = begin + length + 2;
    let whole = input.get(..bytes);
    Ok(whole.map(|whole| Message {
        line,
        content: &whole[begin..begin + length],
        bytes,
    }))
}
