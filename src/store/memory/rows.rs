//! The rows of the memory engine: by key, and what is looked up without reading them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;
use foldhash::HashMap;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};
use crate::store::engine::{
    Account, ExpiryCursor, Header, Holder, KeysOf, NewRow, RELIEF_ROWS_MAX,
};
use crate::store::model::{
    BacklogCursor, Class, Holding, OrderKey, Page, PageBounds, StoredBlob, View,
};

/// A row as it is kept.
pub(super) struct Row {
    header: Header,
    version: Option<u64>,
    stored_at: Timestamp,
    sealed: Bytes,
    body: Bytes,
}

impl Row {
    /// Copies the bytes: those of the envelope may be a small part of a large read buffer that they
    /// would keep alive, and what is kept must be what is counted.
    pub(super) fn new(row: &NewRow<'_>) -> Self {
        let envelope = row.envelope;
        Self {
            header: row.header(),
            version: envelope.owner.map(|owner| owner.version),
            stored_at: envelope.stored_at,
            sealed: Bytes::copy_from_slice(&envelope.sealed),
            body: Bytes::copy_from_slice(&envelope.body),
        }
    }

    fn is_shown(&self, view: View, now: Timestamp) -> bool {
        view.shows(self.header.class) && self.header.expires_at > now
    }

    /// As a page has it; `None` when the view does not show it.
    fn show(&self, key: OrderKey, view: View, now: Timestamp) -> Option<StoredBlob> {
        let header = &self.header;
        self.is_shown(view, now).then(|| StoredBlob {
            key,
            id: header.id,
            class: header.class,
            version: self.version.filter(|_| header.owner.is_some()),
            wants_receipts: header.receipt_to.is_some(),
            is_delivered_told: header.is_delivered_told,
            stored_at: self.stored_at,
            expires_at: header.expires_at,
            sealed: self.sealed.clone(),
            body: self.body.clone(),
        })
    }
}

/// What one mailbox has. An empty one is not kept.
#[derive(Default)]
struct Mailbox {
    rows: BTreeMap<OrderKey, Row>,
    ids: HashMap<BlobId, OrderKey>,
    topics: HashMap<Topic, OrderKey>,
    expiries: BTreeSet<(Timestamp, OrderKey)>,
    account: Account,
}

/// What one owner has on all its devices.
#[derive(Default)]
struct Owner {
    expiries: BTreeSet<(Timestamp, OrderKey)>,
    keys: BTreeSet<OrderKey>,
    account: Account,
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows {
    mailboxes: HashMap<MailboxHash, Mailbox>,
    owners: HashMap<MailboxHash, Owner>,
    /// Where a row lies.
    places: HashMap<OrderKey, MailboxHash>,
    expiries: BTreeSet<(Timestamp, OrderKey)>,
}

impl Rows {
    pub(super) fn key_of(&self, mailbox: &MailboxHash, id: &BlobId) -> Option<OrderKey> {
        self.mailboxes.get(mailbox)?.ids.get(id).copied()
    }

    pub(super) fn of_topic(&self, mailbox: &MailboxHash, topic: &Topic) -> Option<OrderKey> {
        self.mailboxes.get(mailbox)?.topics.get(topic).copied()
    }

    pub(super) fn header(&self, key: OrderKey) -> Option<Header> {
        let mailbox = self.mailboxes.get(self.places.get(&key)?)?;
        Some(mailbox.rows.get(&key)?.header)
    }

    /// What a holder has. Its earliest expiry is exact.
    pub(super) fn account(&self, holder: &Holder) -> Account {
        let (account, expiries) = match holder {
            Holder::Mailbox(mailbox) => match self.mailboxes.get(mailbox) {
                Some(mailbox) => (mailbox.account, &mailbox.expiries),
                None => return Account::default(),
            },
            Holder::Owner(owner) => match self.owners.get(owner) {
                Some(owner) => (owner.account, &owner.expiries),
                None => return Account::default(),
            },
        };
        let earliest = expiries.first().map(|(expires_at, _)| *expires_at);
        Account {
            earliest_expiry: earliest.unwrap_or(Account::default().earliest_expiry),
            ..account
        }
    }

    pub(super) fn expired_of(&self, holder: &Holder, expired_by: Timestamp) -> Vec<OrderKey> {
        let expiries = match holder {
            Holder::Mailbox(mailbox) => self.mailboxes.get(mailbox).map(|all| &all.expiries),
            Holder::Owner(owner) => self.owners.get(owner).map(|all| &all.expiries),
        };
        let over = expiries.into_iter().flatten();
        let over = over.take_while(|(expires_at, _)| *expires_at <= expired_by);
        over.take(RELIEF_ROWS_MAX).map(|(_, key)| *key).collect()
    }

    pub(super) fn insert(&mut self, key: OrderKey, row: Row) {
        let header = row.header;
        let (class, bytes, expires_at) = (header.class, header.charged_bytes(), header.expires_at);
        let mailbox = self.mailboxes.entry(header.mailbox).or_default();
        mailbox.account.add(class, bytes, expires_at);
        mailbox.account.last_key = key;
        mailbox.ids.insert(header.id, key);
        if let Some(topic) = header.topic {
            mailbox.topics.insert(topic, key);
        }
        mailbox.expiries.insert((expires_at, key));
        mailbox.rows.insert(key, row);
        if let Some(owner) = header.owner {
            let owner = self.owners.entry(owner).or_default();
            owner.account.add(class, bytes, expires_at);
            owner.expiries.insert((expires_at, key));
            owner.keys.insert(key);
        }
        self.places.insert(key, header.mailbox);
        self.expiries.insert((expires_at, key));
    }

    pub(super) fn remove(&mut self, name: &MailboxHash, key: OrderKey) {
        let Some(mailbox) = self.mailboxes.get_mut(name) else {
            return;
        };
        let Some(Row { header, .. }) = mailbox.rows.remove(&key) else {
            return;
        };
        let (class, bytes, expires_at) = (header.class, header.charged_bytes(), header.expires_at);
        mailbox.account.remove(class, bytes);
        mailbox.ids.remove(&header.id);
        if let Some(topic) = header.topic {
            mailbox.topics.remove(&topic);
        }
        mailbox.expiries.remove(&(expires_at, key));
        if mailbox.rows.is_empty() {
            self.mailboxes.remove(name);
        }
        if let Some(name) = header.owner
            && let Some(owner) = self.owners.get_mut(&name)
        {
            owner.account.remove(class, bytes);
            owner.expiries.remove(&(expires_at, key));
            owner.keys.remove(&key);
            if owner.keys.is_empty() {
                self.owners.remove(&name);
            }
        }
        self.places.remove(&key);
        self.expiries.remove(&(expires_at, key));
    }

    fn row_mut(
        &mut self,
        key: OrderKey,
    ) -> Option<(&mut Row, &mut BTreeSet<(Timestamp, OrderKey)>)> {
        let mailbox = self.mailboxes.get_mut(self.places.get(&key)?)?;
        Some((mailbox.rows.get_mut(&key)?, &mut mailbox.expiries))
    }

    pub(super) fn extend(&mut self, key: OrderKey, expires_at: Timestamp) {
        let Some((row, expiries)) = self.row_mut(key) else {
            return;
        };
        let before = std::mem::replace(&mut row.header.expires_at, expires_at);
        expiries.remove(&(before, key));
        expiries.insert((expires_at, key));
        self.expiries.remove(&(before, key));
        self.expiries.insert((expires_at, key));
    }

    pub(super) fn mark_delivered(&mut self, key: OrderKey) {
        if let Some((row, _)) = self.row_mut(key) {
            row.header.is_delivered_told = true;
        }
    }

    pub(super) fn page(
        &self,
        mailbox: &MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Page {
        let rows = self.mailboxes.get(mailbox);
        let rows = rows.map(|mailbox| mailbox.rows.range((Excluded(after), Unbounded)));
        let rows = rows.into_iter().flatten();
        let rows = rows.map(|(key, row)| (*key, row.show(*key, view, now)));
        Page::of(after, rows, bounds)
    }

    /// The device sync messages behind `after`, by version, then by key.
    pub(super) fn backlog(
        &self,
        mailbox: &MailboxHash,
        mut after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Page<BacklogCursor> {
        let mailbox = self.mailboxes.get(mailbox);
        if after.up_to == OrderKey::START {
            let last = mailbox.and_then(|mailbox| mailbox.rows.last_key_value());
            after.up_to = last.map_or(OrderKey::START, |(key, _)| *key);
        }
        let rows = mailbox.map(|mailbox| mailbox.rows.range(..=after.up_to));
        let mut waiting: Vec<_> = rows
            .into_iter()
            .flatten()
            .filter(|(_, row)| row.header.owner.is_some())
            .filter_map(|(key, row)| Some((after.at(row.version?, *key), row)))
            .filter(|(cursor, _)| *cursor > after)
            .collect();
        waiting.sort_unstable_by_key(|(cursor, _)| *cursor);
        let rows = waiting.into_iter().map(|(cursor, row)| {
            let shown = row.show(cursor.key, View::DeviceSync, now);
            (cursor, shown)
        });
        Page::of(after, rows, bounds)
    }

    /// What a mailbox holds of what `view` shows.
    pub(super) fn holding(&self, mailbox: &MailboxHash, view: View, now: Timestamp) -> Holding {
        let Some(mailbox) = self.mailboxes.get(mailbox) else {
            return Holding::default();
        };
        let waiting = mailbox.rows.values().filter(|row| row.is_shown(view, now));
        let waiting = waiting.take(Holding::PENDING_MAX as usize);
        let mut holding = Holding {
            pending: waiting.fold(0, |count, _| count + 1),
            ..Holding::default()
        };
        for class in Class::ALL.into_iter().filter(|class| view.shows(*class)) {
            let held = mailbox.account.held[class as usize];
            holding.blobs += held.blobs;
            holding.bytes += held.bytes;
        }
        holding
    }

    pub(super) fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: usize,
    ) -> Vec<OrderKey> {
        // Nothing left: the maps refuse a range that is turned round.
        if after >= up_to {
            return Vec::new();
        }
        let range = (Excluded(after), Included(up_to));
        match of {
            KeysOf::Mailbox(mailbox, view) => {
                let rows = self.mailboxes.get(&mailbox);
                let rows = rows.map(|mailbox| mailbox.rows.range(range));
                let rows = rows.into_iter().flatten();
                let rows = rows.filter(|(_, row)| view.shows(row.header.class));
                rows.take(limit).map(|(key, _)| *key).collect()
            }
            KeysOf::Owner(owner) => {
                let keys = self.owners.get(&owner).map(|owner| owner.keys.range(range));
                keys.into_iter().flatten().take(limit).copied().collect()
            }
        }
    }

    pub(super) fn expired(&self, limit: usize, expired_by: Timestamp) -> Vec<OrderKey> {
        let over = self.expiries.iter();
        let over = over.take_while(|(expires_at, _)| *expires_at <= expired_by);
        over.take(limit).map(|(_, key)| *key).collect()
    }

    /// Those that asked for receipts, of up to `limit` rows behind `from` that had expired by then;
    /// and where to go on.
    pub(super) fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: usize,
        expired_by: Timestamp,
    ) -> (Vec<OrderKey>, Option<ExpiryCursor>) {
        let behind = (Excluded((from.expires_at, from.key)), Unbounded);
        let over = self.expiries.range(behind).take(limit);
        let over = over.take_while(|(expires_at, _)| *expires_at <= expired_by);
        let over: Vec<_> = over.copied().collect();
        let last = over.last().filter(|_| over.len() == limit);
        let next = last.map(|(expires_at, key)| ExpiryCursor::new(*expires_at, *key));
        let is_asking = |key: &OrderKey| {
            let header = self.header(*key);
            header.is_some_and(|header| header.receipt_to.is_some())
        };
        let keys = over.into_iter().map(|(_, key)| key).filter(is_asking);
        (keys.collect(), next)
    }

    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.expiries.first().map(|(expires_at, _)| *expires_at)
    }
}
