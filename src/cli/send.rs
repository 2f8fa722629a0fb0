//! `vauchi-relay send`: hands one blob to a relay, for trying out and for scripts.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::client::v1::{Client, Options};
use crate::client::{ClientError, MailboxId};

/// Hand one blob to a relay. Prints `stored` and the submit's id once the relay has it on its disk.
///
/// The blob is sent as it is: encrypting it is up to you.
///
/// Exit codes: 0 stored; 1 not stored, with the reason on stderr.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The relay's address
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080")]
    relay: String,

    /// Whose mailbox: 64 hexadecimal digits
    #[arg(long, value_name = "MAILBOX", value_parser = parse_mailbox)]
    to: MailboxId,

    /// The blob itself, instead of a file
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,

    /// The file to send; without it, or with `-`, standard input is sent
    file: Option<PathBuf>,
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

/// Hands the blob in.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let blob = read_blob(&args).await?;
    // The handshake wants to know who is there. Nobody needs to, so this is a fresh name each time,
    // and nothing waits in its mailbox.
    let mut options = Options::unsigned(MailboxId::random());
    options.keeps_deliveries = false;
    let client = connect(&args.relay, options).await?;
    let answer = client.submit(args.to, blob).await;
    // What the relay has said about the blob holds, however the goodbye goes.
    client.close().await.ok();
    let stored = answer.map_err(|error| explained(not_stored(&error), error))?;
    writeln!(std::io::stdout(), "stored {}", stored.message_id)?;
    Ok(())
}

/// What to say of a blob when no `Stored` came.
fn not_stored(error: &ClientError) -> &'static str {
    match error {
        ClientError::Timeout | ClientError::Lost(_) | ClientError::Closed { .. } => {
            "it is not known whether the blob is stored"
        }
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

/// Connects, with an error that says what to do.
pub(super) async fn connect(relay: &str, options: Options) -> anyhow::Result<Client> {
    match Client::connect(relay, options).await {
        Ok(client) => Ok(client),
        Err(ClientError::Url(why)) => bail!("--relay {relay}: {why}"),
        Err(error @ ClientError::Unreachable(_)) => bail!(
            "{error}\nIs a relay running at {relay}? `vauchi-relay` starts one; --relay names another."
        ),
        Err(ClientError::Timeout) => {
            bail!("{relay} does not answer; is it a relay, and is the network open?")
        }
        Err(error) => Err(explained(&format!("{relay} does not let us in"), error)),
    }
}

/// What failed, why, and whether to try again.
pub(super) fn explained(what: &str, error: ClientError) -> anyhow::Error {
    let again = match &error {
        ClientError::Refused {
            retry_after: Some(after),
            ..
        }
        | ClientError::NotAccepted {
            retry_after: Some(after),
            ..
        } => {
            // Rounded up: a wait that is too short is refused again.
            let seconds = after.as_millis().div_ceil(1_000);
            format!("\nTry again in {seconds} s.")
        }
        _ => String::new(),
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
        let words = ["send", "--relay", relay, "--to", &to];
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
    fn a_wrong_mailbox_is_explained() {
        let why = parse_mailbox("abc").unwrap_err();
        assert_eq!(
            why,
            "a mailbox is 64 hexadecimal digits; this has 3 characters"
        );
    }
}
