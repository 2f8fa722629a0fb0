//! Whether blobs come in and go out, as the work itself shows: `relay_takes_blobs`, `relay_gives_blobs`.
//!
//! A probe that finds storage well proves nothing about the work that fails beside it. So the committer
//! and the readers say here how they fare, and a probe tries again what failed last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::model::{OrderKey, View};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::metrics::Metrics;

/// A commit that takes longer makes a probe try a write of its own.
const COMMIT_SLOW: Duration = Duration::from_secs(1);

/// For how long a read that failed counts, unless it fails again or a probe repeats it before.
const UNREAD_HOLDS: Duration = Duration::from_secs(60);

/// How storage fares.
#[derive(Debug)]
pub(super) struct Health {
    /// Nothing awaits while it is locked.
    facts: Mutex<Facts>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Facts {
    /// There is no handle to write with.
    is_down: bool,
    /// The disk has no room.
    lacks_room: bool,
    /// All bytes are used that the settings allow.
    is_full: bool,
    /// No write succeeded since one failed that was not to blame.
    write_failed: bool,
    commit_began: Option<Instant>,
    unread: Option<(Unread, Instant)>,
}

/// What could not be read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unread {
    /// The page of this mailbox after this key.
    Page(MailboxHash, View, OrderKey, Timestamp),
    /// Something else.
    Other,
}

impl Health {
    /// Of a store that was just opened.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let health = Self {
            facts: Mutex::default(),
            metrics,
        };
        health.change(|_| {});
        health
    }

    /// Whether there is a handle to write with.
    pub(super) fn set_down(&self, is_down: bool) {
        self.metrics.store_up.set(f64::from(u8::from(!is_down)));
        self.change(|facts| facts.is_down = is_down);
    }

    /// Whether the disk has room for new blobs.
    pub(super) fn set_room(&self, has_room: bool) {
        self.change(|facts| facts.lacks_room = !has_room);
    }

    /// Whether all bytes are used that the settings allow.
    pub(super) fn set_full(&self, is_full: bool) {
        self.change(|facts| facts.is_full = is_full);
    }

    /// A commit begins.
    pub(super) fn commit_begins(&self) {
        self.facts().commit_began = Some(Instant::now());
    }

    /// The commit that began has ended somehow.
    pub(super) fn commit_ended(&self) {
        self.facts().commit_began = None;
    }

    /// Something is durable that was not before, or a write failed that was not to blame.
    pub(super) fn wrote(&self, is_durable: bool) {
        self.change(|facts| facts.write_failed = !is_durable);
    }

    /// Whether only a write tells whether writes go through.
    pub(super) fn doubts_writes(&self) -> bool {
        let facts = self.facts();
        let is_slow = |began: Instant| began.elapsed() >= COMMIT_SLOW;
        facts.write_failed || facts.lacks_room || facts.commit_began.is_some_and(is_slow)
    }

    /// A read failed. A page is remembered rather than anything else.
    pub(super) fn failed_to_read(&self, unread: Unread) {
        self.change(|facts| {
            let kept = match (facts.unread, unread) {
                (Some((page @ Unread::Page(..), _)), Unread::Other) => page,
                _ => unread,
            };
            facts.unread = Some((kept, Instant::now()));
        });
    }

    /// What could not be read lately.
    pub(super) fn unread(&self) -> Option<Unread> {
        let (unread, at) = self.facts().unread?;
        (at.elapsed() < UNREAD_HOLDS).then_some(unread)
    }

    /// What could not be read can be, as far as is known.
    pub(super) fn read_again(&self) {
        self.change(|facts| facts.unread = None);
    }

    /// Whether a new blob would be stored, as far as is known without trying.
    pub(super) fn takes_blobs(&self) -> bool {
        self.facts().takes_blobs()
    }

    /// Whether a blob that waits would be delivered, likewise.
    pub(super) fn gives_blobs(&self) -> bool {
        self.facts().unread.is_none()
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts();
        change(&mut facts);
        let gauge = |is_so: bool| f64::from(u8::from(is_so));
        self.metrics.takes_blobs.set(gauge(facts.takes_blobs()));
        self.metrics.gives_blobs.set(gauge(facts.unread.is_none()));
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn takes_blobs(&self) -> bool {
        !(self.is_down || self.lacks_room || self.is_full || self.write_failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_counts_for_a_while_and_a_page_counts_most() {
        let health = Health::new(Arc::new(Metrics::new()));
        assert!(health.gives_blobs() && health.unread().is_none());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let now = Timestamp::from_millis(0);
        health.failed_to_read(Unread::Page(mailbox, View::Proven, OrderKey::START, now));
        health.failed_to_read(Unread::Other);
        assert!(matches!(health.unread(), Some(Unread::Page(..))));
        assert_eq!(health.metrics.values()["relay_gives_blobs"], 0.0);
        tokio::time::advance(UNREAD_HOLDS).await;
        assert!(health.unread().is_none());
        assert!(!health.gives_blobs(), "until a probe has looked");
        health.read_again();
        assert!(health.gives_blobs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_in_doubt_when_one_failed_or_takes_long() {
        let health = Health::new(Arc::new(Metrics::new()));
        assert!(health.takes_blobs() && !health.doubts_writes());
        health.commit_begins();
        assert!(!health.doubts_writes());
        tokio::time::advance(COMMIT_SLOW).await;
        assert!(health.doubts_writes() && health.takes_blobs());
        health.commit_ended();
        health.wrote(false);
        assert!(health.doubts_writes() && !health.takes_blobs());
        health.wrote(true);
        assert!(health.takes_blobs() && !health.doubts_writes());
        health.set_room(false);
        assert_eq!(health.metrics.values()["relay_takes_blobs"], 0.0);
    }
}
