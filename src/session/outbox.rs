//! The answer lane: what a client is owed, in the order of its requests.
//!
//! An answer may still wait for its commit; those behind it wait with it, so that answers leave in
//! order. Only a full lane stops the reading; deliveries have a lane of their own.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::mailboxes::ToBegin;
use crate::protocol::close::Close;
use crate::protocol::message::{Outgoing, Tag};
use crate::service::refusal::Refusal;
use crate::service::submit::{Stored, Submitted};

/// Answers that wait, at the most.
const ANSWERS_MAX: usize = 1_000;
/// Bytes of answers that wait, at the most: a client may give its requests long names.
const BYTES_MAX: usize = 4 << 20;
/// What an answer costs beside what it carries: the name that it repeats, or recovery proofs.
const ANSWER_BYTES: usize = 256;

/// One thing owed to the client.
#[derive(Debug)]
pub enum Owed {
    /// An answer that is complete.
    Answer(Outgoing),
    /// The answer to a blob that is being stored.
    Commit {
        /// The name of the request.
        tag: Tag,
        /// Resolves when it is stored or refused.
        submitted: Submitted,
        /// When the request had been read.
        read_at: Instant,
    },
    /// An answer that is complete when a write is durable.
    Later {
        /// Resolves to the answer.
        answer: Later,
        /// When the request had been read.
        read_at: Instant,
    },
    /// The answer that mailboxes are open, and those of which deliveries begin when it has left.
    Opened {
        /// The answer.
        answer: Outgoing,
        /// Those that were not open before.
        to_begin: Vec<ToBegin>,
    },
    /// The last thing: the close frame.
    Close(Close),
}

/// An answer that is not known yet.
pub struct Later(pub BoxFuture<'static, Outgoing>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later(…)")
    }
}

/// What may leave now.
#[derive(Debug)]
pub enum Ready {
    /// An answer.
    Answer(Outgoing),
    /// What became of a blob.
    Outcome {
        /// The name of the request.
        tag: Tag,
        /// Stored, or why not.
        outcome: Result<Stored, Refusal>,
        /// When the request had been read.
        read_at: Instant,
    },
    /// An answer whose write is durable now.
    Late {
        /// The answer.
        answer: Outgoing,
        /// When the request had been read.
        read_at: Instant,
    },
    /// The answer that mailboxes are open.
    Opened {
        /// The answer.
        answer: Outgoing,
        /// Those whose deliveries begin when it has left.
        to_begin: Vec<ToBegin>,
    },
    /// The close frame; nothing comes after it.
    Close(Close),
}

/// The lane. The reader pushes, the writer takes.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Nothing awaits inside.
    lane: Mutex<Lane>,
    writer: AtomicWaker,
    reader: AtomicWaker,
}

#[derive(Debug, Default)]
struct Lane {
    owed: VecDeque<Owed>,
    bytes: usize,
}

impl Lane {
    fn is_full(&self) -> bool {
        self.owed.len() >= ANSWERS_MAX || self.bytes >= BYTES_MAX
    }
}

impl Outbox {
    /// Puts something at the end. The reader asks for [`Outbox::room`] before it reads, so the lane
    /// exceeds its bound by one frame at the most.
    pub fn push(&self, owed: Owed) {
        let mut lane = self.lane();
        lane.bytes += cost(&owed);
        lane.owed.push_back(owed);
        drop(lane);
        self.writer.wake();
    }

    /// Whether the next [`Outbox::room`] would wait.
    pub fn is_full(&self) -> bool {
        self.lane().is_full()
    }

    /// How many things are owed.
    pub fn len(&self) -> usize {
        self.lane().owed.len()
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves when there is room for another answer.
    pub async fn room(&self) {
        poll_fn(|context| {
            self.reader.register(context.waker());
            if self.lane().is_full() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// Takes the first thing owed when it may leave.
    pub fn poll_take(&self, context: &mut Context<'_>) -> Poll<Ready> {
        self.writer.register(context.waker());
        let mut lane = self.lane();
        let (mut outcome, mut late) = (None, None);
        match lane.owed.front_mut() {
            None => return Poll::Pending,
            Some(Owed::Commit { submitted, .. }) => {
                outcome = Some(ready!(Pin::new(submitted).poll(context)));
            }
            Some(Owed::Later { answer, .. }) => {
                late = Some(ready!(answer.0.as_mut().poll(context)));
            }
            Some(Owed::Answer(_) | Owed::Opened { .. } | Owed::Close(_)) => {}
        }
        let Some(first) = lane.owed.pop_front() else {
            return Poll::Pending;
        };
        lane.bytes -= cost(&first);
        drop(lane);
        self.reader.wake();
        if let (Owed::Later { read_at, .. }, Some(answer)) = (&first, late) {
            return Poll::Ready(Ready::Late {
                answer,
                read_at: *read_at,
            });
        }
        Poll::Ready(match (first, outcome) {
            (Owed::Commit { tag, read_at, .. }, Some(outcome)) => Ready::Outcome {
                tag,
                outcome,
                read_at,
            },
            (Owed::Close(close), _) => Ready::Close(close),
            (Owed::Answer(answer), _) => Ready::Answer(answer),
            (Owed::Opened { answer, to_begin }, _) => Ready::Opened { answer, to_begin },
            // Neither is taken without its outcome; said as a refusal rather than a panic.
            (Owed::Commit { tag, read_at, .. }, None) => Ready::Outcome {
                tag,
                outcome: Err(Refusal::Unavailable),
                read_at,
            },
            (Owed::Later { read_at, .. }, _) => Ready::Outcome {
                tag: Tag::Number(0),
                outcome: Err(Refusal::Unavailable),
                read_at,
            },
        })
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(owed: &Owed) -> usize {
    let carried = match owed {
        Owed::Commit { tag, .. }
        | Owed::Answer(
            Outgoing::Stored { tag, .. }
            | Outgoing::Refused { tag: Some(tag), .. }
            | Outgoing::Notice { tag, .. }
            | Outgoing::Purged { tag, .. },
        ) => tag.name().len(),
        Owed::Answer(Outgoing::RecoveryProofs { proofs }) => proofs
            .iter()
            .map(|proof| size_of_val(proof) + proof.proof.len())
            .sum(),
        Owed::Answer(Outgoing::RecoveryFound { proofs, .. }) => proofs
            .iter()
            .map(|proof| size_of_val(proof) + proof.proof.len())
            .sum(),
        Owed::Opened { answer, to_begin } => {
            let openings = match answer {
                Outgoing::Subscribed { openings, .. } => size_of_val(openings.as_slice()),
                _ => 0,
            };
            openings + size_of_val(to_begin.as_slice())
        }
        Owed::Answer(Outgoing::PurgedMailboxes { mailboxes, .. }) => {
            size_of_val(mailboxes.as_slice())
        }
        Owed::Answer(_) | Owed::Later { .. } | Owed::Close(_) => 0,
    };
    ANSWER_BYTES + carried
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::task::Waker;

    fn answer(name: &str) -> Owed {
        Owed::Answer(Outgoing::Stored {
            tag: Tag::Name(name.into()),
            expires_at: Timestamp::default(),
            duplicate: false,
        })
    }

    fn take(outbox: &Outbox) -> Option<Ready> {
        match outbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        }
    }

    #[test]
    fn answers_leave_in_order_and_the_close_comes_last() {
        let outbox = Outbox::default();
        outbox.push(answer("first"));
        outbox.push(answer("second"));
        outbox.push(Owed::Close(Close::Drain));
        for name in ["first", "second"] {
            let Some(Ready::Answer(Outgoing::Stored { tag, .. })) = take(&outbox) else {
                panic!("{name}")
            };
            assert_eq!(tag.name(), name);
        }
        assert!(matches!(take(&outbox), Some(Ready::Close(Close::Drain))));
        assert!(take(&outbox).is_none() && outbox.is_empty());
    }

    #[test]
    fn the_lane_is_full_by_count_or_by_the_names_it_repeats() {
        let outbox = Outbox::default();
        for _ in 0..ANSWERS_MAX {
            assert!(!outbox.is_full());
            outbox.push(answer("x"));
        }
        assert!(outbox.is_full());
        take(&outbox);
        assert!(!outbox.is_full());

        let outbox = Outbox::default();
        for _ in 0..4 {
            assert!(!outbox.is_full());
            outbox.push(answer(&"x".repeat(1 << 20)));
        }
        assert!(outbox.is_full());
    }
}
