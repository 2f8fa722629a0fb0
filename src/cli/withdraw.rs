//! `vauchi-relay cancel` and `extend`: second thoughts about what `send --json` has sent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use super::connect::{Relays, explained, parse_32_bytes, parse_mailbox, parse_span, read_file};
use super::{Usage, say};
use crate::client::{BlobSecret, Client, ClientError, MailboxId};

/// Cancel blobs that you sent and the recipient has not collected yet.
///
/// Reads the output of `send --json`, which contains the required secrets. Prints `cancelled` and the
/// id of each blob; only a receipt tells whether the blob was still there.
///
/// Exit codes: 0 done; 1 an error, with the reason on stderr; 2 invalid arguments.
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    what: What,
}

/// Extend the time to live of blobs that you sent and the recipient has not collected yet.
///
/// Reads the output of `send --json`, which contains the required secrets. Prints `extended` and the id
/// of each blob; only a receipt tells whether the blob was still there.
///
/// Exit codes: 0 done; 1 an error, with the reason on stderr; 2 invalid arguments.
#[derive(Debug, clap::Args)]
pub(super) struct ExtendArgs {
    #[command(flatten)]
    what: What,

    /// New time to live from now on, for example 90s, 15m, 12h or 30d; a shorter time than is left
    /// changes nothing
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    ttl: Duration,
}

#[derive(Debug, clap::Args)]
struct What {
    #[command(flatten)]
    relays: Relays,

    /// Output of `send --json`; standard input without it, or for `-`
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,

    /// Print one JSON object per line and blob
    #[arg(long)]
    json: bool,
}

/// A blob that was sent.
struct Sent {
    id: String,
    mailbox: MailboxId,
    secret: BlobSecret,
}

/// Takes blobs back.
pub(super) async fn cancel(args: CancelArgs) -> anyhow::Result<()> {
    args.what
        .each(("cancelled", "was not cancelled"), async |client, sent| {
            client.cancel(sent.mailbox, &sent.secret).await
        })
        .await
}

/// Has blobs kept for longer.
pub(super) async fn extend(args: ExtendArgs) -> anyhow::Result<()> {
    let ttl = args.ttl;
    args.what
        .each(("extended", "was not extended"), async |client, sent| {
            client.extend(sent.mailbox, &sent.secret, ttl).await
        })
        .await
}

impl CancelArgs {
    pub(super) fn is_json(&self) -> bool {
        self.what.json
    }
}

impl ExtendArgs {
    pub(super) fn is_json(&self) -> bool {
        self.what.json
    }
}

impl What {
    async fn each(
        &self,
        (done, not_done): (&str, &str),
        ask: impl AsyncFn(&Client, &Sent) -> Result<(), ClientError>,
    ) -> anyhow::Result<()> {
        let all = self.read().await?;
        let client = self.relays.connect(self.relays.options()).await?;
        for sent in all {
            let id = &sent.id;
            let asked = ask(&client, &sent).await;
            asked.map_err(|error| explained(&format!("{id} {not_done}"), error))?;
            match self.json {
                true => say::line(json!({ "kind": done, "id": id }))?,
                false => say::line(format_args!("{done} {id}"))?,
            }
        }
        client.close().await.ok();
        Ok(())
    }

    async fn read(&self) -> anyhow::Result<Vec<Sent>> {
        let bytes = read_file(&self.file).await?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let parsed: Option<Vec<_>> = lines.map(parse).collect();
        match parsed {
            Some(sent) if !sent.is_empty() => Ok(sent),
            // Never shows what is in it.
            _ => bail!(Usage(format!(
                "{}: not the output of `send --json`",
                self.file.display()
            ))),
        }
    }
}

fn parse(line: &str) -> Option<Sent> {
    let said: Value = serde_json::from_str(line).ok()?;
    let mailbox = said["mailbox"].as_str()?;
    let mailbox = mailbox.strip_prefix("v2:").unwrap_or(mailbox);
    Some(Sent {
        id: said["id"].as_str()?.to_owned(),
        mailbox: parse_mailbox(mailbox).ok()?,
        secret: BlobSecret::from_bytes(parse_32_bytes(said["secret"].as_str()?).ok()?),
    })
}
