//! The engine that keeps everything in memory: the reference for the promises.
//!
//! Blobs lie in shards, by their mailbox's prefix, so that sessions do not wait for each other. What
//! is counted over all mailboxes (order keys, bytes, departures) lies in one set of books whose lock
//! is held for a few map operations at a time and always taken last: pins before shard before books,
//! never two shards at once. A blob's key is drawn under its shard's lock, so that a reader of the mailbox
//! never sees a later blob before an earlier one. Memory is not checked for bit rot: nothing is lost
//! here but by the end of the process.

mod append;
mod books;
mod pins;
mod receipts;
mod recovery;
mod shard;
mod sweep;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::model::{
    Appended, BacklogCursor, Envelope, Holding, Opener, OrderKey, Page, PageBounds, RecoveryPage,
    RecoveryProof, RecoveryPut, Removed, Swept, Tells, Usage, View,
};
use super::plan::leaving::Leaving;
use super::plan::pins::Pin;
use super::plan::quota::Quota;
use super::{OnStored, Pending, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use crate::secrets::Secret;
use books::{Books, Departures};
use pins::Pins;
use shard::{Row, Shard};

/// Enough that two of a few dozen threads seldom meet; each costs some 100 bytes when empty.
const SHARDS: usize = 64;

/// Blobs or departures that are deleted under one lock before others get their turn.
pub(in crate::store) const SLICE: usize = 256;

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
    /// How long a receipt lives.
    pub receipt_ttl: Duration,
    /// Told of each mailbox that has something new.
    pub on_stored: OnStored,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

/// Blobs in memory. They survive everything but the end of the process.
pub struct MemoryStore {
    pub(in crate::store) secret: Secret,
    pub(in crate::store) quota: Quota,
    pub(in crate::store) receipt_ttl: Duration,
    pub(in crate::store) on_stored: OnStored,
    pub(in crate::store) metrics: Arc<Metrics>,
    is_closed: AtomicBool,
    /// Nothing awaits under these locks.
    shards: Vec<Mutex<Shard>>,
    /// Nothing awaits under this lock, which is taken before a shard's.
    pins: Mutex<Pins>,
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
            receipt_ttl: options.receipt_ttl,
            on_stored: options.on_stored,
            is_closed: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            pins: Mutex::default(),
            books: Mutex::new(Books::new(
                Departures::new(options.dedup, options.dedup_max),
                Arc::clone(&metrics),
            )),
            metrics,
        }
    }

    /// Purges what is wanted of a mailbox up to `last`, a slice at a time.
    async fn purge_all(
        &self,
        mailbox: MailboxHash,
        wanted: impl Fn(&Row) -> bool + Send + Sync,
        last: OrderKey,
        (tells, now): (Tells, Timestamp),
    ) -> Result<Removed, StoreError> {
        let mut after = Some(OrderKey::START);
        let mut removed = Removed::default();
        while let Some(from) = after {
            let (rows, next) = self.purge_slice(mailbox, &wanted, (from, last), (tells, now))?;
            for row in rows {
                removed.add(Some(row.class));
            }
            after = next;
            tokio::task::yield_now().await;
        }
        Ok(removed)
    }

    /// Purges up to [`SLICE`] blobs after `after` and up to `last`. Answers which, and where the
    /// next slice begins when there may be one.
    fn purge_slice(
        &self,
        mailbox: MailboxHash,
        wanted: impl Fn(&Row) -> bool,
        (after, last): (OrderKey, OrderKey),
        (tells, now): (Tells, Timestamp),
    ) -> Result<(Vec<Row>, Option<OrderKey>), StoreError> {
        let mut shard = self.shard(&mailbox)?;
        let keys = shard.keys_of(&mailbox, wanted, after, last);
        let removed = keys.iter().filter_map(|key| shard.remove(&mailbox, *key));
        let (mut expired, mut removed): (Vec<Row>, Vec<Row>) =
            removed.partition(|row| row.is_expired(now));
        let purged = Leaving::Purged(tells);
        self.books()
            .depart(Leaving::Expired, mailbox, &expired, now);
        self.books().depart(purged, mailbox, &removed, now);
        drop(shard);
        self.tell(Leaving::Expired, &mailbox, &expired, now);
        self.tell(purged, &mailbox, &removed, now);
        removed.append(&mut expired);
        let next = keys.last().copied().filter(|_| keys.len() == SLICE);
        Ok((removed, next))
    }

    /// Takes pins away until there is room for one more; tells how many.
    fn make_room_for_a_pin(&self, pins: &mut Pins) -> u64 {
        let mut evicted = 0;
        while self.quota.pins_beyond(pins.len() + 1) > 0 {
            let is_empty = |mailbox: &MailboxHash| {
                self.shard(mailbox)
                    .is_ok_and(|shard| shard.is_empty(mailbox))
            };
            let Some(next) = pins.next_to_go(is_empty) else {
                break;
            };
            pins.remove(&next);
            evicted += 1;
        }
        evicted
    }

    fn pins(&self) -> Result<MutexGuard<'_, Pins>, StoreError> {
        let pins = lock(&self.pins);
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        Ok(pins)
    }

    /// The shard of a mailbox. An error once the store is closed: [`Store::close`] passes through
    /// every lock, so that nothing is written after it returned.
    pub(in crate::store) fn shard(
        &self,
        mailbox: &MailboxHash,
    ) -> Result<MutexGuard<'_, Shard>, StoreError> {
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

    pub(in crate::store) fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        let (mailbox, now) = (envelope.mailbox, envelope.stored_at);
        let checksum = self.secret.checksum(&mailbox, &envelope.id, &envelope.body);
        let row = Row::new(&envelope, checksum);
        let outcome = self.take(mailbox, row, (now, expired_by))?;
        if matches!(outcome, Appended::Stored { .. }) {
            (self.on_stored)(&mailbox);
        }
        Ok(Pending::ready(outcome))
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        let mut shard = self.shard(&mailbox)?;
        let removed: Vec<Row> = ids
            .iter()
            .filter_map(|id| shard.acknowledge(&mailbox, id, by.view))
            .collect();
        let leaving = Leaving::Acknowledged(by.tells);
        self.books().depart(leaving, mailbox, &removed, now);
        drop(shard);
        self.tell(leaving, &mailbox, &removed, now);
        let mut counted = Removed::default();
        for row in removed {
            counted.add(Some(row.class));
        }
        Ok(Pending::ready(counted))
    }

    async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        for id in ids {
            let to = self.shard(&mailbox)?.delivered(&mailbox, &id);
            if let Some(to) = to {
                self.tell_delivered(&mailbox, (id, to), now);
            }
        }
        Ok(Pending::ready(()))
    }

    async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let mut shard = self.shard(&mailbox)?;
        shard.extend(&mailbox, &id, expires_at, now);
        Ok(Pending::ready(()))
    }

    async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        self.withdraw(mailbox, &id, now).map(Pending::ready)
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let last = self.shard(&mailbox)?.last_key(&mailbox);
        let is_shown = |row: &Row| view.shows(row.class);
        self.purge_all(mailbox, is_shown, last, (tells, now)).await
    }

    async fn purge_owner(&self, owner: MailboxHash, now: Timestamp) -> Result<Removed, StoreError> {
        // So that a closed store says so.
        drop(self.shard(&owner)?);
        let (last, mailboxes) = {
            let books = self.books();
            (books.last_key(), books.mailboxes_of(&owner))
        };
        let is_theirs = |row: &Row| row.owner.is_some_and(|of| of.hash == owner);
        let mut removed = Removed::default();
        for mailbox in mailboxes {
            let told = (Tells::Nobody, now);
            let purged = self.purge_all(mailbox, is_theirs, last, told).await?;
            removed.blobs += purged.blobs;
        }
        Ok(removed)
    }

    async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError> {
        let swept = self.sweep(limit, expired_by)?;
        while self.books().forget_slice(expired_by) == SLICE {
            tokio::task::yield_now().await;
        }
        while self.books().sweep_proofs(expired_by) == SLICE {
            tokio::task::yield_now().await;
        }
        Ok(swept)
    }

    async fn expire_asking(&self, expired_by: Timestamp) -> Result<u64, StoreError> {
        self.sweep_asking(expired_by).await
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

    async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let holding = |mailbox| Ok(self.shard(mailbox)?.holding(mailbox, view, now));
        mailboxes.iter().map(holding).collect()
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        Ok(self.shard(&mailbox)?.backlog(&mailbox, after, bounds, now))
    }

    async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        let _open = self.shard_at(0)?;
        Ok({
            let mut books = self.books();
            books.recovery_put(&proof, expired_by, &self.quota)
        })
    }

    async fn recovery_get(
        &self,
        key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        let _open = self.shard_at(0)?;
        Ok(self.books().proofs().get(&key_hashes, bytes_max, now))
    }

    async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        let _open = self.shard_at(0)?;
        Ok(self.books().recovery_remove(&key_hash, &owner))
    }

    async fn pin(&self, mailbox: MailboxHash, now: Timestamp) -> Result<(), StoreError> {
        let mut pins = self.pins()?;
        let before = pins.get(&mailbox);
        let pin = match before {
            Some(pin) => pin.used(now),
            None => Some(Pin::new(now)),
        };
        let Some(pin) = pin else {
            return Ok(());
        };
        let evicted = match before {
            Some(_) => 0,
            None => self.make_room_for_a_pin(&mut pins),
        };
        pins.insert(mailbox, pin);
        self.books().count_pins(pins.len(), evicted);
        Ok(())
    }

    async fn is_pinned(
        &self,
        mailbox: MailboxHash,
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let pin = self.pins()?.get(&mailbox);
        Ok(pin.is_some_and(|pin| pin.holds(max_ttl, now)))
    }

    async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        let mut pins = self.pins()?;
        pins.remove(&mailbox);
        self.books().count_pins(pins.len(), 0);
        Ok(())
    }

    fn usage(&self) -> Usage {
        self.books().usage()
    }

    async fn probe(&self, _now: Timestamp) -> Result<(), StoreError> {
        self.shard_at(0).map(drop)
    }

    async fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        drop(lock(&self.pins));
        for shard in &self.shards {
            drop(lock(shard));
        }
        self.metrics.store_up.set(0.0);
    }
}

/// Nothing panics under these locks, so what they guard is whole even if one says otherwise.
pub(in crate::store) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
