//! The writes of one batch and those who wait for them.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::store::StoreError;
use crate::store::model::{Appended, Burnt, RecoveryPut, Removed};
use crate::store::write::{Outcome, Write};

/// Where an outcome goes to.
#[derive(Debug)]
pub(in crate::store) enum Reply {
    Appended(oneshot::Sender<Result<Appended, StoreError>>),
    Removed(oneshot::Sender<Result<Removed, StoreError>>),
    RecoveryPut(oneshot::Sender<Result<RecoveryPut, StoreError>>),
    Pinned(oneshot::Sender<Result<Vec<bool>, StoreError>>),
    Burnt(oneshot::Sender<Result<Burnt, StoreError>>),
    Written(oneshot::Sender<Result<(), StoreError>>),
}

/// What a write may be answered.
pub(in crate::store) trait Answer: Sized {
    /// The reply that takes it.
    fn reply(to: oneshot::Sender<Result<Self, StoreError>>) -> Reply;
}

macro_rules! answers {
    ($($type:ty => $reply:ident),*) => {$(
        impl Answer for $type {
            fn reply(to: oneshot::Sender<Result<Self, StoreError>>) -> Reply {
                Reply::$reply(to)
            }
        }
    )*};
}

answers!(
    Appended => Appended,
    Removed => Removed,
    RecoveryPut => RecoveryPut,
    Vec<bool> => Pinned,
    Burnt => Burnt,
    () => Written
);

impl Reply {
    /// Tells whoever waits. That nobody waits any more is fine: a session may end at any time.
    pub(super) fn tell(self, outcome: Result<Outcome, StoreError>) {
        fn send<T>(
            to: oneshot::Sender<Result<T, StoreError>>,
            outcome: Result<Outcome, StoreError>,
            pick: impl FnOnce(Outcome) -> Option<T>,
        ) {
            let mixed_up = || {
                StoreError::unavailable("internal error: the outcome is of another kind of write")
            };
            let told = outcome.and_then(|outcome| pick(outcome).ok_or_else(mixed_up));
            to.send(told).ok();
        }
        match self {
            Self::Appended(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Appended(appended) => Some(appended),
                _ => None,
            }),
            Self::Removed(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Removed(removed) => Some(removed),
                _ => None,
            }),
            Self::RecoveryPut(to) => send(to, outcome, |outcome| match outcome {
                Outcome::RecoveryPut(put) => Some(put),
                _ => None,
            }),
            Self::Pinned(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Pinned(are_new) => Some(are_new),
                _ => None,
            }),
            Self::Burnt(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Burnt(burnt) => Some(burnt),
                _ => None,
            }),
            Self::Written(to) => send(to, outcome, |outcome| match outcome {
                Outcome::Written => Some(()),
                _ => None,
            }),
        }
    }
}

/// The writes of one batch.
pub(super) struct Batch {
    writes: Vec<Write>,
    /// `None` once answered; the bytes in the queue are given back with the answer.
    waiting: Vec<Option<(Reply, OwnedSemaphorePermit)>>,
}

impl Batch {
    pub(super) fn new(items: Vec<(Write, Reply, OwnedSemaphorePermit)>) -> Self {
        let (writes, waiting) = items
            .into_iter()
            .map(|(write, reply, bytes)| (write, Some((reply, bytes))))
            .unzip();
        Self { writes, waiting }
    }

    /// The places of all its writes.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.writes.len()).collect()
    }

    /// Whether this write has not been answered.
    pub(super) fn is_waiting(&self, index: usize) -> bool {
        self.waiting.get(index).is_some_and(Option::is_some)
    }

    pub(super) fn select(&self, part: &[usize]) -> Vec<&Write> {
        part.iter()
            .filter_map(|index| self.writes.get(*index))
            .collect()
    }

    fn tell(&mut self, index: usize, outcome: Result<Outcome, StoreError>) {
        if let Some((reply, _bytes)) = self.waiting.get_mut(index).and_then(Option::take) {
            reply.tell(outcome);
        }
    }

    /// Confirms each write of `part`.
    pub(super) fn confirm(&mut self, part: &[usize], outcomes: Vec<Outcome>) {
        for (index, outcome) in part.iter().zip(outcomes) {
            self.tell(*index, Ok(outcome));
        }
    }

    pub(super) fn fail(&mut self, part: &[usize], error: &StoreError) {
        for index in part {
            self.tell(*index, Err(error.clone()));
        }
    }

    pub(super) fn fail_all(&mut self, error: &StoreError) {
        for index in 0..self.waiting.len() {
            self.tell(index, Err(error.clone()));
        }
    }

    /// Answers those of `part` that bring something that the relay is full; returns the others.
    pub(super) fn refuse_what_comes(&mut self, part: Vec<usize>) -> Vec<usize> {
        let mut others = Vec::new();
        for index in part {
            match self.writes.get(index).and_then(Write::without_room) {
                Some(full) => self.tell(index, Ok(full)),
                None => others.push(index),
            }
        }
        others
    }
}
