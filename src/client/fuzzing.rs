//! What fuzz targets reach of a client: its state, without a socket, and with a relay that they play. Only with the
//! feature `fuzzing`.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

use super::request::{Ask, Key, Live, Outcome, Waiter};
use super::send_order::Next;
use super::state::{Heard, State};
use super::{Blob, ClientError, Event, Item, MailboxId, MailboxKey, Options, introduction};
use crate::protocol::v2::Tag;
use crate::protocol::v2::client::ServerFrame;
use crate::protocol::v2::message::{Submit, Welcome};

/// The state of a client, and the time by which it is read.
pub struct Offline {
    state: State,
    now: Instant,
}

/// Somebody who waits for an answer.
pub struct Waiting {
    /// The request's number; `None` for an acknowledgement.
    pub number: Option<Tag>,
    told: oneshot::Receiver<Outcome>,
}

impl Waiting {
    /// Whether nothing was told yet. Panics when nothing ever will be.
    pub fn is_open(&mut self) -> bool {
        match self.told.try_recv() {
            Ok(_) => false,
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Closed) => panic!("dropped without a word"),
        }
    }
}

/// Whether the relay has signed this welcome for a connection with this nonce, dialled as `origin`.
pub fn is_proven(welcome: &Welcome, nonce: &[u8; 32], origin: &str) -> bool {
    introduction::check(welcome, nonce, origin).is_ok()
}

fn waiter() -> (Waiter, oneshot::Receiver<Outcome>) {
    super::waiter(Vec::new())
}

impl Offline {
    /// A client that has no connection yet.
    pub fn new(options: &Options) -> Self {
        Self {
            state: State::new(options),
            now: Instant::now(),
        }
    }

    /// A relay has proved its welcome.
    pub fn connect(&mut self, welcome: Welcome) {
        let origin = "relay.example".into();
        self.state.connected(Live { welcome, origin }, self.now);
    }

    /// The connection is lost.
    pub fn disconnect(&mut self) {
        self.state.disconnected();
    }

    /// The relay says something. Whether that is an event for the application.
    pub fn hear(&mut self, frame: ServerFrame) -> bool {
        match self.state.hear(frame, self.now) {
            Heard::Nothing | Heard::Answer => false,
            Heard::Event => true,
            Heard::GoAway(_) => {
                self.state.sent_away();
                false
            }
        }
    }

    /// The next frame for the relay.
    pub fn write(&mut self) -> Option<Bytes> {
        match self.state.next(self.now) {
            Next::Write(frame) => Some(frame),
            Next::Idle(_) | Next::Leave => None,
        }
    }

    /// The next event for the application.
    pub fn take(&mut self) -> Option<Event> {
        self.state.arrivals.take().0
    }

    /// Time passes.
    pub fn pass(&mut self, span: Duration) {
        self.now += span;
    }

    /// The application opens mailboxes.
    pub fn open(&mut self, keys: Vec<MailboxKey>) -> Waiting {
        let keys = keys.into_iter().map(|key| Key::new(key, false));
        self.ask(Ask::Open(keys.collect()))
    }

    /// The application hands in a blob.
    pub fn submit(&mut self, blob: &Blob, pads: bool) -> Waiting {
        let submit = Submit {
            recipient: blob.mailbox,
            id: blob.id(),
            terms: blob.terms.clone(),
            body: blob.body.clone(),
        };
        self.ask(Ask::Submit { submit, pads })
    }

    fn ask(&mut self, ask: Ask) -> Waiting {
        let (waiter, told) = waiter();
        let number = self.state.ask(ask, waiter);
        Waiting { number, told }
    }

    /// The application closes mailboxes.
    pub fn unsubscribe(&mut self, mailboxes: Vec<MailboxId>) -> Waiting {
        let (waiter, told) = waiter();
        let number = self.state.unsubscribe(mailboxes, waiter);
        Waiting { number, told }
    }

    /// The application has kept this.
    pub fn acknowledge(&mut self, item: Item) -> Waiting {
        let (waiter, told) = waiter();
        self.state.acknowledge(item, waiter);
        Waiting { number: None, told }
    }

    /// Nobody waits for this any more.
    pub fn abandon(&mut self, number: Tag) {
        self.state.abandon(number);
    }

    /// Nothing was heard for long.
    pub fn ping(&mut self) {
        self.state.ping();
    }

    /// The client ends.
    pub fn end(&mut self) {
        self.state.end(ClientError::Finished);
    }
}
