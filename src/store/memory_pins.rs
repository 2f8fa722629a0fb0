//! The pins of the memory engine.

use std::collections::{BTreeSet, HashMap};

use super::pins::{CANDIDATES, Pin, rank};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;

/// All pins, by mailbox and by use: some 150 bytes each.
#[derive(Default)]
pub(super) struct Pins {
    by_mailbox: HashMap<MailboxHash, Pin>,
    by_use: BTreeSet<(bool, Timestamp, MailboxHash)>,
}

impl Pins {
    pub(super) fn len(&self) -> u64 {
        self.by_mailbox.len() as u64
    }

    pub(super) fn get(&self, mailbox: &MailboxHash) -> Option<Pin> {
        self.by_mailbox.get(mailbox).copied()
    }

    pub(super) fn insert(&mut self, mailbox: MailboxHash, pin: Pin) {
        self.remove(&mailbox);
        self.by_mailbox.insert(mailbox, pin);
        self.by_use.insert((pin.is_often, pin.last_used, mailbox));
    }

    pub(super) fn remove(&mut self, mailbox: &MailboxHash) {
        if let Some(pin) = self.by_mailbox.remove(mailbox) {
            self.by_use.remove(&(pin.is_often, pin.last_used, *mailbox));
        }
    }

    /// Those among which the next one to go is: the ones of either kind used least recently.
    fn candidates(&self) -> impl Iterator<Item = &(bool, Timestamp, MailboxHash)> {
        let often = (true, Timestamp::default(), MailboxHash::from_bytes([0; 32]));
        let once = self.by_use.range(..often).take(CANDIDATES);
        once.chain(self.by_use.range(often..).take(CANDIDATES))
    }

    /// The next one to go.
    pub(super) fn next_to_go(
        &self,
        mut is_empty: impl FnMut(&MailboxHash) -> bool,
    ) -> Option<MailboxHash> {
        self.candidates()
            .min_by_key(|(is_often, last_used, mailbox)| {
                (rank(*is_often, is_empty(mailbox)), *last_used, *mailbox)
            })
            .map(|(.., mailbox)| *mailbox)
    }
}
