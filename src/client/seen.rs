//! What has come, so that nothing is given twice.

use lru::LruCache;

use super::blob::Item;

/// How many blobs are known to have come, so that none is given twice: four times the largest window.
/// About 100 bytes each.
const SEEN_MAX: usize = 4_096;

/// What became of a blob or receipt here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InHand,
    Acknowledged,
}

/// What is known of one that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    New,
    /// It was given before, and is not acknowledged.
    InHand,
    Acknowledged,
}

/// The latest that have come. An older one that comes again counts as new: delivery is at least once.
pub(super) struct Seen(LruCache<Item, State>);

impl Default for Seen {
    fn default() -> Self {
        // Grows as it is needed; few clients need much.
        Self(LruCache::unbounded())
    }
}

impl Seen {
    /// One comes.
    pub(super) fn comes(&mut self, item: Item) -> Coming {
        match self.0.get(&item) {
            Some(State::InHand) => Coming::InHand,
            Some(State::Acknowledged) => Coming::Acknowledged,
            None => {
                self.put(item, State::InHand);
                Coming::New
            }
        }
    }

    pub(super) fn acknowledged(&mut self, item: Item) {
        self.put(item, State::Acknowledged);
    }

    pub(super) fn is_any_in_hand(&self) -> bool {
        self.0.iter().any(|(_, state)| *state == State::InHand)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn put(&mut self, item: Item, state: State) {
        self.0.put(item, state);
        if self.0.len() > SEEN_MAX {
            self.0.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlobId, MailboxId};

    #[test]
    fn the_oldest_is_forgotten_first_and_no_more_than_the_bound_are_kept() {
        let mut seen = Seen::default();
        let item = |n: usize| Item {
            mailbox: MailboxId::from_bytes([0; 32]),
            id: BlobId::from_bytes((n as u128).to_be_bytes()),
        };
        for n in 0..=SEEN_MAX {
            assert_eq!(seen.comes(item(n)), Coming::New);
        }
        assert_eq!(seen.0.len(), SEEN_MAX);
        assert_eq!(seen.comes(item(SEEN_MAX)), Coming::InHand);
        seen.acknowledged(item(SEEN_MAX));
        assert_eq!(seen.comes(item(SEEN_MAX)), Coming::Acknowledged);
        assert_eq!(seen.comes(item(0)), Coming::New);
    }
}
