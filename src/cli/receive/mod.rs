//! `vauchi-relay receive`: takes what waits in a mailbox, for trying out and for scripts.
//!
//! A mailbox by its name is read through v1, here; mailboxes by their keys through [`v2`]. Neither
//! acknowledges a blob before it is [`handed_over`].

mod handed_over;
mod v2;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use data_encoding::HEXLOWER;
use serde_json::json;

use super::connect::{Relays, explained, parse_mailbox};
use super::folder::Folder;
use super::{Interrupted, interrupted as stopped, say, stop_signal};
use crate::client::v1::{Client, Delivery, Options};
use crate::client::{ClientError, MailboxId};

/// How long a goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Receive the blobs that wait in a mailbox, oldest first.
///
/// Each blob is acknowledged after it is safe: read by the next program if standard output is a pipe, or on
/// the disk if it is a file or with --out. The relay then deletes it. Without --follow the command ends
/// when the mailbox is empty.
///
/// Exit codes: 0 every waiting blob is written, or --follow was interrupted; 1 an error or an early
/// end, with the reason on stderr; 2 invalid arguments. Blobs that were written by then are
/// acknowledged; the others arrive again next time.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["mailbox", "keys"]))]
pub(crate) struct Args {
    #[command(flatten)]
    relays: Relays,

    /// A mailbox without a key, opened through protocol v1: 64 hexadecimal digits
    #[arg(long, value_parser = parse_mailbox)]
    mailbox: Option<MailboxId>,

    /// Key file of the mailbox, made by `keygen`; can be given several times
    #[arg(long = "key", value_name = "KEYFILE", conflicts_with = "mailbox")]
    keys: Vec<PathBuf>,

    /// Keep receiving until interrupted
    #[arg(long)]
    follow: bool,

    /// Do not acknowledge: the blobs stay at the relay and arrive again next time. The relay stops
    /// delivering when its window of unacknowledged blobs is full; with --key that is an error
    #[arg(long)]
    no_ack: bool,

    /// Write each blob to a file in this folder, named by its id, instead of to standard output. No
    /// file is overwritten: another blob with the same id becomes ID-2 and so on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Let senders who asked for receipts know when their blobs are delivered and acknowledged
    #[arg(long, requires = "keys")]
    receipts: bool,

    /// Print one JSON object per line for each blob and receipt, instead of the blobs
    #[arg(long)]
    pub(super) json: bool,

    /// Show progress even if standard error is not a terminal
    #[arg(long)]
    progress: bool,

    /// Seconds of silence after which a v1 mailbox counts as empty. Not needed with --key, where the
    /// relay reports that the mailbox is empty, except with --no-ack
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = parse_seconds)]
    wait: Duration,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Takes what waits, and with `--follow` what comes.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let folder = args.out.as_deref().map(Folder::open).transpose()?;
    let Some(mailbox) = args.mailbox else {
        return v2::run(&args, folder.as_ref()).await;
    };
    let client = tokio::select! {
        // First, so that the signal is caught before anything is there to be left behind.
        biased;
        error = stopped() => return Err(error),
        client = args.relays.connect_v1(Options::unsigned(mailbox)) => client?,
    };
    let taken = tokio::select! {
        taken = take_all(&client, &args, mailbox, folder.as_ref()) => taken,
        interrupted = interrupted(&args) => interrupted,
    };
    end(&args, taken, client.close()).await
}

/// Says goodbye even after a fault, so that the acknowledgements of what was written leave, but not for
/// longer than a relay needs that is there. A user who does not want to wait interrupts.
async fn end(
    args: &Args,
    taken: anyhow::Result<()>,
    goodbye: impl Future<Output = Result<(), ClientError>>,
) -> anyhow::Result<()> {
    let said = tokio::select! {
        said = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye) => {
            said.unwrap_or(Err(ClientError::Timeout))
        }
        _stopped = stop_signal() => Err(ClientError::Timeout),
    };
    taken?;
    match said {
        // To be interrupted is how this ends, and a relay that is away then is none of its faults.
        Err(_) if args.follow => Ok(()),
        said => said.map_err(|error| explained("the last acknowledgements may be lost", error)),
    }
}

/// Comes with a signal to stop, which is how `--follow` is meant to end. What is being written then is
/// not acknowledged, and comes again.
async fn interrupted(args: &Args) -> anyhow::Result<()> {
    stop_signal().await.context("cannot listen for signals")?;
    if !args.follow {
        bail!(Interrupted(
            "interrupted; unacknowledged blobs arrive again"
        ));
    }
    Ok(())
}

async fn take_all(
    client: &Client,
    args: &Args,
    mailbox: MailboxId,
    out: Option<&Folder>,
) -> anyhow::Result<()> {
    let mut count: u64 = 0;
    while let Some(delivery) = next(client, args).await? {
        count += 1;
        let file = match out {
            Some(folder) => {
                let name = file_name(&delivery, count);
                Some(folder.put(&name, delivery.body.clone()).await?)
            }
            None => None,
        };
        match (args.json, &file) {
            (true, _) => say_in_json(&delivery, mailbox, file.as_deref()).await?,
            (false, Some(_)) => {}
            (false, None) => hand_over(&delivery.body).await?,
        }
        if !args.no_ack {
            client
                .acknowledge(&delivery)
                .await
                .map_err(|error| explained("a written blob could not be acknowledged", error))?;
        }
    }
    tell_of_none(count);
    Ok(())
}

/// Tells a person that nothing came: the command would otherwise look as if it had done nothing. A
/// script sees it from the empty output.
pub(super) fn tell_of_none(taken: u64) {
    if taken == 0 && std::io::stderr().is_terminal() {
        say::note("no blobs are waiting");
    }
}

/// The next blob; `None` when the mailbox counts as empty. v1 does not say that it is.
async fn next(client: &Client, args: &Args) -> anyhow::Result<Option<Delivery>> {
    let next = client.next_delivery();
    tokio::pin!(next);
    let delivery = if args.follow {
        next.await
    } else {
        match tokio::time::timeout(args.wait, &mut next).await {
            Ok(delivery) => delivery,
            // A large blob may still be on its way over a slow line; then the pong comes behind it.
            Err(_quiet) => tokio::select! {
                biased;
                delivery = next => delivery,
                answered = client.ping() => match answered {
                    Ok(()) => return came_before_the_pong(client).await,
                    Err(why) => return Err(explained("receiving stopped early", why)),
                },
            },
        }
    };
    if delivery.is_none() {
        let why = client.ended().unwrap_or(ClientError::Timeout);
        return Err(explained("receiving stopped early", why));
    }
    Ok(delivery)
}

/// The connection's task hands over what came before it tells of the pong.
async fn came_before_the_pong(client: &Client) -> anyhow::Result<Option<Delivery>> {
    let at_once = tokio::time::timeout(Duration::ZERO, client.next_delivery());
    Ok(at_once.await.unwrap_or_default())
}

/// One line for a blob. The same fields as with a key; v1 does not tell the times.
async fn say_in_json(
    delivery: &Delivery,
    mailbox: MailboxId,
    file: Option<&str>,
) -> anyhow::Result<()> {
    let blob = file.is_none().then(|| HEXLOWER.encode(&delivery.body));
    hand_over_line(&json!({
        "kind": "blob",
        "id": delivery.id(),
        "mailbox": mailbox.to_hex(),
        "stored_at": null,
        "expires_at": null,
        "bytes": delivery.body.len(),
        "blob": blob,
        "file": file,
    }))
    .await
}

/// Prints a blob and sees that it is in safe hands.
async fn hand_over(blob: &[u8]) -> anyhow::Result<()> {
    print(blob).context(say::NOT_WRITTEN)?;
    let handed_over = handed_over::handed_over(std::io::stdout()).await;
    handed_over.context("a blob on standard output is not acknowledged and arrives again")
}

/// Prints a line and sees that it is in safe hands.
async fn hand_over_line(line: &serde_json::Value) -> anyhow::Result<()> {
    say::line(line)?;
    let handed_over = handed_over::handed_over(std::io::stdout()).await;
    handed_over.context("a line on standard output is not acknowledged and arrives again")
}

/// To a terminal text gets a line of its own, and what is not text is shown in hexadecimal, because
/// raw bytes could change the terminal; anything else gets the bytes as they are.
pub(super) fn print(blob: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if !out.is_terminal() {
        out.write_all(blob)?;
    } else if let Some(text) = printable(blob) {
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "{}", HEXLOWER.encode(blob))?;
    }
    out.flush()
}

fn printable(blob: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(blob).ok()?;
    let is_plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars().all(is_plain).then_some(text)
}

/// The blob's id if it can be a file name; a relay may send anything as an id, paths too.
fn file_name(delivery: &Delivery, count: u64) -> String {
    let id = delivery.id();
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&id.len()) && !id.starts_with('-') && id.chars().all(is_harmless) {
        id.to_owned()
    } else {
        format!("blob-{count}")
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;
    use crate::client::played_relay::{Relay, listen};
    use crate::ids::BlobId;
    use crate::protocol::v1::{Answer, Request};

    fn args(relay: &str, more: &[&str]) -> Args {
        let command = Args::augment_args(clap::Command::new("receive"));
        command.clone().debug_assert();
        let mailbox = "ab".repeat(32);
        let words = ["receive", "--relay", relay, "--mailbox", &mailbox];
        let matches = command.get_matches_from(words.iter().chain(more));
        Args::from_arg_matches(&matches).unwrap()
    }

    /// Runs the command against a relay that delivers blobs 1 and 2; gives its outcome and what the
    /// relay heard from it.
    async fn received(
        more: &[&str],
        then: impl AsyncFnOnce(&mut Relay),
    ) -> (anyhow::Result<()>, Vec<Request>) {
        let (url, accept) = listen().await;
        let play = async {
            let mut relay = accept.await;
            relay.handshake().await;
            relay.send(Answer::HandshakeAccepted).await;
            relay.deliver(1).await;
            relay.deliver(2).await;
            then(&mut relay).await;
            let mut heard = Vec::new();
            while let Some((_, request)) = relay.request().await {
                heard.push(request);
            }
            heard
        };
        tokio::join!(run(args(&url, more)), play)
    }

    #[tokio::test]
    async fn what_is_written_is_acknowledged_and_the_end_is_quiet() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new").display().to_string();
        let (outcome, heard) = received(&["--out", &out, "--wait", "0.2"], async |_| {}).await;
        outcome.unwrap();
        let acknowledged = |n: u8| Request::Acknowledge(BlobId::from_bytes([n; 16]));
        assert_eq!(heard, [acknowledged(1), acknowledged(2)]);
        for n in [1, 2] {
            let name =
                format!("0{n}0{n}0{n}0{n}-0{n}0{n}-0{n}0{n}-0{n}0{n}-0{n}0{n}0{n}0{n}0{n}0{n}");
            assert_eq!(
                std::fs::read(folder.path().join("new").join(name)).unwrap(),
                [n; 3]
            );
        }
    }

    #[tokio::test]
    async fn no_ack_leaves_the_blobs_at_the_relay() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let (outcome, heard) =
            received(&["--out", &out, "--wait", "0.2", "--no-ack"], async |_| {}).await;
        outcome.unwrap();
        assert_eq!(heard, []);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_relay_that_ends_it_is_an_error_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let (outcome, _) = received(&["--out", &out, "--follow"], async |relay| {
            relay.close(1001, "going away").await;
        })
        .await;
        let text = format!("{:#}", outcome.unwrap_err());
        assert!(text.contains("1001 going away"), "{text}");
    }

    /// A relay that is away must not keep a disk that is full from being told.
    #[tokio::test(start_paused = true)]
    async fn a_goodbye_that_is_not_answered_ends_by_itself() {
        let never = std::future::pending;
        let now = args("ws://127.0.0.1:1", &[]);
        let fault = end(&now, Err(anyhow::anyhow!("disk full")), never()).await;
        assert_eq!(fault.unwrap_err().to_string(), "disk full");
        let lost = end(&now, Ok(()), never()).await.unwrap_err();
        assert!(lost.to_string().contains("may be lost"), "{lost}");
        let follows = args("ws://127.0.0.1:1", &["--follow"]);
        end(&follows, Ok(()), never()).await.unwrap();
    }

    #[test]
    fn only_plain_text_is_shown_as_text() {
        assert_eq!(printable("grüße\n\t!".as_bytes()), Some("grüße\n\t!"));
        assert_eq!(printable(b"\x1b[2J"), None);
        assert_eq!(printable(b"\xff"), None);
    }

    #[test]
    fn seconds_may_be_fractions_but_not_negative() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "x", "-1", "inf", "NaN"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
