//! What both sides of v1 share: the length prefix, the envelope around a payload, and its fields.

use std::borrow::Cow;

use bytes::Bytes;

use super::int_array;
use super::json::{Reader, Why, push_string};
use crate::clock::Timestamp;

/// The only version there is.
pub(super) const VERSION: u8 = 1;

/// The longest name of a request, and the longest text of a client's own that is given back to some
/// client, in bytes; a UUID has 36, an id 64. Without a bound a client could make answers as large as
/// frames, and names are kept until the answer is written.
pub(super) const TEXT_BYTES_MAX: usize = 1024;

const NO_OBJECT: Why = "payload is not an object";
const TWICE: Why = "a field appears twice";

/// The payload's fields that some frame type has, beside [`LONG_FIELDS`]; all others are skipped.
const FIELDS: [&str; 29] = [
    "type",
    "client_id",
    "device_id",
    "routing_token",
    "suppress_presence",
    "identity_public_key",
    "nonce",
    "signature",
    "timestamp",
    "recipient_id",
    "sender_id",
    "message_id",
    "status",
    "protocol_version",
    "server_version",
    "features",
    "error",
    "message",
    "retry_after_ms",
    "identity_id",
    "target_device_id",
    "sender_device_id",
    "version",
    "synced_version",
    "key_hash",
    "key_hashes",
    "include_device_sync",
    "include_recovery_proofs",
    "recovery_key_hash",
];

/// The fields that are nearly all of their frame: bytes, read where they are met, so that the frame
/// is gone over once.
const LONG_FIELDS: [&str; 3] = ["ciphertext", "encrypted_payload", "proof_data"];

/// A frame taken apart.
#[derive(Default)]
pub(super) struct Frame<'a> {
    pub(super) message_id: Option<Cow<'a, str>>,
    version: Option<u8>,
    pub(super) timestamp: Option<u64>,
    has_payload: bool,
    pub(super) payload: Payload<'a>,
}

/// The fields of a payload, each as its JSON text.
#[derive(Default)]
pub(super) struct Payload<'a> {
    fields: [Option<&'a str>; FIELDS.len()],
    long_fields: [Option<Result<Vec<u8>, Why>>; LONG_FIELDS.len()],
}

impl<'a> Frame<'a> {
    /// Reads a frame as far as it goes: after an error, what had been read is still there.
    pub(super) fn read(&mut self, frame: &'a [u8]) -> Result<(), Why> {
        let (prefix, text) = split(frame)?;
        let mut reader = Reader::new(text);
        reader.object(|reader, key| self.read_field(reader, key))?;
        reader.end()?;
        self.message_id.as_ref().ok_or("message_id is missing")?;
        self.version.ok_or("version is missing")?;
        self.timestamp.ok_or("timestamp is missing")?;
        if !self.has_payload {
            return Err("payload is missing");
        }
        if usize::try_from(prefix) != Ok(text.len()) {
            return Err("the length prefix does not match the frame");
        }
        Ok(())
    }

    fn read_field(&mut self, reader: &mut Reader<'a>, key: &str) -> Result<(), Why> {
        match key {
            "version" => {
                let version = parse(reader.raw()?).ok_or("version is not a number up to 255")?;
                once(&mut self.version, version)
            }
            "message_id" => once(&mut self.message_id, read_message_id(reader)?),
            "timestamp" => {
                let timestamp =
                    parse(reader.raw()?).ok_or("timestamp is not an unsigned number")?;
                once(&mut self.timestamp, timestamp)
            }
            "payload" if self.has_payload => Err(TWICE),
            "payload" => {
                self.has_payload = true;
                self.payload.read(reader)
            }
            _ => reader.raw().map(drop),
        }
    }
}

impl<'a> Payload<'a> {
    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), Why> {
        if reader.peek() != Some(b'{') {
            return Err(NO_OBJECT);
        }
        reader.object(|reader, key| {
            if let Some(field) = LONG_FIELDS.iter().position(|field| *field == key) {
                return once(&mut self.long_fields[field], read_bytes(reader)?);
            }
            let value = reader.raw()?;
            match FIELDS.iter().position(|field| *field == key) {
                Some(field) => once(&mut self.fields[field], value),
                None => Ok(()),
            }
        })
    }

    /// The JSON text of a field; `None` when it is absent or null.
    fn raw(&self, name: &str) -> Option<&'a str> {
        let field = FIELDS.iter().position(|field| *field == name)?;
        self.fields[field].filter(|raw| *raw != "null")
    }

    /// Whether a field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// A field that is a string; `None` when it is absent or something else.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut reader = Reader::new(self.raw(name)?);
        (reader.peek() == Some(b'"'))
            .then(|| reader.string().ok())
            .flatten()
    }

    /// A field that is an unsigned number; `None` when it is absent or something else.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        parse(self.raw(name)?)
    }

    /// A field that is true or false; absent means false, anything else is `None`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.raw(name).map_or(Some(false), |raw| raw.parse().ok())
    }

    /// A field that is a list of strings; empty when it is absent or something else.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let mut texts = Vec::new();
        self.each_text(name, |text| texts.push(text.to_owned()))
            .map(|()| texts)
            .unwrap_or_default()
    }

    /// Hands over each string of a field that is a list of strings; `None` when it is absent or
    /// something else. What was handed over before the fault was found is void.
    pub(super) fn each_text(&self, name: &str, mut each: impl FnMut(&str)) -> Option<()> {
        Reader::new(self.raw(name)?)
            .array(|reader| {
                each(&reader.string()?);
                Ok(())
            })
            .ok()
    }

    /// A short field that is bytes; `None` when it is absent or something else.
    pub(super) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        int_array::read(&mut Reader::new(self.raw(name)?)).ok()
    }

    /// Takes one of [`LONG_FIELDS`] out. `missing` is what is said when it is not there.
    pub(super) fn take_bytes(&mut self, name: &str, missing: Why) -> Result<Bytes, Why> {
        let field = LONG_FIELDS.iter().position(|field| *field == name);
        let taken = field.and_then(|field| self.long_fields[field].take());
        taken.ok_or(missing)?.map(Bytes::from)
    }
}

/// The name of a frame, even if nothing else in it can be used. Reads no further than the name.
pub(super) fn message_id_of(frame: &[u8]) -> Option<Cow<'_, str>> {
    /// Ends the walk through the frame; nobody sees it.
    const FOUND: Why = "found";
    let (_, text) = split(frame).ok()?;
    let mut found = None;
    let walk = Reader::new(text).object(|reader, key| {
        if key == "message_id" {
            found = Some(read_message_id(reader)?);
            return Err(FOUND);
        }
        reader.raw().map(drop)
    });
    // A walk that reaches the end has met no name.
    walk.err().and(found)
}

/// The prefix and the JSON text behind it.
fn split(frame: &[u8]) -> Result<(u32, &str), Why> {
    let (prefix, body) = frame
        .split_first_chunk()
        .ok_or("the frame is shorter than its length prefix")?;
    let text = std::str::from_utf8(body).map_err(|_| "the frame is not UTF-8")?;
    Ok((u32::from_be_bytes(*prefix), text))
}

fn read_message_id<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>, Why> {
    if reader.peek() != Some(b'"') {
        return Err("message_id is not a string");
    }
    let message_id = reader.string()?;
    if message_id.len() > TEXT_BYTES_MAX {
        return Err("message_id is longer than 1024 bytes");
    }
    Ok(message_id)
}

/// Bytes, or, when the value is something else, why not; an error only when it is no value at all.
fn read_bytes(reader: &mut Reader<'_>) -> Result<Result<Vec<u8>, Why>, Why> {
    let mut as_any = reader.clone();
    match int_array::read(reader) {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(why) => {
            as_any.raw()?;
            *reader = as_any;
            Ok(Err(why))
        }
    }
}

/// An unsigned number as JSON writes it. Rust reads more than JSON does (`+1`, `01`), but `raw` has
/// passed the grammar already.
fn parse<N: std::str::FromStr>(raw: &str) -> Option<N> {
    raw.parse().ok()
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Why> {
    if place.replace(value).is_some() {
        return Err(TWICE);
    }
    Ok(())
}

/// A frame in the making: the envelope is written, the payload's fields follow.
pub(super) struct Builder(Vec<u8>);

impl Builder {
    /// Begins a frame of the type `kind`. `room` is the size that its fields will take, at least.
    pub(super) fn new(message_id: &str, now: Timestamp, kind: &str, room: usize) -> Self {
        Self::dated(message_id, now.secs(), kind, room)
    }

    /// Begins a frame that says to be of `timestamp_secs`, whatever that is.
    pub(super) fn dated(message_id: &str, timestamp_secs: u64, kind: &str, room: usize) -> Self {
        // 4 prefix, 10 `"version":`, 15 `"message_id":""`, 20 digits, and so on: under 128 in all.
        let mut out = Vec::with_capacity(128 + message_id.len() + room);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(format!("{{\"version\":{VERSION},\"message_id\":").as_bytes());
        push_string(&mut out, message_id);
        out.extend_from_slice(
            format!(",\"timestamp\":{timestamp_secs},\"payload\":{{\"type\":").as_bytes(),
        );
        push_string(&mut out, kind);
        Self(out)
    }

    /// Appends a field that is a string.
    pub(super) fn text(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        push_string(&mut self.0, value);
        self
    }

    /// Appends a field whose value is JSON already.
    pub(super) fn raw(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.name(name);
        self.0.extend_from_slice(value.to_string().as_bytes());
        self
    }

    /// Appends a field that is a list of strings.
    pub(super) fn texts(mut self, name: &str, values: &[&str]) -> Self {
        self.name(name);
        self.0.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            push_string(&mut self.0, value);
        }
        self.0.push(b']');
        self
    }

    /// Appends a field that is bytes.
    pub(super) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.name(name);
        int_array::push(&mut self.0, value);
        self
    }

    /// Appends a field that is a list of objects; `fill` appends the fields of one.
    pub(super) fn objects<T>(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
        fill: impl Fn(Self, T) -> Self,
    ) -> Self {
        self.name(name);
        self.0.push(b'[');
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            self.0.push(b'{');
            self = fill(self, value);
            self.0.push(b'}');
        }
        self.0.push(b']');
        self
    }

    fn name(&mut self, name: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        push_string(&mut self.0, name);
        self.0.push(b':');
    }

    /// What is allocated, so that a test can see that nothing grows.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Closes the envelope and writes the prefix.
    pub(super) fn finish(mut self) -> Bytes {
        self.0.extend_from_slice(b"}}");
        // A frame of 4 GiB would wrap here; a blob is bounded by the largest message long before.
        let length = (self.0.len() - 4) as u32;
        if let Some(prefix) = self.0.first_chunk_mut() {
            *prefix = length.to_be_bytes();
        }
        Bytes::from(self.0)
    }
}

/// How much room a blob takes in a frame.
pub(super) fn room_for_bytes(bytes: &[u8]) -> usize {
    int_array::written_len(bytes)
}
