//! A look at a frame before it is decoded.
//!
//! The decoder makes a value of every entry of a list before anyone can say that there are too many or
//! that they are empty: two bytes on the wire would become a hundred in memory. So the lists are
//! judged by the bytes of the frame first, which takes no memory.

use crate::protocol::message::RECOVERY_HASHES_MAX;

/// Acknowledgements in one request, at the most.
pub(super) const ACKNOWLEDGEMENTS_MAX: usize = 1_000;
/// Entries in the lists of one frame from a relay, at the most.
const ENTRIES_MAX: usize = 65_536;
/// The field of `ClientFrame` with the number of the request. A test compares these numbers with the
/// schema.
const REQUEST: u32 = 1;
/// The first and the last number of a kind of request there.
const FIRST_KIND: u32 = 2;
const LAST_KIND: u32 = 14;
/// Those kinds that need no number, or have a list.
const ACKNOWLEDGE: u32 = 3;
const SUBSCRIBE: u32 = 4;
const UNSUBSCRIBE: u32 = 5;
const HELLO: u32 = 8;
const PURGE: u32 = 11;
const RECOVERY_GET: u32 = 14;

/// What can be seen of a frame without decoding it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outline<'a> {
    /// The number of the request; zero when there is none.
    pub(super) request: u32,
    /// The kind and the bytes of what is asked; `None` when no known kind is there.
    asked: Option<(u32, &'a [u8])>,
}

impl<'a> Outline<'a> {
    /// Looks at the outermost fields.
    pub(super) fn of(frame: &'a [u8]) -> Result<Self, &'static str> {
        let mut outline = Self {
            request: 0,
            asked: None,
        };
        for field in Fields(frame) {
            match field? {
                (REQUEST, Value::Number(number)) => outline.request = truncated(number),
                (kind @ FIRST_KIND..=LAST_KIND, Value::Bytes(body)) => outline.ask(kind, body)?,
                _ => {}
            }
        }
        Ok(outline)
    }

    fn ask(&mut self, kind: u32, body: &'a [u8]) -> Result<(), &'static str> {
        match self.asked.replace((kind, body)) {
            None => Ok(()),
            // The decoder would join the lists of both.
            Some(_) => Err("a frame may hold only one request"),
        }
    }

    /// Whether what is asked may go without an answer.
    pub(super) fn may_be_unanswered(&self) -> bool {
        matches!(self.asked, Some((ACKNOWLEDGE | UNSUBSCRIBE, _)))
    }

    /// Judges the lists: how many entries there are, and how long each is.
    pub(super) fn check_lists(&self) -> Result<(), Fault> {
        let Some((kind, body)) = self.asked else {
            return Ok(());
        };
        list_of(kind).map_or(Ok(()), |list| list.check(body))
    }
}

/// The list that a kind of request has.
fn list_of(kind: u32) -> Option<List> {
    let list = match kind {
        ACKNOWLEDGE => List {
            field: 1,
            entries_max: ACKNOWLEDGEMENTS_MAX,
            // Each field has two bytes before it: 2 + 32 + 2 + 16.
            entry_bytes: (52, usize::MAX),
            too_many: "a request may have at most 1,000 acknowledgements",
            wrong: "an item of Acknowledge must have a mailbox of 32 bytes and an id of 16",
        },
        // How many a connection may open is a setting, and the session refuses those beyond. The least
        // entry takes 36 bytes of the frame and, while lists grow, about 350 of memory.
        SUBSCRIBE => List {
            field: 2,
            entries_max: usize::MAX,
            entry_bytes: (34, usize::MAX),
            too_many: "",
            wrong: "a mailbox must have 32 bytes",
        },
        UNSUBSCRIBE | PURGE => List {
            field: 1,
            entries_max: usize::MAX,
            entry_bytes: (32, 32),
            too_many: "",
            wrong: "a mailbox must have 32 bytes",
        },
        RECOVERY_GET => List {
            field: 1,
            entries_max: RECOVERY_HASHES_MAX,
            entry_bytes: (32, 32),
            too_many: "a request may have at most 50 key hashes",
            wrong: "a key hash must have 32 bytes",
        },
        HELLO => List {
            field: 2,
            entries_max: 64,
            entry_bytes: (0, 64),
            too_many: "a Hello may have at most 64 features",
            wrong: "a feature may have at most 64 bytes",
        },
        _ => return None,
    };
    Some(list)
}

/// What is wrong with a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be read.
    Malformed,
    /// It can be read, and is not what it may be.
    Refused(&'static str),
}

/// What a list may be.
struct List {
    /// Its number in the message.
    field: u32,
    entries_max: usize,
    /// The shortest and the longest entry.
    entry_bytes: (usize, usize),
    /// What is said when there are more entries.
    too_many: &'static str,
    /// What is said when an entry has another length.
    wrong: &'static str,
}

impl List {
    fn check(&self, body: &[u8]) -> Result<(), Fault> {
        let (shortest, longest) = self.entry_bytes;
        let mut entries = 0;
        for field in Fields(body) {
            match field.map_err(|_| Fault::Malformed)? {
                (number, Value::Bytes(entry)) if number == self.field => {
                    entries += 1;
                    if entries > self.entries_max {
                        return Err(Fault::Refused(self.too_many));
                    }
                    if entry.len() < shortest || entry.len() > longest {
                        return Err(Fault::Refused(self.wrong));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The number of a client's frame of which only the beginning may be there; `None` when it cannot be
/// found or is zero.
pub(super) fn request_of(frame: &[u8]) -> Option<u32> {
    for field in Fields(frame) {
        match field {
            Ok((REQUEST, Value::Number(number))) => {
                return Some(truncated(number)).filter(|number| *number != 0);
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Whether a frame from a relay is small enough in its lists to be decoded.
pub(super) fn check_server_frame(frame: &[u8]) -> Result<(), &'static str> {
    let mut entries = 0_usize;
    for field in Fields(frame) {
        if let (_, Value::Bytes(body)) = field? {
            entries = entries.saturating_add(1 + Fields(body).take_while(Result::is_ok).count());
            if entries > ENTRIES_MAX {
                return Err("the frame has too many entries");
            }
        }
    }
    Ok(())
}

/// What stands in a field, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message, one after the other; ends with the first that is cut off or malformed.
///
/// Groups, which proto3 does not have, count as malformed.
struct Fields<'a>(&'a [u8]);

pub(super) const MALFORMED: &str = "the message is not a valid frame";

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u32, Value<'a>)> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0)?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((number, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read().ok_or(MALFORMED);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// A uint32 field as protobuf reads a larger number.
#[expect(
    clippy::cast_possible_truncation,
    reason = "this is what the decoder does, and both must see the same number"
)]
fn truncated(number: u64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

    use super::*;

    fn client_frame() -> MessageDescriptor {
        let descriptors = include_bytes!(concat!(env!("OUT_DIR"), "/relay.descriptors"));
        let pool = DescriptorPool::decode(descriptors.as_slice()).unwrap();
        pool.get_message_by_name("vauchi.relay.v2.ClientFrame")
            .unwrap()
    }

    /// What a client may ask for.
    fn kinds() -> Vec<FieldDescriptor> {
        let kinds = client_frame().oneofs().next().unwrap();
        kinds.fields().collect()
    }

    fn message_of(field: &FieldDescriptor) -> Option<MessageDescriptor> {
        match field.kind() {
            Kind::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The numbers of the lists in a message.
    fn lists(message: &MessageDescriptor) -> Vec<u32> {
        let lists = message.fields().filter(FieldDescriptor::is_list);
        lists.map(|field| field.number()).collect()
    }

    #[test]
    fn the_numbers_of_requests_are_those_of_the_schema() {
        let request = client_frame().get_field_by_name("request").unwrap();
        assert_eq!(request.number(), REQUEST);
        let mut numbers: Vec<_> = kinds().iter().map(FieldDescriptor::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (FIRST_KIND..=LAST_KIND).collect::<Vec<_>>());
        for (name, number) in [
            ("acknowledge", ACKNOWLEDGE),
            ("subscribe", SUBSCRIBE),
            ("unsubscribe", UNSUBSCRIBE),
            ("hello", HELLO),
            ("purge", PURGE),
            ("recovery_get", RECOVERY_GET),
        ] {
            let kind = client_frame().get_field_by_name(name).unwrap();
            assert_eq!(kind.number(), number, "{name}");
        }
    }

    #[test]
    fn every_list_of_a_request_is_judged_before_it_is_decoded() {
        for kind in kinds() {
            let message = message_of(&kind).unwrap();
            let judged = list_of(kind.number()).map(|list| list.field);
            let judged: Vec<_> = judged.into_iter().collect();
            assert_eq!(lists(&message), judged, "{}", kind.name());
            // Only the outermost lists are looked at, so there are no others.
            for inner in message.fields().filter_map(|field| message_of(&field)) {
                assert!(lists(&inner).is_empty(), "{}", inner.name());
                let innermost = inner.fields().filter_map(|field| message_of(&field));
                assert_eq!(innermost.count(), 0, "{}", inner.name());
            }
        }
    }
}
