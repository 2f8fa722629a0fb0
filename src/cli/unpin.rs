//! `vauchi-relay unpin`: lets clients of protocol v1 open a mailbox again that was opened by its key.

use std::path::PathBuf;

use serde_json::json;

use super::connect::{Relays, explained, keys, open};
use super::{keygen, say};
use crate::client::Receipts;

/// Allow protocol v1 clients to open your mailboxes without a proof again.
///
/// A mailbox that was opened with its key requires that key from then on (it is pinned). Unpinning
/// lasts until the key opens the mailbox again. Blobs sent to its v2: address stay hidden from v1
/// clients.
///
/// Exit codes: 0 done; 1 an error, with the reason on stderr; 2 invalid arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    relays: Relays,

    /// Key file of the mailbox, made by `keygen`; can be given several times
    #[arg(long = "key", value_name = "KEYFILE", required = true)]
    keys: Vec<PathBuf>,

    /// Print one JSON object per line and mailbox
    #[arg(long)]
    pub(super) json: bool,
}

/// Takes the pins off.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let keys = keys(&args.keys)?;
    let client = args.relays.connect(args.relays.options()).await?;
    open(&client, &keys, Receipts::None).await?;
    for key in &keys {
        let mailbox = keygen::address(&key.mailbox());
        let unpinned = client.unpin(key.mailbox()).await;
        unpinned.map_err(|error| explained(&format!("{mailbox} is still pinned"), error))?;
        match args.json {
            true => say::line(json!({ "kind": "unpinned", "mailbox": mailbox }))?,
            false => say::line(format_args!("unpinned {mailbox}"))?,
        }
    }
    client.close().await.ok();
    Ok(())
}
