//! The pins of the memory engine.

use std::collections::{BTreeSet, HashMap};

use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::plan::pins::{CANDIDATES, Pin, rank};

/// All pins, by mailbox and by use: some 150 bytes each.
#[derive(Default)]
pub(in crate::store) struct Pins {
    by_mailbox: HashMap<MailboxHash, Pin>,
    by_use: BTreeSet<(bool, Timestamp, MailboxHash)>,
}

impl Pins {
    pub(in crate::store) fn len(&self) -> u64 {
        self.by_mailbox.len() as u64
    }

    pub(in crate::store) fn get(&self, mailbox: &MailboxHash) -> Option<Pin> {
        self.by_mailbox.get(mailbox).copied()
    }

    pub(in crate::store) fn insert(&mut self, mailbox: MailboxHash, pin: Pin) {
        self.remove(&mailbox);
        self.by_mailbox.insert(mailbox, pin);
        self.by_use.insert((pin.is_often, pin.last_used, mailbox));
    }

    pub(in crate::store) fn remove(&mut self, mailbox: &MailboxHash) {
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
    pub(in crate::store) fn next_to_go(
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
