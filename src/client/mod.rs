//! The library for those who talk to relays: submit, subscribe, receive, acknowledge.
//!
//! A [`Client`] speaks the native protocol (v2), connects again when a connection is lost, and asks
//! again what was not answered, under the same ids: nothing is lost, and nothing is stored twice.
//! [`v1`] speaks Vauchi's protocol.
//!
//! ```no_run
//! use vauchi_relay::client::{Blob, Client, Event, MailboxKey, Options, Receipts};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(Options::new(["wss://relay.example"])).await?;
//!
//! // Keep the key: it is the only way into the mailbox.
//! let key = MailboxKey::random();
//! client.open(&key, Receipts::None).await?;
//!
//! // When this returns `Ok`, the relay has written the blob to its disk.
//! client.submit(&Blob::new(key.mailbox(), "encrypted by you")).await?;
//!
//! while let Some(event) = client.next().await {
//!     if let Event::Blob(delivery) = event {
//!         // Keep the blob first: acknowledging deletes it at the relay.
//!         println!("{} bytes", delivery.body.len());
//!         client.acknowledge(delivery.item).await?;
//!         break;
//!     }
//! }
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! All methods take `&self`, so several tasks may share a client. Requests that run at the same time
//! are pipelined over the one connection, and acknowledgements share a frame.
//!
//! A sender that must not lose a blob, even if its own process dies, keeps the [`Blob`] with its
//! secret until it is stored, and submits it again; a client may start before there is a network:
//!
//! ```no_run
//! use std::time::Duration;
//! use vauchi_relay::client::{Blob, BlobSecret, Client, MailboxId, Options};
//!
//! # async fn example(kept: ([u8; 32], Vec<u8>)) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::start(Options::new(["wss://a.example", "wss://b.example"]))?;
//! let to = MailboxId::parse(&"cd".repeat(32))?;
//! let mut blob = Blob::new(to, kept.1);
//! blob.secret = BlobSecret::from_bytes(kept.0);
//! blob.terms.ttl = Some(Duration::from_secs(7 * 24 * 3_600));
//! client.submit(&blob).await?;
//! // Second thoughts:
//! client.cancel(blob.mailbox, &blob.secret).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Inside: [`Client`] notes what it asks (`ask`) in the `book`, which outlives connections, as does what
//! has been `seen`. The task of `link` owns the socket and carries the book's frames; `dial` gets it a
//! connection, `routes` knows which relay is next and when; what comes waits in the `inbox`. `key`,
//! `blob`, [`pad`] and `options` are what a caller holds.

mod ask;
mod blob;
mod book;
#[cfg(test)]
mod book_tests;
mod dial;
mod error;
mod inbox;
mod key;
mod link;
mod options;
pub mod pad;
#[cfg(test)]
pub(crate) mod played_relay;
mod routes;
mod seen;
pub mod v1;
mod v1_connection;
mod v1_options;

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::ask::{Answer, Ask, Key, Waiter, each_opened};
pub use self::blob::{Blob, Delivery, Event, Item, Receipt, ReceiptKind, Submitted, Terms};
use self::book::Book;
use self::dial::Dialler;
pub use self::error::ClientError;
pub use self::key::{BlobSecret, MailboxKey};
use self::link::{Link, Shared};
pub use self::options::Options;
use self::routes::Routes;
pub use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{Outgoing, Request, Submit};
pub use crate::protocol::message_v2::Opened;
use crate::protocol::message_v2::{Withdrawal, WithdrawalKind};

/// Whether the senders of a mailbox's blobs may get every receipt they asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Receipts {
    /// They learn only whether their blobs were collected in time.
    #[default]
    None,
    /// They also learn when blobs were delivered and acknowledged. Live-only blobs need this.
    All,
}

/// A client of one relay at a time. Dropping it ends the connection without a goodbye;
/// [`Client::close`] waits for what is unanswered.
pub struct Client {
    shared: Arc<Shared>,
    submits: Room,
    submit_bytes: Room,
    requests: Room,
    pads: bool,
    message_bytes_max: usize,
    /// Owns the socket; ends with the client.
    _task: AbortOnDropHandle<()>,
}

/// A bound on what may be unanswered.
struct Room {
    semaphore: Arc<Semaphore>,
    max: usize,
}

impl Room {
    fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            semaphore: Arc::new(Semaphore::new(max)),
            max,
        }
    }

    /// Waits until there is room. What is larger than all of it waits until it is alone.
    async fn take(&self, amount: usize) -> Result<OwnedSemaphorePermit, ClientError> {
        let amount = u32::try_from(amount.min(self.max)).unwrap_or(u32::MAX);
        let semaphore = Arc::clone(&self.semaphore);
        let permit = semaphore.acquire_many_owned(amount).await;
        permit.map_err(|_| ClientError::Finished)
    }
}

impl Client {
    /// Connects to the first relay that answers. An error when none does, each tried once; from then on
    /// the client connects again by itself.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let (tell, told) = oneshot::channel();
        let client = Self::launch(options, Some(tell))?;
        told.await.map_err(|_| ClientError::Finished)??;
        Ok(client)
    }

    /// As [`Client::connect`], without waiting for a connection: what is asked meanwhile waits for one.
    /// Must be called within a tokio runtime.
    pub fn start(options: Options) -> Result<Self, ClientError> {
        Self::launch(options, None)
    }

    fn launch(
        options: Options,
        first: Option<oneshot::Sender<Result<(), ClientError>>>,
    ) -> Result<Self, ClientError> {
        let book = Book::new(options.window_blobs, options.window_bytes);
        let shared = Arc::new(Shared::new(book));
        let link = Link {
            shared: Arc::clone(&shared),
            dialler: Dialler::new(&options)?,
            routes: Routes::new(&options.relays, options.backoff_base, options.backoff_max),
            relays: options.relays.len(),
            give_up_after: options.give_up_after,
            first,
        };
        Ok(Self {
            shared,
            submits: Room::new(options.submits_max),
            submit_bytes: Room::new(options.submit_bytes_max),
            requests: Room::new(options.requests_max),
            pads: options.pads,
            message_bytes_max: options.message_bytes_max,
            _task: AbortOnDropHandle::new(tokio::spawn(link.run())),
        })
    }

    /// Whether there is a connection at this moment.
    pub fn is_connected(&self) -> bool {
        self.shared.book().is_connected()
    }

    /// Hands in a blob and waits until a relay has stored or refused it, over as many connections as
    /// that takes. Waits first while as much as [`Options`] allow has no answer yet.
    ///
    /// Whoever drops the future does not take the blob back; [`Client::cancel`] does.
    pub async fn submit(&self, blob: &Blob) -> Result<Submitted, ClientError> {
        let limit = self.shared.book().limits();
        let bytes_max = limit
            .and_then(|limits| usize::try_from(limits.blob_bytes_max).ok())
            .unwrap_or(self.message_bytes_max);
        if blob.body.len() > bytes_max {
            return Err(ClientError::TooLarge {
                bytes: blob.body.len(),
                bytes_max,
            });
        }
        let body = match self.pads && !blob.terms.v1_ok {
            true => pad::pad(blob.body.clone(), bytes_max),
            false => blob.body.clone(),
        };
        let room = vec![
            self.submits.take(1).await?,
            self.submit_bytes.take(body.len()).await?,
        ];
        let request = Request::Submit(Submit {
            recipient: blob.mailbox,
            id: Some(blob.id()),
            sender_id: None,
            terms: blob.terms.clone(),
            body,
        });
        match self.ask(Ask::Request(request), room).await? {
            Outgoing::Stored {
                expires_at,
                duplicate,
                ..
            } => Ok(Submitted::Stored {
                expires_at,
                duplicate,
            }),
            Outgoing::Handed { .. } => Ok(Submitted::Handed),
            _ => Err(ClientError::Protocol("the answer is one to something else")),
        }
    }

    /// Opens a mailbox; what is in it, and what comes, is given by [`Client::next`]. It is opened again
    /// after each reconnect.
    pub async fn open(&self, key: &MailboxKey, receipts: Receipts) -> Result<Opened, ClientError> {
        let opened = self.open_each(std::slice::from_ref(key), receipts).await?;
        let too_few = ClientError::Protocol("too few mailboxes in the answer");
        opened.into_iter().next().unwrap_or(Err(too_few))
    }

    /// As [`Client::open`], many in one request: what became of each, in the order asked.
    pub async fn open_each(
        &self,
        keys: &[MailboxKey],
        receipts: Receipts,
    ) -> Result<Vec<Result<Opened, ClientError>>, ClientError> {
        let room = vec![self.requests.take(1).await?];
        let keys = keys.iter().map(|key| Key {
            key: key.clone(),
            tells_senders: receipts == Receipts::All,
        });
        let answer = self.ask(Ask::Open(keys.collect()), room).await?;
        each_opened(answer)
    }

    /// Closes mailboxes; what has come from them may still be taken, but no longer acknowledged.
    pub async fn unsubscribe(&self, mailboxes: &[MailboxId]) -> Result<(), ClientError> {
        let room = vec![self.requests.take(1).await?];
        let (tell, told) = oneshot::channel();
        let waiter = Waiter { tell, room };
        self.shared.book().unsubscribe(mailboxes.to_vec(), waiter);
        self.answered(told).await.map(drop)
    }

    /// The next thing that comes, waiting until there is one; `None` when the client has ended
    /// ([`Client::ended`] says why), after all that came before.
    ///
    /// A blob is given once by each client, also over reconnects, as long as it stays with one relay
    /// and leaves fewer than 4,096 unacknowledged.
    pub async fn next(&self) -> Option<Event> {
        loop {
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut book = self.shared.book();
                if let Some(event) = book.inbox.take() {
                    self.shared.taken.notify_one();
                    return Some(event);
                }
                if book.ended().is_some() {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// What [`Client::next`] gives, as a stream.
    pub fn events(&self) -> impl Stream<Item = Event> + '_ {
        futures_util::stream::unfold(self, async |client| {
            let event = client.next().await?;
            Some((event, client))
        })
    }

    /// Tells the relay that a blob or receipt has arrived; when this returns `Ok` it is deleted there.
    pub async fn acknowledge(&self, item: Item) -> Result<(), ClientError> {
        let room = vec![self.requests.take(1).await?];
        let (tell, told) = oneshot::channel();
        self.shared.book().acknowledge(item, Waiter { tell, room });
        self.answered(told).await.map(drop)
    }

    /// Takes a blob back, if it is still there; a receipt tells whether it was.
    pub async fn cancel(&self, mailbox: MailboxId, secret: &BlobSecret) -> Result<(), ClientError> {
        self.withdraw(mailbox, secret, WithdrawalKind::Cancel).await
    }

    /// Has a blob kept for so long from now, if it is still there and that is longer.
    pub async fn extend(
        &self,
        mailbox: MailboxId,
        secret: &BlobSecret,
        ttl: Duration,
    ) -> Result<(), ClientError> {
        self.withdraw(mailbox, secret, WithdrawalKind::Extend(ttl))
            .await
    }

    async fn withdraw(
        &self,
        mailbox: MailboxId,
        secret: &BlobSecret,
        kind: WithdrawalKind,
    ) -> Result<(), ClientError> {
        let room = vec![self.requests.take(1).await?];
        let request = Request::Withdraw(Withdrawal {
            mailbox,
            secret: *secret.expose(),
            kind,
        });
        self.ask(Ask::Request(request), room).await.map(drop)
    }

    async fn ask(
        &self,
        ask: Ask,
        room: Vec<OwnedSemaphorePermit>,
    ) -> Result<Outgoing, ClientError> {
        let (tell, told) = oneshot::channel();
        self.shared.book().ask(ask, Waiter { tell, room });
        self.answered(told).await
    }

    async fn answered(&self, told: oneshot::Receiver<Answer>) -> Answer {
        self.shared.asked.notify_one();
        told.await.map_err(|_| ClientError::Finished)?
    }

    /// Why the client has ended; `None` while it has not.
    pub fn ended(&self) -> Option<ClientError> {
        self.shared.book().ended().cloned()
    }

    /// Waits until everything asked is answered, says goodbye and ends. Takes as long as that takes: put
    /// a timeout around it, or set [`Options::give_up_after`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.shared.book().close();
        self.shared.asked.notify_one();
        // What is left untaken must not keep answers from being read.
        while self.next().await.is_some() {}
        match self.ended() {
            Some(ClientError::Finished) | None => Ok(()),
            Some(why) => Err(why),
        }
    }
}
