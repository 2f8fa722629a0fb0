//! A blob from one client to another, with receipts, over the library that the relay comes with.
//!
//! With a relay running (`cargo run --release`), in another terminal:
//!
//! ```sh
//! cargo run --example receipts -- ws://127.0.0.1:8080
//! ```
//!
//! Real clients encrypt what they submit; here it is plain, so that only the relay is seen.

#![allow(clippy::print_stdout, reason = "that is what an example is for")]

use std::error::Error;
use std::time::Duration;

use vauchi_relay::client::{Blob, Client, Event, MailboxKey, Options, ReceiptKind, Receipts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    round_trip(&url.unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned())).await
}

/// Hands a blob in, receives it, and waits until the sender knows.
pub(crate) async fn round_trip(url: &str) -> Result<(), Box<dyn Error>> {
    // A recipient makes a key once, keeps it, and tells others its mailbox.
    let key = MailboxKey::random();

    // A sender needs no key. For receipts it opens a mailbox of its own, a fresh one for each contact.
    let sender = Client::connect(Options::new([url])).await?;
    let receipts = MailboxKey::secret(rand::random());
    sender.open(&receipts, Receipts::None).await?;

    let mut blob = Blob::new(key.mailbox(), "hello");
    blob.terms.ttl = Some(Duration::from_secs(24 * 3_600));
    blob.terms.receipt_to = Some(receipts.mailbox());
    // The recipient is not there yet. When this returns, the relay has the blob on its disk.
    let stored = sender.submit(&blob).await?;
    println!("{stored:?}");

    // Later, and elsewhere: the recipient comes for it.
    let recipient = Client::connect(Options::new([url])).await?;
    let opened = recipient.open(&key, Receipts::All).await?;
    println!("{} wait", opened.pending);
    while let Some(event) = recipient.next().await {
        match event {
            Event::Blob(delivery) => {
                // Keep it first: acknowledging deletes it at the relay.
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
