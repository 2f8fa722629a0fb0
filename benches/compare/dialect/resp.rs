//! Redis: a mailbox is a stream. A recipient waits in a blocked XREAD and deletes what it has read.

use std::collections::VecDeque;
use std::io::Write as _;

use super::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox, stamp_of};

#[derive(Default)]
pub struct Resp {
    opens: Option<String>,
    /// Replies come in the order of the requests.
    asked: VecDeque<Asked>,
    /// Entries that have come and are not deleted.
    arrived: Vec<String>,
    /// Where the next XREAD goes on.
    last: String,
}

enum Asked {
    Ping,
    Add,
    Read,
    Delete(usize),
}

impl Resp {
    pub fn sender() -> Self {
        Self::default()
    }

    pub fn recipient(mailbox: &Mailbox) -> Self {
        Self {
            opens: Some(key(mailbox)),
            last: "0".to_owned(),
            ..Self::default()
        }
    }

    fn wait_for_entries(&mut self, out: &mut Vec<u8>) {
        let Some(key) = &self.opens else { return };
        let words = [
            "XREAD", "BLOCK", "0", "COUNT", "64", "STREAMS", key, &self.last,
        ];
        command(&words, out);
        self.asked.push_back(Asked::Read);
    }

    fn hear(&mut self, value: Value<'_>, heard: &mut Vec<Heard>) -> Result<(), String> {
        let asked = self.asked.pop_front().ok_or("an answer to no request")?;
        match (asked, value) {
            (Asked::Ping, Value::Word(b"PONG")) => heard.push(Heard::Open),
            (Asked::Add, Value::Bytes(_)) => heard.push(Heard::Stored),
            (Asked::Delete(count), Value::Number(deleted)) if deleted == count as i64 => {
                heard.push(Heard::Gone(count));
            }
            (Asked::Read, Value::List(streams)) => self.take(&streams, heard)?,
            (_, other) => return Err(format!("redis: unexpected reply {other:?}")),
        }
        Ok(())
    }

    /// `[[key, [[id, [field, body]], …]]]`
    fn take(&mut self, streams: &[Value<'_>], heard: &mut Vec<Heard>) -> Result<(), String> {
        let bad = || "redis: an entry of an unexpected form".to_owned();
        let [Value::List(stream)] = streams else {
            return Err(bad());
        };
        let [_, Value::List(entries)] = &stream[..] else {
            return Err(bad());
        };
        for entry in entries {
            let Value::List(entry) = entry else {
                return Err(bad());
            };
            let [Value::Bytes(id), Value::List(fields)] = &entry[..] else {
                return Err(bad());
            };
            let [_, Value::Bytes(body)] = &fields[..] else {
                return Err(bad());
            };
            heard.push(Heard::Blob(stamp_of(body)?));
            self.arrived.push(String::from_utf8_lossy(id).into_owned());
        }
        Ok(())
    }
}

impl Dialect for Resp {
    fn greet(&mut self, out: &mut Vec<u8>) {
        command(&["PING"], out);
        self.asked.push_back(Asked::Ping);
        self.wait_for_entries(out);
    }

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>) {
        let key = key(to);
        write!(
            out,
            "*5\r\n$4\r\nXADD\r\n${}\r\n{key}\r\n$1\r\n*\r\n$1\r\nb\r\n${}\r\n",
            key.len(),
            body.len()
        )
        .unwrap();
        body.write(out);
        out.extend_from_slice(b"\r\n");
        self.asked.push_back(Asked::Add);
    }

    fn read(
        &mut self,
        input: &[u8],
        _out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((value, bytes)) = value(&input[used..])? {
            used += bytes;
            self.hear(value, heard)?;
        }
        Ok(used)
    }

    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        let arrived = std::mem::take(&mut self.arrived);
        let (Some(key), Some(last)) = (&self.opens, arrived.last()) else {
            return;
        };
        self.last.clone_from(last);
        let mut words = vec!["XDEL", key.as_str()];
        words.extend(arrived.iter().map(String::as_str));
        command(&words, out);
        self.asked.push_back(Asked::Delete(arrived.len()));
        self.wait_for_entries(out);
    }
}

/// The stream of a mailbox.
pub fn key(mailbox: &Mailbox) -> String {
    format!("mailbox:{}", mailbox.number)
}

/// Writes a command.
pub fn command(words: &[&str], out: &mut Vec<u8>) {
    write!(out, "*{}\r\n", words.len()).unwrap();
    for word in words {
        write!(out, "${}\r\n{word}\r\n", word.len()).unwrap();
    }
}

#[derive(Debug)]
pub enum Value<'a> {
    Word(&'a [u8]),
    Number(i64),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
    Nothing,
}

/// The first value and its length; `None` while a part of it is missing.
pub fn value(input: &[u8]) -> Result<Option<(Value<'_>, usize)>, String> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let (line, body) = (input.get(1..end).unwrap_or_default(), &input[end + 2..]);
    let number = || {
        let text = std::str::from_utf8(line).map_err(|e| e.to_string())?;
        text.parse::<i64>().map_err(|e| e.to_string())
    };
    let head = end + 2;
    match input[0] {
        b'+' => Ok(Some((Value::Word(line), head))),
        b':' => Ok(Some((Value::Number(number()?), head))),
        b'-' => Err(format!("redis: {}", String::from_utf8_lossy(line))),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Ok(Some((Value::Nothing, head))),
            Ok(length) if body.len() < length + 2 => Ok(None),
            Ok(length) => Ok(Some((Value::Bytes(&body[..length]), head + length + 2))),
        },
        b'*' => match usize::try_from(number()?) {
            Err(_) => Ok(Some((Value::Nothing, head))),
            Ok(length) => list(input, head, length),
        },
        other => Err(format!("redis: a reply that begins with {other}")),
    }
}

fn list(
    input: &[u8],
    mut used: usize,
    length: usize,
) -> Result<Option<(Value<'_>, usize)>, String> {
    let mut values = Vec::with_capacity(length);
    for _ in 0..length {
        let Some((next, bytes)) = value(&input[used..])? else {
            return Ok(None);
        };
        values.push(next);
        used += bytes;
    }
    Ok(Some((Value::List(values), used)))
}
