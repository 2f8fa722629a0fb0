//! What can go wrong with a relay, and whether to try again.

use std::time::Duration;

/// Why a call did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address of the relay can not be used.
    #[error("the relay's address can not be used: {0}")]
    Url(String),
    /// Nobody answers there. Try again later.
    #[error("the relay can not be reached: {0}")]
    Unreachable(String),
    /// The relay refused the connection before it began: full (503), or too many from this address
    /// (429); other codes mean that this is no relay.
    #[error("the connection was refused with HTTP status {status}")]
    NotAccepted {
        /// The HTTP status.
        status: u16,
        /// When to try again, if the relay says.
        retry_after: Option<Duration>,
    },
    /// The relay refused a request. An unchanged repeat helps only if `retry_after` is there.
    #[error("refused{}", stated(.code, .message))]
    Refused {
        /// One word saying why; empty with relays that do not say.
        code: String,
        /// What is wrong and what to do; empty with relays that do not say.
        message: String,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The frame is larger than [`Options::message_bytes_max`](super::Options::message_bytes_max).
    #[error("a frame of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The connection was closed with a goodbye.
    #[error("the relay closed the connection: {code} {reason}")]
    Closed {
        /// The close code; 1005 when there was none.
        code: u16,
        /// The relay's reason.
        reason: String,
    },
    /// The connection ended without a goodbye.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The relay sent something that is not its protocol.
    #[error("the relay does not keep to the protocol: {0}")]
    Protocol(&'static str),
    /// No answer in time.
    #[error("the relay did not answer in time")]
    Timeout,
}

/// A relay other than ours gives no reason.
fn stated(code: &str, message: &str) -> String {
    match (code, message) {
        ("", "") => " without a reason".to_owned(),
        ("", message) => format!(": {message}"),
        (code, "") => format!(": {code}"),
        (code, message) => format!(" ({code}): {message}"),
    }
}
