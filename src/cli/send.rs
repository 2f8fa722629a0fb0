//! `vauchi-relay send`: hands blobs to a relay, by hand and for scripts.

use std::cell::Cell;
use std::future::ready;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::connect::{
    Relays, answer_within, explained, open, parse_32_bytes, parse_mailbox, parse_span, read_file,
    v1_answer_within,
};
use super::progress::Progress;
use super::{Usage, failed, keygen, say};
use crate::client::{
    Blob, Client, ClientError, MailboxId, MailboxKey, Receipts, Submitted, Terms, v1,
};

/// Files on their way at once; each is in memory meanwhile.
const AT_ONCE: usize = 8;

/// Send files, or standard input, to a mailbox, each as one blob. Prints `stored` and the blob's id
/// when the relay has the blob on its disk, or `handed` with --live.
///
/// `send` does not encrypt: it uploads the bytes you give it. Blobs that v1 clients cannot collect are
/// padded to hide their exact size. Temporary refusals are retried for 50 seconds.
///
/// Exit codes: 0 all blobs are stored, or handed over; 1 at least one is not, or its id cannot be
/// printed, with the reason on stderr; 2 invalid arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    relays: Relays,

    /// The recipient's mailbox: an address that `keygen` printed, or 64 hexadecimal digits; blobs for
    /// the latter are also visible to clients of protocol v1
    #[arg(long, value_name = "MAILBOX", value_parser = parse_recipient)]
    to: Recipient,

    /// Send this text instead of a file
    #[arg(long, conflicts_with = "files")]
    text: Option<String>,

    /// Files to send, in this order unless the relay temporarily refuses one; standard input without
    /// any, or for `-`
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// How long the relay keeps the blob, for example 90s, 15m, 12h or 30d [default: the relay's]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    ttl: Option<Duration>,

    /// 64 hexadecimal digits: replaces the uncollected blob that was sent with the same topic. Anyone
    /// who knows the topic can replace the blob, so keep it secret
    #[arg(long, value_name = "HEX", value_parser = parse_32_bytes)]
    topic: Option<[u8; 32]>,

    /// Send delivery receipts for this blob to the mailbox of this key, a file of `keygen`
    #[arg(long, value_name = "KEYFILE")]
    receipt: Option<PathBuf>,

    /// Deliver only if the recipient is connected now with receipts enabled (`receive --receipts`). The
    /// relay never stores the blob, so it can be lost
    #[arg(long, conflicts_with_all = ["ttl", "topic", "receipt"])]
    live: bool,

    /// Do not pad the blob to hide its exact size
    #[arg(long)]
    no_pad: bool,

    /// Use protocol v1
    #[arg(long, conflicts_with_all = ["ttl", "topic", "receipt", "live", "no_pad"])]
    v1: bool,

    /// Print one JSON object per line and blob, with the secret that can cancel it; keep the output for
    /// `cancel` and `extend`
    #[arg(long)]
    pub(super) json: bool,

    /// Show progress even if standard error is not a terminal
    #[arg(long)]
    progress: bool,
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

/// Hands the blobs in.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let sources = sources(&args)?;
    let sender = Sender::connect(&args).await?;
    let sent = send_all(&args, &sources, &sender).await;
    sender.close().await;
    sent
}

/// After the first that fails no more are begun; what is under way then is told all the same.
async fn send_all(args: &Args, sources: &[Source], sender: &Sender<'_>) -> anyhow::Result<()> {
    let mut progress = Progress::forced(args.progress);
    let (mut done, count) = (0, sources.len() as u64);
    let has_failed = Cell::new(false);
    // Read one by one, so that they leave in their order.
    let read = futures_util::stream::iter(sources)
        .take_while(|_| ready(!has_failed.get()))
        .then(async |source| source.read().await.map(|body| (source, body)));
    let sent = read.map(async |read| {
        let (source, body) = read?;
        sender.send(source, body).await
    });
    let mut sent = pin!(sent.buffered(sender.at_once()));
    let mut outcome = Ok(());
    progress.show("sending", done, count);
    while let Some(said) = sent.next().await {
        progress.clear();
        match said {
            Ok(said) => {
                done += 1;
                tell(&said, args.json)?;
            }
            Err(fault) => {
                has_failed.set(true);
                match &outcome {
                    Ok(()) => outcome = Err(fault),
                    Err(_) => failed(&fault, args.json),
                }
            }
        }
        progress.show("sending", done, count);
    }
    outcome
}

fn tell(said: &Value, is_json: bool) -> anyhow::Result<()> {
    let what = match &said["secret"] {
        Value::String(_) if said["expires_at"].is_null() => "handed",
        _ => "stored",
    };
    let id = said["id"].as_str().unwrap_or_default();
    let told = match is_json {
        true => say::line(said),
        false => say::line(format_args!("{what} {id}")),
    };
    told.with_context(|| format!("the blob {id} is {what}, but that cannot be told"))
}

/// Where a blob comes from.
enum Source {
    Text(Bytes),
    File(PathBuf),
}

impl Source {
    async fn read(&self) -> anyhow::Result<Bytes> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(file) => read_file(file).await,
        }
    }

    /// What is said before a fault, where there are several.
    fn named(&self, what: &str) -> String {
        match self {
            Self::Text(_) => what.to_owned(),
            Self::File(file) if file == Path::new("-") => what.to_owned(),
            Self::File(file) => format!("{}: {what}", file.display()),
        }
    }
}

fn sources(args: &Args) -> anyhow::Result<Vec<Source>> {
    if let Some(text) = &args.text {
        return Ok(vec![Source::Text(text.clone().into())]);
    }
    let mut files = args.files.clone();
    if files.is_empty() {
        files.push("-".into());
    }
    if files.len() > 1 && args.topic.is_some() {
        bail!(Usage(
            "--topic takes one file: each would replace the one before".to_owned()
        ));
    }
    let inputs = files.iter().filter(|file| *file == Path::new("-")).count();
    if inputs > 1 {
        bail!(Usage("standard input can be sent only once".to_owned()));
    }
    if inputs == 1 && std::io::stdin().is_terminal() {
        say::note("type the blob and end it with Ctrl-D (or use --text, or name a file)");
    }
    Ok(files.into_iter().map(Source::File).collect())
}

/// Sends blobs, one way or the other.
enum Sender<'a> {
    V1(v1::Client, &'a Args),
    V2 {
        client: Client,
        args: &'a Args,
        terms: Terms,
        /// Bytes that have no answer yet.
        under_way: Cell<u64>,
    },
}

impl<'a> Sender<'a> {
    async fn connect(args: &'a Args) -> anyhow::Result<Self> {
        if args.v1 {
            // The handshake wants to know who is there. Nobody needs to, so this is a fresh name each
            // time, and nothing waits in its mailbox.
            let mut options = v1::Options::unsigned(MailboxId::random());
            options.keeps_deliveries = false;
            let client = args.relays.connect_v1(options).await?;
            return Ok(Self::V1(client, args));
        }
        let receipts: Option<MailboxKey> = args.receipt.as_deref().map(keygen::read).transpose()?;
        let mut options = args.relays.options();
        options.pads = !args.no_pad;
        let client = args.relays.connect(options).await?;
        if let Some(key) = &receipts {
            open(&client, std::slice::from_ref(key), Receipts::None).await?;
        }
        let terms = Terms {
            ttl: args.ttl,
            topic: args.topic,
            receipt_to: receipts.map(|key| key.mailbox()),
            live_only: args.live,
            v1_ok: args.to.v1_ok && !args.live,
            relay: None,
        };
        Ok(Self::V2 {
            client,
            args,
            terms,
            under_way: Cell::new(0),
        })
    }

    /// v1 tells nothing by which blobs in flight could be told apart, so there is one.
    fn at_once(&self) -> usize {
        match self {
            Self::V1(..) => 1,
            Self::V2 { .. } => AT_ONCE,
        }
    }

    async fn send(&self, source: &Source, body: Bytes) -> anyhow::Result<Value> {
        let sent = match self {
            Self::V1(client, args) => {
                let (to, within) = (args.to.mailbox, v1_answer_within(body.len() as u64));
                let stored = client.submit_within(to, body, within).await;
                stored.map(|stored| {
                    // v1 knows no second thoughts and says no time.
                    let (id, to) = (stored.message_id, to.to_hex());
                    json!({ "id": id, "mailbox": to, "secret": null, "expires_at": null })
                })
            }
            Self::V2 {
                client,
                args,
                terms,
                under_way,
            } => {
                let bytes = body.len() as u64;
                let mut blob = Blob::new(args.to.mailbox, body);
                blob.terms = terms.clone();
                // They share one line, in their order.
                under_way.update(|others| others + bytes);
                let within = answer_within(under_way.get());
                let submitted = client.submit_within(&blob, within).await;
                under_way.update(|all| all - bytes);
                submitted.map(|submitted| described(&blob, submitted))
            }
        };
        sent.map_err(|error| explained(&source.named(not_stored(&error)), error))
    }

    /// What the relay has said about the blobs holds, however the goodbye goes.
    async fn close(self) {
        match self {
            Self::V1(client, _) => client.close().await.ok(),
            Self::V2 { client, .. } => client.close().await.ok(),
        };
    }
}

fn described(blob: &Blob, submitted: Submitted) -> Value {
    let expires_at = match submitted {
        Submitted::Stored { expires_at, .. } => Some(expires_at.millis()),
        Submitted::Handed => None,
    };
    json!({
        "id": HEXLOWER.encode(blob.id().as_bytes()),
        "mailbox": match blob.terms.v1_ok {
            true => blob.mailbox.to_hex(),
            false => keygen::address(&blob.mailbox),
        },
        "secret": HEXLOWER.encode(blob.secret.expose()),
        "expires_at": expires_at,
    })
}

/// What to say of a blob when no `Stored` came. Only who was told no knows it: after anything else an
/// earlier connection may have carried it.
fn not_stored(error: &ClientError) -> &'static str {
    match error {
        ClientError::Refused { .. } | ClientError::TooLarge { .. } | ClientError::Url(_) => {
            "the relay did not store the blob"
        }
        _ => "unknown whether the blob is stored",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Args as _, FromArgMatches};

    use super::*;
    use crate::client::played_relay::listen;
    use crate::protocol::message::Refused;
    use crate::protocol::v1::message::Submit;
    use crate::protocol::v1::{Answer, Request};

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
            relay.send(Answer::HandshakeAccepted).await;
            let (tag, request) = relay.request().await.unwrap();
            let answer = refused.map_or(Answer::Stored, Answer::Refused);
            relay.answer(&tag, answer).await;
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
            "the relay did not store the blob: refused (rate_limited): too many submits\nRetry in 2 s."
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
    fn only_who_was_told_no_says_that_a_blob_is_not_stored() {
        for told_no in [
            ClientError::TooLarge {
                bytes: 2,
                bytes_max: 1,
            },
            ClientError::Url("it".to_owned()),
        ] {
            assert_eq!(not_stored(&told_no), "the relay did not store the blob");
        }
        for unknown in [
            ClientError::NotAccepted {
                status: 503,
                retry_after: None,
            },
            ClientError::Protocol("it"),
            ClientError::Untrusted("it".to_owned()),
            ClientError::Finished,
            ClientError::Timeout,
        ] {
            let said = not_stored(&unknown);
            assert_eq!(said, "unknown whether the blob is stored");
        }
    }

    #[test]
    fn only_an_address_of_keygen_keeps_v1_out() {
        let digits = "cd".repeat(32);
        assert!(parse_recipient(&digits).unwrap().v1_ok);
        assert!(!parse_recipient(&format!("v2:{digits}")).unwrap().v1_ok);
        assert!(parse_recipient("v2:").is_err());
    }
}
