//! What the relay brings unasked: what is given on, what is known already, what there is no room for.

use std::collections::HashSet;

use super::ClientError;
use super::blob::{Delivery, Event, Item, Receipt};
use super::duplicates::{Acknowledging, Coming, Duplicates};
use super::inbox::{Inbox, Size};
use super::pad::unpad;
use crate::ids::MailboxId;
use crate::protocol::v2::message::{BlobDelivery, ReceiptDelivery};

/// What a receipt counts in the window.
const RECEIPT_BYTES: usize = 64;

/// Blobs, receipts and words on their way to the application. Outlives connections.
pub(super) struct Arrivals {
    inbox: Inbox,
    duplicates: Duplicates,
    /// Came once more after they were acknowledged; they hold a slot of the window until they are
    /// acknowledged again. Once each, however often a relay repeats them before it reads.
    came_again: HashSet<Item>,
    /// Something that came from them found no room. They are opened anew once there is some; waiting for
    /// room instead would keep the answers behind it from being read.
    missed: HashSet<MailboxId>,
    /// Those of them that are being opened anew. What comes until the relay has closed them was under way
    /// before, and is left for then, too.
    leaving: HashSet<MailboxId>,
}

impl Arrivals {
    pub(super) fn new(window_blobs: u32, window_bytes: u64) -> Self {
        Self {
            inbox: Inbox::new(window_blobs, window_bytes),
            duplicates: Duplicates::default(),
            came_again: HashSet::new(),
            missed: HashSet::new(),
            leaving: HashSet::new(),
        }
    }

    pub(super) fn connected(&mut self, relay: [u8; 32]) {
        self.duplicates.at(relay);
    }

    pub(super) fn disconnected(&mut self) {
        self.came_again.clear();
        // All mailboxes are opened anew.
        self.missed.clear();
        self.leaving.clear();
    }

    /// A blob has come; whether it is given on.
    pub(super) fn blob(&mut self, blob: BlobDelivery) -> bool {
        let item = Item {
            mailbox: blob.mailbox,
            id: blob.id,
        };
        let is_stored = blob.expires_at.is_some();
        let bytes = blob.body.len();
        let delivery = Delivery {
            item,
            stored_at: blob.stored_at,
            expires_at: blob.expires_at,
            redelivered: blob.redelivered,
            body: unpad(blob.body),
        };
        if is_stored {
            self.stored(item, Event::Blob(delivery), bytes)
        } else {
            // One without room is lost, as live-only blobs may be.
            self.duplicates.comes_live(item) == Coming::New
                && self.inbox.push(Event::Blob(delivery), Size::Live(bytes))
        }
    }

    /// A receipt has come; whether it is given on.
    pub(super) fn receipt(&mut self, receipt: &ReceiptDelivery) -> bool {
        let item = Item {
            mailbox: receipt.mailbox,
            id: receipt.receipt_id,
        };
        let event = Event::Receipt(Receipt {
            item,
            blob: receipt.id,
            kind: receipt.kind,
            at: receipt.at,
        });
        self.stored(item, event, RECEIPT_BYTES)
    }

    fn stored(&mut self, item: Item, event: Event, bytes: usize) -> bool {
        match self.duplicates.comes(item) {
            // Whoever has it will acknowledge it.
            Coming::InHand => return false,
            Coming::Acknowledged => {
                self.came_again.insert(item);
                return false;
            }
            Coming::New => {}
        }
        // What comes after one that was missed is left for then, too: a mailbox has an order.
        let has_gone =
            !self.missed.contains(&item.mailbox) && self.inbox.push(event, Size::Stored(bytes));
        if !has_gone {
            self.duplicates.forget(&item);
            self.missed.insert(item.mailbox);
        }
        has_gone
    }

    /// These mailboxes have been delivered, except those of which something was missed.
    pub(super) fn caught_up(&mut self, mut mailboxes: Vec<MailboxId>) -> bool {
        mailboxes.retain(|mailbox| !self.missed.contains(mailbox));
        !mailboxes.is_empty() && self.inbox.push(Event::CaughtUp(mailboxes), Size::Word)
    }

    /// Nothing more comes from this mailbox.
    pub(super) fn closed(&mut self, mailbox: MailboxId, why: ClientError) {
        self.left(&[mailbox]);
        self.inbox.push(Event::Closed { mailbox, why }, Size::Word);
    }

    /// The application does not want this mailbox. What it did not take or acknowledge is given again
    /// when it opens the mailbox again.
    pub(super) fn unsubscribed(&mut self, mailbox: &MailboxId) {
        self.inbox.closed(mailbox);
        self.duplicates.closed(mailbox);
        self.left(&[*mailbox]);
        self.came_again.retain(|item| item.mailbox != *mailbox);
    }

    /// The next for the application, and whether there is room for what was missed.
    pub(super) fn take(&mut self) -> (Option<Event>, bool) {
        (self.inbox.take(), self.may_open_anew())
    }

    fn may_open_anew(&self) -> bool {
        self.missed.len() > self.leaving.len() && self.inbox.has_room_for_a_window()
    }

    /// Mailboxes to be opened anew, because there is room for what was missed: so many of those that are
    /// open. One whose opening is not answered yet waits for that.
    pub(super) fn missed(
        &mut self,
        count_max: usize,
        is_open: impl Fn(&MailboxId) -> bool,
    ) -> Vec<MailboxId> {
        let count = if self.may_open_anew() { count_max } else { 0 };
        let missed = self.missed.difference(&self.leaving);
        let missed = missed.filter(|mailbox| is_open(mailbox));
        let missed: Vec<_> = missed.take(count).copied().collect();
        self.leaving.extend(&missed);
        missed
    }

    /// What comes from these comes from its beginning.
    pub(super) fn left(&mut self, mailboxes: &[MailboxId]) {
        for mailbox in mailboxes {
            self.missed.remove(mailbox);
            self.leaving.remove(mailbox);
        }
    }

    /// The application has kept it.
    pub(super) fn acknowledged(&mut self, item: Item) -> Acknowledging {
        self.duplicates.acknowledged(item)
    }

    /// Acknowledged before, and to be acknowledged again: so many of them.
    pub(super) fn came_again(&mut self, count_max: usize) -> Vec<Item> {
        let items: Vec<_> = self.came_again.iter().take(count_max).copied().collect();
        for item in &items {
            self.came_again.remove(item);
        }
        items
    }

    /// Whether something of this relay's is in the application's hands or on the way there.
    pub(super) fn is_any_in_hand(&self) -> bool {
        self.duplicates.is_any_in_hand()
    }
}
