//! The mailboxes of the memory engine that share a lock, and their rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use bytes::Bytes;

use super::SLICE;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};
use crate::store::model::{
    BacklogCursor, Class, Envelope, Holding, OrderKey, Owner, Page, PageBounds, StoredBlob, View,
    charged_bytes,
};
use crate::store::plan::leaving::Leaving;
use crate::store::plan::needs::receipt_to;
use crate::store::plan::quota::{Held, held_beside};
use crate::store::plan::topic_of;

/// A blob as it is kept.
pub(in crate::store) struct Row {
    pub(in crate::store) id: BlobId,
    pub(in crate::store) class: Class,
    /// Only of device sync messages.
    pub(in crate::store) owner: Option<Owner>,
    pub(in crate::store) topic: Option<Topic>,
    /// Where its sender hears what becomes of it.
    pub(in crate::store) receipt_to: Option<MailboxHash>,
    pub(in crate::store) is_delivered_told: bool,
    pub(in crate::store) stored_at: Timestamp,
    pub(in crate::store) expires_at: Timestamp,
    pub(in crate::store) checksum: [u8; 16],
    pub(in crate::store) sealed: Bytes,
    pub(in crate::store) body: Bytes,
}

impl Row {
    /// Copies the bytes: those of the envelope may be a small part of a large read buffer that they
    /// would keep alive, and what is kept must be what is counted.
    pub(in crate::store) fn new(envelope: &Envelope, checksum: [u8; 16]) -> Self {
        Self {
            id: envelope.id,
            class: envelope.class,
            owner: envelope
                .owner
                .filter(|_| envelope.class == Class::DeviceSync),
            topic: topic_of(envelope),
            receipt_to: receipt_to(envelope),
            is_delivered_told: false,
            stored_at: envelope.stored_at,
            expires_at: envelope.expires_at,
            checksum,
            sealed: Bytes::copy_from_slice(&envelope.sealed),
            body: Bytes::copy_from_slice(&envelope.body),
        }
    }

    pub(in crate::store) fn charged_bytes(&self) -> u64 {
        charged_bytes(self.sealed.len() + self.body.len())
    }

    /// Whether it came from a sender to this mailbox: no receipt, no device sync message.
    pub(in crate::store) fn is_blob(&self) -> bool {
        matches!(self.class, Class::SeenByV1 | Class::ProvenOnly)
    }

    /// How it leaves when somebody takes it away: nobody takes away what has expired.
    pub(in crate::store) fn or_expired(&self, leaving: Leaving, now: Timestamp) -> Leaving {
        match self.is_expired(now) {
            true => Leaving::Expired,
            false => leaving,
        }
    }

    pub(in crate::store) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    pub(in crate::store) fn to_blob(&self, key: OrderKey) -> StoredBlob {
        StoredBlob {
            key,
            id: self.id,
            class: self.class,
            version: self.owner.map(|owner| owner.version),
            wants_receipts: self.receipt_to.is_some(),
            is_delivered_told: self.is_delivered_told,
            stored_at: self.stored_at,
            expires_at: self.expires_at,
            sealed: self.sealed.clone(),
            body: self.body.clone(),
        }
    }
}

/// The mailboxes that share a lock. An empty mailbox is not kept.
#[derive(Default)]
pub(in crate::store) struct Shard {
    pub(in crate::store) mailboxes: HashMap<MailboxHash, Mailbox>,
    /// Every row, the oldest expiry first.
    pub(in crate::store) expiries: BTreeSet<(Timestamp, OrderKey, MailboxHash)>,
}

/// The rows of one mailbox, and what is looked up without reading them.
#[derive(Default)]
pub(in crate::store) struct Mailbox {
    pub(in crate::store) rows: BTreeMap<OrderKey, Row>,
    pub(in crate::store) ids: HashMap<BlobId, OrderKey>,
    pub(in crate::store) topics: HashMap<Topic, OrderKey>,
    /// The same rows, the oldest expiry first: a full mailbox finds its expired ones without a scan.
    pub(in crate::store) expiries: BTreeSet<(Timestamp, OrderKey)>,
    /// By [`Class`].
    pub(in crate::store) held: [Held; Class::NUMBERS],
}

impl Shard {
    pub(in crate::store) fn find(&self, mailbox: &MailboxHash, id: &BlobId) -> Option<&Row> {
        let mailbox = self.mailboxes.get(mailbox)?;
        mailbox.rows.get(mailbox.ids.get(id)?)
    }

    pub(in crate::store) fn is_empty(&self, mailbox: &MailboxHash) -> bool {
        !self.mailboxes.contains_key(mailbox)
    }

    /// What a mailbox holds that counts against the quota of this class.
    pub(in crate::store) fn held(&self, mailbox: &MailboxHash, class: Class) -> Held {
        self.mailboxes
            .get(mailbox)
            .map(|mailbox| held_beside(class, &mailbox.held))
            .unwrap_or_default()
    }

    pub(in crate::store) fn last_key(&self, mailbox: &MailboxHash) -> OrderKey {
        self.mailboxes
            .get(mailbox)
            .and_then(|mailbox| mailbox.rows.last_key_value())
            .map_or(OrderKey::START, |(key, _)| *key)
    }

    /// The head of this shard's queue by expiry, if it has expired.
    pub(in crate::store) fn first_expired(
        &self,
        now: Timestamp,
    ) -> Option<(Timestamp, OrderKey, MailboxHash)> {
        let head = self.expiries.first()?;
        (head.0 <= now).then_some(*head)
    }

    /// The rows that asked for receipts and expired from `since` on and by `expired_by`.
    pub(in crate::store) fn asking(
        &self,
        since: Timestamp,
        expired_by: Timestamp,
    ) -> Vec<(MailboxHash, OrderKey)> {
        let first = (since, OrderKey::START, MailboxHash::from_bytes([0; 32]));
        self.expiries
            .range(first..)
            .take_while(|row| row.0 <= expired_by)
            .map(|(_, key, mailbox)| (*mailbox, *key))
            .filter(|(mailbox, key)| {
                let rows = self.mailboxes.get(mailbox).map(|mailbox| &mailbox.rows);
                let row = rows.and_then(|rows| rows.get(key));
                row.is_some_and(|row| row.receipt_to.is_some())
            })
            .collect()
    }

    /// When the head of this shard's queue expires.
    pub(in crate::store) fn next_expiry(&self) -> Option<Timestamp> {
        self.expiries.first().map(|head| head.0)
    }

    /// Up to [`SLICE`] keys of the mailbox after `after` and up to `last` of rows that are `wanted`.
    pub(in crate::store) fn keys_of(
        &self,
        mailbox: &MailboxHash,
        wanted: impl Fn(&Row) -> bool,
        after: OrderKey,
        last: OrderKey,
    ) -> Vec<OrderKey> {
        // An empty mailbox, or nothing left: the map refuses a range that is turned round.
        let Some(mailbox) = self.mailboxes.get(mailbox).filter(|_| after < last) else {
            return Vec::new();
        };
        mailbox
            .rows
            .range((Bound::Excluded(after), Bound::Included(last)))
            .filter(|(_, row)| wanted(row))
            .take(SLICE)
            .map(|(key, _)| *key)
            .collect()
    }

    pub(in crate::store) fn page(
        &self,
        mailbox: &MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Page {
        let mut page = Page {
            next: after,
            ..Page::default()
        };
        let Some(mailbox) = self.mailboxes.get(mailbox) else {
            return page;
        };
        let rows = mailbox
            .rows
            .range((Bound::Excluded(after), Bound::Unbounded))
            .map(|(key, row)| (*key, *key, row));
        fill(&mut page, rows, view, bounds, now);
        page
    }

    /// The device sync messages behind `after`, by version, then by key.
    pub(in crate::store) fn backlog(
        &self,
        mailbox: &MailboxHash,
        mut after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Page<BacklogCursor> {
        if after.up_to == OrderKey::START {
            after.up_to = self.last_key(mailbox);
        }
        let mut page = Page {
            next: after,
            ..Page::default()
        };
        let Some(mailbox) = self.mailboxes.get(mailbox) else {
            return page;
        };
        let mut waiting: Vec<_> = mailbox
            .rows
            .range(..=after.up_to)
            .filter_map(|(key, row)| Some((row.owner?.version, *key, row)))
            .filter(|(version, key, _)| (*version, *key) > (after.version, after.key))
            .collect();
        waiting.sort_unstable_by_key(|(version, key, _)| (*version, *key));
        let rows = waiting.into_iter().map(|(version, key, row)| {
            let cursor = BacklogCursor {
                version,
                key,
                ..after
            };
            (cursor, key, row)
        });
        fill(&mut page, rows, View::DeviceSync, bounds, now);
        page
    }

    pub(in crate::store) fn insert(&mut self, name: MailboxHash, key: OrderKey, row: Row) {
        let mailbox = self.mailboxes.entry(name).or_default();
        mailbox.held[row.class as usize].add(row.charged_bytes());
        mailbox.ids.insert(row.id, key);
        if let Some(topic) = row.topic {
            mailbox.topics.insert(topic, key);
        }
        mailbox.expiries.insert((row.expires_at, key));
        self.expiries.insert((row.expires_at, key, name));
        mailbox.rows.insert(key, row);
    }

    pub(in crate::store) fn remove(&mut self, name: &MailboxHash, key: OrderKey) -> Option<Row> {
        let mailbox = self.mailboxes.get_mut(name)?;
        let row = mailbox.rows.remove(&key)?;
        mailbox.held[row.class as usize].remove(row.charged_bytes());
        mailbox.ids.remove(&row.id);
        if let Some(topic) = row.topic {
            mailbox.topics.remove(&topic);
        }
        mailbox.expiries.remove(&(row.expires_at, key));
        self.expiries.remove(&(row.expires_at, key, *name));
        if mailbox.rows.is_empty() {
            self.mailboxes.remove(name);
        }
        Some(row)
    }

    pub(in crate::store) fn remove_id(&mut self, name: &MailboxHash, id: &BlobId) -> Option<Row> {
        let key = *self.mailboxes.get(name)?.ids.get(id)?;
        self.remove(name, key)
    }

    /// Takes out the row of this id, if `view` shows it.
    pub(in crate::store) fn acknowledge(
        &mut self,
        name: &MailboxHash,
        id: &BlobId,
        view: View,
    ) -> Option<Row> {
        let mailbox = self.mailboxes.get(name)?;
        let key = *mailbox.ids.get(id)?;
        let is_shown = view.shows(mailbox.rows.get(&key)?.class);
        is_shown.then(|| self.remove(name, key))?
    }

    /// The row that a blob of this topic replaces, with its key.
    pub(in crate::store) fn of_topic(
        &self,
        mailbox: &MailboxHash,
        topic: Option<Topic>,
    ) -> Option<(OrderKey, &Row)> {
        let mailbox = self.mailboxes.get(mailbox)?;
        let key = *mailbox.topics.get(&topic?)?;
        Some((key, mailbox.rows.get(&key)?))
    }

    /// Lets a blob live until `expires_at`, if it has not expired and that is later.
    pub(in crate::store) fn extend(
        &mut self,
        name: &MailboxHash,
        id: &BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) {
        let Some(mailbox) = self.mailboxes.get_mut(name) else {
            return;
        };
        let key = mailbox.ids.get(id).copied();
        let Some((key, row)) = key.and_then(|key| Some((key, mailbox.rows.get_mut(&key)?))) else {
            return;
        };
        if !row.is_blob() || row.is_expired(now) || expires_at <= row.expires_at {
            return;
        }
        mailbox.expiries.remove(&(row.expires_at, key));
        self.expiries.remove(&(row.expires_at, key, *name));
        row.expires_at = expires_at;
        mailbox.expiries.insert((expires_at, key));
        self.expiries.insert((expires_at, key, *name));
    }

    /// Marks a row as delivered. Answers where its sender wants to hear that, the first time.
    pub(in crate::store) fn delivered(
        &mut self,
        name: &MailboxHash,
        id: &BlobId,
    ) -> Option<MailboxHash> {
        let mailbox = self.mailboxes.get_mut(name)?;
        let row = mailbox.rows.get_mut(mailbox.ids.get(id)?)?;
        let to = row.receipt_to.filter(|_| !row.is_delivered_told)?;
        row.is_delivered_told = true;
        Some(to)
    }

    /// What a mailbox holds of what `view` shows.
    pub(in crate::store) fn holding(
        &self,
        mailbox: &MailboxHash,
        view: View,
        now: Timestamp,
    ) -> Holding {
        let Some(mailbox) = self.mailboxes.get(mailbox) else {
            return Holding::default();
        };
        let waiting = mailbox
            .rows
            .values()
            .filter(|row| view.shows(row.class) && !row.is_expired(now));
        let mut holding = Holding {
            pending: waiting
                .take(Holding::PENDING_MAX as usize)
                .fold(0, |count, _| count + 1),
            ..Holding::default()
        };
        for class in Class::ALL.into_iter().filter(|class| view.shows(*class)) {
            let held = mailbox.held[class as usize];
            holding.blobs += held.blobs;
            holding.bytes += held.bytes;
        }
        holding
    }

    /// Removes what had expired of a mailbox by `expired_by` and is `wanted`.
    pub(in crate::store) fn remove_expired_of(
        &mut self,
        name: &MailboxHash,
        wanted: impl Fn(&Row) -> bool,
        expired_by: Timestamp,
    ) -> Vec<Row> {
        let Some(mailbox) = self.mailboxes.get(name) else {
            return Vec::new();
        };
        let keys: Vec<_> = mailbox
            .expiries
            .iter()
            .take_while(|(expires_at, _)| *expires_at <= expired_by)
            .map(|(_, key)| *key)
            .filter(|key| mailbox.rows.get(key).is_some_and(&wanted))
            .collect();
        keys.into_iter()
            .filter_map(|key| self.remove(name, key))
            .collect()
    }
}

/// Fills a page with what `view` shows of these rows; each comes with where it leaves the reader.
fn fill<'a, C>(
    page: &mut Page<C>,
    rows: impl Iterator<Item = (C, OrderKey, &'a Row)>,
    view: View,
    bounds: PageBounds,
    now: Timestamp,
) {
    let mut bytes: u64 = 0;
    for (cursor, key, row) in rows {
        if view.shows(row.class) && !row.is_expired(now) {
            bytes = bytes.saturating_add((row.sealed.len() + row.body.len()) as u64);
            let is_full =
                page.blobs.len() as u64 >= u64::from(bounds.blobs_max) || bytes > bounds.bytes_max;
            if is_full && !page.blobs.is_empty() {
                page.more = true;
                break;
            }
            page.blobs.push(row.to_blob(key));
        }
        page.next = cursor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob of a few bytes must not keep the read buffer alive that it came in.
    #[test]
    fn what_is_kept_is_a_copy_of_its_own_size() {
        let buffer = Bytes::from(vec![7; 1_000_000]);
        let envelope = Envelope {
            mailbox: MailboxHash::from_bytes([1; 32]),
            id: BlobId::from_bytes([1; 16]),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::default(),
            sealed: buffer.slice(..3),
            body: buffer.slice(5..9),
        };
        let row = Row::new(&envelope, [0; 16]);
        drop(envelope);
        assert!(buffer.is_unique());
        assert_eq!((row.sealed.len(), row.body.len()), (3, 4));
    }
}
