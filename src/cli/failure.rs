//! Why a command failed: a text for people and, with `--json`, one object for programs.
//!
//! The object is the same for every command and every fault: `{"kind": "error", "code": …, "text": …,
//! "retry_after": …}`. The code is the relay's when the relay refused (docs/errors.md), and one of those
//! below otherwise; `retry_after` is in seconds, and null when an unchanged repeat does not help.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Interrupted, Usage};
use crate::client::ClientError;

/// What a relay or the way to it had against a command.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    text: String,
    why: ClientError,
}

impl Refused {
    /// `text` is for people and says all that `why` does.
    pub(super) fn error(text: String, why: ClientError) -> anyhow::Error {
        anyhow::Error::new(Self { text, why })
    }
}

/// The object for programs.
pub(super) fn as_json(error: &anyhow::Error) -> Value {
    let (code, retry_after) = match error.downcast_ref() {
        Some(Refused { why, .. }) => (code_of(why), why.retry_after()),
        None if error.downcast_ref::<Usage>().is_some() => ("usage", None),
        None if error.downcast_ref::<Interrupted>().is_some() => ("interrupted", None),
        None => ("failed", None),
    };
    described(code, &format!("{error:#}"), retry_after)
}

/// The object for a fault in the arguments or the settings.
pub(super) fn usage_as_json(text: &str) -> Value {
    described("usage", text, None)
}

fn described(code: &str, text: &str, retry_after: Option<Duration>) -> Value {
    json!({ "kind": "error", "code": code, "text": text, "retry_after": retry_after.map(seconds) })
}

/// Rounded up: a wait that is too short is refused again.
pub(super) fn seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn code_of(why: &ClientError) -> &str {
    match why {
        ClientError::Refused { code, .. } if !code.is_empty() => code,
        ClientError::Refused { .. } => "refused",
        ClientError::Url(_) => "address",
        ClientError::Certificates(_) => "certificates",
        ClientError::Unreachable(_) => "unreachable",
        ClientError::Untrusted(_) => "untrusted",
        ClientError::NotProven(_) => "not_proven",
        ClientError::WrongRelay { .. } => "wrong_relay",
        ClientError::KnownElsewhere { .. } => "known_elsewhere",
        ClientError::KnownRelays(_) => "known_relays",
        ClientError::BlobsTooLarge { .. } => "blobs_too_large",
        ClientError::NotAccepted { .. } => "not_accepted",
        ClientError::TooLarge { .. } => "too_large",
        ClientError::Closed { .. } => "closed",
        ClientError::Lost(_) => "lost",
        ClientError::Protocol(_) => "protocol",
        ClientError::NotOpen => "not_open",
        ClientError::OtherRelay => "other_relay",
        ClientError::Finished => "finished",
        ClientError::Timeout => "timeout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_one_shape_and_keeps_its_code_behind_more_words() {
        let refused = ClientError::Refused {
            code: "quota".to_owned(),
            message: "full".to_owned(),
            retry_after: Some(Duration::from_millis(1_001)),
        };
        let refused = Refused::error("it is full".to_owned(), refused);
        for (error, code, text, retry_after) in [
            (
                refused.context("a.txt"),
                "quota",
                "a.txt: it is full",
                json!(2),
            ),
            (anyhow::anyhow!("no"), "failed", "no", Value::Null),
            (Usage("no".to_owned()).into(), "usage", "no", Value::Null),
            (
                Refused::error("late".to_owned(), ClientError::Timeout),
                "timeout",
                "late",
                Value::Null,
            ),
        ] {
            let wanted =
                json!({ "kind": "error", "code": code, "text": text, "retry_after": retry_after });
            assert_eq!(as_json(&error), wanted);
        }
    }
}
