//! What was committed and is in no run yet, and what has left and is still in the table.
//!
//! A commit writes rows and nothing else; which mailbox they are in stands here, in memory, until `settle`
//! writes it down in a run. Of such a row an acknowledgement reads nothing and deletes nothing: its header is
//! here, and that it has left is one number in the table `gone`.
//!
//! The committer changes the tail after each commit and before it tells anybody of it. Readers look here
//! first, and afterwards into the runs that there were at that moment ([`Seen::settled_to`]): what is settled
//! between the two they see once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use slab::Slab;

use super::columns::{Size, expiry_slot};
use crate::clock::Timestamp;
use crate::store::engine::Header;
use crate::store::model::OrderKey;

/// A row as the index of mailboxes has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: i64,
    pub(super) id64: i64,
    pub(super) size: Size,
    pub(super) slot: i64,
}

/// A row that is not settled.
#[derive(Debug, Clone, Copy)]
struct Unsettled {
    id64: i64,
    size: Size,
    slot: i64,
    /// Where its header is, if it came since the start.
    header: Option<usize>,
}

impl Unsettled {
    fn entry(&self, key: i64) -> Entry {
        Entry {
            key,
            id64: self.id64,
            size: self.size,
            slot: self.slot,
        }
    }
}

/// Shared by the committer and the readers.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Nothing awaits while it is locked.
    state: RwLock<State>,
}

/// What a reader has seen of the tail, before it looks into the runs.
#[derive(Debug)]
pub(super) struct Seen<T> {
    pub(super) unsettled: T,
    /// The last key of the last run: runs behind it are in `unsettled`.
    pub(super) settled_to: i64,
}

#[derive(Debug, Default)]
struct State {
    settled_to: i64,
    /// Rows up to this key are settled: those that stand here still count for nothing.
    hidden_to: i64,
    /// From here on they are still to be swept away.
    unswept: Option<(i64, i64)>,
    /// By mailbox64 and key.
    rows: BTreeMap<(i64, i64), Unsettled>,
    /// Apart, because they are large, and a tree moves what it holds about.
    headers: Slab<Header>,
    /// Keys of rows that have left and are in the table still, each with the number under which `gone` has it.
    gone: BTreeMap<i64, i64>,
}

impl Tail {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many rows stand here: those that are not settled, and those that are still to be swept away.
    pub(super) fn len(&self) -> usize {
        self.read().rows.len()
    }

    /// Whether all that stands here is not settled.
    pub(super) fn is_swept(&self) -> bool {
        self.read().unswept.is_none()
    }

    /// The first `limit` entries of a mailbox behind `after`, in order.
    pub(super) fn entries(&self, mailbox64: i64, after: i64, limit: usize) -> Seen<Vec<Entry>> {
        let state = self.read();
        let found = state.of(mailbox64, after);
        state.seen(found.take(limit).collect())
    }

    /// The last key of a mailbox, if it has rows here.
    pub(super) fn last_key(&self, mailbox64: i64) -> Option<i64> {
        let state = self.read();
        state.of(mailbox64, i64::MIN).next_back().map(|row| row.key)
    }

    /// All entries of these mailboxes, each with its mailbox64.
    pub(super) fn entries_of(&self, mailboxes: &[i64]) -> Seen<Vec<(i64, Entry)>> {
        let state = self.read();
        let of = |mailbox64: &i64| {
            let mailbox64 = *mailbox64;
            state
                .of(mailbox64, i64::MIN)
                .map(move |entry| (mailbox64, entry))
        };
        state.seen(mailboxes.iter().flat_map(of).collect())
    }

    /// The header of a row, if it is not settled and came since the start.
    pub(super) fn header(&self, mailbox64: i64, key: i64) -> Option<Header> {
        let state = self.read();
        state
            .headers
            .get(state.row(mailbox64, key)?.header?)
            .copied()
    }

    /// Whether a row has left, although it is in the table.
    pub(super) fn is_gone(&self, key: i64) -> bool {
        self.read().gone.contains_key(&key)
    }

    /// Those of these keys whose rows have not left.
    pub(super) fn retain_present(&self, keys: &mut Vec<OrderKey>) {
        let state = self.read();
        if !state.gone.is_empty() {
            keys.retain(|key| !state.gone.contains_key(&key.0));
        }
    }

    /// Whether a row is not settled.
    pub(super) fn holds(&self, mailbox64: i64, key: i64) -> bool {
        self.read().row(mailbox64, key).is_some()
    }

    /// Begins anew with what a database holds.
    pub(super) fn replace(
        &self,
        rows: impl IntoIterator<Item = (i64, Entry)>,
        gone: BTreeMap<i64, i64>,
        settled_to: i64,
    ) {
        let rows = rows.into_iter().map(|(mailbox64, entry)| {
            let row = Unsettled {
                id64: entry.id64,
                size: entry.size,
                slot: entry.slot,
                header: None,
            };
            ((mailbox64, entry.key), row)
        });
        let rows = rows
            .filter(|((_, key), _)| !gone.contains_key(key))
            .collect();
        *self.write() = State {
            settled_to,
            rows,
            gone,
            ..State::default()
        };
    }

    /// Lets one commit be seen.
    pub(super) fn follow(&self, change: impl FnOnce(&mut Following<'_>)) {
        let mut state = self.write();
        change(&mut Following { state: &mut state });
    }

    /// The first `limit` rows up to the key `last` behind this place, in the order of a run.
    pub(super) fn to_settle(
        &self,
        behind: Option<(i64, i64)>,
        last: i64,
        limit: usize,
    ) -> Vec<(i64, Entry)> {
        let state = self.read();
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = state.rows.range((from, Bound::Unbounded));
        let rows = rows.filter(|((_, key), _)| state.hidden_to < *key && *key <= last);
        let rows = rows.map(|((mailbox64, key), row)| (*mailbox64, row.entry(*key)));
        rows.take(limit).collect()
    }

    /// The rows up to the key `last` are in runs, whose last key is `settled_to`. They count for nothing here
    /// from now on, and are swept away later, because that takes some milliseconds.
    pub(super) fn settled(&self, last: i64, settled_to: i64) {
        let mut state = self.write();
        state.settled_to = settled_to;
        state.hidden_to = last;
        state.unswept = Some((i64::MIN, i64::MIN));
    }

    /// Looks at `limit` rows more and sweeps away those that are settled. Tells whether there may be others.
    pub(super) fn sweep(&self, limit: usize) -> bool {
        let mut state = self.write();
        let Some(from) = state.unswept else {
            return false;
        };
        let places = state.rows.range(from..).map(|(place, _)| *place);
        let mut places: Vec<_> = places.take(limit + 1).collect();
        state.unswept = (places.len() > limit).then(|| places.pop()).flatten();
        places.retain(|(_, key)| *key <= state.hidden_to);
        for place in places {
            state.remove(place);
        }
        state.unswept.is_some()
    }

    /// The first `limit` rows that have left and are in the table still, each with its number in `gone`: up to
    /// this key and this number, without those of `but`.
    pub(super) fn gone_up_to(
        &self,
        (key, number): (i64, i64),
        but: &BTreeSet<i64>,
        limit: usize,
    ) -> Vec<(i64, i64)> {
        let state = self.read();
        let gone = state.gone.range(..=key);
        let gone = gone.filter(|(key, gone_as)| **gone_as <= number && !but.contains(key));
        gone.take(limit)
            .map(|(key, number)| (*key, *number))
            .collect()
    }

    /// These rows are not in the table any more.
    pub(super) fn forget_gone(&self, keys: &[(i64, i64)]) {
        let mut state = self.write();
        for (key, _) in keys {
            state.gone.remove(key);
        }
    }

    /// How many rows have left and are in the table still.
    pub(super) fn gone_len(&self) -> usize {
        self.read().gone.len()
    }
}

impl State {
    fn seen<T>(&self, unsettled: T) -> Seen<T> {
        Seen {
            unsettled,
            settled_to: self.settled_to,
        }
    }

    fn row(&self, mailbox64: i64, key: i64) -> Option<&Unsettled> {
        (key > self.hidden_to).then(|| self.rows.get(&(mailbox64, key)))?
    }

    fn remove(&mut self, place: (i64, i64)) {
        let row = self.rows.remove(&place);
        if let Some(header) = row.and_then(|row| row.header) {
            self.headers.remove(header);
        }
    }

    fn of(&self, mailbox64: i64, after: i64) -> impl DoubleEndedIterator<Item = Entry> {
        let range = (
            Bound::Excluded((mailbox64, after.max(self.hidden_to))),
            Bound::Included((mailbox64, i64::MAX)),
        );
        let rows = self.rows.range(range);
        rows.map(|((_, key), row)| row.entry(*key))
    }
}

/// What one commit does to the tail.
pub(super) struct Following<'a> {
    state: &'a mut State,
}

impl Following<'_> {
    /// A row came.
    pub(super) fn came(&mut self, key: OrderKey, entry: Entry, header: Header) {
        let row = Unsettled {
            id64: entry.id64,
            size: entry.size,
            slot: entry.slot,
            header: Some(self.state.headers.insert(header)),
        };
        let mailbox64 = header.mailbox.prefix64();
        self.state.rows.insert((mailbox64, key.0), row);
    }

    /// A row left the table.
    pub(super) fn deleted(&mut self, mailbox64: i64, key: i64) {
        self.state.remove((mailbox64, key));
    }

    /// A row left and is in the table still.
    pub(super) fn gone(&mut self, mailbox64: i64, key: i64, number: i64) {
        self.deleted(mailbox64, key);
        self.state.gone.insert(key, number);
    }

    /// A row lives until then.
    pub(super) fn extended(&mut self, mailbox64: i64, key: i64, expires_at: Timestamp) {
        let State { rows, headers, .. } = &mut *self.state;
        let Some(row) = rows.get_mut(&(mailbox64, key)) else {
            return;
        };
        row.slot = expiry_slot(expires_at);
        if let Some(header) = row.header.and_then(|header| headers.get_mut(header)) {
            header.expires_at = expires_at;
        }
    }

    /// A row's sender was told of the delivery.
    pub(super) fn delivered(&mut self, mailbox64: i64, key: i64) {
        let State { rows, headers, .. } = &mut *self.state;
        let header = rows.get(&(mailbox64, key)).and_then(|row| row.header);
        if let Some(header) = header.and_then(|header| headers.get_mut(header)) {
            header.is_delivered_told = true;
        }
    }
}
