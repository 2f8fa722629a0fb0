//! `vauchi-relay send`: hands one blob to a relay, by hand and for scripts.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::keygen;
use super::progress::Progress;
use crate::client::{Blob, Client, ClientError, MailboxId, Options, Receipts, Submitted, v1};
use crate::ids::parse_hex;

/// A relay that is gone for so long in the middle of something is given up.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// Where relays are, and how to see that it is them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Relays {
    /// The relay's address, ws:// or wss://; several are tried in turn, and when one fails the next
    /// takes over
    #[arg(
        long = "relay",
        value_name = "URL",
        default_value = "ws://127.0.0.1:8080"
    )]
    pub(super) relays: Vec<String>,

    /// The certificates (PEM) to check wss:// against, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Hand one blob to a relay. Prints `stored` and the blob's id once the relay has it on its disk.
///
/// The blob is not encrypted here: that is up to you. What v1 clients can not collect is padded, so
/// that its size tells little.
///
/// Exit codes: 0 stored; 1 not stored, with the reason on stderr; 2 arguments wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    relays: Relays,

    /// Whose mailbox: an address of `keygen`, or 64 hexadecimal digits, which clients of protocol v1
    /// may collect, too
    #[arg(long, value_name = "MAILBOX", value_parser = parse_recipient)]
    to: Recipient,

    /// The blob itself, instead of a file
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,

    /// The file to send; without it, or with `-`, standard input is sent
    file: Option<PathBuf>,

    /// How long the relay shall keep it, as 90s, 15m, 12h or 30d; the relay's default otherwise
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    ttl: Option<Duration>,

    /// 64 hexadecimal digits that replace what was sent with the same and not collected yet; who knows
    /// them may replace it, so keep them to yourself
    #[arg(long, value_name = "HEX", value_parser = parse_topic)]
    topic: Option<[u8; 32]>,

    /// A key of `keygen`: its mailbox gets a receipt of what becomes of the blob
    #[arg(long, value_name = "KEYFILE")]
    receipt: Option<PathBuf>,

    /// Send it in its own size
    #[arg(long)]
    no_pad: bool,

    /// Speak protocol v1
    #[arg(long, conflicts_with_all = ["ttl", "topic", "receipt", "no_pad"])]
    v1: bool,

    /// Print one JSON object, with the secret that can take the blob back
    #[arg(long)]
    json: bool,
}

/// Whom a blob is for.
#[derive(Debug, Clone, Copy)]
struct Recipient {
    mailbox: MailboxId,
    /// Only an address of `keygen` says that its owner speaks v2.
    v1_ok: bool,
}

fn parse_recipient(text: &str) -> Result<Recipient, String> {
    let (digits, v1_ok) = match text.strip_prefix("v2:") {
        Some(digits) => (digits, false),
        None => (text, true),
    };
    let mailbox = parse_mailbox(digits)?;
    Ok(Recipient { mailbox, v1_ok })
}

/// Reads a mailbox from the command line.
pub(super) fn parse_mailbox(text: &str) -> Result<MailboxId, String> {
    MailboxId::parse(text).map_err(|_| {
        format!(
            "a mailbox is 64 hexadecimal digits; this has {} characters",
            text.chars().count()
        )
    })
}

fn parse_topic(text: &str) -> Result<[u8; 32], String> {
    parse_hex(text).map_err(|_| "a topic is 64 hexadecimal digits".to_owned())
}

fn parse_span(text: &str) -> Result<Duration, String> {
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
        _ => Err("a time is a number and s, m, h or d".to_owned()),
    }
}

impl Relays {
    pub(super) fn options(&self) -> Options {
        let mut options = Options::new(self.relays.iter().cloned());
        options.authorities.clone_from(&self.ca);
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
            bail!(super::Usage("protocol v1 takes one --relay".to_owned()))
        };
        options.authorities.clone_from(&self.ca);
        let connected = v1::Client::connect(relay, options).await;
        connected.map_err(|error| not_connected(relay, error))
    }
}

/// Hands the blob in.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let body = read_blob(&args).await?;
    let mut progress = Progress::new();
    progress.say("sending");
    let said = match args.v1 {
        true => send_v1(&args, body).await?,
        false => send_v2(&args, body).await?,
    };
    drop(progress);
    let mut out = std::io::stdout();
    match args.json {
        true => writeln!(out, "{said}")?,
        false => writeln!(out, "stored {}", said["id"].as_str().unwrap_or_default())?,
    }
    Ok(())
}

async fn send_v2(args: &Args, body: Bytes) -> anyhow::Result<serde_json::Value> {
    let mut options = args.relays.options();
    options.pads = !args.no_pad;
    let mut blob = Blob::new(args.to.mailbox, body);
    blob.terms.v1_ok = args.to.v1_ok;
    blob.terms.ttl = args.ttl;
    blob.terms.topic = args.topic;
    let receipts = args.receipt.as_deref().map(keygen::read).transpose()?;
    blob.terms.receipt_to = receipts.as_ref().map(|key| key.mailbox());
    let client = args.relays.connect(options).await?;
    let handed_in = async {
        if let Some(key) = &receipts {
            client.open(key, Receipts::None).await?;
        }
        client.submit(&blob).await
    };
    let submitted = handed_in.await;
    let submitted = submitted.map_err(|error| explained(not_stored(&error), error))?;
    client.close().await.ok();
    let expires_at = match submitted {
        Submitted::Stored { expires_at, .. } => Some(expires_at.millis()),
        Submitted::Handed => None,
    };
    Ok(json!({
        "id": HEXLOWER.encode(blob.id().as_bytes()),
        "secret": HEXLOWER.encode(blob.secret.expose()),
        "expires_at": expires_at,
    }))
}

async fn send_v1(args: &Args, body: Bytes) -> anyhow::Result<serde_json::Value> {
    // The handshake wants to know who is there. Nobody needs to, so this is a fresh name each time,
    // and nothing waits in its mailbox.
    let mut options = v1::Options::unsigned(MailboxId::random());
    options.keeps_deliveries = false;
    let client = args.relays.connect_v1(options).await?;
    let answer = client.submit(args.to.mailbox, body).await;
    // What the relay has said about the blob holds, however the goodbye goes.
    client.close().await.ok();
    let stored = answer.map_err(|error| explained(not_stored(&error), error))?;
    Ok(json!({ "id": stored.message_id }))
}

/// What to say of a blob when no `Stored` came.
fn not_stored(error: &ClientError) -> &'static str {
    match error {
        ClientError::Timeout
        | ClientError::Lost(_)
        | ClientError::Closed { .. }
        | ClientError::Unreachable(_) => "it is not known whether the blob is stored",
        _ => "the blob is not stored",
    }
}

async fn read_blob(args: &Args) -> anyhow::Result<Bytes> {
    if let Some(text) = &args.text {
        return Ok(text.clone().into());
    }
    match &args.file {
        Some(file) if file != Path::new("-") => {
            let blob = tokio::fs::read(file).await;
            Ok(blob
                .with_context(|| format!("can not read {}", file.display()))?
                .into())
        }
        _ => read_standard_input().await,
    }
}

async fn read_standard_input() -> anyhow::Result<Bytes> {
    if std::io::stdin().is_terminal() {
        writeln!(
            std::io::stderr(),
            "type the blob and end it with Ctrl-D (or use --text, or name a file)"
        )?;
    }
    let mut blob = Vec::new();
    tokio::io::stdin()
        .read_to_end(&mut blob)
        .await
        .context("can not read standard input")?;
    Ok(blob.into())
}

/// Why there is no connection, and what to do.
fn not_connected(relay: &str, error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Url(why) => anyhow::anyhow!("--relay {relay}: {why}"),
        error @ ClientError::Unreachable(_) => anyhow::anyhow!(
            "{error}\nIs a relay running at {relay}? `vauchi-relay` starts one; --relay names another."
        ),
        ClientError::Timeout => {
            anyhow::anyhow!("{relay} does not answer; is it a relay, and is the network open?")
        }
        error @ ClientError::Certificates(_) => anyhow::anyhow!("--ca: {error}"),
        error => explained(&format!("{relay} does not let us in"), error),
    }
}

/// What failed, why, and whether to try again.
pub(super) fn explained(what: &str, error: ClientError) -> anyhow::Error {
    let again = match error.retry_after() {
        Some(after) => {
            // Rounded up: a wait that is too short is refused again.
            let seconds = after.as_millis().div_ceil(1_000);
            format!("\nTry again in {seconds} s.")
        }
        None => String::new(),
    };
    anyhow::anyhow!("{what}: {error}{again}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Args as _, FromArgMatches};

    use super::*;
    use crate::client::played_relay::listen;
    use crate::clock::Timestamp;
    use crate::protocol::message::{Outgoing, Refused, Request, Submit};

    fn args(relay: &str, more: &[&str]) -> Args {
        let command = Args::augment_args(clap::Command::new("send"));
        command.clone().debug_assert();
        let to = "CD".repeat(32);
        let words = ["send", "--v1", "--relay", relay, "--to", &to];
        let matches = command.get_matches_from(words.iter().chain(more));
        Args::from_arg_matches(&matches).unwrap()
    }

    /// Runs the command against a relay that stores or refuses; gives its outcome and what was sent.
    async fn sent(more: &[&str], refused: Option<Refused>) -> (anyhow::Result<()>, Submit) {
        let (url, accept) = listen().await;
        let play = async {
            let mut relay = accept.await;
            relay.handshake().await;
            relay.send(Outgoing::HandshakeAccepted).await;
            let (tag, request) = relay.request().await.unwrap();
            relay
                .send(match refused {
                    Some(refused) => Outgoing::Refused {
                        tag: Some(tag),
                        refused,
                    },
                    None => Outgoing::Stored {
                        tag,
                        expires_at: Timestamp::default(),
                        duplicate: false,
                    },
                })
                .await;
            while relay.request().await.is_some() {}
            match request {
                Request::Submit(submit) => submit,
                other => panic!("{other:?}"),
            }
        };
        tokio::join!(run(args(&url, more)), play)
    }

    #[tokio::test]
    async fn text_or_a_file_is_sent_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\0\xff\n").unwrap();
        let path = file.path().display().to_string();
        for (more, body) in [
            (&["--text", "hello"][..], &b"hello"[..]),
            (&[path.as_str()], b"\0\xff\n"),
        ] {
            let (outcome, submit) = sent(more, None).await;
            outcome.unwrap();
            assert_eq!(submit.body, body);
            assert_eq!(submit.recipient, MailboxId::from_bytes([0xCD; 32]));
        }
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_when_to_try_again() {
        let refused = Refused {
            code: "rate_limited",
            message: "too many submits".into(),
            retry_after: Some(Duration::from_millis(1_200)),
        };
        let (outcome, _) = sent(&["--text", ""], Some(refused)).await;
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the blob is not stored: refused (rate_limited): too many submits\nTry again in 2 s."
        );
    }

    #[tokio::test]
    async fn a_relay_that_is_not_there_is_explained() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = run(args(&url, &["--text", "x"])).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("Is a relay running at {url}?")),
            "{text}"
        );
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in ["", "90", "0s", "-1s", "1w", "s", "99999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_an_address_of_keygen_keeps_v1_out() {
        let digits = "cd".repeat(32);
        assert!(parse_recipient(&digits).unwrap().v1_ok);
        assert!(!parse_recipient(&format!("v2:{digits}")).unwrap().v1_ok);
        assert!(parse_recipient("v2:").is_err());
    }

    #[test]
    fn a_wrong_mailbox_is_explained() {
        let why = parse_mailbox("abc").unwrap_err();
        assert_eq!(
            why,
            "a mailbox is 64 hexadecimal digits; this has 3 characters"
        );
    }
}
