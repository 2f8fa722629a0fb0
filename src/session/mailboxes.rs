//! The mailboxes that a connection has open, and how far it has read each.
//!
//! The reader opens and closes them, the feed reads them in turns. A mailbox that was closed and
//! opened again is another subscription and is read from its beginning: its `number` tells which
//! one an answer speaks of, its `epoch` whether a page that was under way still holds.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hub::Joined;
use crate::ids::{MailboxHash, MailboxId};
use crate::service::{BacklogCursor, Class, OrderKey, View};

/// Mailboxes that one connection may have open. At about 470 bytes each in the session and the hub
/// (`cargo bench --bench load -- idle`) a connection costs 470 KiB for them at the most.
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
    number: u64,
    epoch: u64,
    view: View,
    tells_senders: bool,
    cursor: Cursor,
    /// The last blob that was handed out.
    handed_out: OrderKey,
    /// Its client knows that it is open; nothing is read before.
    has_begun: bool,
    is_queued: bool,
    caught_up: CaughtUp,
    /// Keeps the hub's wakes coming.
    _joined: Option<Joined>,
}

/// Whether the client knows that all that had waited has been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CaughtUp {
    No,
    ToBeTold,
    Told,
}

/// A mailbox that waits for its client to know that it is open.
#[derive(Debug, Clone, Copy)]
pub struct ToBegin {
    /// Which one.
    pub mailbox: MailboxHash,
    /// Which subscription.
    pub number: u64,
    /// Whether to look at once; a wake looks in any case.
    pub has_waiting: bool,
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

/// What becomes of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hinted {
    /// The blob is the next one of its mailbox.
    Deliver,
    /// The mailbox waits for its turn to be read.
    Look,
    /// It is nobody's, not shown, or was delivered.
    Nothing,
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
    /// Those that are [`CaughtUp::ToBeTold`], and maybe some that were.
    caught_up: Vec<MailboxHash>,
    epochs: u64,
}

impl Mailboxes {
    /// Adds a mailbox, to be read from `cursor` on once it [`Mailboxes::begin`]s. Returns the number
    /// of its subscription.
    pub fn open(
        &self,
        (mailbox, id): (MailboxHash, MailboxId),
        (view, cursor): (View, Cursor),
        joined: Option<Joined>,
    ) -> u64 {
        let mut table = self.table();
        table.epochs += 1;
        let epoch = table.epochs;
        let open = Open {
            id,
            number: epoch,
            epoch,
            view,
            tells_senders: false,
            cursor,
            handed_out: OrderKey::START,
            has_begun: false,
            is_queued: false,
            caught_up: CaughtUp::No,
            _joined: joined,
        };
        table.open.insert(mailbox, Box::new(open));
        epoch
    }

    /// The client knows that this mailbox is open: its deliveries begin. Whether its senders are
    /// told; `None` when that subscription is closed, or had begun.
    pub fn begin(&self, to_begin: &ToBegin) -> Option<bool> {
        let mut table = self.table();
        let open = table.open.get_mut(&to_begin.mailbox)?;
        if open.number != to_begin.number || std::mem::replace(&mut open.has_begun, true) {
            return None;
        }
        let tells_senders = open.tells_senders;
        // A wake that came before it began.
        let was_woken = std::mem::take(&mut open.is_queued);
        match to_begin.has_waiting || was_woken {
            true => table.enqueue(to_begin.mailbox),
            false => table.is_caught_up(&to_begin.mailbox),
        }
        Some(tells_senders)
    }

    /// Whether senders are told from now on. Returns whether deliveries have begun.
    pub fn tell_senders(&self, mailbox: &MailboxHash, tells: bool) -> bool {
        let mut table = self.table();
        let open = table.open.get_mut(mailbox);
        open.is_some_and(|open| {
            open.tells_senders = tells;
            open.has_begun
        })
    }

    /// Removes a mailbox, if it is open.
    pub fn close(&self, mailbox: &MailboxHash) {
        let mut table = self.table();
        table.queue.retain(|queued| queued != mailbox);
        table.caught_up.retain(|caught_up| caught_up != mailbox);
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

    /// These have something up to these keys. Those that were not read so far, and do not wait for it, are
    /// looked at; returns how many that are.
    pub fn catch_up(&self, keys: HashMap<MailboxHash, OrderKey>) -> usize {
        let mut table = self.table();
        let mut missed = 0;
        for (mailbox, key) in keys {
            let is_behind = table.open.get(&mailbox).is_some_and(|open| {
                let has_read = match open.cursor {
                    Cursor::After(cursor) => key <= cursor,
                    Cursor::Backlog(_) => false,
                };
                !open.is_queued && !has_read
            });
            if is_behind {
                table.enqueue(mailbox);
                missed += 1;
            }
        }
        missed
    }

    /// What becomes of a blob that was just committed, of which the session has not read a page. It is
    /// delivered where the session stands right before it: a session that has read up to `previous` has read
    /// all that comes before it, because no key is used twice. Anything else looks.
    pub fn hinted(
        &self,
        mailbox: &MailboxHash,
        (previous, key): (OrderKey, OrderKey),
        (class, has_room): (Class, bool),
    ) -> Hinted {
        let mut table = self.table();
        let Some(open) = table.open.get_mut(mailbox) else {
            return Hinted::Nothing;
        };
        let Cursor::After(cursor) = open.cursor else {
            table.enqueue(*mailbox);
            return Hinted::Look;
        };
        if open.has_begun && !open.is_queued && key <= cursor {
            return Hinted::Nothing;
        }
        let is_shown = open.view.shows(class);
        let is_next = open.has_begun && !open.is_queued && previous <= cursor;
        if !is_next || (is_shown && !has_room) {
            table.enqueue(*mailbox);
            return Hinted::Look;
        }
        open.cursor = Cursor::After(key);
        if is_shown {
            open.handed_out = key;
            return Hinted::Deliver;
        }
        Hinted::Nothing
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

    /// What lies from these keys on is read again where the session has passed it: something there could
    /// not be read before. What is in flight behind it comes once more.
    pub fn go_back(&self, to: HashMap<MailboxHash, OrderKey>) {
        let mut table = self.table();
        for (mailbox, key) in to {
            table.epochs += 1;
            let epoch = table.epochs;
            let Some(open) = table.open.get_mut(&mailbox) else {
                continue;
            };
            let before = OrderKey(key.0 - 1);
            // Also where it has not come so far: it has seen no more than it was shown.
            open.cursor = match open.cursor {
                Cursor::After(cursor) => Cursor::After(cursor.min(before)),
                Cursor::Backlog(_) => Cursor::Backlog(BacklogCursor::START),
            };
            open.handed_out = open.handed_out.min(before);
            open.epoch = epoch;
            table.enqueue(mailbox);
        }
    }

    /// Gives a turn back that could not be read.
    pub fn put_back(&self, turn: &Turn) {
        self.table().enqueue(turn.mailbox);
    }

    /// Gives a turn back whose page is too old to be handed out: it is read again from `cursor`.
    pub fn put_back_from(&self, turn: &Turn, cursor: Cursor) {
        let mut table = self.table();
        if let Some(open) = table.open.get_mut(&turn.mailbox)
            && open.epoch == turn.epoch
        {
            open.cursor = cursor;
            table.enqueue(turn.mailbox);
        }
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

    /// Whether [`Mailboxes::take_caught_up`] may have some.
    pub fn is_any_caught_up(&self) -> bool {
        !self.table().caught_up.is_empty()
    }

    /// Takes the mailboxes of which all that had waited has been handed out, each once in the life
    /// of its subscription.
    pub fn take_caught_up(&self) -> Vec<MailboxId> {
        let mut table = self.table();
        let caught_up = std::mem::take(&mut table.caught_up);
        let told = |mailbox| {
            let open = table.open.get_mut(mailbox)?;
            let is_due = open.caught_up == CaughtUp::ToBeTold;
            is_due.then(|| {
                open.caught_up = CaughtUp::Told;
                open.id
            })
        };
        caught_up.iter().filter_map(told).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn is_caught_up(&mut self, mailbox: &MailboxHash) {
        if let Some(open) = self.open.get_mut(mailbox)
            && open.caught_up == CaughtUp::No
        {
            open.caught_up = CaughtUp::ToBeTold;
            self.caught_up.push(*mailbox);
        }
    }

    fn enqueue(&mut self, mailbox: MailboxHash) {
        if let Some(open) = self.open.get_mut(&mailbox)
            && !open.is_queued
        {
            open.is_queued = true;
            // Something came before its client was told.
            if open.caught_up == CaughtUp::ToBeTold {
                open.caught_up = CaughtUp::No;
            }
            if open.has_begun {
                self.queue.push_back(mailbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: MailboxHash = MailboxHash::from_bytes([1; 32]);

    fn open(mailboxes: &Mailboxes, has_waiting: bool) -> ToBegin {
        let id = MailboxId::from_bytes([2; 32]);
        let from = (View::Proven, Cursor::After(OrderKey::START));
        let number = mailboxes.open((NAME, id), from, None);
        ToBegin {
            mailbox: NAME,
            number,
            has_waiting,
        }
    }

    /// A word that was due for the first subscription let the client of the second one sleep.
    #[test]
    fn a_closed_mailbox_has_not_caught_up() {
        let mailboxes = Mailboxes::default();
        let first = open(&mailboxes, false);
        assert!(mailboxes.begin(&first).is_some());
        mailboxes.close(&NAME);
        assert!(mailboxes.take_caught_up().is_empty());
        let second = open(&mailboxes, true);
        assert!(mailboxes.begin(&first).is_none(), "it is over");
        assert!(mailboxes.begin(&second).is_some());
        assert!(mailboxes.take_caught_up().is_empty());
    }

    #[test]
    fn what_comes_before_the_word_comes_before_the_word() {
        let mailboxes = Mailboxes::default();
        let opened = open(&mailboxes, false);
        mailboxes.begin(&opened);
        mailboxes.look_at([NAME].into());
        assert!(mailboxes.take_caught_up().is_empty());
        let turn = mailboxes.next_turn().unwrap();
        assert!(mailboxes.turned(&turn, Cursor::After(OrderKey(7)), false));
        mailboxes.finished(&turn);
        assert_eq!(mailboxes.take_caught_up().len(), 1);
        mailboxes.look_at([NAME].into());
        mailboxes.finished(&mailboxes.next_turn().unwrap());
        assert!(mailboxes.take_caught_up().is_empty(), "told once");
    }

    #[test]
    fn a_hint_is_delivered_exactly_where_it_follows_what_was_read() {
        let mailboxes = Mailboxes::default();
        let hint = |previous, key, has_room| {
            let keys = (OrderKey(previous), OrderKey(key));
            mailboxes.hinted(&NAME, keys, (Class::ProvenOnly, has_room))
        };
        assert_eq!(hint(0, 1, true), Hinted::Nothing, "not open");
        let opened = open(&mailboxes, false);
        assert_eq!(
            hint(0, 1, true),
            Hinted::Look,
            "its client does not know yet"
        );
        mailboxes.begin(&opened);
        let read_to = |key| {
            let turn = mailboxes.next_turn().unwrap();
            assert!(mailboxes.turned(&turn, Cursor::After(OrderKey(key)), false));
        };
        read_to(5);
        assert_eq!(hint(3, 5, true), Hinted::Nothing, "read");
        assert_eq!(
            hint(3, 7, true),
            Hinted::Deliver,
            "what lay between is gone"
        );
        assert_eq!(hint(7, 8, true), Hinted::Deliver);
        assert_eq!(hint(9, 10, true), Hinted::Look, "one is missing");
        assert_eq!(hint(8, 9, true), Hinted::Look, "its turn comes");
        read_to(10);
        assert_eq!(hint(10, 11, false), Hinted::Look, "no room");
        read_to(11);
        let hidden = (Class::DeviceSync, true);
        let keys = (OrderKey(11), OrderKey(12));
        assert_eq!(mailboxes.hinted(&NAME, keys, hidden), Hinted::Nothing);
        assert_eq!(hint(12, 13, true), Hinted::Deliver);
    }

    #[test]
    fn what_came_back_is_read_where_the_session_has_passed_it() {
        let mailboxes = Mailboxes::default();
        let opened = open(&mailboxes, true);
        mailboxes.begin(&opened);
        let turn = mailboxes.next_turn().unwrap();
        assert!(mailboxes.turned(&turn, Cursor::After(OrderKey(9)), false));
        let back = |key| mailboxes.go_back(HashMap::from([(NAME, OrderKey(key))]));
        // A mailbox whose end was hidden looks empty from there on.
        back(12);
        let ahead = mailboxes.next_turn().unwrap();
        assert!(matches!(ahead.cursor, Cursor::After(OrderKey(9))));
        back(4);
        assert!(!mailboxes.is_current(&ahead), "an old page is nobody's");
        let again = mailboxes.next_turn().unwrap();
        assert!(matches!(again.cursor, Cursor::After(OrderKey(3))));
    }

    #[test]
    fn a_page_that_is_put_back_is_read_again_from_what_was_handed_out() {
        let mailboxes = Mailboxes::default();
        let opened = open(&mailboxes, true);
        mailboxes.begin(&opened);
        let turn = mailboxes.next_turn().unwrap();
        assert!(mailboxes.turned(&turn, Cursor::After(OrderKey(9)), false));
        mailboxes.put_back_from(&turn, Cursor::After(OrderKey(4)));
        mailboxes.finished(&turn);
        assert!(mailboxes.take_caught_up().is_empty());
        let again = mailboxes.next_turn().unwrap();
        assert!(matches!(again.cursor, Cursor::After(OrderKey(4))));
        mailboxes.close(&NAME);
        mailboxes.put_back_from(&again, Cursor::After(OrderKey(1)));
        assert!(mailboxes.next_turn().is_none());
    }
}
