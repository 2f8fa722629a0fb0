//! Which sessions are subscribed to which mailbox here, and how to wake them.
//!
//! A wake carries no blob, only "look": it names the mailbox, coalesces with the wakes before it
//! and so cannot overflow. A session joins before its first read and leaves by its connection id, so
//! a late goodbye never removes a newcomer.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::ids::{ConnectionId, MailboxHash};

/// Enough that two cores seldom meet; each shard costs 100 bytes.
const SHARDS: usize = 64;

/// What one session has been woken for. Held by the session and, for each mailbox it joined, by the hub.
#[derive(Debug, Default)]
pub struct Wakes {
    /// Mailboxes that have something; bounded by what the session joined. Nothing awaits inside.
    marked: Mutex<HashSet<MailboxHash>>,
    waker: AtomicWaker,
}

impl Wakes {
    fn mark(&self, mailbox: MailboxHash) {
        let is_new = lock(&self.marked).insert(mailbox);
        if is_new {
            self.waker.wake();
        }
    }

    /// Takes the marks that have come since the last call; pending while there are none. One task
    /// at a time may wait here.
    pub fn poll_take(&self, context: &mut Context<'_>) -> Poll<HashSet<MailboxHash>> {
        self.waker.register(context.waker());
        let mut marked = lock(&self.marked);
        if marked.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(std::mem::take(&mut *marked))
        }
    }
}

type Subscribers = HashMap<MailboxHash, Vec<(ConnectionId, Arc<Wakes>)>>;

/// The subscriptions of this process.
#[derive(Debug)]
pub struct Hub {
    hasher: RandomState,
    /// Nothing awaits inside.
    shards: Vec<Mutex<Subscribers>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Hub {
    /// From now on until the guard is dropped, `wakes` is marked whenever `mailbox` gets something.
    pub fn join(
        self: &Arc<Self>,
        mailbox: MailboxHash,
        connection: ConnectionId,
        wakes: Arc<Wakes>,
    ) -> Joined {
        self.shard(&mailbox)
            .entry(mailbox)
            .or_default()
            .push((connection, wakes));
        Joined {
            hub: Arc::clone(self),
            mailbox,
            connection,
        }
    }

    /// Tells everyone who joined `mailbox` to look.
    pub fn wake(&self, mailbox: &MailboxHash) {
        if let Some(subscribers) = self.shard(mailbox).get(mailbox) {
            for (_, wakes) in subscribers {
                wakes.mark(*mailbox);
            }
        }
    }

    /// How many subscriptions there are.
    pub fn count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).values().map(Vec::len).sum::<usize>())
            .sum()
    }

    fn leave(&self, mailbox: &MailboxHash, connection: ConnectionId) {
        let mut shard = self.shard(mailbox);
        if let Some(subscribers) = shard.get_mut(mailbox) {
            subscribers.retain(|(id, _)| *id != connection);
            if subscribers.is_empty() {
                shard.remove(mailbox);
            }
        }
    }

    fn shard(&self, mailbox: &MailboxHash) -> MutexGuard<'_, Subscribers> {
        let number = self.hasher.hash_one(mailbox) as usize % SHARDS;
        lock(&self.shards[number])
    }
}

/// A subscription; ends when it is dropped.
#[derive(Debug)]
pub struct Joined {
    hub: Arc<Hub>,
    mailbox: MailboxHash,
    connection: ConnectionId,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.leave(&self.mailbox, self.connection);
    }
}

/// The maps stay consistent at every step, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn taken(wakes: &Wakes) -> usize {
        match wakes.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(marks) => marks.len(),
            Poll::Pending => 0,
        }
    }

    #[test]
    fn wakes_coalesce_and_reach_every_session_of_the_mailbox_only() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (
            MailboxHash::from_bytes([1; 32]),
            MailboxHash::from_bytes([2; 32]),
        );
        let sessions: Vec<Arc<Wakes>> = (0..3).map(|_| Arc::default()).collect();
        let _one = hub.join(a, ConnectionId::next(), Arc::clone(&sessions[0]));
        let _two = hub.join(a, ConnectionId::next(), Arc::clone(&sessions[1]));
        let _three = hub.join(b, ConnectionId::next(), Arc::clone(&sessions[2]));
        hub.wake(&a);
        hub.wake(&a);
        assert_eq!(
            sessions
                .iter()
                .map(|wakes| taken(wakes))
                .collect::<Vec<_>>(),
            [1, 1, 0]
        );
        assert_eq!(taken(&sessions[0]), 0, "a mark is taken once");
    }

    #[test]
    fn late_goodbye_keeps_the_new_session() {
        let hub = Arc::new(Hub::default());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let old = hub.join(mailbox, ConnectionId::next(), Arc::default());
        let wakes = Arc::new(Wakes::default());
        let _new = hub.join(mailbox, ConnectionId::next(), Arc::clone(&wakes));
        drop(old);
        hub.wake(&mailbox);
        assert_eq!((taken(&wakes), hub.count()), (1, 1));
    }

    #[test]
    fn nothing_is_left_when_everyone_has_gone() {
        let hub = Arc::new(Hub::default());
        drop(hub.join(
            MailboxHash::from_bytes([1; 32]),
            ConnectionId::next(),
            Arc::default(),
        ));
        assert_eq!(hub.count(), 0);
        assert!(hub.shards.iter().all(|shard| lock(shard).is_empty()));
    }
}
