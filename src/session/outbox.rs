//! The answer lane: what a client is owed, in the order of its requests.
//!
//! An answer may still wait for its commit; those behind it wait with it, so that answers leave in
//! order. Only a full lane stops the reading; deliveries have a lane of their own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;

use super::mailboxes::ToBegin;
use crate::ids::MailboxHash;
use crate::protocol::close::Close;

/// Answers that wait, at the most.
const ANSWERS_MAX: usize = 1_000;
/// Bytes of answers that wait, at the most: a client may give its requests long names, and ask for
/// recovery proofs.
const BYTES_MAX: usize = 4 << 20;
/// What an answer costs beside its frame.
const ANSWER_BYTES: usize = 256;

/// One thing owed to the client. Each protocol words its own answers, so here they are frames.
#[derive(Debug)]
pub enum Owed {
    /// An answer.
    Answer(Bytes),
    /// The answer that mailboxes are open, and those of which deliveries begin when it has left.
    Opened {
        /// The answer.
        answer: Bytes,
        /// Those that were not open before.
        to_begin: Vec<ToBegin>,
    },
    /// The answer that mailboxes are closed. The window counts what is in flight of them until it has
    /// left: until then the client may count it, too.
    Closed {
        /// The answer.
        answer: Bytes,
        /// Those that were open before.
        closed: Vec<MailboxHash>,
    },
    /// The last thing: the close frame.
    Close(Close),
}

/// The lane. The reader pushes, the writer takes.
#[derive(Default)]
pub struct Outbox {
    /// Nothing awaits inside.
    lane: Mutex<Lane>,
    writer: AtomicWaker,
    reader: AtomicWaker,
}

#[derive(Default)]
struct Lane {
    places: VecDeque<Place>,
    bytes: usize,
}

/// A place in the lane.
struct Place {
    what: What,
    /// What it counts for while it waits.
    bytes: usize,
}

enum What {
    Now(Owed),
    /// The answer to something that is being written; it is known when that is durable.
    Later(BoxFuture<'static, Bytes>),
}

impl Lane {
    fn is_full(&self) -> bool {
        self.places.len() >= ANSWERS_MAX || self.bytes >= BYTES_MAX
    }
}

impl Outbox {
    /// Puts something at the end. The reader asks for [`Outbox::room`] before it reads, so the lane
    /// exceeds its bound by one frame at the most.
    pub fn push(&self, owed: Owed) {
        let bytes = cost(&owed);
        self.put(What::Now(owed), bytes);
    }

    /// Puts an answer at the end that is not known yet. It will repeat `name_bytes` of the client's own.
    pub fn push_later(&self, answer: BoxFuture<'static, Bytes>, name_bytes: usize) {
        self.put(What::Later(answer), ANSWER_BYTES + name_bytes);
    }

    fn put(&self, what: What, bytes: usize) {
        let mut lane = self.lane();
        lane.bytes += bytes;
        lane.places.push_back(Place { what, bytes });
        drop(lane);
        self.writer.wake();
    }

    /// Whether the next [`Outbox::room`] would wait.
    pub fn is_full(&self) -> bool {
        self.lane().is_full()
    }

    /// How many things are owed.
    pub fn len(&self) -> usize {
        self.lane().places.len()
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
    pub fn poll_take(&self, context: &mut Context<'_>) -> Poll<Owed> {
        self.writer.register(context.waker());
        let mut lane = self.lane();
        let late = match lane.places.front_mut().map(|place| &mut place.what) {
            None => return Poll::Pending,
            Some(What::Now(_)) => None,
            Some(What::Later(answer)) => Some(ready!(answer.as_mut().poll(context))),
        };
        let Some(Place { what, bytes }) = lane.places.pop_front() else {
            return Poll::Pending;
        };
        lane.bytes -= bytes;
        drop(lane);
        self.reader.wake();
        match (what, late) {
            (What::Now(owed), _) => Poll::Ready(owed),
            (What::Later(_), Some(answer)) => Poll::Ready(Owed::Answer(answer)),
            // Never taken before it is known.
            (What::Later(_), None) => Poll::Pending,
        }
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(owed: &Owed) -> usize {
    ANSWER_BYTES
        + match owed {
            Owed::Answer(answer) => answer.len(),
            Owed::Opened { answer, to_begin } => answer.len() + size_of_val(to_begin.as_slice()),
            Owed::Closed { answer, closed } => answer.len() + size_of_val(closed.as_slice()),
            Owed::Close(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::task::Waker;

    fn answer(frame: &str) -> Owed {
        Owed::Answer(Bytes::copy_from_slice(frame.as_bytes()))
    }

    fn take(outbox: &Outbox) -> Option<Owed> {
        match outbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(owed) => Some(owed),
            Poll::Pending => None,
        }
    }

    #[test]
    fn answers_leave_in_order_and_the_close_comes_last() {
        let outbox = Outbox::default();
        let (durable, written) = tokio::sync::oneshot::channel();
        outbox.push(answer("first"));
        outbox.push_later(written.map(Result::unwrap).boxed(), 0);
        outbox.push(answer("third"));
        outbox.push(Owed::Close(Close::Drain));
        let is = |owed: Option<Owed>, expected: &str| match owed {
            Some(Owed::Answer(frame)) => frame == expected,
            _ => false,
        };
        assert!(is(take(&outbox), "first"));
        assert!(take(&outbox).is_none(), "the second is not known");
        durable.send(Bytes::from("second")).unwrap();
        assert!(is(take(&outbox), "second"));
        assert!(is(take(&outbox), "third"));
        assert!(matches!(take(&outbox), Some(Owed::Close(Close::Drain))));
        assert!(take(&outbox).is_none() && outbox.is_empty());
    }

    #[test]
    fn the_lane_is_full_by_count_or_by_the_bytes_it_holds() {
        let outbox = Outbox::default();
        for _ in 0..ANSWERS_MAX {
            assert!(!outbox.is_full());
            outbox.push(answer("x"));
        }
        assert!(outbox.is_full());
        take(&outbox);
        assert!(!outbox.is_full());

        let outbox = Outbox::default();
        for _ in 0..2 {
            assert!(!outbox.is_full());
            outbox.push(answer(&"x".repeat(1 << 20)));
            outbox.push_later(std::future::pending().boxed(), 1 << 20);
        }
        assert!(outbox.is_full());
    }
}
