//! The words for refusals, as the rules have them, and the numbers for them in the schema.

use super::schema::Code;

/// Every word with its number.
const WORDS: [(&str, Code); 15] = [
    ("invalid", Code::Invalid),
    ("unsupported", Code::Unsupported),
    ("too_large", Code::TooLarge),
    ("rate_limited", Code::RateLimited),
    ("mailbox_full", Code::MailboxFull),
    ("relay_full", Code::RelayFull),
    ("ttl_out_of_range", Code::TtlOutOfRange),
    ("id_reused", Code::IdReused),
    ("not_connected", Code::NotConnected),
    ("unauthorized", Code::Unauthorized),
    ("too_many_mailboxes", Code::TooManyMailboxes),
    ("unknown_relay", Code::UnknownRelay),
    ("shutting_down", Code::ShuttingDown),
    ("unavailable", Code::Unavailable),
    ("wrong_origin", Code::WrongOrigin),
];

/// Stands for a code that this build does not know; `retry_after` alone says what to do.
const UNSPECIFIED: &str = "unspecified";

/// Every word that has a number.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(word, _)| *word)
}

/// The number for this word, if it has one.
pub(super) fn code_of(word: &str) -> Option<Code> {
    WORDS
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, code)| *code)
}

/// The word for this number.
pub(super) fn word_of(code: i32) -> &'static str {
    WORDS
        .iter()
        .find(|(_, known)| *known as i32 == code)
        .map_or(UNSPECIFIED, |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_schema_has_a_word_of_its_own() {
        let known: Vec<_> = (1..).map_while(|n| Code::try_from(n).ok()).collect();
        assert_eq!(known.len(), WORDS.len());
        for code in known {
            let word = word_of(code as i32);
            assert_eq!(code_of(word), Some(code), "{word}");
            // The word is the schema's name in lower case.
            assert_eq!(format!("CODE_{}", word.to_uppercase()), code.as_str_name());
        }
        assert_eq!(word_of(Code::Unspecified as i32), UNSPECIFIED);
        assert_eq!(word_of(99), UNSPECIFIED);
        assert_eq!(code_of(UNSPECIFIED), None);
    }
}
