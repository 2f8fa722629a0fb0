//! What the commands that talk to relays share: where these are, how to open mailboxes there, and what
//! to say when it does not work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::failure::{Refused, seconds};
use super::known_relays::known_relays;
use super::{Usage, keygen};
use crate::client::{Client, ClientError, MailboxId, MailboxKey, Opened, Options, Receipts, v1};
use crate::ids::parse_hex;

/// A relay that is gone for so long in the middle of something is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// What is refused for now is tried again for so long. Less than the minute that a full mailbox and a
/// full relay name, whose refusals are so told at once.
const REPEAT_FOR: Duration = Duration::from_secs(50);

/// How long a request that is small may go without an answer. More than it is repeated for, so that a
/// refusal is told as one.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// What a slow line carries in a second, at the least.
const SLOW_BYTES: u64 = 64 << 10;

const NOTHING_SENT: &str = "Nothing was sent to it.";

/// As with ssh, only the operator knows which of the two it is.
const WRONG_RELAY: &str = "\
    Nothing was sent to it. Ask the relay's operator whether the relay was set up anew. If it was, remove the \
    host's line from that file, or change the id in --relay. If not, somebody stands between you and the relay.";

/// The most that any relay can be set to take as one blob.
const BLOB_BYTES_MAX: usize = 64 << 20;

/// The frame of v1 that such a blob may come in: v1 writes bytes as numbers, up to three digits and a comma
/// each, and some words around them.
const V1_FRAME_BYTES_MAX: usize = 4 * BLOB_BYTES_MAX + (64 << 10);

/// Where relays are, and how to see that it is them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Relays {
    /// Relay address, ws:// or wss://, with `#` and the relay's id behind it to accept no other relay
    /// there; if several are given, they are tried in turn, and the next takes over when one fails
    #[arg(
        long = "relay",
        value_name = "URL",
        default_value = "ws://127.0.0.1:8080"
    )]
    relays: Vec<String>,

    /// File with the certificates (PEM) to trust for wss://, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// File that remembers which relay was met under which host, so that no other is accepted there later;
    /// by default known-relays in ~/.local/state/vauchi-relay, without relays on this machine
    #[arg(long, value_name = "FILE")]
    known_relays: Option<PathBuf>,
}

impl Relays {
    pub(super) fn options(&self) -> Options {
        let mut options = Options::new(self.relays.iter().cloned());
        options.authorities.clone_from(&self.ca);
        if let Some(known) = known_relays(self.known_relays.as_deref()) {
            options.known_relays = known;
        }
        options.message_bytes_max = BLOB_BYTES_MAX;
        options.repeat_for = REPEAT_FOR;
        options.answer_within = Some(ANSWER_WITHIN);
        options.give_up_after = Some(GIVE_UP_AFTER);
        options
    }

    pub(super) async fn connect(&self, options: Options) -> anyhow::Result<Client> {
        let connected = Client::connect(options).await;
        connected.map_err(|error| not_connected(&self.relays.join(", "), error))
    }

    /// A v1 client has one relay.
    pub(super) async fn connect_v1(&self, mut options: v1::Options) -> anyhow::Result<v1::Client> {
        let [relay] = self.relays.as_slice() else {
            bail!(Usage("protocol v1 takes only one --relay".to_owned()))
        };
        options.authorities.clone_from(&self.ca);
        options.message_bytes_max = V1_FRAME_BYTES_MAX;
        let connected = v1::Client::connect(relay, options).await;
        connected.map_err(|error| not_connected(relay, error))
    }
}

/// How long a request may go without an answer when it and what is ahead of it have so many bytes.
pub(super) fn answer_within(bytes: u64) -> Duration {
    ANSWER_WITHIN + Duration::from_secs(bytes.div_ceil(SLOW_BYTES))
}

/// As [`answer_within`], for a blob in a frame of v1.
pub(super) fn v1_answer_within(bytes: u64) -> Duration {
    answer_within(bytes.saturating_mul(4))
}

/// Opens the mailboxes of these keys, all or it fails.
pub(super) async fn open(
    client: &Client,
    keys: &[MailboxKey],
    receipts: Receipts,
) -> anyhow::Result<Vec<Opened>> {
    let opened = client.open_each(keys, receipts).await;
    let opened = opened.map_err(|error| explained("cannot open the mailboxes", error))?;
    opened
        .into_iter()
        .map(|opened| opened.map_err(|error| explained("cannot open a mailbox", error)))
        .collect()
}

/// Reads the key files.
pub(super) fn keys(files: &[PathBuf]) -> anyhow::Result<Vec<MailboxKey>> {
    files.iter().map(|file| keygen::read(file)).collect()
}

/// Reads a mailbox from the command line.
pub(super) fn parse_mailbox(text: &str) -> Result<MailboxId, String> {
    MailboxId::parse(text).map_err(|_| {
        format!(
            "a mailbox must have 64 hexadecimal digits; this has {} characters",
            text.chars().count()
        )
    })
}

/// Reads 32 bytes from the command line.
pub(super) fn parse_32_bytes(text: &str) -> Result<[u8; 32], String> {
    parse_hex(text).map_err(|_| "this must be 64 hexadecimal digits".to_owned())
}

/// Reads a time from the command line.
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let seconds = text.find(|c: char| !c.is_ascii_digit()).and_then(|at| {
        let (number, unit) = text.split_at(at);
        let each = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(each)
    });
    match seconds {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err("a time must be a number followed by s, m, h or d".to_owned()),
    }
}

/// Reads a file, or standard input as `-`, as far as it could be one blob.
pub(super) async fn read_file(file: &Path) -> anyhow::Result<Bytes> {
    if file == Path::new("-") {
        return read(&mut tokio::io::stdin(), "standard input").await;
    }
    let name = file.display().to_string();
    let opened = tokio::fs::File::open(file).await;
    let mut opened = opened.with_context(|| format!("cannot read {name}"))?;
    read(&mut opened, &name).await
}

async fn read(from: &mut (impl AsyncRead + Unpin), name: &str) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    let read = from
        .take(BLOB_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .await;
    read.with_context(|| format!("cannot read {name}"))?;
    if bytes.len() > BLOB_BYTES_MAX {
        bail!(
            "{name} is larger than {} MiB, the most that any relay takes as one blob",
            BLOB_BYTES_MAX >> 20
        );
    }
    Ok(bytes.into())
}

/// Why there is no connection, and what to do.
fn not_connected(relay: &str, error: ClientError) -> anyhow::Error {
    let text = match &error {
        ClientError::Url(why) => format!("--relay {relay}: {why}"),
        ClientError::Unreachable(_) => format!(
            "{error}\nIs a relay running at {relay}? `vauchi-relay` starts one; --relay names another."
        ),
        ClientError::Timeout => {
            format!("{relay} does not answer; check its address and the firewall")
        }
        ClientError::Certificates(_) => format!("--ca: {error}"),
        ClientError::Untrusted(_) => {
            format!("{relay}: {error}\n--ca names a file with the certificate of its authority.")
        }
        ClientError::WrongRelay { .. } => format!("{error}\n{WRONG_RELAY}"),
        ClientError::KnownElsewhere { .. } => format!("{error}\n{NOTHING_SENT}"),
        ClientError::NotProven(_) => format!("{relay}: {error}\n{NOTHING_SENT}"),
        ClientError::KnownRelays(_) => format!(
            "{error}\nMend the file, name another with --known-relays, or add # and the relay's id to --relay."
        ),
        _ => return explained(&format!("{relay} refused the connection"), error),
    };
    Refused::error(text, error)
}

/// What failed, why, and whether to try again.
pub(super) fn explained(what: &str, error: ClientError) -> anyhow::Error {
    let again = match error.retry_after() {
        Some(after) => format!("\nRetry in {} s.", seconds(after)),
        None => String::new(),
    };
    Refused::error(format!("{what}: {error}{again}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in ["", "90", "0s", "-1s", "1w", "s", "99999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_large_blob_has_the_time_that_a_slow_line_takes() {
        assert_eq!(answer_within(0), ANSWER_WITHIN);
        let largest = answer_within(BLOB_BYTES_MAX as u64);
        assert_eq!(largest, ANSWER_WITHIN + Duration::from_secs(1_024));
    }

    #[test]
    fn a_wrong_mailbox_is_explained() {
        let why = parse_mailbox("abc").unwrap_err();
        assert_eq!(
            why,
            "a mailbox must have 64 hexadecimal digits; this has 3 characters"
        );
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_read_to_it() {
        let error = read(&mut tokio::io::repeat(0), "it").await.unwrap_err();
        let text = error.to_string();
        assert_eq!(
            text,
            "it is larger than 64 MiB, the most that any relay takes as one blob"
        );
    }
}
