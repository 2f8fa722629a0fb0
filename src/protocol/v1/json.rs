//! Reads JSON one value at a time, without building a tree.
//!
//! A v1 frame is one small object around one long array of integers. A general parser walks that
//! array twice (once to find its end, once to read it) and pays for each integer; this reader goes
//! over a frame once and lets the caller take each value in the way that suits it. The grammar is
//! RFC 8259; the property tests below hold it against serde_json.

use std::borrow::Cow;

/// What is wrong with a frame, in words that quote nothing of it.
pub(super) type Why = &'static str;

const MALFORMED: Why = "the frame is not well-formed JSON";
const TOO_DEEP: Why = "the frame is nested too deeply";

/// Deepest nesting that is skipped over, as in serde_json. Skipping recurses, so the stack needs a bound.
const DEPTH_MAX: u32 = 128;

/// A position in a JSON text.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts before the first value of `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The bytes that have not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// Goes `count` bytes on; they were read by the caller from [`Self::rest`].
    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
    }

    /// The next byte that is not white space, without taking it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        let rest = self.rest();
        let blank = rest.iter().take_while(|byte| is_blank(**byte)).count();
        self.at += blank;
        rest.get(blank).copied()
    }

    /// Takes `wanted`, after white space, if it is the next byte.
    pub(super) fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    /// Nothing but white space may be left.
    pub(super) fn end(&mut self) -> Result<(), Why> {
        self.peek().map_or(Ok(()), |_| Err(MALFORMED))
    }

    /// Reads an object and hands each key to `each`, which must read the value.
    pub(super) fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, &str) -> Result<(), Why>,
    ) -> Result<(), Why> {
        self.expect(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            each(self, &key)?;
            if self.take(b'}') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    /// Reads an array and calls `each` before each element, which must read it.
    pub(super) fn array(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<(), Why>,
    ) -> Result<(), Why> {
        self.expect(b'[')?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            each(self)?;
            if self.take(b']') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    /// Reads a string.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, Why> {
        self.peek();
        let start = self.at;
        let escaped = self.skip_string()?;
        let quoted = self.text.get(start..self.at).ok_or(MALFORMED)?;
        if escaped {
            // Rare: no id and no type name needs an escape, so this may allocate.
            return serde_json::from_str::<String>(quoted)
                .map(Cow::Owned)
                .map_err(|_| MALFORMED);
        }
        quoted
            .get(1..quoted.len() - 1)
            .map(Cow::Borrowed)
            .ok_or(MALFORMED)
    }

    /// Skips one value of any kind and returns its text.
    pub(super) fn raw(&mut self) -> Result<&'a str, Why> {
        self.peek();
        let start = self.at;
        self.skip(DEPTH_MAX)?;
        self.text.get(start..self.at).ok_or(MALFORMED)
    }

    fn skip(&mut self, depth_left: u32) -> Result<(), Why> {
        match self.peek().ok_or(MALFORMED)? {
            b'"' => self.skip_string().map(drop),
            b'{' => {
                let depth_left = depth_left.checked_sub(1).ok_or(TOO_DEEP)?;
                self.object(|reader, _| reader.skip(depth_left))
            }
            b'[' => {
                let depth_left = depth_left.checked_sub(1).ok_or(TOO_DEEP)?;
                self.array(|reader| reader.skip(depth_left))
            }
            b't' => self.skip_word("true"),
            b'f' => self.skip_word("false"),
            b'n' => self.skip_word("null"),
            _ => self.skip_number(),
        }
    }

    /// Skips a string and says whether it contains an escape.
    fn skip_string(&mut self) -> Result<bool, Why> {
        self.expect(b'"')?;
        let mut escaped = false;
        loop {
            let rest = self.rest();
            let plain = rest
                .iter()
                .take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20))
                .count();
            self.at += plain + 1;
            match rest.get(plain) {
                Some(b'"') => return Ok(escaped),
                Some(b'\\') => {
                    escaped = true;
                    self.skip_escape()?;
                }
                _ => return Err(MALFORMED),
            }
        }
    }

    fn skip_escape(&mut self) -> Result<(), Why> {
        let length = match self.rest() {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 1,
            [b'u', a, b, c, d, ..]
                if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
            {
                5
            }
            _ => return Err(MALFORMED),
        };
        self.at += length;
        Ok(())
    }

    fn skip_word(&mut self, word: &str) -> Result<(), Why> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(MALFORMED);
        }
        self.at += word.len();
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), Why> {
        self.take_here(b"-");
        if !self.take_here(b"0") {
            self.skip_digits()?;
        }
        if self.take_here(b".") {
            self.skip_digits()?;
        }
        if self.take_here(b"eE") {
            self.take_here(b"+-");
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), Why> {
        let rest = self.rest();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        if digits == 0 { Err(MALFORMED) } else { Ok(()) }
    }

    /// Takes the next byte if it is one of `wanted`; no white space may stand before it.
    fn take_here(&mut self, wanted: &[u8]) -> bool {
        let found = self
            .rest()
            .first()
            .is_some_and(|byte| wanted.contains(byte));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Why> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(MALFORMED)
        }
    }
}

/// White space as JSON has it.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Appends `text` as a JSON string, quotes included.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn is_json(text: &str) -> bool {
        let mut reader = Reader::new(text);
        reader.raw().and_then(|_| reader.end()).is_ok()
    }

    #[test]
    fn nesting_is_bounded_and_costs_no_stack() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(is_json(&deep(128)));
        assert!(!is_json(&deep(129)));
        assert!(!is_json(&"[".repeat(1_000_000)));
        assert!(!is_json(&"{\"a\":".repeat(200_000)));
    }

    #[test]
    fn strings_are_unescaped() {
        let text = r#" "a\"\\\/\b\f\n\r\té😀é" "#;
        assert_eq!(
            Reader::new(text).string().unwrap(),
            serde_json::from_str::<String>(text).unwrap()
        );
        // A lone surrogate is no text.
        assert!(Reader::new(r#""\ud800""#).string().is_err());
    }

    proptest! {
        #[test]
        fn the_grammar_is_serde_jsons(text in r#"[\[\]{},:"\\ untrefals0-9.eE+\-\n]{0,12}"#) {
            prop_assert_eq!(
                is_json(&text),
                serde_json::from_str::<IgnoredAny>(&text).is_ok(),
                "{}", text
            );
        }

        #[test]
        fn numbers_are_serde_jsons(text in r"-?[0-9]{0,3}(\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            prop_assert_eq!(
                is_json(&text),
                serde_json::from_str::<IgnoredAny>(&text).is_ok(),
                "{}", text
            );
        }

        #[test]
        fn a_broken_object_is_refused_as_by_serde_json(cut in 0usize..90, byte in any::<char>()) {
            let mut text: Vec<char> =
                r#"{"a": [1, -2.5e3, {"b": null}], "c": "xA\n", "d": {"e": true, "f": [[], {}]}}"#
                    .chars()
                    .collect();
            let at = cut % text.len();
            text[at] = byte;
            let text: String = text.into_iter().collect();
            prop_assert_eq!(
                is_json(&text),
                serde_json::from_str::<IgnoredAny>(&text).is_ok(),
                "{}", text
            );
        }

        #[test]
        fn a_pushed_string_is_what_serde_json_reads(text in any::<String>()) {
            let mut out = Vec::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
