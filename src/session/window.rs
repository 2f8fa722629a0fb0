//! What was delivered on this connection and not yet acknowledged on it, and how much more may go.
//!
//! A v2 connection has a window: deliveries stop when it is full, and slots come back when the client
//! acknowledges, closes the mailbox or purges it. v1 deliveries are paced by the socket alone; there
//! the window bounds only memory. In both it tells which acknowledgements are free of charge and
//! whether a draining session still waits for some.

use std::collections::{HashMap, VecDeque};

use crate::ids::{BlobId, MailboxHash};

/// Blobs that a v1 session remembers as in flight. At 72 bytes each a session that never
/// acknowledges costs 1.2 MiB at the most; the oldest are forgotten first, and acknowledging those
/// is charged like a request.
const REMEMBERED_MAX: usize = 16_384;

/// The window that a v2 connection begins with: enough to fill a fast line, little enough for a phone.
pub const DEFAULT: Size = Size {
    blobs: 64,
    bytes: 4 << 20,
};

/// The largest window: 1,024 slots of 72 bytes are 72 KiB of memory a connection; the blobs
/// themselves are not kept.
pub const MAX: Size = Size {
    blobs: 1_024,
    bytes: 16 << 20,
};

/// How much may be in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Blobs.
    pub blobs: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Size {
    /// The nearest size that is granted: at least one blob, at most [`MAX`].
    pub fn granted(self) -> Self {
        Self {
            blobs: self.blobs.clamp(1, MAX.blobs),
            bytes: self.bytes.clamp(1, MAX.bytes),
        }
    }
}

/// A blob in flight. A v1 client acknowledges by the id alone, so all that it gets, also for its device,
/// stands under the mailbox that it opened.
pub type Slot = (MailboxHash, BlobId);

/// Blobs in flight.
#[derive(Debug)]
pub struct Window {
    /// `None` where only memory is bounded.
    size: Option<Size>,
    /// The bytes of each.
    in_flight: HashMap<Slot, u64>,
    bytes: u64,
    /// Without a size: in the order of delivery; may still hold what was acknowledged.
    order: VecDeque<Slot>,
}

impl Window {
    /// The window of a v1 connection.
    pub fn unpaced() -> Self {
        Self::new(None)
    }

    /// The window of a v2 connection.
    pub fn paced() -> Self {
        Self::new(Some(DEFAULT))
    }

    fn new(size: Option<Size>) -> Self {
        Self {
            size,
            in_flight: HashMap::new(),
            bytes: 0,
            order: VecDeque::new(),
        }
    }

    /// From now on this is the size. What is in flight beyond it stays there.
    pub fn resize(&mut self, size: Size) {
        self.size = Some(size);
    }

    /// Whether a blob of `bytes` may be delivered now. One may always, however large.
    pub fn admits(&self, bytes: u64) -> bool {
        let Some(size) = self.size else {
            return true;
        };
        self.in_flight.is_empty()
            || (self.in_flight.len() < size.blobs as usize && self.bytes + bytes <= size.bytes)
    }

    /// A blob is about to be written to the socket.
    pub fn delivered(&mut self, slot: Slot, bytes: u64) {
        // Another blob may come under an id that is still in flight: what was damaged, or left long
        // ago, may be submitted again, and in another size.
        let before = self.in_flight.insert(slot, bytes);
        self.bytes = self.bytes - before.unwrap_or(0) + bytes;
        if before.is_some() || self.size.is_some() {
            return;
        }
        self.order.push_back(slot);
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.take(&oldest);
            }
        }
    }

    /// Whether it was delivered here and is not acknowledged yet.
    pub fn holds(&self, slot: &Slot) -> bool {
        self.in_flight.contains_key(slot)
    }

    /// The client has it. Returns whether it was in flight here.
    pub fn acknowledged(&mut self, slot: Slot) -> bool {
        let was_in_flight = self.take(&slot);
        while self
            .order
            .front()
            .is_some_and(|oldest| !self.in_flight.contains_key(oldest))
        {
            self.order.pop_front();
        }
        was_in_flight
    }

    /// The client closed or purged this mailbox: nobody will acknowledge what came from it.
    pub fn forget(&mut self, mailbox: &MailboxHash) {
        self.in_flight.retain(|(of, _), bytes| {
            let stays = of != mailbox;
            self.bytes -= if stays { 0 } else { *bytes };
            stays
        });
        self.order.retain(|(of, _)| of != mailbox);
    }

    /// Whether everything that was delivered has been acknowledged.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    fn take(&mut self, slot: &Slot) -> bool {
        let bytes = self.in_flight.remove(slot);
        self.bytes -= bytes.unwrap_or(0);
        bytes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: MailboxHash = MailboxHash::from_bytes([1; 32]);
    const THERE: MailboxHash = MailboxHash::from_bytes([2; 32]);

    fn id(number: u32) -> BlobId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        BlobId::from_bytes(bytes)
    }

    #[test]
    fn only_what_was_delivered_here_is_in_flight_and_only_once() {
        for mut window in [Window::unpaced(), Window::paced()] {
            assert!(!window.acknowledged((HERE, id(1))));
            window.delivered((HERE, id(1)), 5);
            window.delivered((HERE, id(1)), 5);
            assert!(!window.acknowledged((THERE, id(1))));
            assert!(window.acknowledged((HERE, id(1))));
            assert!(!window.acknowledged((HERE, id(1))));
            assert!(window.is_empty() && window.order.is_empty());
            assert_eq!(window.bytes, 0);
        }
    }

    #[test]
    fn a_v1_client_that_never_acknowledges_costs_a_bounded_memory() {
        let mut window = Window::unpaced();
        for number in 0..3 * REMEMBERED_MAX as u32 {
            assert!(window.admits(u64::MAX));
            window.delivered((HERE, id(number)), 1);
        }
        assert_eq!(
            (window.in_flight.len(), window.order.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX)
        );
        assert!(!window.acknowledged((HERE, id(0))));
        assert!(window.acknowledged((HERE, id(3 * REMEMBERED_MAX as u32 - 1))));
    }

    #[test]
    fn a_window_closes_by_count_and_by_bytes_and_opens_with_each_slot() {
        let mut window = Window::paced();
        window.resize(Size {
            blobs: 2,
            bytes: 100,
        });
        assert!(window.admits(1_000), "one may always go");
        window.delivered((HERE, id(1)), 60);
        assert!(window.admits(40) && !window.admits(41));
        window.delivered((HERE, id(2)), 1);
        assert!(!window.admits(1));
        assert!(window.acknowledged((HERE, id(1))));
        assert!(window.admits(99) && !window.admits(100));
        window.delivered((THERE, id(3)), 99);
        window.forget(&THERE);
        assert!(window.admits(99));
        window.forget(&HERE);
        assert!(window.is_empty() && window.bytes == 0);
    }

    /// The bytes of the first one were counted, and those of the second one given back.
    #[test]
    fn another_blob_under_an_id_in_flight_counts_as_what_it_is() {
        for (first, second) in [(10, 1_000), (1_000, 10)] {
            let mut window = Window::paced();
            window.delivered((HERE, id(1)), first);
            window.delivered((HERE, id(1)), second);
            assert_eq!(window.bytes, second);
            assert!(window.acknowledged((HERE, id(1))));
            assert_eq!(window.bytes, 0);
        }
    }

    #[test]
    fn what_is_granted_is_between_one_blob_and_the_largest_window() {
        let none = Size { blobs: 0, bytes: 0 };
        assert_eq!(none.granted(), Size { blobs: 1, bytes: 1 });
        let all = Size {
            blobs: u32::MAX,
            bytes: u64::MAX,
        };
        assert_eq!(all.granted(), MAX);
    }
}
