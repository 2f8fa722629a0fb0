//! Words as the payloads of notifications: a letter, the number of the relay that speaks, and what it tells in
//! hexadecimal digits.

use data_encoding::HEXLOWER;

use crate::ids::BlobId;
use crate::store::others::Word;

/// PostgreSQL refuses payloads of 8,000 bytes. 3,900 bytes are 7,800 digits, and nine characters come before.
const BYTES_MAX: usize = 3_900;

/// Says only that the relay is heard.
pub(super) const PING: char = 'p';

/// A letter for each kind of word, and how many of them one payload takes.
fn kind(word: &Word) -> (char, usize) {
    match word {
        Word::Stored(_) => ('s', BYTES_MAX / 8),
        Word::Delivered(_) => ('d', BYTES_MAX / 16),
        Word::Acknowledged(_) => ('a', BYTES_MAX / 16),
        Word::Notice { .. } => ('n', 1),
        Word::Live(..) => ('l', BYTES_MAX / 16),
        Word::Taken(..) => ('t', BYTES_MAX / 12),
    }
}

fn write(word: &Word, bytes: &mut Vec<u8>) {
    match word {
        Word::Stored(mailbox64) => bytes.extend(mailbox64.to_be_bytes()),
        Word::Delivered(id) | Word::Acknowledged(id) => bytes.extend(id.as_bytes()),
        Word::Notice {
            sender64,
            blob,
            is_acknowledged,
            name,
        } => {
            bytes.extend(sender64.to_be_bytes());
            bytes.extend(blob.as_bytes());
            bytes.push(u8::from(*is_acknowledged));
            bytes.extend(name.as_bytes());
        }
        Word::Live(number, mailbox64) => {
            bytes.extend(number.to_be_bytes());
            bytes.extend(mailbox64.to_be_bytes());
        }
        Word::Taken(number, sessions) => {
            bytes.extend(number.to_be_bytes());
            bytes.extend(sessions.to_be_bytes());
        }
    }
}

/// The payloads that tell these words, which follow each other by their kinds.
pub(super) fn payloads(from: i32, words: &[Word]) -> Vec<String> {
    let mut payloads = Vec::new();
    let mut rest = words;
    while let Some(first) = rest.first() {
        let (letter, words_max) = kind(first);
        let same = rest.iter().take(words_max);
        let same = same.take_while(|word| kind(word).0 == letter).count();
        let mut bytes = Vec::new();
        rest[..same].iter().for_each(|word| write(word, &mut bytes));
        payloads.push(format!("{}{}", head(letter, from), HEXLOWER.encode(&bytes)));
        rest = &rest[same..];
    }
    payloads
}

/// The payload that only says that this relay is heard.
pub(super) fn ping(from: i32) -> String {
    head(PING, from)
}

fn head(letter: char, from: i32) -> String {
    format!("{letter}{from:08x}")
}

/// Who speaks, and what it tells. `None` for what no relay of this version says.
pub(super) fn read(payload: &str) -> Option<(i32, Vec<Word>)> {
    let letter = payload.chars().next()?;
    let from = i32::from_str_radix(payload.get(1..9)?, 16).ok()?;
    let bytes = HEXLOWER.decode(payload.get(9..)?.as_bytes()).ok()?;
    let words = match letter {
        PING => Vec::new(),
        's' => each(&bytes, |bytes| Word::Stored(i64::from_be_bytes(*bytes)))?,
        'd' => each(&bytes, |bytes| Word::Delivered(BlobId::from_bytes(*bytes)))?,
        'a' => each(&bytes, |bytes| {
            Word::Acknowledged(BlobId::from_bytes(*bytes))
        })?,
        'n' => vec![notice(&bytes)?],
        'l' => each(&bytes, |bytes| {
            let both = u128::from_be_bytes(*bytes);
            Word::Live((both >> 64) as u64, both as i64)
        })?,
        't' => each(&bytes, |[a, b, c, d, e, f, g, h, i, j, k, l]| {
            let number = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            Word::Taken(number, u32::from_be_bytes([*i, *j, *k, *l]))
        })?,
        _ => return None,
    };
    Some((from, words))
}

fn notice(bytes: &[u8]) -> Option<Word> {
    let (sender64, rest) = bytes.split_first_chunk()?;
    let (blob, rest) = rest.split_first_chunk()?;
    let (is_acknowledged, name) = rest.split_first()?;
    Some(Word::Notice {
        sender64: i64::from_be_bytes(*sender64),
        blob: BlobId::from_bytes(*blob),
        is_acknowledged: *is_acknowledged != 0,
        name: std::str::from_utf8(name).ok()?.into(),
    })
}

fn each<const N: usize>(bytes: &[u8], word: impl Fn(&[u8; N]) -> Word) -> Option<Vec<Word>> {
    let (words, []) = bytes.as_chunks::<N>() else {
        return None;
    };
    Some(words.iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_and_fits() {
        let id = BlobId::from_bytes([7; 16]);
        let mut words: Vec<Word> = (-500..500).map(Word::Stored).collect();
        words.extend([Word::Delivered(id), Word::Acknowledged(id)]);
        let notice = |is_acknowledged| Word::Notice {
            sender64: -7,
            blob: id,
            is_acknowledged,
            name: "ä name".into(),
        };
        words.extend([notice(false), notice(true)]);
        words.extend([Word::Live(u64::MAX - 1, -2), Word::Taken(3, 4)]);
        let payloads = payloads(0x7fff_fff0, &words);
        assert_eq!(payloads.len(), 3 + 6);
        assert!(payloads.iter().all(|payload| payload.len() < 8_000));
        let heard = payloads.iter().flat_map(|payload| {
            let (from, words) = read(payload).unwrap();
            assert_eq!(from, 0x7fff_fff0);
            words
        });
        assert_eq!(heard.collect::<Vec<_>>(), words);
        assert_eq!(read(&ping(5)), Some((5, Vec::new())));
    }

    #[test]
    fn what_no_relay_says_is_passed_over() {
        for payload in [
            "",
            "s",
            "s0000000",
            "s00000001abc",
            "s00000001ab",
            "x00000001",
            "s0000000é",
        ] {
            assert_eq!(read(payload), None, "{payload}");
        }
    }
}
