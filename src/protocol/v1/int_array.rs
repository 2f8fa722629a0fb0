//! Bytes as v1 writes them: a JSON array of integers from 0 to 255.
//!
//! A blob takes three and a half times its size in this form, and reading and writing it is most of
//! what v1 costs, so both directions handle a whole integer at a time instead of a digit. Where an integer
//! begins is known when the one before is read, so a long array is read in four parts at the same time.

use super::json::{Reader, Why, is_blank};

const NOT_BYTES: Why = "bytes are an array of integers from 0 to 255";

/// Parts in which an array is read.
const PARTS: usize = 4;

/// Reads an array of integers; the reader stands before its bracket.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Vec<u8>, Why> {
    if !reader.take(b'[') {
        return Err(NOT_BYTES);
    }
    if reader.take(b']') {
        return Ok(Vec::new());
    }
    let rest = reader.rest();
    let end = find_end(rest).ok_or(NOT_BYTES)?;
    let array = &rest[..=end];
    let ends = cut(array);
    let starts = [0, ends[0], ends[1], ends[2]];
    // Each integer but the last has a comma after it.
    let counts = [0, 1, 2, 3].map(|part| commas(&array[starts[part]..ends[part]]));
    let mut bytes = vec![0; counts.iter().sum::<usize>() + 1];
    let (first, left) = bytes.split_at_mut(counts[0]);
    let (second, left) = left.split_at_mut(counts[1]);
    let (third, fourth) = left.split_at_mut(counts[2]);
    let mut parts = [first, second, third, fourth];
    let (mut at, done) = read_together(array, starts, &mut parts);
    for (part, bytes) in parts.into_iter().enumerate() {
        at[part] += read_rest(&array[at[part]..], &mut bytes[done..])?;
        if at[part] != ends[part] {
            return Err(NOT_BYTES);
        }
    }
    reader.advance(end + 1);
    Ok(bytes)
}

/// Where the array's bracket is. No array or string can be within it.
fn find_end(text: &[u8]) -> Option<usize> {
    const STRIDE: usize = 256;
    let is_end = |byte: &u8| *byte == b']';
    let strides = text.chunks(STRIDE).enumerate();
    let (number, last) = strides
        .into_iter()
        .find(|(_, bytes)| bytes.contains(&b']'))?;
    Some(number * STRIDE + last.iter().position(is_end)?)
}

/// Where to cut behind commas, into parts of about the same length: the end of each. Parts may be empty.
fn cut(array: &[u8]) -> [usize; PARTS] {
    let mut start = 0;
    [4, 3, 2, 1].map(|left| {
        let about = start + (array.len() - start) / left;
        let comma = array[about..].iter().position(|byte| *byte == b',');
        start = match (left, comma) {
            (1, _) => array.len(),
            (_, Some(comma)) => about + comma + 1,
            (_, None) => start,
        };
        start
    })
}

fn commas(text: &[u8]) -> usize {
    // Sums of a byte each, which the compiler counts sixteen at a time.
    let of = |bytes: &[u8]| bytes.iter().map(|byte| u8::from(*byte == b',')).sum::<u8>();
    text.chunks(255).map(|bytes| usize::from(of(bytes))).sum()
}

/// Reads two integers of each part at a time, as long as all parts have them in the usual form. Returns
/// where it stands in each, and how many it has read of each.
fn read_together(
    array: &[u8],
    mut at: [usize; PARTS],
    parts: &mut [&mut [u8]; PARTS],
) -> ([usize; PARTS], usize) {
    let [first, second, third, fourth] = parts.each_mut().map(|bytes| bytes.chunks_exact_mut(2));
    let mut done = 0;
    for (((first, second), third), fourth) in first.zip(second).zip(third).zip(fourth) {
        let two = |at: usize| array.get(at..).and_then(two_integers);
        let (Some(a), Some(b), Some(c), Some(d)) = (two(at[0]), two(at[1]), two(at[2]), two(at[3]))
        else {
            break;
        };
        first.copy_from_slice(&a.0);
        second.copy_from_slice(&b.0);
        third.copy_from_slice(&c.0);
        fourth.copy_from_slice(&d.0);
        at = [at[0] + a.1, at[1] + b.1, at[2] + c.1, at[3] + d.1];
        done += 2;
    }
    (at, done)
}

/// Reads as many integers as `bytes` has places. Returns how many bytes of `text` they took.
fn read_rest(text: &[u8], bytes: &mut [u8]) -> Result<usize, Why> {
    let (mut at, mut done) = (0, 0);
    while done < bytes.len() {
        let rest = &text[at..];
        if let (Some(place), Some((two, length))) =
            (bytes.get_mut(done..done + 2), two_integers(rest))
        {
            place.copy_from_slice(&two);
            (at, done) = (at + length, done + 2);
            continue;
        }
        // The end, white space, or a fault.
        let (byte, length) = spaced_integer(rest).ok_or(NOT_BYTES)?;
        bytes[done] = byte;
        (at, done) = (at + length, done + 1);
    }
    Ok(at)
}

/// Reads two integers, each with its comma, from eight bytes at once and without a branch per digit:
/// digits are as good as random, so each such branch would be mispredicted every other time. `None`
/// leaves the case to [`spaced_integer`]. Returns the values and how many bytes they took.
#[inline(always)]
fn two_integers(text: &[u8]) -> Option<([u8; 2], usize)> {
    const LOW_BITS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let word = u64::from_le_bytes(*text.first_chunk()?);
    // A byte of `commas` is 0x80 where `word` has a comma, and zero elsewhere.
    let no_comma = word ^ 0x2c2c_2c2c_2c2c_2c2c;
    let commas = !(((no_comma & LOW_BITS) + LOW_BITS) | no_comma | LOW_BITS);
    let first_end = commas.trailing_zeros() / 8;
    if first_end > 3 {
        return None;
    }
    let second_end = (commas & (commas - 1)).trailing_zeros() / 8;
    let second_start = first_end + 1;
    let first = integer(word as u32, first_end)?;
    let second = integer(
        (word >> (8 * second_start)) as u32,
        second_end - second_start,
    )?;
    Some(([first, second], second_end as usize + 1))
}

/// The value of the first `digits` bytes of `word`.
#[inline(always)]
fn integer(word: u32, digits: u32) -> Option<u8> {
    if digits == 0 || digits > 3 {
        return None;
    }
    // The digits stand right-aligned in the lower three bytes, ones highest, zeros before them.
    let shift = 8 * (4 - digits);
    let values = ((word << shift) ^ (0x3030_3030 << shift)) >> 8;
    let [hundreds, tens, ones, _] = values.to_le_bytes();
    let value = u32::from(hundreds) * 100 + u32::from(tens) * 10 + u32::from(ones);
    let all_digits = (hundreds <= 9) & (tens <= 9) & (ones <= 9);
    let leading_zero = (digits > 1) & (word as u8 == b'0');
    (all_digits & !leading_zero & (value <= 255)).then_some(value as u8)
}

/// Reads an integer and the comma or bracket after it, with white space around. Returns the value and how
/// many bytes it took.
fn spaced_integer(text: &[u8]) -> Option<(u8, usize)> {
    let blank = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| is_blank(**byte)).count()
    };
    let start = blank(0);
    let digits = text
        .get(start..)?
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let number = text.get(start..start + digits)?;
    if number.len() > 1 && number.first() == Some(&b'0') {
        return None;
    }
    // Up to four digits fit; none at all is no number, more than three is too large.
    let value = std::str::from_utf8(number).ok()?.parse::<u8>().ok()?;
    let end = blank(start + digits);
    matches!(text.get(end)?, b',' | b']').then_some((value, end + 1))
}

/// Each byte as decimal digits and a comma, filled up to four bytes.
const DECIMALS: [[u8; 4]; 256] = decimals();

const fn decimals() -> [[u8; 4]; 256] {
    let mut table = [[b','; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let digits = [
            b'0' + (byte / 100) as u8,
            b'0' + (byte / 10 % 10) as u8,
            b'0' + (byte % 10) as u8,
        ];
        let skipped = 4 - width(byte as u8);
        let mut i = skipped;
        while i < 3 {
            table[byte][i - skipped] = digits[i];
            i += 1;
        }
        byte += 1;
    }
    table
}

/// How many bytes an integer and its comma take.
const fn width(byte: u8) -> usize {
    2 + (byte >= 10) as usize + (byte >= 100) as usize
}

/// How many bytes the array takes, brackets included.
pub(super) fn written_len(bytes: &[u8]) -> usize {
    // Every integer has a comma but the last, whose place the closing bracket takes.
    1 + bytes.iter().map(|byte| width(*byte)).sum::<usize>() + usize::from(bytes.is_empty())
}

/// Appends `bytes` as an array of integers.
pub(super) fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'[');
    let mut at = out.len();
    // Whole table entries are written, so the last one reaches up to two bytes past its comma.
    out.resize(at + written_len(bytes) - 1 + 2, 0);
    for byte in bytes {
        if let Some(place) = out.get_mut(at..at + 4) {
            place.copy_from_slice(&DECIMALS[usize::from(*byte)]);
        }
        at += width(*byte);
    }
    if !bytes.is_empty() {
        at -= 1;
    }
    out.truncate(at);
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Vec<u8>> {
        let mut reader = Reader::new(text);
        let bytes = read(&mut reader).ok()?;
        reader.end().ok()?;
        Some(bytes)
    }

    fn written(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push(&mut out, bytes);
        assert_eq!(out.len(), written_len(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_integer_is_read_and_written() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(written(&all), serde_json::to_string(&all).unwrap());
        assert_eq!(parse(&written(&all)).unwrap(), all);
        for byte in all {
            assert_eq!(written(&[byte]), format!("[{byte}]"));
            for text in [format!("[{byte}]"), format!("[ {byte}\t]")] {
                assert_eq!(parse(&text).unwrap(), [byte]);
            }
        }
        for number in 0..100_000 {
            let (alone, first) = (format!("[{number}]"), format!("[{number},0]"));
            assert_eq!(parse(&alone).is_some(), number < 256, "{alone}");
            assert_eq!(parse(&first).is_some(), number < 256, "{first}");
        }
    }

    #[test]
    fn what_is_not_an_array_of_bytes_is_refused() {
        for text in [
            "", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[,]", "[1 2]", "[1,,2]", "[256]", "[-1]",
            "[-0]", "[1.0]", "[1e1]", "[01]", "[00]", "[01,1]", "[00,1]", "[001,1]", "[0x1]",
            "[+1]", "[\"1\"]", "[null]", "[[1]]", "[1:2]", "[1,2}", "{}", "null", "\"AAAA\"",
            "[1] 2", "[999,1]", "[1/,2]",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_body_keeps_no_more_memory_than_its_length() {
        let text = "[1,2,3]".to_owned() + &",".repeat(1_000);
        let bytes = read(&mut Reader::new(&text)).unwrap();
        assert_eq!((bytes.len(), bytes.capacity()), (3, 3));
    }

    proptest! {
        #[test]
        fn writing_is_serde_jsons_and_reading_gives_it_back(bytes in proptest::collection::vec(any::<u8>(), 0..1_000)) {
            let text = written(&bytes);
            prop_assert_eq!(&text, &serde_json::to_string(&bytes).unwrap());
            prop_assert_eq!(parse(&text), Some(bytes));
        }

        #[test]
        fn white_space_does_not_matter(
            parts in proptest::collection::vec((any::<u8>(), "[ \t\r\n]{0,2}", "[ \t\r\n]{0,2}"), 1..40)
        ) {
            let inner: Vec<String> = parts.iter().map(|(n, before, after)| format!("{before}{n}{after}")).collect();
            let text = format!(" [{}]\n", inner.join(","));
            let bytes: Vec<u8> = parts.iter().map(|part| part.0).collect();
            prop_assert_eq!(parse(&text), Some(bytes));
        }

        #[test]
        fn anything_near_an_array_is_judged_as_by_serde_json(inner in r"([0-9]{0,4}[, ]){0,8}[0-9.eE+\- ]{0,4}") {
            let text = format!("[{inner}]");
            prop_assert_eq!(parse(&text), serde_json::from_str::<Vec<u8>>(&text).ok(), "{}", text);
        }

        #[test]
        fn a_few_arbitrary_bytes_are_judged_as_by_serde_json(inner in "[,-:0-9]{4,9}") {
            let text = format!("[{inner}]");
            prop_assert_eq!(parse(&text), serde_json::from_str::<Vec<u8>>(&text).ok(), "{}", text);
        }
    }
}
