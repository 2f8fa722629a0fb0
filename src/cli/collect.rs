//! `vauchi-relay receive --key`: what waits in mailboxes that are proven to be ours, through v2.

use std::collections::HashSet;
use std::io::Write;

use anyhow::{Context, anyhow};
use data_encoding::HEXLOWER;
use serde_json::json;

use super::keygen;
use super::progress::Progress;
use super::receive::{Args, print, write_file};
use super::send::explained;
use crate::client::{
    Client, ClientError, Delivery, Event, Item, MailboxId, Receipt, ReceiptKind, Receipts,
};

/// Blobs that are left at the relay stay in the window, so all that a relay may have in one is asked
/// for.
const WINDOW_MAX: (u32, u64) = (1_024, 16 << 20);

/// Takes what waits, and with `--follow` what comes.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let keys = args.keys.iter().map(|file| keygen::read(file));
    let keys: Vec<_> = keys.collect::<anyhow::Result<_>>()?;
    let mut options = args.relays.options();
    if args.follow {
        options.give_up_after = None;
    }
    if args.no_ack {
        (options.window_blobs, options.window_bytes) = WINDOW_MAX;
    }
    let client = args.relays.connect(options).await?;
    let receipts = match args.receipts {
        true => Receipts::All,
        false => Receipts::None,
    };
    let opened = client.open_each(&keys, receipts).await;
    let opened = opened.map_err(|error| explained("no mailbox was opened", error))?;
    let mut waiting = 0;
    for opened in opened {
        let opened = opened.map_err(|error| explained("a mailbox was not opened", error))?;
        waiting += u64::from(opened.pending);
    }
    let mut taking = Taking {
        client: &client,
        args,
        behind: keys.iter().map(|key| key.mailbox()).collect(),
        taken: 0,
        waiting,
        progress: Progress::new(),
    };
    taking.take_all().await?;
    drop(taking);
    let goodbye = client.close().await;
    goodbye.map_err(|error| explained("the last acknowledgements may be lost", error))
}

struct Taking<'a> {
    client: &'a Client,
    args: &'a Args,
    /// Mailboxes that may still hold something from before.
    behind: HashSet<MailboxId>,
    taken: u64,
    /// What waited when the mailboxes were opened.
    waiting: u64,
    progress: Progress,
}

impl Taking<'_> {
    async fn take_all(&mut self) -> anyhow::Result<()> {
        while self.args.follow || !self.behind.is_empty() {
            match self.next().await? {
                None => return Ok(()),
                Some(Event::Blob(delivery)) => {
                    self.keep(&delivery).await?;
                    // A live-only blob is not stored, so there is nothing to delete.
                    if delivery.expires_at.is_some() {
                        self.acknowledge(delivery.item).await?;
                    }
                }
                Some(Event::Receipt(receipt)) => {
                    self.tell(&receipt)?;
                    self.acknowledge(receipt.item).await?;
                }
                Some(Event::CaughtUp(mailboxes)) => {
                    for mailbox in mailboxes {
                        self.behind.remove(&mailbox);
                    }
                }
                Some(Event::Closed { why, .. }) => {
                    return Err(explained("a mailbox was not opened again", why));
                }
            }
            self.taken += 1;
            if self.args.out.is_some() {
                self.progress.show("receiving", self.taken, self.waiting);
            }
        }
        Ok(())
    }

    /// `None` when a window that is left full says no more.
    async fn next(&self) -> anyhow::Result<Option<Event>> {
        let next = self.client.next();
        let event = if self.args.no_ack && !self.args.follow {
            match tokio::time::timeout(self.args.wait, next).await {
                Ok(event) => event,
                Err(_quiet) => return Ok(None),
            }
        } else {
            next.await
        };
        let why = || self.client.ended().unwrap_or(ClientError::Timeout);
        match event {
            Some(event) => Ok(Some(event)),
            None => Err(explained("receiving ended early", why())),
        }
    }

    async fn acknowledge(&self, item: Item) -> anyhow::Result<()> {
        if self.args.no_ack {
            return Ok(());
        }
        let acknowledged = self.client.acknowledge(item).await;
        acknowledged.map_err(|error| explained("a written blob is not acknowledged", error))
    }

    async fn keep(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let id = HEXLOWER.encode(delivery.item.id.as_bytes());
        if let Some(folder) = &self.args.out {
            write_file(folder, &id, &delivery.body).await?;
        }
        if self.args.json {
            let blob = self
                .args
                .out
                .is_none()
                .then(|| HEXLOWER.encode(&delivery.body));
            return self.say(&json!({
                "kind": "blob",
                "id": id,
                "mailbox": keygen::address(&delivery.item.mailbox),
                "stored_at": delivery.stored_at.millis(),
                "expires_at": delivery.expires_at.map(|at| at.millis()),
                "bytes": delivery.body.len(),
                "blob": blob,
            }));
        }
        match self.args.out {
            Some(_) => Ok(()),
            None => print(&delivery.body).context("can not write to standard output"),
        }
    }

    fn tell(&self, receipt: &Receipt) -> anyhow::Result<()> {
        let id = HEXLOWER.encode(receipt.blob.as_bytes());
        let what = match receipt.kind {
            ReceiptKind::Delivered => "delivered",
            ReceiptKind::Acknowledged => "acknowledged",
            ReceiptKind::Expired => "expired",
            ReceiptKind::Removed => "removed",
            ReceiptKind::Lost => "lost",
        };
        if self.args.json {
            return self.say(&json!({
                "kind": what,
                "id": id,
                "mailbox": keygen::address(&receipt.item.mailbox),
                "at": receipt.at.millis(),
            }));
        }
        // Standard output is for blobs.
        writeln!(std::io::stderr(), "{what} {id}").map_err(|error| anyhow!(error))
    }

    fn say(&self, line: &serde_json::Value) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        written.context("can not write to standard output")
    }
}
