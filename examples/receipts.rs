//! Sends a blob from one client to another, with receipts, using the relay's client library.
//!
//! With a relay running (`cargo run --release`), in another terminal:
//!
//! ```sh
//! cargo run --example receipts -- ws://127.0.0.1:8080
//! ```
//!
//! Real clients encrypt what they submit. This example does not, to show only the relay's part.

#![allow(clippy::print_stdout, reason = "that is what an example is for")]

use std::error::Error;
use std::time::Duration;

use vauchi_relay::client::{Blob, Client, Event, MailboxKey, Options, ReceiptKind, Receipts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    round_trip(&url.unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned())).await
}

/// Submits a blob, receives it, and waits until the sender has its receipt.
pub(crate) async fn round_trip(url: &str) -> Result<(), Box<dyn Error>> {
    // A recipient makes a key once, keeps it, and gives others its mailbox.
    let key = MailboxKey::random();

    // A sender needs no key. For receipts it opens its own mailbox, a fresh one for each contact.
    let sender = Client::connect(Options::new([url])).await?;
    let receipts = MailboxKey::random().not_pinned();
    sender.open(&receipts, Receipts::None).await?;

    let mut blob = Blob::new(key.mailbox(), "hello");
    blob.terms.ttl = Some(Duration::from_secs(24 * 3_600));
    blob.terms.receipt_to = Some(receipts.mailbox());
    // The recipient is offline. When this returns, the blob is on the relay's disk.
    let stored = sender.submit(&blob).await?;
    println!("{stored:?}");

    // Later, and elsewhere, the recipient connects.
    let recipient = Client::connect(Options::new([url])).await?;
    let opened = recipient.open(&key, Receipts::All).await?;
    println!("{} wait", opened.pending);
    while let Some(event) = recipient.next().await {
        match event {
            Event::Blob(delivery) => {
                // Save it first: acknowledging deletes it at the relay.
                println!("received {:?}", String::from_utf8_lossy(&delivery.body));
                recipient.acknowledge(delivery.item).await?;
            }
            // Nothing waits any more. A phone may sleep now.
            Event::CaughtUp(_) => break,
            Event::Receipt(receipt) => recipient.acknowledge(receipt.item).await?,
            Event::Closed { why, .. } => return Err(why.into()),
        }
    }
    recipient.close().await?;

    while let Some(event) = sender.next().await {
        match event {
            Event::Receipt(receipt) => {
                println!("{:?}", receipt.kind);
                sender.acknowledge(receipt.item).await?;
                if receipt.kind == ReceiptKind::Acknowledged {
                    break;
                }
            }
            Event::Closed { why, .. } => return Err(why.into()),
            Event::Blob(_) | Event::CaughtUp(_) => {}
        }
    }
    sender.close().await?;
    Ok(())
}
