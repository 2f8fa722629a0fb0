//! `vauchi-relay receive --key`: what waits in mailboxes that are proven to be ours, through v2.

use std::collections::HashSet;
use std::io::Write as _;
use std::pin::Pin;

use anyhow::{Context as _, bail};
use data_encoding::HEXLOWER;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;

use super::handed_over::handed_over;
use super::{Args, end, hand_over, hand_over_line, interrupted, stopped, tell_of_none};
use crate::cli::connect::{explained, keys, open};
use crate::cli::folder::Folder;
use crate::cli::progress::Progress;
use crate::cli::{keygen, say};
use crate::client::{
    Client, ClientError, Delivery, Event, Item, MailboxId, Receipt, ReceiptKind, Receipts,
};

/// Blobs that are left at the relay stay in the window, so all that a relay may have in one is asked
/// for.
const WINDOW_MAX: (u32, u64) = (1_024, 16 << 20);

/// Acknowledgements without an answer. Waiting for each in turn would take a journey for every blob.
const UNANSWERED_MAX: usize = 64;

/// Takes what waits, and with `--follow` what comes.
pub(super) async fn run(args: &Args, folder: Option<&Folder>) -> anyhow::Result<()> {
    let keys = keys(&args.keys)?;
    let mut options = args.relays.options();
    if args.follow {
        (options.give_up_after, options.answer_within) = (None, None);
    }
    if args.no_ack {
        (options.window_blobs, options.window_bytes) = WINDOW_MAX;
    }
    let receipts = match args.receipts {
        true => Receipts::All,
        false => Receipts::None,
    };
    let opening = async {
        let client = args.relays.connect(options).await?;
        let opened = open(&client, &keys, receipts).await?;
        anyhow::Ok((client, opened))
    };
    let (client, opened) = tokio::select! {
        // First, so that the signal is caught before anything is there to be left behind.
        biased;
        error = stopped() => return Err(error),
        opened = opening => opened?,
    };
    let mut taking = Taking {
        client: &client,
        args,
        folder,
        behind: keys.iter().map(|key| key.mailbox()).collect(),
        acknowledging: FuturesUnordered::new(),
        held: 0,
        taken: 0,
        waiting: opened.iter().map(|opened| u64::from(opened.pending)).sum(),
        progress: Progress::forced(args.progress),
    };
    let outcome = tokio::select! {
        outcome = taking.take_all() => outcome,
        interrupted = interrupted(args) => interrupted,
    };
    drop(taking);
    end(args, outcome, client.close()).await
}

type Acknowledging<'a> = Pin<Box<dyn Future<Output = Result<(), ClientError>> + 'a>>;

struct Taking<'a> {
    client: &'a Client,
    args: &'a Args,
    /// What `--out` says.
    folder: Option<&'a Folder>,
    /// Mailboxes that may still hold something from before.
    behind: HashSet<MailboxId>,
    acknowledging: FuturesUnordered<Acknowledging<'a>>,
    /// What fills the window, because it is left at the relay.
    held: u64,
    taken: u64,
    /// What waited when the mailboxes were opened.
    waiting: u64,
    progress: Progress,
}

impl Taking<'_> {
    async fn take_all(&mut self) -> anyhow::Result<()> {
        self.show();
        while self.args.follow || !self.behind.is_empty() {
            match self.next().await? {
                Event::Blob(delivery) => {
                    self.keep(&delivery).await?;
                    // A live-only blob is not stored, so there is nothing to delete.
                    if delivery.expires_at.is_some() {
                        self.acknowledge(delivery.item).await?;
                    }
                    self.taken += 1;
                }
                Event::Receipt(receipt) => {
                    self.tell(&receipt).await?;
                    self.acknowledge(receipt.item).await?;
                    self.taken += 1;
                }
                Event::CaughtUp(mailboxes) => {
                    for mailbox in mailboxes {
                        self.behind.remove(&mailbox);
                    }
                }
                Event::Closed { why, .. } => {
                    return Err(explained("cannot reopen a mailbox", why));
                }
            }
            self.show();
        }
        while self.an_acknowledgement_is_answered().await? {}
        tell_of_none(self.taken);
        Ok(())
    }

    /// Blobs that are written to a terminal show by themselves how far it is.
    fn show(&mut self) {
        if self.args.out.is_some() || self.args.progress {
            self.progress.show("receiving", self.taken, self.waiting);
        }
    }

    /// An error when a window that is left full says no more.
    async fn next(&mut self) -> anyhow::Result<Event> {
        let client = self.client;
        let event = if self.args.no_ack && !self.args.follow {
            loop {
                match tokio::time::timeout(self.args.wait, client.next()).await {
                    Ok(event) => break event,
                    Err(_quiet) if self.may_be_full() => bail!(
                        "more blobs may be waiting: with --no-ack, the relay stops delivering when its window of unacknowledged blobs is full"
                    ),
                    // The relay says when that was all.
                    Err(_slow) => {}
                }
            }
        } else {
            let next = client.next();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    event = &mut next => break event,
                    answered = self.an_acknowledgement_is_answered(),
                        if !self.acknowledging.is_empty() => { answered?; }
                }
            }
        };
        let why = || self.client.ended().unwrap_or(ClientError::Timeout);
        match event {
            Some(event) => Ok(event),
            None => Err(explained("receiving stopped early", why())),
        }
    }

    /// Whether the relay may have no room in the window for what comes next. How much a blob takes there
    /// is not known, because senders pad as they like, so each counts as the largest.
    fn may_be_full(&self) -> bool {
        let Some(limits) = self.client.limits() else {
            return false;
        };
        let (blobs_max, bytes_max) = limits.window_max;
        let blobs_max = u64::from(blobs_max.min(WINDOW_MAX.0));
        let bytes_max = bytes_max.min(WINDOW_MAX.1);
        let largest = (self.held + 1).saturating_mul(limits.blob_bytes_max);
        self.held >= blobs_max || (self.held > 0 && largest > bytes_max)
    }

    async fn acknowledge(&mut self, item: Item) -> anyhow::Result<()> {
        if self.args.no_ack {
            self.held += 1;
            return Ok(());
        }
        let client = self.client;
        let acknowledging = Box::pin(async move { client.acknowledge(item).await });
        self.acknowledging.push(acknowledging);
        while self.acknowledging.len() >= UNANSWERED_MAX {
            self.an_acknowledgement_is_answered().await?;
        }
        // The request leaves when it is looked at the first time.
        while let Some(Some(answer)) = self.acknowledging.next().now_or_never() {
            acknowledged(answer)?;
        }
        Ok(())
    }

    /// Waits for the answer to one; whether one was outstanding.
    async fn an_acknowledgement_is_answered(&mut self) -> anyhow::Result<bool> {
        match self.acknowledging.next().await {
            Some(answer) => acknowledged(answer).map(|()| true),
            None => Ok(false),
        }
    }

    async fn keep(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let id = HEXLOWER.encode(delivery.item.id.as_bytes());
        let file = match self.folder {
            Some(folder) => Some(folder.put(&id, delivery.body.clone()).await?),
            None => None,
        };
        if self.args.json {
            let blob = file.is_none().then(|| HEXLOWER.encode(&delivery.body));
            return hand_over_line(&json!({
                "kind": "blob",
                "id": id,
                "mailbox": keygen::address(&delivery.item.mailbox),
                "stored_at": delivery.stored_at.millis(),
                "expires_at": delivery.expires_at.map(|at| at.millis()),
                "bytes": delivery.body.len(),
                "blob": blob,
                "file": file,
            }))
            .await;
        }
        match file {
            Some(_) => Ok(()),
            None => hand_over(&delivery.body).await,
        }
    }

    async fn tell(&self, receipt: &Receipt) -> anyhow::Result<()> {
        let id = HEXLOWER.encode(receipt.blob.as_bytes());
        let what = match receipt.kind {
            ReceiptKind::Delivered => "delivered",
            ReceiptKind::Acknowledged => "acknowledged",
            ReceiptKind::Expired => "expired",
            ReceiptKind::Removed => "removed",
            ReceiptKind::Lost => "lost",
        };
        if self.args.json {
            return hand_over_line(&json!({
                "kind": what,
                "id": id,
                "mailbox": keygen::address(&receipt.item.mailbox),
                "at": receipt.at.millis(),
            }))
            .await;
        }
        // Standard output is for blobs.
        let mut notes = std::io::stderr();
        writeln!(notes, "{what} {id}").context("cannot write to standard error")?;
        let handed_over = handed_over(notes).await;
        handed_over.context("a receipt on standard error is not acknowledged and arrives again")
    }
}

fn acknowledged(answer: Result<(), ClientError>) -> anyhow::Result<()> {
    match answer {
        Ok(()) => Ok(()),
        // The client does that by itself, so it is no reason to end.
        Err(error @ ClientError::OtherRelay) => {
            let what = "a written blob is not acknowledged yet and arrives again";
            say::note(format_args!("vauchi-relay: {what}: {error}"));
            Ok(())
        }
        Err(error) => Err(explained("a written blob could not be acknowledged", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two relays, and the one that delivered went away before it answered.
    #[test]
    fn another_relay_is_no_reason_to_end() {
        acknowledged(Err(ClientError::OtherRelay)).unwrap();
        acknowledged(Err(ClientError::Timeout)).unwrap_err();
    }
}
