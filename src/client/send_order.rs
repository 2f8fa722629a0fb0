//! In which order requests are written on a connection, and how many before the first answers.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use crate::protocol::v2::Tag;

/// How many requests go out on a new connection before the first answer; each answer lets one more
/// go. Were everything sent at once, a network that breaks after a few kilobytes would carry the same
/// requests over and over, and never an answer.
const FIRST_MAX: usize = 4;

/// What the writer does next.
pub(super) enum Next {
    Write(Bytes),
    /// Nothing, until somebody asks or this time comes.
    Idle(Option<Instant>),
    /// Say goodbye.
    Leave,
}

/// The numbers of requests. Each is one that the client's state keeps, so there are no more than there.
pub(super) struct SendOrder {
    /// What the client itself needs of this connection: the window, its mailboxes. Goes before the rest.
    first: VecDeque<Tag>,
    /// To be written on this connection.
    unsent: BTreeSet<Tag>,
    /// Written on this connection.
    sent: BTreeSet<Tag>,
    /// How many may be written and not answered now.
    sent_max: usize,
    /// To be written again at a time that the relay named.
    later: Vec<(Instant, Tag)>,
}

impl Default for SendOrder {
    fn default() -> Self {
        Self {
            first: VecDeque::new(),
            unsent: BTreeSet::new(),
            sent: BTreeSet::new(),
            sent_max: FIRST_MAX,
            later: Vec::new(),
        }
    }
}

impl SendOrder {
    /// Goes before what is asked by others.
    pub(super) fn put_first(&mut self, number: Tag) {
        self.first.push_back(number);
    }

    pub(super) fn put(&mut self, number: Tag) {
        self.unsent.insert(number);
    }

    /// Goes when its time comes.
    pub(super) fn put_off(&mut self, number: Tag, until: Instant) {
        self.sent.remove(&number);
        self.later.push((until, number));
    }

    /// Goes no more on this connection; whether it had gone and was not answered.
    pub(super) fn remove(&mut self, number: Tag) -> bool {
        self.unsent.remove(&number);
        self.later.retain(|(_, later)| *later != number);
        self.sent.remove(&number)
    }

    /// Every answer lets one more go.
    pub(super) fn answered(&mut self, number: Tag) {
        self.sent.remove(&number);
        self.sent_max = self.sent_max.saturating_add(1);
    }

    /// The relay is asked too much.
    pub(super) fn begin_slowly(&mut self) {
        self.sent_max = 1;
    }

    /// What is due goes with the rest.
    pub(super) fn bring_back(&mut self, now: Instant) {
        let unsent = &mut self.unsent;
        self.later.retain(|(at, number)| {
            let is_due = *at <= now;
            if is_due {
                unsent.insert(*number);
            }
            !is_due
        });
    }

    /// When the next comes back.
    pub(super) fn due(&self) -> Option<Instant> {
        self.later.iter().map(|(at, _)| *at).min()
    }

    /// The next to be written, of those that may go.
    pub(super) fn take(&mut self, may_go: impl Fn(Tag) -> bool) -> Option<Tag> {
        if let Some(number) = self.first.pop_front() {
            return Some(number);
        }
        let number = self.unsent.iter().copied().find(|number| may_go(*number))?;
        self.unsent.remove(&number);
        Some(number)
    }

    /// It is written.
    pub(super) fn sent(&mut self, number: Tag) {
        self.sent.insert(number);
    }

    pub(super) fn is_sent(&self, number: Tag) -> bool {
        self.sent.contains(&number)
    }

    pub(super) fn is_any_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether one more may be without an answer.
    pub(super) fn has_room(&self) -> bool {
        self.sent.len() < self.sent_max
    }
}
