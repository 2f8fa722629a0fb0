//! The pure state machine of a session: what a frame says in, what becomes of it out.
//!
//! No socket, no clock, no store and no protocol; so order, limits, drain and what is charged are
//! tested with plain values. `v1` and `v2` tell what a frame says and carry the verdict out.

use crate::ids::MailboxHash;
use crate::protocol::Version;
use crate::protocol::close::Close;
use crate::service::refusal::Refusal;

use super::window::{Size, Slot, Window};

/// Frames without a readable name that a v1 session answers; with the next it is closed.
pub const GARBAGE_MAX: u32 = 10;

/// Acknowledged ids that are not in flight, for each request that they cost.
const UNKNOWN_PER_REQUEST: usize = 100;

/// Where a session stands, once it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are served and blobs delivered.
    Open,
    /// The relay is about to stop: requests are served, nothing is delivered any more.
    Draining,
    /// The close frame is decided; nothing is read any more.
    Closed,
}

/// What a client's frame says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A request that would have the relay keep or deliver something new, and what it costs.
    New(Charge),
    /// Any other request, and what it costs.
    Request(Charge),
    /// These have arrived.
    Arrived(Vec<Slot>),
    /// A request that cannot be served, whatever the session is at.
    Refused(Refusal),
    /// Not even the name of a request can be read.
    Garbage(Refusal),
    /// Nothing that anything is done for.
    Nothing,
}

/// What a request is charged as before it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// It asks nothing of storage, or is about what is in flight.
    Nothing,
    /// One request.
    Request,
    /// As much as so many requests.
    Requests(u32),
    /// One recovery request, which has a rate of its own.
    Recovery,
    /// Nothing yet: what it costs shows when it is served, as that of openings.
    Later,
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Charge this, then do what is asked.
    Serve(Charge),
    /// Charge one request, then answer with a refusal.
    Refuse(Refusal),
    /// Charge one request, and do nothing.
    Ignore,
    /// Answer with this refusal, then close.
    Close(Refusal, Close),
}

/// A session's memory of itself.
#[derive(Debug)]
pub struct State {
    phase: Phase,
    version: Version,
    garbage: u32,
    window: Window,
}

impl State {
    /// A session that speaks this version and has begun.
    pub fn new(version: Version) -> Self {
        Self {
            phase: Phase::Open,
            version,
            garbage: 0,
            window: match version {
                Version::V1 => Window::unpaced(),
                Version::V2 => Window::paced(),
            },
        }
    }

    /// Which version it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A frame was read whole; this is what it says.
    pub fn judge(&mut self, said: Said) -> Verdict {
        if self.phase == Phase::Closed {
            return Verdict::Ignore;
        }
        match said {
            Said::New(_) if self.takes_nothing_new() => Verdict::Refuse(Refusal::ShuttingDown),
            Said::New(charge) | Said::Request(charge) => Verdict::Serve(charge),
            Said::Arrived(slots) => Verdict::Serve(self.charge_for_arrived(&slots)),
            Said::Refused(refusal) => Verdict::Refuse(refusal),
            Said::Garbage(refusal) => self.on_garbage(refusal),
            Said::Nothing => Verdict::Ignore,
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

    /// From now on so much may be in flight.
    pub fn resize(&mut self, size: Size) {
        self.window.resize(size);
    }

    /// Whether a blob of so many bytes may be delivered now.
    pub fn admits(&self, bytes: u64) -> bool {
        self.window.admits(bytes)
    }

    /// A blob is about to be written to the socket.
    pub fn delivered(&mut self, slot: Slot, bytes: u64) {
        self.window.delivered(slot, bytes);
    }

    /// The client has this blob. Whether it was in flight here.
    pub fn acknowledged(&mut self, slot: Slot) -> bool {
        self.window.acknowledged(slot)
    }

    /// This mailbox was closed or purged: nobody will acknowledge what was in flight.
    pub fn forget(&mut self, mailbox: &MailboxHash) {
        self.window.forget(mailbox);
    }

    /// Whether a draining session owes nothing any more; `unanswered` requests are in its outbox.
    pub fn is_drained(&self, unanswered: usize) -> bool {
        self.phase == Phase::Draining && unanswered == 0 && self.window.is_empty()
    }

    /// What is in flight here is free. What is not has to be looked up in storage: a hundred of these cost
    /// as much as one request.
    fn charge_for_arrived(&self, slots: &[Slot]) -> Charge {
        let unknown = slots.iter().filter(|slot| !self.window.holds(slot)).count();
        match u32::try_from(unknown.div_ceil(UNKNOWN_PER_REQUEST)).unwrap_or(u32::MAX) {
            0 => Charge::Nothing,
            requests => Charge::Requests(requests),
        }
    }

    /// v1's old clients read no refusal, so there a draining session goes on storing what it reads.
    fn takes_nothing_new(&self) -> bool {
        self.phase == Phase::Draining && self.version == Version::V2
    }

    fn on_garbage(&mut self, refusal: Refusal) -> Verdict {
        self.garbage += 1;
        let why = match self.version {
            Version::V1 if self.garbage < GARBAGE_MAX => return Verdict::Refuse(refusal),
            Version::V1 => "ten frames were invalid",
            Version::V2 => {
                "invalid vauchi.relay.v2 frame, or request number 0 where an answer is required"
            }
        };
        self.phase = Phase::Closed;
        Verdict::Close(refusal, Close::Protocol(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlobId;

    fn slot(number: u8) -> Slot {
        (
            MailboxHash::from_bytes([1; 32]),
            BlobId::from_bytes([number; 16]),
        )
    }

    fn garbage() -> Said {
        Said::Garbage(Refusal::Invalid("no JSON"))
    }

    #[test]
    fn what_nothing_is_done_for_is_ignored_and_changes_nothing() {
        for version in [Version::V1, Version::V2] {
            let mut state = State::new(version);
            assert_eq!(state.judge(Said::Nothing), Verdict::Ignore);
            assert_eq!(state.phase, Phase::Open);
        }
    }

    #[test]
    fn requests_are_served_at_their_charge() {
        let mut state = State::new(Version::V2);
        for charge in [
            Charge::Nothing,
            Charge::Request,
            Charge::Recovery,
            Charge::Later,
        ] {
            assert_eq!(state.judge(Said::Request(charge)), Verdict::Serve(charge));
            assert_eq!(state.judge(Said::New(charge)), Verdict::Serve(charge));
        }
    }

    #[test]
    fn acknowledging_what_was_delivered_here_is_free_and_anything_else_is_charged() {
        let mut state = State::new(Version::V1);
        state.delivered(slot(9), 1);
        let arrived = |ids: &[u8]| Said::Arrived(ids.iter().map(|number| slot(*number)).collect());
        let free = Verdict::Serve(Charge::Nothing);
        assert_eq!(state.judge(arrived(&[9])), free);
        // However often it is named in one request.
        assert_eq!(state.judge(arrived(&[9, 9])), free);
        assert_eq!(state.judge(arrived(&[])), free);
        let charged = Verdict::Serve(Charge::Requests(1));
        assert_eq!(state.judge(arrived(&[9, 8])), charged);
        let many: Vec<_> = (0..=255).filter(|number| *number != 9).collect();
        let dear = Verdict::Serve(Charge::Requests(3));
        assert_eq!(state.judge(arrived(&many)), dear);
        assert!(state.acknowledged(slot(9)));
        assert_eq!(state.judge(arrived(&[9])), charged);
    }

    #[test]
    fn the_tenth_unreadable_frame_of_v1_is_answered_and_closes() {
        let mut state = State::new(Version::V1);
        for _ in 1..GARBAGE_MAX {
            let refused = Verdict::Refuse(Refusal::Invalid("no JSON"));
            assert_eq!(state.judge(garbage()), refused);
        }
        let refusal = Refusal::TooLarge { bytes_max: 100 };
        let last = state.judge(Said::Garbage(refusal.clone()));
        assert!(matches!(last, Verdict::Close(why, Close::Protocol(_)) if why == refusal));
        assert_eq!(state.phase, Phase::Closed);
        assert_eq!(state.judge(garbage()), Verdict::Ignore);
    }

    #[test]
    fn the_first_unreadable_frame_of_v2_is_answered_and_closes() {
        let mut state = State::new(Version::V2);
        let last = state.judge(garbage());
        assert!(matches!(last, Verdict::Close(_, Close::Protocol(_))));
        assert_eq!(state.phase, Phase::Closed);
    }

    #[test]
    fn frames_that_can_be_named_are_refused_without_end() {
        for version in [Version::V1, Version::V2] {
            let mut state = State::new(version);
            for _ in 0..100 {
                let refusal = Refusal::Invalid("recipient_id");
                let verdict = state.judge(Said::Refused(refusal.clone()));
                assert_eq!(verdict, Verdict::Refuse(refusal));
            }
            assert_eq!(state.phase, Phase::Open);
        }
    }

    #[test]
    fn a_draining_session_delivers_nothing_and_ends_when_it_owes_nothing() {
        let mut state = State::new(Version::V1);
        state.delivered(slot(9), 1);
        assert!(!state.is_drained(0), "it is not draining");
        state.drain();
        assert!(!state.may_deliver());
        assert!(!state.is_drained(1) && !state.is_drained(0));
        let arrived = state.judge(Said::Arrived(vec![slot(9)]));
        assert_eq!(arrived, Verdict::Serve(Charge::Nothing));
        state.acknowledged(slot(9));
        assert!(!state.is_drained(1), "an answer is owed");
        assert!(state.is_drained(0));
    }

    #[test]
    fn a_draining_session_serves_what_it_reads_and_in_v2_takes_nothing_new() {
        let served = Verdict::Serve(Charge::Request);
        for version in [Version::V1, Version::V2] {
            let mut state = State::new(version);
            state.drain();
            assert_eq!(state.judge(Said::Request(Charge::Request)), served);
            let verdict = state.judge(Said::New(Charge::Request));
            match version {
                Version::V1 => assert_eq!(verdict, served),
                Version::V2 => assert_eq!(verdict, Verdict::Refuse(Refusal::ShuttingDown)),
            }
        }
    }
}
