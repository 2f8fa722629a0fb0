//! `vauchi-relay purge`: deletes all that waits in mailboxes that are proven to be ours.

use std::path::PathBuf;

use serde_json::json;

use super::connect::{Relays, explained, keys, open};
use super::{keygen, say};
use crate::client::Receipts;

/// Delete everything that waits in your mailboxes, unread.
///
/// Prints the number of deleted blobs and receipts of each mailbox. This cannot be undone. Senders who
/// asked for receipts learn of the deletion only with --receipts.
///
/// Exit codes: 0 deleted; 1 an error, with the reason on stderr; 2 invalid arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    relays: Relays,

    /// Key file of the mailbox, made by `keygen`; can be given several times
    #[arg(long = "key", value_name = "KEYFILE", required = true)]
    keys: Vec<PathBuf>,

    /// Let senders who asked for receipts know that their blobs were removed
    #[arg(long)]
    receipts: bool,

    /// Print one JSON object per line and mailbox
    #[arg(long)]
    pub(super) json: bool,
}

/// Deletes, and tells how much.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let keys = keys(&args.keys)?;
    let client = args.relays.connect(args.relays.options()).await?;
    let receipts = match args.receipts {
        true => Receipts::All,
        false => Receipts::None,
    };
    open(&client, &keys, receipts).await?;
    let mailboxes: Vec<_> = keys.iter().map(|key| key.mailbox()).collect();
    let purged = client.purge(&mailboxes).await;
    let purged = purged.map_err(|error| explained("the purge may be incomplete", error))?;
    for purged in purged {
        let mailbox = keygen::address(&purged.mailbox);
        let (blobs, receipts) = (purged.blobs, purged.receipts);
        match args.json {
            true => say::line(json!({ "mailbox": mailbox, "blobs": blobs, "receipts": receipts }))?,
            false => say::line(format_args!(
                "purged {mailbox}: {blobs} blobs, {receipts} receipts"
            ))?,
        }
    }
    client.close().await.ok();
    Ok(())
}
