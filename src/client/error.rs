//! What can go wrong with a relay, and whether to try again.

use std::time::Duration;

/// The close code of a relay that wants to be left alone for a minute.
const TOO_MANY_FAILED_PROOFS: u16 = 4429;

/// Why a call did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address of the relay cannot be used.
    #[error("invalid relay address: {0}")]
    Url(String),
    /// The certificates that TLS is checked against cannot be used.
    #[error("cannot verify TLS certificates: {0}")]
    Certificates(String),
    /// Nobody answers there. Try again later.
    #[error("cannot reach the relay: {0}")]
    Unreachable(String),
    /// The relay's certificate is not good. Repeating helps only after somebody has mended it.
    #[error("the relay's certificate is not trusted: {0}")]
    Untrusted(String),
    /// The relay takes blobs that are larger than [`super::Options::message_bytes_max`].
    #[error(
        "the relay allows blobs of {blob_bytes_max} bytes, but message_bytes_max is {message_bytes_max}"
    )]
    BlobsTooLarge {
        /// The relay's limit.
        blob_bytes_max: u64,
        /// The client's.
        message_bytes_max: usize,
    },
    /// The relay refused the connection before it began: full (503), or too many from this address
    /// (429); other codes mean that this is no relay.
    #[error("the relay refused the connection with HTTP status {status}")]
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
    /// The blob or its frame is larger than the relay or the client takes.
    #[error("{bytes} bytes exceed the limit of {bytes_max}")]
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
    #[error("the relay violated the protocol: {0}")]
    Protocol(&'static str),
    /// The relay cannot prove the id that it claims, so that it may be anybody. Nothing was sent.
    #[error("the relay did not prove its identity: {0}")]
    NotProven(&'static str),
    /// Another relay answers under this host than the expected one: it was set up anew, or somebody stands
    /// between. Nothing was sent.
    #[error(
        "{origin} is another relay than before: its id is {}, but {says} has {}",
        hex(.found), hex(.expected)
    )]
    WrongRelay {
        /// The host that was dialled.
        origin: String,
        /// The id that it must have.
        expected: [u8; 32],
        /// The id that it has proved.
        found: [u8; 32],
        /// What names the expected id: a file, or the URL.
        says: String,
    },
    /// The relay is known under another host. It has two names, or somebody passes its frames on to read
    /// along. Nothing was sent.
    #[error(
        "{origin} presents the identity of {known_as}; if both are names of one relay, add its id to the address: #{}",
        hex(.relay_id)
    )]
    KnownElsewhere {
        /// The host that was dialled.
        origin: String,
        /// The host that the relay is known under.
        known_as: String,
        /// Its id.
        relay_id: [u8; 32],
    },
    /// What is remembered of relays cannot be read or written.
    #[error("cannot look up known relays: {0}")]
    KnownRelays(String),
    /// The mailbox is not open, so nothing in it can be acknowledged. What was to be is acknowledged when
    /// this client opens the mailbox again.
    #[error("the mailbox is not open")]
    NotOpen,
    /// The blob came from another relay, which is told when it delivers the blob again.
    #[error("the client is now connected to another relay")]
    OtherRelay,
    /// The client was closed before there was an answer.
    #[error("the client is closed")]
    Finished,
    /// No answer in time. Whether the request was done is not known.
    #[error("the relay did not answer in time")]
    Timeout,
}

impl ClientError {
    /// When the relay says to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotAccepted { retry_after, .. } | Self::Refused { retry_after, .. } => {
                *retry_after
            }
            Self::Closed {
                code: TOO_MANY_FAILED_PROOFS,
                ..
            } => Some(Duration::from_secs(60)),
            _ => None,
        }
    }
}

fn hex(id: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(id)
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
