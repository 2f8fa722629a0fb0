//! What has come, so that nothing is given twice.

use lru::LruCache;

use super::blob::Item;
use crate::ids::MailboxId;

/// How many blobs are known to have come, so that none is given twice: four times the largest window.
/// About 150 bytes each.
const SEEN_MAX: usize = 4_096;

/// What became of a blob or receipt here, and which relay it came from.
#[derive(Clone, Copy)]
struct Known {
    relay: [u8; 32],
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InHand,
    Acknowledged,
    /// The relay does not store it, so there is nothing to acknowledge.
    Live,
}

/// What is known of one that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    New,
    /// It was given before, and is not acknowledged, or cannot be.
    InHand,
    Acknowledged,
}

/// What an acknowledgement would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acknowledging {
    /// The relay deletes it.
    Here,
    /// It came from another relay, which is told when it delivers the blob again.
    Elsewhere,
    /// The relay has not stored it.
    Nothing,
}

/// The latest that have come. An older one that comes again counts as new: delivery is at least once.
///
/// What another relay has under the same name counts as new, too: only within one relay can nobody
/// hand in another blob under it first.
pub(super) struct Duplicates {
    known: LruCache<Item, Known>,
    relay: [u8; 32],
}

impl Default for Duplicates {
    fn default() -> Self {
        Self {
            // Grows as it is needed; few clients need much.
            known: LruCache::unbounded(),
            relay: [0; 32],
        }
    }
}

impl Duplicates {
    /// What comes from now on comes from this relay.
    pub(super) fn at(&mut self, relay: [u8; 32]) {
        self.relay = relay;
    }

    /// One comes.
    pub(super) fn comes(&mut self, item: Item) -> Coming {
        self.look(item, State::InHand)
    }

    /// One comes that is not stored. A sender who did not hear that it was handed on sends it again.
    pub(super) fn comes_live(&mut self, item: Item) -> Coming {
        self.look(item, State::Live)
    }

    fn look(&mut self, item: Item, state: State) -> Coming {
        let relay = self.relay;
        match self.known.get(&item).filter(|known| known.relay == relay) {
            Some(known) if !(known.state == State::Live && state == State::InHand) => {
                match known.state {
                    State::InHand | State::Live => Coming::InHand,
                    State::Acknowledged => Coming::Acknowledged,
                }
            }
            // A stored one under the name of a live one must be given on: only the application can
            // acknowledge it, and until then it holds a slot of the window.
            Some(_) | None => {
                self.put(item, Known { relay, state });
                Coming::New
            }
        }
    }

    /// The application has kept it.
    pub(super) fn acknowledged(&mut self, item: Item) -> Acknowledging {
        let here = self.relay;
        let state = State::Acknowledged;
        // One that is not known may be from before the program started.
        let relay = self.known.peek(&item).map_or(here, |known| known.relay);
        if self.known.peek(&item).map(|known| known.state) == Some(State::Live) {
            return Acknowledging::Nothing;
        }
        self.put(item, Known { relay, state });
        match relay == here {
            true => Acknowledging::Here,
            false => Acknowledging::Elsewhere,
        }
    }

    /// Whether something that came from this relay is not acknowledged.
    pub(super) fn is_any_in_hand(&self) -> bool {
        self.known
            .iter()
            .any(|(_, known)| known.relay == self.relay && known.state == State::InHand)
    }

    /// It counts as new again.
    pub(super) fn forget(&mut self, item: &Item) {
        self.known.pop(item);
    }

    /// What is in hand from this mailbox counts as new again.
    pub(super) fn closed(&mut self, mailbox: &MailboxId) {
        let in_hand: Vec<_> = self
            .known
            .iter()
            .filter(|(item, known)| item.mailbox == *mailbox && known.state == State::InHand)
            .map(|(item, _)| *item)
            .collect();
        for item in in_hand {
            self.forget(&item);
        }
    }

    fn put(&mut self, item: Item, known: Known) {
        self.known.put(item, known);
        if self.known.len() > SEEN_MAX {
            self.known.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlobId;

    fn item(n: usize) -> Item {
        Item {
            mailbox: MailboxId::from_bytes([0; 32]),
            id: BlobId::from_bytes((n as u128).to_be_bytes()),
        }
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_no_more_than_the_bound_are_kept() {
        let mut duplicates = Duplicates::default();
        for n in 0..=SEEN_MAX {
            assert_eq!(duplicates.comes(item(n)), Coming::New);
        }
        assert_eq!(duplicates.known.len(), SEEN_MAX);
        assert_eq!(duplicates.comes(item(SEEN_MAX)), Coming::InHand);
        assert_eq!(duplicates.acknowledged(item(SEEN_MAX)), Acknowledging::Here);
        assert_eq!(duplicates.comes(item(SEEN_MAX)), Coming::Acknowledged);
        assert_eq!(duplicates.comes(item(0)), Coming::New);
    }

    #[test]
    fn what_was_kept_from_one_relay_is_known_there_and_new_elsewhere() {
        let mut duplicates = Duplicates::default();
        for n in 1..=2 {
            assert_eq!(duplicates.comes(item(n)), Coming::New);
        }
        duplicates.at([7; 32]);
        assert!(!duplicates.is_any_in_hand());
        assert_eq!(duplicates.comes(item(1)), Coming::New);
        assert_eq!(duplicates.acknowledged(item(1)), Acknowledging::Here);
        assert_eq!(duplicates.acknowledged(item(2)), Acknowledging::Elsewhere);
        duplicates.at([0; 32]);
        assert_eq!(duplicates.comes(item(2)), Coming::Acknowledged);
    }

    #[test]
    fn what_is_not_stored_comes_once_and_needs_no_acknowledgement() {
        let mut duplicates = Duplicates::default();
        assert_eq!(duplicates.comes_live(item(1)), Coming::New);
        assert_eq!(duplicates.comes_live(item(1)), Coming::InHand);
        assert_eq!(duplicates.acknowledged(item(1)), Acknowledging::Nothing);
        assert!(!duplicates.is_any_in_hand());
    }

    #[test]
    fn a_closed_mailbox_is_forgotten_except_what_was_acknowledged() {
        let mut duplicates = Duplicates::default();
        duplicates.comes(item(1));
        duplicates.comes(item(2));
        duplicates.acknowledged(item(2));
        duplicates.closed(&item(0).mailbox);
        assert_eq!(duplicates.comes(item(1)), Coming::New);
        assert_eq!(duplicates.comes(item(2)), Coming::Acknowledged);
    }
}
