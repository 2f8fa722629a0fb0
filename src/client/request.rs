//! What a client asks, who waits for the answer, and what an answer says.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::ClientError;
use super::key::{MailboxKey, topic_at};
use super::pad::pad;
use crate::ids::MailboxId;
use crate::protocol::message::Refused;
use crate::protocol::v2::client::encode_request;
use crate::protocol::v2::message::{Opened, Submit, Subscribe, Welcome};
use crate::protocol::v2::{Answer, Request, Tag};

/// What a frame has beside the blob, at the most: names, terms, lengths.
pub(super) const FRAME_SPARE_BYTES: usize = 4 << 10;

/// Nobody took a live-only blob. The sender wants to know that now, whatever wait the relay names.
const NOT_CONNECTED: &str = "not_connected";

/// The word of a relay that takes no more submits because it is about to stop.
pub(super) const SHUTTING_DOWN: &str = "shutting_down";

/// The word of a relay that is asked too much; what is asked of it then is begun slowly again.
pub(super) const RATE_LIMITED: &str = "rate_limited";

/// What became of a request: its answer, or why there is none.
pub(super) type Outcome = Result<Answer, ClientError>;

/// Who waits for an answer; gives its room back when it is dropped.
pub(super) struct Waiter {
    pub(super) tell: oneshot::Sender<Outcome>,
    pub(super) room: Vec<OwnedSemaphorePermit>,
}

impl Waiter {
    pub(super) fn tell(self, answer: Outcome) {
        drop(self.room);
        // Whoever gave up waiting does not want it.
        self.tell.send(answer).ok();
    }
}

/// What is asked, by whom, and since when it is refused.
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) waiters: Vec<Waiter>,
    /// When the relay first refused it for now.
    pub(super) refused_since: Option<Instant>,
    /// The relay has said not to come again before.
    pub(super) not_before: Option<Instant>,
    /// The last refusal for now; `None` from when it is written again, because then it may be done.
    pub(super) refusal: Option<ClientError>,
}

impl Asked {
    pub(super) fn new(ask: Ask, waiters: Vec<Waiter>) -> Self {
        Self {
            ask,
            waiters,
            refused_since: None,
            not_before: None,
            refusal: None,
        }
    }

    /// Whether it opens this mailbox for the application.
    pub(super) fn opens(&self, mailbox: &MailboxId) -> bool {
        match &self.ask {
            Ask::Open(keys) => keys.iter().any(|key| key.key.mailbox() == *mailbox),
            _ => false,
        }
    }

    pub(super) fn closes(&self, mailbox: &MailboxId) -> bool {
        match &self.ask {
            Ask::Request(Request::Unsubscribe(mailboxes)) => mailboxes.contains(mailbox),
            _ => false,
        }
    }

    /// When to ask again after a refusal that tells a wait; `None` when that is later than whoever waits
    /// wants to. What the client itself needs is asked for ever.
    pub(super) fn again_at(
        &mut self,
        now: Instant,
        refused: &Refused,
        repeat_for: Duration,
    ) -> Option<Instant> {
        let wait = refused
            .retry_after
            .filter(|_| refused.code != NOT_CONNECTED)
            // Later it would close what is opened anew meanwhile.
            .filter(|_| !matches!(self.ask, Ask::Leave(_)))?;
        // A quarter more at the most, so that those who were refused together do not come together.
        let at = now.checked_add(wait.mul_f64(1.0 + rand::random::<f64>() / 4.0))?;
        let since = *self.refused_since.get_or_insert(now);
        let is_ours = matches!(
            self.ask,
            Ask::Reopen(_) | Ask::Window(..) | Ask::Ping | Ask::Request(Request::Acknowledge(_))
        );
        let last = since.checked_add(repeat_for).filter(|_| !is_ours);
        if last.is_some_and(|last| now + wait >= last) {
            return None;
        }
        let at = last.map_or(at, |last| at.min(last));
        self.not_before = Some(at);
        self.refusal = Some(refused_for(refused));
        Some(at)
    }
}

/// A refusal, as callers get it.
pub(super) fn refused_for(refused: &Refused) -> ClientError {
    ClientError::Refused {
        code: refused.code.to_owned(),
        message: refused.message.clone().into_owned(),
        retry_after: refused.retry_after,
    }
}

/// What is asked. Proofs and padding are made for each connection, when it is written.
pub(super) enum Ask {
    Request(Request),
    Submit {
        submit: Submit,
        pads: bool,
    },
    Open(Vec<Key>),
    /// Everything that was open on the connection before, or what was left out of it.
    Reopen(Vec<Key>),
    /// Closes mailboxes that are opened anew with the next request.
    Leave(Vec<MailboxId>),
    Window(u32, u64),
    /// Whether the relay is still there.
    Ping,
}

impl Ask {
    /// The frame for this connection, of a size that relay and client take.
    pub(super) fn encode(
        &mut self,
        tag: Tag,
        live: &Live,
        frame_bytes_max: usize,
    ) -> Result<Bytes, ClientError> {
        let tag = Some(tag);
        let frame = match self {
            Self::Request(request) => encode_request(tag, request),
            Self::Leave(mailboxes) => encode_request(tag, &Request::Unsubscribe(mailboxes.clone())),
            Self::Ping => encode_request(tag, &Request::Ping),
            Self::Submit { submit, pads } => {
                let bytes_max = live.blob_bytes_max().min(frame_bytes_max);
                fits(submit.body.len(), bytes_max)?;
                let mut submit = submit.clone();
                let relay_id = &live.welcome.relay_id;
                let topic = &mut submit.terms.topic;
                *topic = topic.map(|topic| topic_at(relay_id, &topic));
                if *pads {
                    submit.body = pad(submit.body, bytes_max);
                }
                let request = Request::Submit(submit);
                return Ok(encode_request(tag, &request));
            }
            Self::Open(keys) | Self::Reopen(keys) => encode_request(tag, &live.subscribe(keys)),
            Self::Window(blobs, bytes) => encode_request(
                tag,
                &Request::Window {
                    blobs: *blobs,
                    bytes: *bytes,
                },
            ),
        };
        // A longer one closes the connection, and would the next, too.
        let bytes_max = frame_bytes_max.saturating_add(FRAME_SPARE_BYTES);
        fits(frame.len(), live.frame_bytes_max().min(bytes_max))?;
        Ok(frame)
    }
}

fn fits(bytes: usize, bytes_max: usize) -> Result<(), ClientError> {
    match bytes <= bytes_max {
        true => Ok(()),
        false => Err(ClientError::TooLarge { bytes, bytes_max }),
    }
}

/// An opening, to be repeated on each connection.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) key: MailboxKey,
    pub(super) tells_senders: bool,
    /// Its place among all that are open. Relays know a client by the first that it opens.
    pub(super) place: u64,
}

impl Key {
    pub(super) fn new(key: MailboxKey, tells_senders: bool) -> Self {
        Self {
            key,
            tells_senders,
            place: 0,
        }
    }
}

/// A connection.
pub(super) struct Live {
    pub(super) welcome: Welcome,
    pub(super) origin: Box<str>,
}

impl Live {
    pub(super) fn blob_bytes_max(&self) -> usize {
        usize::try_from(self.welcome.limits.blob_bytes_max).unwrap_or(usize::MAX)
    }

    /// What the relay reads; a longer frame ends the connection.
    pub(super) fn frame_bytes_max(&self) -> usize {
        let twice = self.blob_bytes_max().saturating_mul(2);
        twice.saturating_add(FRAME_SPARE_BYTES)
    }

    /// The request that opens these mailboxes on this connection.
    fn subscribe(&self, keys: &[Key]) -> Request {
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
pub(super) fn each_opened(answer: Answer) -> Result<Vec<Result<Opened, ClientError>>, ClientError> {
    match answer {
        Answer::Subscribed(openings) => Ok(openings
            .into_iter()
            .map(|opened| opened.map_err(not_opened))
            .collect()),
        _ => Err(ClientError::Protocol(
            "the answer is of another kind than the request",
        )),
    }
}

pub(super) fn not_opened(code: &str) -> ClientError {
    ClientError::Refused {
        code: code.to_owned(),
        message: "the relay did not open this mailbox".to_owned(),
        retry_after: None,
    }
}
