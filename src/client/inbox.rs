//! What has come and was not taken yet.

use std::collections::VecDeque;

use super::blob::Event;
use crate::ids::MailboxId;

/// How many live-only blobs are kept, which no window bounds. They may be lost, and beyond it they are.
const LIVE_MAX: usize = 64;

/// What an event takes.
#[derive(Clone, Copy)]
pub(super) enum Size {
    /// A blob or receipt, with the bytes that the relay's window counts for it.
    Stored(usize),
    Live(usize),
    /// A word of the client's own. There are never more than mailboxes, or than blobs and one.
    Word,
}

/// Blobs and bytes, and how many there may be. One blob may always be, however large.
#[derive(Clone, Copy)]
struct Held {
    count: usize,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
}

impl Held {
    fn none(count_max: usize, bytes_max: usize) -> Self {
        Self {
            count: 0,
            bytes: 0,
            count_max,
            bytes_max,
        }
    }

    fn admits(&self, bytes: usize) -> bool {
        self.count == 0 || (self.count < self.count_max && self.bytes + bytes <= self.bytes_max)
    }

    fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }
}

/// Bounded by what the window admits, in the relay's own arithmetic. So it overflows only with what
/// was left untaken over a reconnect.
pub(super) struct Inbox {
    events: VecDeque<(Event, Size)>,
    stored: Held,
    live: Held,
}

impl Inbox {
    pub(super) fn new(window_blobs: u32, window_bytes: u64) -> Self {
        let blobs = usize::try_from(window_blobs).unwrap_or(usize::MAX);
        let bytes = usize::try_from(window_bytes).unwrap_or(usize::MAX);
        Self {
            events: VecDeque::new(),
            stored: Held::none(blobs, bytes),
            live: Held::none(LIVE_MAX, bytes),
        }
    }

    /// Takes it in, if there is room.
    pub(super) fn push(&mut self, event: Event, size: Size) -> bool {
        let (held, bytes) = match size {
            Size::Stored(bytes) => (&mut self.stored, bytes),
            Size::Live(bytes) => (&mut self.live, bytes),
            Size::Word => {
                self.put(event, size);
                return true;
            }
        };
        if !held.admits(bytes) {
            return false;
        }
        held.add(bytes);
        self.put(event, size);
        true
    }

    /// Puts it behind the others. Of two words of catching up with nothing in between, one says both.
    fn put(&mut self, event: Event, size: Size) {
        match (self.events.back_mut(), event) {
            (Some((Event::CaughtUp(last), _)), Event::CaughtUp(more)) => {
                last.retain(|mailbox| !more.contains(mailbox));
                last.extend(more);
            }
            (_, event) => self.events.push_back((event, size)),
        }
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        let (event, size) = self.events.pop_front()?;
        self.gone(size);
        Some(event)
    }

    /// Drops the blobs and receipts that came from a mailbox.
    pub(super) fn closed(&mut self, mailbox: &MailboxId) {
        for (event, size) in std::mem::take(&mut self.events) {
            match event.came_from() == Some(mailbox) {
                true => self.gone(size),
                false => self.put(event, size),
            }
        }
    }

    fn gone(&mut self, size: Size) {
        match size {
            Size::Stored(bytes) => self.stored.remove(bytes),
            Size::Live(bytes) => self.live.remove(bytes),
            Size::Word => {}
        }
    }

    /// Whether a whole window would fit.
    pub(super) fn has_room_for_a_window(&self) -> bool {
        self.stored.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Delivery, Item};
    use crate::clock::Timestamp;
    use crate::ids::BlobId;

    fn mailbox(n: u8) -> MailboxId {
        MailboxId::from_bytes([n; 32])
    }

    fn blob(n: u8) -> Event {
        Event::Blob(Delivery {
            item: Item {
                mailbox: mailbox(n),
                id: BlobId::from_bytes([n; 16]),
            },
            stored_at: Timestamp::default(),
            expires_at: None,
            redelivered: false,
            body: Default::default(),
        })
    }

    #[test]
    fn words_of_catching_up_become_one() {
        let mut inbox = Inbox::new(1, 1_000);
        for n in [1, 2, 1] {
            inbox.push(Event::CaughtUp(vec![mailbox(n)]), Size::Word);
        }
        let both = vec![mailbox(2), mailbox(1)];
        assert_eq!(inbox.take(), Some(Event::CaughtUp(both)));
        assert_eq!(inbox.take(), None);
    }

    /// Whoever opened and closed a mailbox over and over, and took nothing, collected words without end.
    #[test]
    fn words_become_one_when_what_was_between_them_is_gone() {
        let mut inbox = Inbox::new(1, 1_000);
        inbox.push(Event::CaughtUp(vec![mailbox(2)]), Size::Word);
        for _ in 0..2 {
            inbox.push(blob(1), Size::Stored(1));
            inbox.push(Event::CaughtUp(vec![mailbox(2)]), Size::Word);
            inbox.closed(&mailbox(1));
        }
        assert_eq!(inbox.take(), Some(Event::CaughtUp(vec![mailbox(2)])));
        assert_eq!(inbox.take(), None);
    }

    #[test]
    fn it_admits_what_a_window_admits_and_live_blobs_beside_it() {
        let mut inbox = Inbox::new(2, 100);
        assert!(inbox.push(blob(1), Size::Stored(1_000)), "one may always");
        assert!(!inbox.push(blob(2), Size::Stored(0)));
        inbox.take();
        assert!(inbox.push(blob(1), Size::Stored(60)));
        assert!(!inbox.push(blob(2), Size::Stored(41)));
        assert!(inbox.push(blob(2), Size::Stored(40)));
        assert!(!inbox.push(blob(3), Size::Stored(0)), "two are the most");
        for _ in 0..LIVE_MAX {
            assert!(inbox.push(blob(4), Size::Live(1)));
        }
        assert!(!inbox.push(blob(4), Size::Live(1)));
        assert!(!inbox.has_room_for_a_window());
        inbox.closed(&mailbox(1));
        inbox.closed(&mailbox(2));
        assert!(inbox.has_room_for_a_window());
        assert_eq!(inbox.take(), Some(blob(4)));
    }
}
