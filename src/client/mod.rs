//! The library for those who talk to relays: submit, subscribe, receive, acknowledge.
//!
//! A [`Client`] speaks the native protocol (v2), connects again when a connection is lost, and asks
//! again what was not answered, under the same ids: nothing is lost, and nothing is stored twice at one
//! relay. A blob whose answer was lost may be stored at two, when another relay takes over. [`v1`]
//! speaks Vauchi's protocol.
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
//! With receipts, and to be run: `cargo run --example receipts`, in `examples/receipts.rs`.
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
//! What a relay refuses for now is asked again when it says, as long as [`Options::repeat_for`] allows; any
//! other refusal is the caller's. [`Options::answer_within`] and [`Client::submit_within`] bound how long
//! a request may go without an answer.
//!
//! Inside: [`Client`] notes each `request` in the `state`, which outlives connections, as does the
//! `keyring` of open mailboxes and the `acknowledgements` that wait; `send_order` says which request goes
//! next. What comes are `arrivals`: `duplicates` are left out, the rest waits in the `inbox`. The task of
//! `link` owns the socket and carries the frames that the state gives it; `dial` gets it a connection over
//! the first address that answers `reach`, `introduction` has the relay prove who it is, `known_relays`
//! remember it, and `routes` knows which relay is next and when. `key`, `blob`, [`pad`] and `options` are what
//! a caller holds; `errands` are the requests that few need. `fuzzing` lets fuzz targets in.

mod acknowledgements;
mod arrivals;
mod blob;
mod dial;
mod duplicates;
mod errands;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod inbox;
mod introduction;
mod key;
mod keyring;
mod known_relays;
mod link;
mod options;
pub mod pad;
#[cfg(test)]
pub(crate) mod played_relay;
mod reach;
mod request;
mod routes;
mod send_order;
mod socket;
mod state;
pub mod v1;

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use self::blob::{Blob, Delivery, Event, Item, Receipt, ReceiptKind, Submitted, Terms};
use self::dial::Dialler;
pub use self::errands::RecoveryProofs;
pub use self::error::ClientError;
pub use self::key::{BlobSecret, MailboxKey};
pub use self::known_relays::{KnownRelays, KnownRelaysFile, RelaysInMemory};
use self::link::{Link, Shared};
pub use self::options::Options;
use self::request::{Ask, Key, Outcome, Waiter, each_opened};
use self::routes::Routes;
use self::state::State;
pub use crate::ids::{BlobId, MailboxId};
use crate::protocol::v2::message::Submit;
pub use crate::protocol::v2::message::{FoundProof, Limits, Opened, PurgedMailbox};
use crate::protocol::v2::{Answer, Tag};

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
    answer_within: Option<Duration>,
    /// Owns the socket; ends with the client.
    _task: AbortOnDropHandle<()>,
}

const ANSWER_TO_SOMETHING_ELSE: ClientError =
    ClientError::Protocol("the answer is of another kind than the request");

fn waiter(room: Vec<OwnedSemaphorePermit>) -> (Waiter, oneshot::Receiver<Outcome>) {
    let (tell, told) = oneshot::channel();
    (Waiter { tell, room }, told)
}

/// Until when a caller waits.
#[derive(Clone, Copy)]
struct Patience(Option<Instant>);

impl Patience {
    fn new(within: Option<Duration>) -> Self {
        // What is beyond the clock is for ever.
        Self(within.and_then(|within| Instant::now().checked_add(within)))
    }

    /// `None` when it took too long.
    async fn wait<T>(self, what: impl Future<Output = T>) -> Option<T> {
        match self.0 {
            Some(until) => tokio::time::timeout_at(until, what).await.ok(),
            None => Some(what.await),
        }
    }

    async fn for_room<T>(
        self,
        room: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        self.wait(room).await.unwrap_or(Err(ClientError::Timeout))
    }
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
        let state = State::new(&options);
        let shared = Arc::new(Shared::new(state));
        let link = Link {
            shared: Arc::clone(&shared),
            dialler: Dialler::new(&options)?,
            routes: Routes::new(&options.relays, options.backoff_base, options.backoff_max),
            relays: options.relays.len(),
            ping_after: options.ping_after,
            give_up_after: options.give_up_after,
            first,
        };
        Ok(Self {
            shared,
            submits: Room::new(options.submits_max),
            submit_bytes: Room::new(options.submit_bytes_max),
            requests: Room::new(options.requests_max),
            pads: options.pads,
            answer_within: options.answer_within,
            _task: AbortOnDropHandle::new(tokio::spawn(link.run())),
        })
    }

    /// Whether there is a connection at this moment.
    pub fn is_connected(&self) -> bool {
        self.shared.state().live().is_some()
    }

    /// Why there is no connection, for who wants to show it; `None` while there is one.
    pub fn trouble(&self) -> Option<ClientError> {
        self.shared.state().trouble.clone()
    }

    /// The public key of the relay that the client is connected to, which it has proved; `None` while there
    /// is no connection. Put it behind the relay's URL (`wss://host#id`) to accept no other.
    pub fn relay_id(&self) -> Option<[u8; 32]> {
        let state = self.shared.state();
        state.live().map(|live| live.welcome.relay_id)
    }

    /// What the relay that the client is connected to takes; `None` while there is no connection.
    pub fn limits(&self) -> Option<Limits> {
        let state = self.shared.state();
        state.live().map(|live| live.welcome.limits)
    }

    /// Hands in a blob and waits until a relay has stored or refused it, over as many connections as
    /// that takes. Waits first while as much as [`Options`] allow has no answer yet.
    ///
    /// Whoever drops the future does not take the blob back; [`Client::cancel`] does. Where the order of
    /// blobs matters, wait for one before the next: a relay may refuse the first for now and store the
    /// second.
    ///
    /// With [`Terms::live_only`] the blob is handed to a connected recipient that tells senders
    /// ([`Receipts::All`]), or refused at once with the code `not_connected`.
    pub async fn submit(&self, blob: &Blob) -> Result<Submitted, ClientError> {
        self.submit_in(blob, self.answer_within).await
    }

    /// As [`Client::submit`], but no longer than this: then the relay's last refusal, if it had refused the
    /// blob for now, or else [`ClientError::Timeout`]. After that the blob may be stored, and is not handed
    /// in again; submit it again to be sure, or cancel it.
    pub async fn submit_within(
        &self,
        blob: &Blob,
        within: Duration,
    ) -> Result<Submitted, ClientError> {
        self.submit_in(blob, Some(within)).await
    }

    async fn submit_in(
        &self,
        blob: &Blob,
        within: Option<Duration>,
    ) -> Result<Submitted, ClientError> {
        let patience = Patience::new(within);
        let room = async {
            let submit = self.submits.take(1).await?;
            Ok(vec![submit, self.submit_bytes.take(blob.body.len()).await?])
        };
        let room = patience.for_room(room).await?;
        let submit = Submit {
            recipient: blob.mailbox,
            id: blob.id(),
            terms: blob.terms.clone(),
            body: blob.body.clone(),
        };
        let pads = self.pads && !blob.terms.v1_ok;
        match self
            .ask(Ask::Submit { submit, pads }, room, patience)
            .await?
        {
            Answer::Stored {
                expires_at,
                duplicate,
            } => Ok(Submitted::Stored {
                expires_at,
                duplicate,
            }),
            Answer::Handed => Ok(Submitted::Handed),
            _ => Err(ANSWER_TO_SOMETHING_ELSE),
        }
    }

    /// Opens a mailbox; what is in it, and what comes, is given by [`Client::next`]. It is opened again
    /// after each reconnect. Whoever drops the future does not keep it from opening.
    pub async fn open(&self, key: &MailboxKey, receipts: Receipts) -> Result<Opened, ClientError> {
        let opened = self.open_each(std::slice::from_ref(key), receipts).await?;
        let too_few = ClientError::Protocol("the answer lists too few mailboxes");
        opened.into_iter().next().unwrap_or(Err(too_few))
    }

    /// As [`Client::open`], many in one request: what became of each, in the order asked.
    pub async fn open_each(
        &self,
        keys: &[MailboxKey],
        receipts: Receipts,
    ) -> Result<Vec<Result<Opened, ClientError>>, ClientError> {
        let tells_senders = receipts == Receipts::All;
        let keys = keys.iter().map(|key| Key::new(key.clone(), tells_senders));
        let answer = self.request(Ask::Open(keys.collect())).await?;
        each_opened(answer)
    }

    /// Closes mailboxes. Nothing more comes from them; what was not acknowledged comes again when they
    /// are opened again.
    pub async fn unsubscribe(&self, mailboxes: &[MailboxId]) -> Result<(), ClientError> {
        let patience = Patience::new(self.answer_within);
        let room = patience.for_room(self.requests.take(1)).await?;
        let (waiter, told) = waiter(vec![room]);
        let number = self.shared.state().unsubscribe(mailboxes.to_vec(), waiter);
        self.answered(number, told, patience).await.map(drop)
    }

    /// The next thing that comes, waiting until there is one; `None` when the client has ended
    /// ([`Client::ended`] says why), after all that came before.
    ///
    /// A blob is given once by each client, also over reconnects, as long as it came from one relay and
    /// the client has seen fewer than 4,096 since.
    ///
    /// Who takes nothing holds nothing up: no more is kept than the window admits
    /// ([`Options::window_blobs`]), the rest waits at the relay. Only live-only blobs are lost then.
    pub async fn next(&self) -> Option<Event> {
        loop {
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut state = self.shared.state();
                let (event, may_ask_for_more) = state.arrivals.take();
                if may_ask_for_more {
                    self.shared.asked.notify_one();
                }
                if event.is_some() {
                    return event;
                }
                if state.ended().is_some() {
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
    /// It is told also if the future is dropped, unless that still waits for room
    /// ([`Options::requests_max`]).
    pub async fn acknowledge(&self, item: Item) -> Result<(), ClientError> {
        let patience = Patience::new(self.answer_within);
        let room = patience.for_room(self.requests.take(1)).await?;
        let (waiter, told) = waiter(vec![room]);
        self.shared.state().acknowledge(item, waiter);
        // Not taken back when the patience is lost: the blob has arrived.
        self.answered(None, told, patience).await.map(drop)
    }

    /// Asks anything that is no submit and no acknowledgement.
    async fn request(&self, ask: Ask) -> Outcome {
        let patience = Patience::new(self.answer_within);
        let room = patience.for_room(self.requests.take(1)).await?;
        self.ask(ask, vec![room], patience).await
    }

    async fn ask(&self, ask: Ask, room: Vec<OwnedSemaphorePermit>, patience: Patience) -> Outcome {
        let (waiter, told) = waiter(room);
        let number = self.shared.state().ask(ask, waiter);
        self.answered(number, told, patience).await
    }

    async fn answered(
        &self,
        number: Option<Tag>,
        told: oneshot::Receiver<Outcome>,
        patience: Patience,
    ) -> Outcome {
        self.shared.asked.notify_one();
        match patience.wait(told).await {
            Some(answer) => answer.map_err(|_| ClientError::Finished)?,
            None => {
                let refusal = number.and_then(|number| self.shared.state().abandon(number));
                // It may leave something to be written.
                self.shared.asked.notify_one();
                Err(refusal.unwrap_or(ClientError::Timeout))
            }
        }
    }

    /// Why the client has ended; `None` while it has not.
    pub fn ended(&self) -> Option<ClientError> {
        self.shared.state().ended().cloned()
    }

    /// Waits until everything asked is answered, says goodbye and ends. Takes as long as that takes: put
    /// a timeout around it, or set [`Options::give_up_after`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.shared.state().close();
        self.shared.asked.notify_one();
        // What is left untaken comes again another time; behind it is the end.
        while self.next().await.is_some() {}
        match self.ended() {
            Some(ClientError::Finished) | None => Ok(()),
            Some(why) => Err(why),
        }
    }
}
