//! The pure state machine of a session: a frame or an event in, what to do out.
//!
//! No socket, no clock, no store; so order, limits and drain are tested with plain values. The
//! loops in `reader` and `writer` carry out what is decided here.

use crate::ids::{BlobId, MailboxHash, MailboxId};
use crate::protocol::Version;
use crate::protocol::close::Close;
use crate::protocol::message::{
    AccountRevoked, DeviceSync, Handshake, Incoming, Purge, RecoveryProof, RecoveryQuery, Request,
    Submit, Tag,
};
use crate::protocol::message_v2::{Subscribe, Withdrawal};
use crate::service::refusal::Refusal;

use super::window::{Size, Window};

/// Frames without a readable name that a session answers; with the next it is closed.
pub const GARBAGE_MAX: u32 = 10;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The first frame has not come.
    Greeting,
    /// The mailbox is open: requests are served and blobs delivered.
    Open,
    /// The relay is about to stop: requests are served, nothing is delivered any more.
    Draining,
    /// The close frame is decided; nothing is read any more.
    Closed,
}

/// What the session does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Check the proof, open the mailbox, say welcome.
    Greet(Box<Handshake>),
    /// Charge the client, then store the blob.
    Submit(Tag, Submit),
    /// Delete the blob. `charged` when it was not in flight here.
    Acknowledge {
        /// The name of the request, for a refusal.
        tag: Tag,
        /// Which blob.
        id: BlobId,
        /// Whether it counts against the client's rate.
        charged: bool,
    },
    /// Charge the client, then store the message for another of its devices.
    DeviceSync(Tag, DeviceSync),
    /// As [`Step::Acknowledge`], of a device-sync message.
    AcknowledgeDeviceSync {
        /// The name of the request, for a refusal.
        tag: Tag,
        /// Which message.
        id: BlobId,
        /// Whether it counts against the client's rate.
        charged: bool,
    },
    /// Charge the client, then keep the recovery proof.
    PutRecovery(Tag, RecoveryProof),
    /// Charge the client, then answer with the recovery proofs there are.
    GetRecovery(Tag, RecoveryQuery),
    /// Charge the client, then take the word that an account is no more.
    AccountRevoked(Tag, AccountRevoked),
    /// Charge the client, then delete what is kept for it.
    Purge(Tag, Purge),
    /// v2: say the welcome again.
    Welcome(Tag),
    /// v2: charge the openings, check the proofs, open the mailboxes.
    Subscribe(Tag, Subscribe),
    /// v2: close the mailboxes.
    Unsubscribe(Tag, Vec<MailboxId>),
    /// v2: say how large the window is now.
    Windowed(Tag, Size),
    /// v2: delete what has arrived.
    AcknowledgeEach(Tag, Vec<(MailboxId, BlobId)>),
    /// v2: charge the client, then keep the blob for longer or take it back.
    Withdraw(Tag, Withdrawal),
    /// v2: charge the client, then delete what these mailboxes hold.
    PurgeMailboxes(Tag, Vec<MailboxId>),
    /// v2: charge the client, then take the pin off.
    Unpin(Tag, MailboxId),
    /// v2: answer.
    Ping(Tag),
    /// Charge the client, then answer with a refusal.
    Refuse(Option<Tag>, Refusal),
    /// Charge the client and do nothing.
    Ignore,
    /// Answer with this refusal if there is one, then close.
    Close(Option<Refusal>, Close),
}

/// A session's memory of itself.
#[derive(Debug)]
pub struct State {
    phase: Phase,
    version: Version,
    garbage: u32,
    window: Window,
}

/// A v1 client acknowledges by the id alone, so all of its mailboxes are one here.
pub const ANY_MAILBOX: MailboxHash = MailboxHash::from_bytes([0; 32]);

impl State {
    /// The beginning of a session that speaks this version.
    pub fn new(version: Version) -> Self {
        let (phase, window) = match version {
            Version::V1 => (Phase::Greeting, Window::unpaced()),
            // The relay speaks first, and a submit needs no handshake.
            Version::V2 => (Phase::Open, Window::paced()),
        };
        Self {
            phase,
            version,
            garbage: 0,
            window,
        }
    }

    /// Which version it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A frame was read whole and decoded.
    pub fn on_frame(&mut self, incoming: Incoming) -> Step {
        match self.phase {
            Phase::Greeting => self.on_first_frame(incoming),
            Phase::Open | Phase::Draining => self.on_later_frame(incoming),
            Phase::Closed => Step::Ignore,
        }
    }

    /// A frame was read whole that is over the size limit; `tag` is its name if it has one.
    pub fn on_oversize(&mut self, tag: Option<Tag>, bytes_max: usize) -> Step {
        let refusal = Refusal::TooLarge { bytes_max };
        match self.phase {
            Phase::Greeting => self.close(None, Close::TooLarge),
            _ if tag.is_none() => self.on_garbage(refusal),
            _ => Step::Refuse(tag, refusal),
        }
    }

    /// The mailbox is open; from now on requests are served.
    pub fn opened(&mut self) {
        if self.phase == Phase::Greeting {
            self.phase = Phase::Open;
        }
    }

    /// The relay is about to stop.
    pub fn drain(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
    }

    /// The session ends with this close frame.
    pub fn closing(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Whether blobs may be delivered.
    pub fn may_deliver(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether a blob of so many bytes may be delivered now.
    pub fn admits(&self, bytes: u64) -> bool {
        self.window.admits(bytes)
    }

    /// A blob is about to be written to the socket.
    pub fn delivered(&mut self, mailbox: MailboxHash, id: BlobId, bytes: u64) {
        self.window.delivered(mailbox, id, bytes);
    }

    /// Whether this blob was delivered here and is not acknowledged yet.
    pub fn is_in_flight(&self, mailbox: MailboxHash, id: BlobId) -> bool {
        self.window.holds(mailbox, id)
    }

    /// The client has this blob. Whether it was in flight here, so that this costs nothing.
    pub fn acknowledged(&mut self, mailbox: MailboxHash, id: BlobId) -> bool {
        self.window.acknowledged(mailbox, id)
    }

    /// This mailbox was closed or purged: nobody will acknowledge what was in flight.
    pub fn forget(&mut self, mailbox: &MailboxHash) {
        self.window.forget(mailbox);
    }

    /// Whether a draining session owes nothing any more; `unanswered` requests are in its outbox.
    pub fn is_drained(&self, unanswered: usize) -> bool {
        self.phase == Phase::Draining && unanswered == 0 && self.window.is_empty()
    }

    fn on_first_frame(&mut self, incoming: Incoming) -> Step {
        match incoming {
            Incoming::Request {
                request: Request::Handshake(handshake),
                ..
            } => Step::Greet(handshake),
            _ => self.close(
                None,
                Close::Protocol(
                    "the first frame must be a Handshake with a client_id of 64 hex digits",
                ),
            ),
        }
    }

    fn on_later_frame(&mut self, incoming: Incoming) -> Step {
        match incoming {
            Incoming::Request {
                tag,
                request: Request::Submit(_) | Request::Subscribe(_) | Request::RecoveryStore(_),
            } if self.takes_nothing_new() => Step::Refuse(Some(tag), Refusal::ShuttingDown),
            Incoming::Request {
                tag,
                request: Request::Submit(submit),
            } => Step::Submit(tag, submit),
            Incoming::Request {
                tag,
                request: Request::Acknowledge(Some(id)),
            } => {
                let charged = !self.window.acknowledged(ANY_MAILBOX, id);
                Step::Acknowledge { tag, id, charged }
            }
            // No blob has an id of another shape, and a second handshake is ignored as by the
            // relays that v1 clients know.
            Incoming::Request {
                request:
                    Request::Acknowledge(None)
                    | Request::DeviceSyncAcknowledge(None)
                    | Request::Handshake(_),
                ..
            }
            | Incoming::Ignored => Step::Ignore,
            Incoming::Unsupported { tag } => Step::Refuse(Some(tag), Refusal::Unsupported),
            Incoming::Request {
                tag,
                request: Request::AccountRevoked(revoked),
            } => Step::AccountRevoked(tag, revoked),
            Incoming::Request {
                tag,
                request: Request::Purge(purge),
            } => Step::Purge(tag, purge),
            Incoming::Request {
                tag,
                request: Request::DeviceSync(message),
            } => Step::DeviceSync(tag, message),
            Incoming::Request {
                tag,
                request: Request::DeviceSyncAcknowledge(Some(id)),
            } => {
                let charged = !self.window.acknowledged(ANY_MAILBOX, id);
                Step::AcknowledgeDeviceSync { tag, id, charged }
            }
            Incoming::Request {
                tag,
                request: Request::RecoveryStore(proof),
            } => Step::PutRecovery(tag, proof),
            Incoming::Request {
                tag,
                request: Request::RecoveryQuery(query),
            } => Step::GetRecovery(tag, query),
            Incoming::Request { tag, request } => self.on_v2_request(tag, request),
            Incoming::Invalid { tag, why } => Step::Refuse(Some(tag), Refusal::Invalid(why)),
            Incoming::Garbage { why } => self.on_garbage(Refusal::Invalid(why)),
        }
    }

    fn on_v2_request(&mut self, tag: Tag, request: Request) -> Step {
        match request {
            Request::Hello => Step::Welcome(tag),
            Request::Subscribe(subscribe) => Step::Subscribe(tag, subscribe),
            Request::Unsubscribe(mailboxes) => Step::Unsubscribe(tag, mailboxes),
            Request::Window { blobs, bytes } => {
                let size = Size { blobs, bytes }.granted();
                self.window.resize(size);
                Step::Windowed(tag, size)
            }
            Request::AcknowledgeEach(blobs) => Step::AcknowledgeEach(tag, blobs),
            Request::Withdraw(withdrawal) => Step::Withdraw(tag, withdrawal),
            Request::PurgeMailboxes(mailboxes) => Step::PurgeMailboxes(tag, mailboxes),
            Request::Unpin(mailbox) => Step::Unpin(tag, mailbox),
            Request::Ping => Step::Ping(tag),
            // Every other request is served above.
            _ => Step::Ignore,
        }
    }

    /// v1's old clients read no refusal, so there a draining session goes on storing what it reads.
    fn takes_nothing_new(&self) -> bool {
        self.phase == Phase::Draining && self.version == Version::V2
    }

    fn on_garbage(&mut self, refusal: Refusal) -> Step {
        self.garbage += 1;
        if self.version == Version::V2 {
            let why =
                "invalid vauchi.relay.v2 frame, or request number 0 where an answer is required";
            return self.close(Some(refusal), Close::Protocol(why));
        }
        if self.garbage < GARBAGE_MAX {
            return Step::Refuse(None, refusal);
        }
        self.close(Some(refusal), Close::Protocol("ten frames were invalid"))
    }

    fn close(&mut self, refusal: Option<Refusal>, close: Close) -> Step {
        self.phase = Phase::Closed;
        Step::Close(refusal, close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MailboxId;
    use crate::protocol::message::HandshakeProof;
    use crate::protocol::message_v2::SubmitTerms;
    use bytes::Bytes;

    fn handshake() -> Box<Handshake> {
        Box::new(Handshake {
            client_id: MailboxId::from_bytes([1; 32]),
            client_as_spelt: "01".repeat(32).into(),
            device_id: None,
            device_as_spelt: None,
            routing_token: None,
            mailbox_as_spelt: "01".repeat(32).into(),
            suppress_presence: false,
            proof: HandshakeProof::Unsigned,
        })
    }

    fn request(request: Request) -> Incoming {
        Incoming::Request {
            tag: tag(),
            request,
        }
    }

    fn tag() -> Tag {
        Tag::Name("a request".into())
    }

    fn submit() -> Submit {
        Submit {
            recipient: MailboxId::from_bytes([2; 32]),
            id: None,
            sender_id: None,
            terms: SubmitTerms::default(),
            body: Bytes::from_static(b"blob"),
        }
    }

    fn open() -> State {
        let mut state = State::new(Version::V1);
        assert!(matches!(
            state.on_frame(request(Request::Handshake(handshake()))),
            Step::Greet(_)
        ));
        state.opened();
        state
    }

    #[test]
    fn a_session_begins_with_a_handshake_or_not_at_all() {
        for first in [
            request(Request::Submit(submit())),
            Incoming::Ignored,
            Incoming::Garbage { why: "no JSON" },
            Incoming::Invalid {
                tag: tag(),
                why: "client_id",
            },
        ] {
            let mut state = State::new(Version::V1);
            assert!(matches!(
                state.on_frame(first),
                Step::Close(None, Close::Protocol(_))
            ));
            assert_eq!(state.phase(), Phase::Closed);
        }
    }

    #[test]
    fn a_second_handshake_and_unknown_types_are_ignored() {
        let mut state = open();
        assert_eq!(
            state.on_frame(request(Request::Handshake(handshake()))),
            Step::Ignore
        );
        assert_eq!(state.on_frame(Incoming::Ignored), Step::Ignore);
        assert_eq!(state.phase(), Phase::Open);
    }

    #[test]
    fn acknowledging_what_was_delivered_here_is_free_and_anything_else_is_charged() {
        let mut state = open();
        let id = BlobId::from_bytes([9; 16]);
        state.delivered(ANY_MAILBOX, id, 1);
        let acknowledge = || request(Request::Acknowledge(Some(id)));
        assert_eq!(
            state.on_frame(acknowledge()),
            Step::Acknowledge {
                tag: tag(),
                id,
                charged: false
            }
        );
        assert_eq!(
            state.on_frame(acknowledge()),
            Step::Acknowledge {
                tag: tag(),
                id,
                charged: true
            }
        );
    }

    #[test]
    fn the_tenth_unreadable_frame_is_answered_and_closes() {
        let mut state = open();
        for _ in 1..GARBAGE_MAX {
            let step = state.on_frame(Incoming::Garbage { why: "no JSON" });
            assert_eq!(step, Step::Refuse(None, Refusal::Invalid("no JSON")));
        }
        let last = state.on_oversize(None, 100);
        assert!(matches!(
            last,
            Step::Close(
                Some(Refusal::TooLarge { bytes_max: 100 }),
                Close::Protocol(_)
            )
        ));
    }

    #[test]
    fn frames_that_can_be_named_are_refused_without_end() {
        let mut state = open();
        for _ in 0..100 {
            let invalid = Incoming::Invalid {
                tag: tag(),
                why: "recipient_id",
            };
            assert_eq!(
                state.on_frame(invalid),
                Step::Refuse(Some(tag()), Refusal::Invalid("recipient_id"))
            );
        }
        let oversize = state.on_oversize(Some(tag()), 100);
        assert_eq!(
            oversize,
            Step::Refuse(Some(tag()), Refusal::TooLarge { bytes_max: 100 })
        );
    }

    #[test]
    fn a_draining_session_serves_what_it_reads_delivers_nothing_and_ends_when_it_owes_nothing() {
        let mut state = open();
        let id = BlobId::from_bytes([9; 16]);
        state.delivered(ANY_MAILBOX, id, 1);
        assert!(!state.is_drained(0), "it is not draining");
        state.drain();
        assert!(!state.may_deliver());
        assert!(matches!(
            state.on_frame(request(Request::Submit(submit()))),
            Step::Submit(..)
        ));
        assert!(!state.is_drained(1) && !state.is_drained(0));
        state.on_frame(request(Request::Acknowledge(Some(id))));
        assert!(!state.is_drained(1), "an answer is owed");
        assert!(state.is_drained(0));
    }
}
