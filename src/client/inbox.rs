//! What has come and was not taken yet.

use std::collections::VecDeque;

use super::blob::Event;

/// Room beside the window's blobs for what the window does not count: live-only blobs, words that a
/// mailbox is caught up.
const SPARE: usize = 64;

/// Bounded: when it is full, nothing more is read from the relay until something is taken. As the
/// relay delivers no more than the window, that is rare.
pub(super) struct Inbox {
    events: VecDeque<Event>,
    bytes: usize,
    events_max: usize,
    bytes_max: usize,
}

impl Inbox {
    pub(super) fn new(window_blobs: u32, window_bytes: u64) -> Self {
        let blobs = usize::try_from(window_blobs).unwrap_or(usize::MAX);
        Self {
            events: VecDeque::new(),
            bytes: 0,
            events_max: blobs.saturating_add(SPARE),
            bytes_max: usize::try_from(window_bytes).unwrap_or(usize::MAX).max(1),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= self.events_max || self.bytes >= self.bytes_max
    }

    pub(super) fn push(&mut self, event: Event) {
        if let (Some(Event::CaughtUp(last)), Event::CaughtUp(more)) =
            (self.events.back_mut(), &event)
        {
            // Nothing has come in between: one word says both.
            last.retain(|mailbox| !more.contains(mailbox));
            last.extend(more);
            return;
        }
        self.bytes += event.bytes();
        self.events.push_back(event);
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.bytes -= event.bytes();
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MailboxId;

    #[test]
    fn it_is_full_by_count_and_words_of_catching_up_become_one() {
        let mut inbox = Inbox::new(1, 1_000);
        let caught_up = |n| Event::CaughtUp(vec![MailboxId::from_bytes([n; 32])]);
        for n in [1, 2, 1] {
            inbox.push(caught_up(n));
        }
        let both = [2, 1].map(|n| MailboxId::from_bytes([n; 32]));
        assert_eq!(inbox.take(), Some(Event::CaughtUp(both.to_vec())));
        assert_eq!(inbox.take(), None);
        let closed = Event::Closed {
            mailbox: MailboxId::from_bytes([1; 32]),
            why: crate::client::ClientError::Timeout,
        };
        for _ in 0..=SPARE {
            assert!(!inbox.is_full());
            inbox.push(closed.clone());
        }
        assert!(inbox.is_full());
        inbox.take();
        assert!(!inbox.is_full());
    }
}
