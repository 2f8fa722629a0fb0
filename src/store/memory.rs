//! The engine that keeps everything in memory: the reference for the promises.
//!
//! Blobs lie in shards, by their mailbox's prefix, so that sessions do not wait for each other. What
//! is counted over all mailboxes (order keys, bytes, departures) lies in one set of books whose lock
//! is held for a few map operations at a time and always taken last: shard before books, never two
//! shards at once. A blob's key is drawn under its shard's lock, so that a reader of the mailbox
//! never sees a later blob before an earlier one. Memory is not checked for bit rot: nothing is lost
//! here but by the end of the process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::model::{
    Appended, Class, Envelope, OrderKey, Page, PageBounds, Removed, StoredBlob, Swept, Usage, View,
    charged_bytes,
};
use super::quota::{Held, Quota};
use super::{OnStored, Pending, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use crate::secrets::Secret;

/// Enough that two of a few dozen threads seldom meet; each costs some 100 bytes when empty.
const SHARDS: usize = 64;

/// Blobs or departures that are deleted under one lock before others get their turn.
const SLICE: usize = 256;

/// What a [`MemoryStore`] is made from.
pub struct MemoryOptions {
    /// Keys the checksums by which repeats are recognised.
    pub secret: Secret,
    /// How much a mailbox and the relay may hold.
    pub quota: Quota,
    /// How long a departed blob is remembered.
    pub dedup: Duration,
    /// How many departed blobs are remembered.
    pub dedup_max: u64,
    /// Told of each mailbox that has something new.
    pub on_stored: OnStored,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

/// Blobs in memory. They survive everything but the end of the process.
pub struct MemoryStore {
    secret: Secret,
    quota: Quota,
    on_stored: OnStored,
    metrics: Arc<Metrics>,
    is_closed: AtomicBool,
    /// Nothing awaits under these locks.
    shards: Vec<Mutex<Shard>>,
    /// Nothing awaits under this lock, and no other one is taken under it.
    books: Mutex<Books>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(options: MemoryOptions) -> Self {
        let metrics = options.metrics;
        metrics.store_up.set(1.0);
        Self {
            secret: options.secret,
            quota: options.quota,
            on_stored: options.on_stored,
            is_closed: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            books: Mutex::new(Books {
                usage: Usage::default(),
                last_key: OrderKey::START,
                departures: Departures::new(options.dedup, options.dedup_max),
                metrics: Arc::clone(&metrics),
            }),
            metrics,
        }
    }

    /// Takes the row in, or says why not. Everything that decides happens under the shard's lock, so
    /// that of two senders only one gets the last place or the first use of an id.
    fn take(&self, mailbox: MailboxHash, row: Row, now: Timestamp) -> Result<Appended, StoreError> {
        let mut shard = self.shard(&mailbox)?;
        if let Some(known) = shard.find(&mailbox, &row.id) {
            return Ok(self.repeated(row.checksum == known.checksum, known.expires_at));
        }
        if let Some(departed) = self.books().departures.recall(&(mailbox, row.id), now) {
            return Ok(self.repeated(row.checksum == departed.checksum, departed.expires_at));
        }

        let charged_bytes = row.charged_bytes();
        let held = shard.held(&mailbox, row.class);
        if !self.quota.mailbox_admits(held, charged_bytes) {
            let expired = shard.remove_expired_of(&mailbox, now);
            self.books().depart(Way::Expired, mailbox, &expired, now);
        }
        let held = shard.held(&mailbox, row.class);
        match self.books().admit(&self.quota, held, charged_bytes) {
            Err(full) => Ok(full),
            Ok(key) => {
                let expires_at = row.expires_at;
                shard.insert(mailbox, key, row);
                Ok(Appended::Stored { expires_at })
            }
        }
    }

    fn repeated(&self, is_same: bool, expires_at: Timestamp) -> Appended {
        if !is_same {
            return Appended::IdReused;
        }
        self.metrics.duplicates_total.increment(1);
        Appended::Duplicate { expires_at }
    }

    /// Purges up to [`SLICE`] blobs after `after` and up to `last`. Answers how many, and where the
    /// next slice begins when there may be one.
    fn purge_slice(
        &self,
        mailbox: MailboxHash,
        view: View,
        (after, last): (OrderKey, OrderKey),
        now: Timestamp,
    ) -> Result<(u64, Option<OrderKey>), StoreError> {
        let mut shard = self.shard(&mailbox)?;
        let keys = shard.keys_shown(&mailbox, view, after, last);
        let removed: Vec<Row> = keys
            .iter()
            .filter_map(|key| shard.remove(&mailbox, *key))
            .collect();
        self.books().depart(Way::Purged, mailbox, &removed, now);
        let next = keys.last().copied().filter(|_| keys.len() == SLICE);
        Ok((removed.len() as u64, next))
    }

    /// Deletes up to `limit` expired blobs. Each shard has its own queue by expiry; always taking
    /// from the one whose head is oldest makes them one.
    fn sweep(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        let mut heads = BinaryHeap::new();
        for index in 0..SHARDS {
            let head = self.shard_at(index)?.first_expired(now);
            heads.extend(head.map(|head| Reverse((head, index))));
        }
        let mut swept = Swept::default();
        while let Some(Reverse((_, index))) = heads.pop() {
            if swept.blobs == u64::from(limit) {
                swept.more = true;
                break;
            }
            let mut shard = self.shard_at(index)?;
            // The head may be another one by now: acknowledged, or overtaken by an older expiry.
            if let Some((_, key, mailbox)) = shard.first_expired(now) {
                let removed = shard.remove(&mailbox, key);
                self.books()
                    .depart(Way::Expired, mailbox, removed.as_slice(), now);
                swept.blobs += removed.iter().count() as u64;
                let head = shard.first_expired(now);
                heads.extend(head.map(|head| Reverse((head, index))));
            }
        }
        Ok(swept)
    }

    /// The shard of a mailbox. An error once the store is closed: [`Store::close`] passes through
    /// every lock, so that nothing is written after it returned.
    fn shard(&self, mailbox: &MailboxHash) -> Result<MutexGuard<'_, Shard>, StoreError> {
        // The hash is uniform, so its first byte is.
        self.shard_at(usize::from(mailbox.as_bytes()[0]) % SHARDS)
    }

    fn shard_at(&self, index: usize) -> Result<MutexGuard<'_, Shard>, StoreError> {
        let shard = lock(&self.shards[index]);
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        Ok(shard)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn append(&self, envelope: Envelope) -> Result<Pending<Appended>, StoreError> {
        let (mailbox, now) = (envelope.mailbox, envelope.stored_at);
        let checksum = self.secret.checksum(&mailbox, &envelope.id, &envelope.body);
        let outcome = self.take(mailbox, Row::new(&envelope, checksum), now)?;
        if matches!(outcome, Appended::Stored { .. }) {
            (self.on_stored)(&mailbox);
        }
        Ok(Pending::ready(outcome))
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let mut shard = self.shard(&mailbox)?;
        let removed: Vec<Row> = ids
            .iter()
            .filter_map(|id| shard.remove_id(&mailbox, id))
            .collect();
        self.books()
            .depart(Way::Acknowledged, mailbox, &removed, now);
        Ok(Pending::ready(Removed {
            blobs: removed.len() as u64,
        }))
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let last = self.shard(&mailbox)?.last_key(&mailbox);
        let mut after = Some(OrderKey::START);
        let mut removed = Removed::default();
        while let Some(from) = after {
            let (blobs, next) = self.purge_slice(mailbox, view, (from, last), now)?;
            removed.blobs += blobs;
            after = next;
            tokio::task::yield_now().await;
        }
        Ok(removed)
    }

    async fn expire(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        let swept = self.sweep(limit, now)?;
        while self.books().forget_slice(now) == SLICE {
            tokio::task::yield_now().await;
        }
        Ok(swept)
    }

    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        Ok(self
            .shard(&mailbox)?
            .page(&mailbox, view, after, bounds, now))
    }

    fn usage(&self) -> Usage {
        self.books().usage
    }

    async fn probe(&self, _now: Timestamp) -> Result<(), StoreError> {
        self.shard_at(0).map(drop)
    }

    async fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for shard in &self.shards {
            drop(lock(shard));
        }
        self.metrics.store_up.set(0.0);
    }
}

/// Nothing panics under these locks, so what they guard is whole even if one says otherwise.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blob as it is kept.
struct Row {
    id: BlobId,
    class: Class,
    stored_at: Timestamp,
    expires_at: Timestamp,
    checksum: [u8; 16],
    sealed: Bytes,
    body: Bytes,
}

impl Row {
    /// Copies the bytes: those of the envelope may be a small part of a large read buffer that they
    /// would keep alive, and what is kept must be what is counted.
    fn new(envelope: &Envelope, checksum: [u8; 16]) -> Self {
        Self {
            id: envelope.id,
            class: envelope.class,
            stored_at: envelope.stored_at,
            expires_at: envelope.expires_at,
            checksum,
            sealed: Bytes::copy_from_slice(&envelope.sealed),
            body: Bytes::copy_from_slice(&envelope.body),
        }
    }

    fn charged_bytes(&self) -> u64 {
        charged_bytes(self.sealed.len() + self.body.len())
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    fn to_blob(&self, key: OrderKey) -> StoredBlob {
        StoredBlob {
            key,
            id: self.id,
            class: self.class,
            stored_at: self.stored_at,
            expires_at: self.expires_at,
            sealed: self.sealed.clone(),
            body: self.body.clone(),
        }
    }
}

/// The mailboxes that share a lock. An empty mailbox is not kept.
#[derive(Default)]
struct Shard {
    mailboxes: HashMap<MailboxHash, Mailbox>,
    /// Every row, the oldest expiry first.
    expiries: BTreeSet<(Timestamp, OrderKey, MailboxHash)>,
}

/// The rows of one mailbox, and what is looked up without reading them.
#[derive(Default)]
struct Mailbox {
    rows: BTreeMap<OrderKey, Row>,
    ids: HashMap<BlobId, OrderKey>,
    /// The same rows, the oldest expiry first: a full mailbox finds its expired ones without a scan.
    expiries: BTreeSet<(Timestamp, OrderKey)>,
    /// By [`Class`].
    held: [Held; Class::ALL.len()],
}

impl Shard {
    fn find(&self, mailbox: &MailboxHash, id: &BlobId) -> Option<&Row> {
        let mailbox = self.mailboxes.get(mailbox)?;
        mailbox.rows.get(mailbox.ids.get(id)?)
    }

    fn held(&self, mailbox: &MailboxHash, class: Class) -> Held {
        self.mailboxes
            .get(mailbox)
            .map(|mailbox| mailbox.held[class as usize])
            .unwrap_or_default()
    }

    fn last_key(&self, mailbox: &MailboxHash) -> OrderKey {
        self.mailboxes
            .get(mailbox)
            .and_then(|mailbox| mailbox.rows.last_key_value())
            .map_or(OrderKey::START, |(key, _)| *key)
    }

    /// The head of this shard's queue by expiry, if it has expired.
    fn first_expired(&self, now: Timestamp) -> Option<(Timestamp, OrderKey, MailboxHash)> {
        let head = self.expiries.first()?;
        (head.0 <= now).then_some(*head)
    }

    /// Up to [`SLICE`] keys of the mailbox after `after` and up to `last` that `view` shows.
    fn keys_shown(
        &self,
        mailbox: &MailboxHash,
        view: View,
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
            .filter(|(_, row)| view.shows(row.class))
            .take(SLICE)
            .map(|(key, _)| *key)
            .collect()
    }

    fn page(
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
        let mut bytes: u64 = 0;
        let rows = mailbox
            .rows
            .range((Bound::Excluded(after), Bound::Unbounded));
        for (key, row) in rows {
            if view.shows(row.class) && !row.is_expired(now) {
                bytes = bytes.saturating_add((row.sealed.len() + row.body.len()) as u64);
                let is_full = page.blobs.len() as u64 >= u64::from(bounds.blobs_max)
                    || bytes > bounds.bytes_max;
                if is_full && !page.blobs.is_empty() {
                    page.more = true;
                    break;
                }
                page.blobs.push(row.to_blob(*key));
            }
            page.next = *key;
        }
        page
    }

    fn insert(&mut self, name: MailboxHash, key: OrderKey, row: Row) {
        let mailbox = self.mailboxes.entry(name).or_default();
        mailbox.held[row.class as usize].add(row.charged_bytes());
        mailbox.ids.insert(row.id, key);
        mailbox.expiries.insert((row.expires_at, key));
        self.expiries.insert((row.expires_at, key, name));
        mailbox.rows.insert(key, row);
    }

    fn remove(&mut self, name: &MailboxHash, key: OrderKey) -> Option<Row> {
        let mailbox = self.mailboxes.get_mut(name)?;
        let row = mailbox.rows.remove(&key)?;
        mailbox.held[row.class as usize].remove(row.charged_bytes());
        mailbox.ids.remove(&row.id);
        mailbox.expiries.remove(&(row.expires_at, key));
        self.expiries.remove(&(row.expires_at, key, *name));
        if mailbox.rows.is_empty() {
            self.mailboxes.remove(name);
        }
        Some(row)
    }

    fn remove_id(&mut self, name: &MailboxHash, id: &BlobId) -> Option<Row> {
        let key = *self.mailboxes.get(name)?.ids.get(id)?;
        self.remove(name, key)
    }

    fn remove_expired_of(&mut self, name: &MailboxHash, now: Timestamp) -> Vec<Row> {
        let mut removed = Vec::new();
        while let Some(mailbox) = self.mailboxes.get(name)
            && let Some(&(expires_at, key)) = mailbox.expiries.first()
            && expires_at <= now
        {
            removed.extend(self.remove(name, key));
        }
        removed
    }
}

/// How a blob left.
#[derive(Clone, Copy)]
enum Way {
    Acknowledged,
    Purged,
    Expired,
}

/// What is counted over all mailboxes. Under one lock, so that the sums hold whenever somebody
/// looks, and so that no gauge is overwritten by an older value.
struct Books {
    usage: Usage,
    last_key: OrderKey,
    departures: Departures,
    metrics: Arc<Metrics>,
}

impl Books {
    /// Counts one blob more and draws its key, if there is room beside what its mailbox has `held`.
    fn admit(
        &mut self,
        quota: &Quota,
        held: Held,
        charged_bytes: u64,
    ) -> Result<OrderKey, Appended> {
        quota.admits(held, self.usage.bytes, charged_bytes)?;
        self.usage.created += 1;
        self.usage.stored += 1;
        self.usage.bytes += charged_bytes;
        self.metrics.blobs_created_total.increment(1);
        self.show_usage();
        self.last_key.0 += 1;
        Ok(self.last_key)
    }

    /// Counts the rows as gone and remembers them.
    fn depart(&mut self, way: Way, mailbox: MailboxHash, rows: &[Row], now: Timestamp) {
        if rows.is_empty() {
            return;
        }
        let blobs = rows.len() as u64;
        let (sum, counter) = match way {
            Way::Acknowledged => (
                &mut self.usage.acknowledged,
                &self.metrics.blobs_acknowledged_total,
            ),
            Way::Purged => (&mut self.usage.purged, &self.metrics.blobs_purged_total),
            Way::Expired => (&mut self.usage.expired, &self.metrics.blobs_expired_total),
        };
        *sum += blobs;
        counter.increment(blobs);
        self.usage.stored -= blobs;
        self.usage.bytes -= rows.iter().map(Row::charged_bytes).sum::<u64>();
        self.show_usage();

        let mut forgotten_early = 0;
        for row in rows {
            forgotten_early += self.departures.remember(mailbox, row, now);
        }
        self.metrics
            .dedup_forgotten_total
            .increment(forgotten_early);
        self.show_departures(now);
    }

    /// Forgets up to [`SLICE`] departures whose time is over, and answers how many.
    fn forget_slice(&mut self, now: Timestamp) -> usize {
        let forgotten = self.departures.forget(SLICE, now);
        self.show_departures(now);
        forgotten
    }

    fn show_usage(&self) {
        self.metrics.blobs_stored.set(self.usage.stored as f64);
        self.metrics.stored_bytes.set(self.usage.bytes as f64);
    }

    fn show_departures(&self, now: Timestamp) {
        let remembered = self.departures.by_age.len() as f64;
        self.metrics.dedup_remembered.set(remembered);
        let oldest = self.departures.by_age.first_key_value();
        let age = oldest.map_or(Duration::ZERO, |(_, (_, oldest))| now.since(oldest.left_at));
        self.metrics.dedup_memory_seconds.set(age.as_secs_f64());
    }
}

/// A blob within the relay.
type Name = (MailboxHash, BlobId);

/// The blobs that left lately, so that a late repeat is not stored again.
struct Departures {
    dedup: Duration,
    dedup_max: u64,
    /// Departures so far; numbers them.
    count: u64,
    by_name: HashMap<Name, u64>,
    by_age: BTreeMap<u64, (Name, Departed)>,
}

/// What a repeat is compared with and answered.
#[derive(Clone, Copy)]
struct Departed {
    left_at: Timestamp,
    checksum: [u8; 16],
    expires_at: Timestamp,
}

impl Departures {
    fn new(dedup: Duration, dedup_max: u64) -> Self {
        Self {
            dedup,
            dedup_max,
            count: 0,
            by_name: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    fn recall(&self, name: &Name, now: Timestamp) -> Option<Departed> {
        let (_, departed) = self.by_age.get(self.by_name.get(name)?)?;
        self.is_remembered(departed, now).then_some(*departed)
    }

    /// Remembers one more. Answers how many were forgotten before their time to make room.
    fn remember(&mut self, mailbox: MailboxHash, row: &Row, now: Timestamp) -> u64 {
        let name = (mailbox, row.id);
        let departed = Departed {
            left_at: now,
            checksum: row.checksum,
            expires_at: row.expires_at,
        };
        self.count += 1;
        // An earlier departure under the same name is one whose time was over.
        if let Some(earlier) = self.by_name.insert(name, self.count) {
            self.by_age.remove(&earlier);
        }
        self.by_age.insert(self.count, (name, departed));

        let mut forgotten_early = 0;
        while self.by_age.len() as u64 > self.dedup_max
            && let Some(oldest) = self.pop_oldest()
        {
            forgotten_early += u64::from(self.is_remembered(&oldest, now));
        }
        forgotten_early
    }

    /// Forgets up to `limit` whose time is over, the oldest first, and answers how many.
    fn forget(&mut self, limit: usize, now: Timestamp) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && let Some((_, (_, oldest))) = self.by_age.first_key_value()
            && !self.is_remembered(oldest, now)
        {
            self.pop_oldest();
            forgotten += 1;
        }
        forgotten
    }

    fn pop_oldest(&mut self) -> Option<Departed> {
        let (_, (name, departed)) = self.by_age.pop_first()?;
        self.by_name.remove(&name);
        Some(departed)
    }

    fn is_remembered(&self, departed: &Departed, now: Timestamp) -> bool {
        now.since(departed.left_at) < self.dedup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(body: &'static [u8]) -> Row {
        Row {
            id: BlobId::from_bytes([1; 16]),
            class: Class::SeenByV1,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::from_millis(9),
            checksum: [body[0]; 16],
            sealed: Bytes::new(),
            body: Bytes::from_static(body),
        }
    }

    /// Between two sweeps a blob may leave, be forgotten, be stored again and leave again.
    #[test]
    fn sweeping_away_an_old_departure_does_not_forget_a_new_one_of_the_same_name() {
        let hour = Duration::from_secs(3_600);
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let name = (mailbox, row(b"a").id);
        let mut departures = Departures::new(hour, 10);
        let first = Timestamp::from_millis(1);
        departures.remember(mailbox, &row(b"a"), first);
        let second = first.plus(2 * hour);
        assert!(departures.recall(&name, second).is_none());
        departures.remember(mailbox, &row(b"b"), second);
        departures.forget(SLICE, second);
        let recalled = departures.recall(&name, second).unwrap();
        assert_eq!(recalled.checksum, [b'b'; 16]);
        assert_eq!(departures.by_age.len(), 1);
        assert_eq!(departures.by_name.len(), 1);
    }

    /// A blob of a few bytes must not keep the read buffer alive that it came in.
    #[test]
    fn what_is_kept_is_a_copy_of_its_own_size() {
        let buffer = Bytes::from(vec![7; 1_000_000]);
        let envelope = Envelope {
            mailbox: MailboxHash::from_bytes([1; 32]),
            id: BlobId::from_bytes([1; 16]),
            class: Class::SeenByV1,
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
