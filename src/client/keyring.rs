//! The mailboxes that are open, and what opens them again on the next connection.

use std::collections::{HashMap, HashSet};

use super::ClientError;
use super::arrivals::Arrivals;
use super::request::{Key, Outcome, not_opened};
use crate::ids::MailboxId;
use crate::protocol::v2::Answer;

/// Open mailboxes, each with its key.
#[derive(Default)]
pub(super) struct Keyring {
    keys: HashMap<MailboxId, Key>,
    last_place: u64,
}

impl Keyring {
    pub(super) fn is_open(&self, mailbox: &MailboxId) -> bool {
        self.keys.contains_key(mailbox)
    }

    pub(super) fn remove(&mut self, mailbox: &MailboxId) {
        self.keys.remove(mailbox);
    }

    /// All, in the order in which they were opened first: relays know a client by its first mailbox.
    pub(super) fn all(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self.keys.values().cloned().collect();
        keys.sort_by_key(|key| key.place);
        keys
    }

    /// Those of these mailboxes.
    pub(super) fn each_of(&self, mailboxes: &[MailboxId]) -> Vec<Key> {
        let keys = mailboxes
            .iter()
            .filter_map(|mailbox| self.keys.get(mailbox));
        keys.cloned().collect()
    }

    /// Keeps the keys that have opened their mailboxes, except those that are to be closed by now.
    pub(super) fn opened(&mut self, keys: Vec<Key>, answer: &Outcome, closed: &HashSet<MailboxId>) {
        let Ok(Answer::Subscribed(openings)) = answer else {
            return;
        };
        for (mut key, opened) in keys.into_iter().zip(openings) {
            let mailbox = key.key.mailbox();
            if opened.is_ok() && !closed.contains(&mailbox) {
                self.last_place += 1;
                key.place = match self.keys.get(&mailbox) {
                    Some(before) => before.place,
                    None => self.last_place,
                };
                self.keys.insert(mailbox, key);
            }
        }
    }

    /// What does not open again is closed, and the application told so.
    pub(super) fn reopened(&mut self, keys: &[Key], outcome: &Outcome, arrivals: &mut Arrivals) {
        for (at, key) in keys.iter().enumerate() {
            let mailbox = key.key.mailbox();
            let why = match outcome {
                Ok(Answer::Subscribed(openings)) => match openings.get(at) {
                    Some(Ok(_)) => continue,
                    Some(Err(code)) => not_opened(code),
                    None => ClientError::Protocol("the answer lists too few mailboxes"),
                },
                Ok(_) => ClientError::Protocol("the answer is of another kind than the request"),
                Err(why) => why.clone(),
            };
            if self.keys.remove(&mailbox).is_some() {
                arrivals.closed(mailbox, why);
            }
        }
    }
}
