//! What a client asks, who waits for the answer, and what an answer says.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ClientError;
use super::key::MailboxKey;
use crate::protocol::message::{Outgoing, Request};
use crate::protocol::message_v2::{Opened, Subscribe, Welcome};

/// The answer to a request.
pub(super) type Answer = Result<Outgoing, ClientError>;

/// Who waits for an answer; gives its room back when it is dropped.
pub(super) struct Waiter {
    pub(super) tell: oneshot::Sender<Answer>,
    pub(super) room: Vec<OwnedSemaphorePermit>,
}

impl Waiter {
    pub(super) fn tell(self, answer: Answer) {
        drop(self.room);
        // Whoever gave up waiting does not want it.
        self.tell.send(answer).ok();
    }
}

/// What is asked. Proofs are made for each connection, when it is written.
pub(super) enum Ask {
    Request(Request),
    Open(Vec<Key>),
    /// Everything that was open on the connection before.
    Reopen(Vec<Key>),
    Window(u32, u64),
}

/// An opening, to be repeated on each connection.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) key: MailboxKey,
    pub(super) tells_senders: bool,
}

/// A connection.
pub(super) struct Live {
    pub(super) welcome: Welcome,
    pub(super) origin: Box<str>,
}

impl Live {
    /// The request that opens these mailboxes on this connection.
    pub(super) fn subscribe(&self, keys: &[Key]) -> Request {
        let Welcome {
            relay_id,
            challenge,
            ..
        } = &self.welcome;
        let openings = keys.iter().map(|key| {
            key.key
                .opening(relay_id, challenge, &self.origin, key.tells_senders)
        });
        Request::Subscribe(Subscribe {
            origin: self.origin.clone(),
            openings: openings.collect(),
        })
    }
}

/// What became of each mailbox that was to be opened.
pub(super) fn each_opened(
    answer: Outgoing,
) -> Result<Vec<Result<Opened, ClientError>>, ClientError> {
    match answer {
        Outgoing::Subscribed { openings, .. } => Ok(openings
            .into_iter()
            .map(|opened| opened.map_err(not_opened))
            .collect()),
        _ => Err(ClientError::Protocol("the answer is one to something else")),
    }
}

pub(super) fn not_opened(code: &str) -> ClientError {
    ClientError::Refused {
        code: code.to_owned(),
        message: "the relay does not open this mailbox".to_owned(),
        retry_after: None,
    }
}

/// Which request this answers.
pub(super) fn number_of(answer: &Outgoing) -> Option<u32> {
    match answer {
        Outgoing::Stored { tag, .. }
        | Outgoing::Handed { tag }
        | Outgoing::Subscribed { tag, .. }
        | Outgoing::Windowed { tag, .. }
        | Outgoing::Done { tag, .. }
        | Outgoing::PurgedMailboxes { tag, .. }
        | Outgoing::RecoveryKept { tag, .. }
        | Outgoing::RecoveryFound { tag, .. } => Some(tag.number()),
        _ => None,
    }
}
