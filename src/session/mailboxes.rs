//! The mailboxes that a connection has open, and how far it has read each.
//!
//! The reader opens and closes them, the feed reads them in turns. A mailbox that was closed and
//! opened again is another subscription and is read from its beginning: its `epoch` tells a page
//! that was under way from one for the new subscription.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hub::Joined;
use crate::ids::{MailboxHash, MailboxId};
use crate::service::{BacklogCursor, OrderKey, View};

/// Mailboxes that one connection may have open. At about 460 bytes each in the session and the hub
/// (`cargo bench --bench load -- idle`) a connection costs 460 KiB for them at the most.
pub const MAILBOXES_MAX: usize = 1_024;

/// Where reading stands.
#[derive(Debug, Clone, Copy)]
pub enum Cursor {
    /// In the order of arrival.
    After(OrderKey),
    /// v1: in what had waited for a device when it connected, which comes by version.
    Backlog(BacklogCursor),
}

/// One open mailbox.
#[derive(Debug)]
struct Open {
    id: MailboxId,
    epoch: u64,
    view: View,
    tells_senders: bool,
    cursor: Cursor,
    /// The last blob that was handed out.
    handed_out: OrderKey,
    /// Its client knows that it is open; nothing is read before.
    has_begun: bool,
    is_queued: bool,
    /// Whether its client was told that all that had waited has been delivered.
    is_caught_up: bool,
    /// Keeps the hub's wakes coming.
    _joined: Option<Joined>,
}

/// A mailbox whose turn it is.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Which one.
    pub mailbox: MailboxHash,
    /// What the session may see of it.
    pub view: View,
    /// Where to read on.
    pub cursor: Cursor,
    /// Of which subscription.
    pub epoch: u64,
}

/// What a delivery needs to know of its mailbox.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// As clients name it.
    pub id: MailboxId,
    /// Whether senders may get every receipt they asked for.
    pub tells_senders: bool,
}

/// The open mailboxes.
#[derive(Debug, Default)]
pub struct Mailboxes(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Boxed, as up to half of a map's places are empty.
    open: HashMap<MailboxHash, Box<Open>>,
    /// Those that may have something after their cursor, each once.
    queue: VecDeque<MailboxHash>,
    /// Those whose client is to be told that all that had waited has been delivered.
    caught_up: Vec<MailboxId>,
    epochs: u64,
}

impl Mailboxes {
    /// Adds a mailbox, to be read from `cursor` on once it [`Mailboxes::begin`]s.
    pub fn open(
        &self,
        (mailbox, id): (MailboxHash, MailboxId),
        (view, cursor): (View, Cursor),
        tells_senders: bool,
        joined: Option<Joined>,
    ) {
        let mut table = self.table();
        table.epochs += 1;
        let epoch = table.epochs;
        let open = Open {
            id,
            epoch,
            view,
            tells_senders,
            cursor,
            handed_out: OrderKey::START,
            has_begun: false,
            is_queued: false,
            is_caught_up: false,
            _joined: joined,
        };
        table.open.insert(mailbox, Box::new(open));
    }

    /// Its client is about to know that this mailbox is open. `has_waiting` is whether to look at
    /// once; a wake looks in any case.
    pub fn begin(&self, mailbox: &MailboxHash, has_waiting: bool) {
        let mut table = self.table();
        let Some(open) = table.open.get_mut(mailbox) else {
            return;
        };
        if std::mem::replace(&mut open.has_begun, true) {
            return;
        }
        // A wake that came before it began.
        let was_woken = std::mem::take(&mut open.is_queued);
        match has_waiting || was_woken {
            true => table.enqueue(*mailbox),
            false => table.is_caught_up(mailbox),
        }
    }

    /// Whether senders are told from now on.
    pub fn tell_senders(&self, mailbox: &MailboxHash, tells: bool) {
        if let Some(open) = self.table().open.get_mut(mailbox) {
            open.tells_senders = tells;
        }
    }

    /// Removes a mailbox, if it is open.
    pub fn close(&self, mailbox: &MailboxHash) {
        let mut table = self.table();
        table.queue.retain(|queued| queued != mailbox);
        table.open.remove(mailbox);
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.table().open.len()
    }

    /// Whether this one is open.
    pub fn is_open(&self, mailbox: &MailboxHash) -> bool {
        self.table().open.contains_key(mailbox)
    }

    /// What it is called, while it is open.
    pub fn named(&self, mailbox: &MailboxHash) -> Option<Named> {
        self.table().open.get(mailbox).map(|open| Named {
            id: open.id,
            tells_senders: open.tells_senders,
        })
    }

    /// These may have something new.
    pub fn look_at(&self, mailboxes: HashSet<MailboxHash>) {
        let mut table = self.table();
        for mailbox in mailboxes {
            table.enqueue(mailbox);
        }
    }

    /// Whether some mailbox waits for its turn.
    pub fn is_any_queued(&self) -> bool {
        !self.table().queue.is_empty()
    }

    /// Takes the mailbox that has waited longest for its turn.
    pub fn next_turn(&self) -> Option<Turn> {
        let mut table = self.table();
        let mailbox = table.queue.pop_front()?;
        let open = table.open.get_mut(&mailbox)?;
        open.is_queued = false;
        Some(Turn {
            mailbox,
            view: open.view,
            cursor: open.cursor,
            epoch: open.epoch,
        })
    }

    /// A page of this turn was read up to `next`. `false` when the mailbox has been closed since, so
    /// that the page is nobody's.
    pub fn turned(&self, turn: &Turn, next: Cursor, more: bool) -> bool {
        let mut table = self.table();
        let Some(open) = table.open.get_mut(&turn.mailbox) else {
            return false;
        };
        if open.epoch != turn.epoch {
            return false;
        }
        open.cursor = next;
        if more {
            table.enqueue(turn.mailbox);
        }
        true
    }

    /// A blob of this mailbox was handed out.
    pub fn handed_out(&self, mailbox: &MailboxHash, key: OrderKey) {
        if let Some(open) = self.table().open.get_mut(mailbox) {
            open.handed_out = key;
        }
    }

    /// What was read of this mailbox and not handed out is no longer true: it was purged.
    pub fn read_again(&self, mailbox: &MailboxHash) {
        let mut table = self.table();
        table.epochs += 1;
        let epoch = table.epochs;
        if let Some(open) = table.open.get_mut(mailbox) {
            open.epoch = epoch;
            open.cursor = Cursor::After(open.handed_out);
            table.enqueue(*mailbox);
        }
    }

    /// Gives a turn back that could not be read.
    pub fn put_back(&self, turn: &Turn) {
        self.table().enqueue(turn.mailbox);
    }

    /// Whether this subscription still stands.
    pub fn is_current(&self, turn: &Turn) -> bool {
        let table = self.table();
        let open = table.open.get(&turn.mailbox);
        open.is_some_and(|open| open.epoch == turn.epoch)
    }

    /// The last page of this turn has been handed out.
    pub fn finished(&self, turn: &Turn) {
        let mut table = self.table();
        let open = table.open.get(&turn.mailbox);
        if open.is_some_and(|open| open.epoch == turn.epoch && !open.is_queued) {
            table.is_caught_up(&turn.mailbox);
        }
    }

    /// Takes the mailboxes of which all that had waited has been handed out, each once in the life
    /// of its subscription.
    pub fn take_caught_up(&self) -> Vec<MailboxId> {
        std::mem::take(&mut self.table().caught_up)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn is_caught_up(&mut self, mailbox: &MailboxHash) {
        if let Some(open) = self.open.get_mut(mailbox)
            && !open.is_caught_up
        {
            open.is_caught_up = true;
            self.caught_up.push(open.id);
        }
    }

    fn enqueue(&mut self, mailbox: MailboxHash) {
        if let Some(open) = self.open.get_mut(&mailbox)
            && !open.is_queued
        {
            open.is_queued = true;
            if open.has_begun {
                self.queue.push_back(mailbox);
            }
        }
    }
}
