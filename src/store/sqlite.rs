//! The default engine: one SQLite file in the data directory.
//!
//! Writes go through the commit pipeline to the one writing connection (`sqlite_writer`), pages
//! come from a few read-only ones (`sqlite_pages`). What the promises are: [`Store`]; how opening
//! goes and fails: [`SqliteOptions`], [`OpenError`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::commit::{Cause, Lane, Pipeline};
use super::model::{
    Appended, BacklogCursor, Envelope, OrderKey, Page, PageBounds, RecoveryPage, RecoveryProof,
    RecoveryPut, Removed, Swept, Usage, View,
};
use super::sqlite_errors::words;
use super::sqlite_open::{describe, look_at_log, open_writer, take_data_dir};
use super::sqlite_pages::{Cut, Readers};
use super::sqlite_writer::SqliteWriter;
use super::tally::Tally;
use super::working_set::expiry_slot;
use super::{Pending, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;

pub use super::sqlite_open::{DATABASE_FILE, DataDirLock, LOCK_FILE, OpenError, SqliteOptions};

/// Rows that a purge or the sweep removes in one transaction.
const SLICE_ROWS: u32 = 256;

/// Steps of one page over rows that are not shown, before it comes back with what it has.
const PAGE_STEPS_MAX: u32 = 4;

/// Slices of the current slot that one step of the sweep looks through.
const SLOT_SCANS_MAX: u32 = 16;

/// How long a probe may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);

/// How long the answer of a probe holds.
const PROBE_FRESH: Duration = Duration::from_secs(1);

/// A probe writes when nothing else was written for this long.
const PROBE_WRITE_AFTER: Duration = Duration::from_secs(5);

/// Blobs in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    pipeline: Pipeline,
    readers: Readers,
    secret: Secret,
    tally: Arc<Tally>,
    /// Up to where the sweep has looked through the current slot. Nothing awaits while it is locked.
    swept: Mutex<SlotCursor>,
    /// The last answer. Nothing awaits while it is locked.
    probed: Mutex<Option<(Instant, Result<(), StoreError>)>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SlotCursor {
    slot: i64,
    after: OrderKey,
}

impl SqliteStore {
    /// Opens the database in the data directory, or makes it there.
    pub async fn open(options: SqliteOptions) -> Result<Arc<Self>, OpenError> {
        let lock = take_data_dir(&options.data_dir, options.allow_network_fs)?;
        let path: PathBuf = options.data_dir.join(DATABASE_FILE);
        look_at_log(&path)?;
        let connection = open_writer(&path, &options.secret).await?;
        let readers = Readers::new(&path);
        // One reader is open from here on. It keeps SQLite's index of the log alive while the writer
        // is reopened after a failed fsync: that index ends at the last commit that succeeded.
        // Without it the log would be read anew, and what the fsync has not brought to the disk may
        // be in the system's cache at that moment and gone at the next.
        let opened = readers.probe().await;
        opened.map_err(|error| describe(&path, &error))?;
        let (writer, tally) = SqliteWriter::new(&options, path, connection, Arc::new(lock)).await?;
        Ok(Arc::new(Self {
            pipeline: Pipeline::start(writer, options.on_stored, options.metrics),
            readers,
            secret: options.secret,
            tally,
            swept: Mutex::default(),
            probed: Mutex::default(),
        }))
    }

    /// Reads the rows of one more step of a page. Tells whether it is done.
    async fn extend_page<C>(
        &self,
        page: &mut Page<C>,
        mailbox: &MailboxHash,
        cut: Cut<C>,
        now: Timestamp,
    ) -> sqlx::Result<bool> {
        let Cut {
            keys,
            next,
            more,
            is_full,
        } = cut;
        let rows = self.readers.rows(mailbox, &keys, &self.secret).await?;
        let mut corrupt = rows.damaged;
        let before = page.blobs.len();
        for row in rows.read {
            if !row.is_sound {
                corrupt.push(row.blob.key);
            } else if row.is_ours && row.blob.expires_at > now {
                page.blobs.push(row.blob);
            }
        }
        self.set_aside(corrupt, now);
        (page.next, page.more) = (next, more);
        let are_all_shown = page.blobs.len() - before == keys.len();
        Ok(!more || (is_full && are_all_shown))
    }

    /// Has rows that are not what they were set aside. Without waiting: when there is no place in
    /// the queue, the next one who reads them tries again.
    fn set_aside(&self, keys: Vec<OrderKey>, now: Timestamp) {
        if !keys.is_empty() {
            let queued = self
                .pipeline
                .remove(Lane::Normal, keys, Cause::Corrupt, now);
            drop(queued.now_or_never());
        }
    }

    /// Deletes up to `limit` rows of slots that are over.
    async fn expire_old_slots(&self, limit: u32, now: Timestamp) -> Result<u64, StoreError> {
        let mut expired = 0;
        while expired < u64::from(limit) {
            let slice = slice_of(limit, expired);
            let due = self.readers.expired_before(expiry_slot(now), slice).await;
            let keys = self.read(due)?;
            let found = keys.len() as u64;
            let removed = self.remove_expired(keys, now).await?;
            expired += removed;
            if removed == 0 || found < u64::from(slice) {
                break;
            }
        }
        Ok(expired)
    }

    /// Deletes up to `limit` rows of the current slot that are over. Looks through a bounded part
    /// of it and goes on from there the next time.
    async fn expire_current_slot(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        let slot = expiry_slot(now);
        let mut cursor = self.slot_cursor();
        if cursor.slot != slot {
            cursor = SlotCursor {
                slot,
                after: OrderKey::START,
            };
        }
        let mut swept = Swept {
            blobs: 0,
            more: true,
        };
        for _ in 0..SLOT_SCANS_MAX {
            let scanned = self.readers.of_slot(slot, cursor.after, SLICE_ROWS).await;
            let scanned = self.read(scanned)?;
            let is_end = scanned.len() < SLICE_ROWS as usize;
            let last = scanned.last().map_or(cursor.after, |(key, _)| *key);
            let mut keys: Vec<_> = scanned
                .into_iter()
                .filter(|(_, expires_at)| *expires_at <= now)
                .map(|(key, _)| key)
                .collect();
            let room = slice_of(limit, swept.blobs) as usize;
            if keys.len() > room {
                // The cursor stays before the first one that is left.
                keys.truncate(room);
                cursor.after = keys.last().copied().unwrap_or(cursor.after);
                swept.blobs += self.remove_expired(keys, now).await?;
                break;
            }
            swept.blobs += self.remove_expired(keys, now).await?;
            cursor.after = last;
            if is_end {
                cursor.after = OrderKey::START;
                swept.more = false;
                break;
            }
        }
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = cursor;
        Ok(swept)
    }

    fn slot_cursor(&self) -> SlotCursor {
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn remove_expired(&self, keys: Vec<OrderKey>, now: Timestamp) -> Result<u64, StoreError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let removed = self
            .pipeline
            .remove(Lane::Low, keys, Cause::Expired, now)
            .await?;
        Ok(removed.await?.blobs)
    }

    async fn probe_now(&self) -> Result<(), StoreError> {
        self.pipeline.check()?;
        let reads = self.readers.probe().await;
        self.read(reads)?;
        if self.tally.since_written() >= PROBE_WRITE_AFTER {
            self.pipeline.trial().await?;
        }
        Ok(())
    }

    /// What a read came to, in the words of the store.
    fn read<T>(&self, read: sqlx::Result<T>) -> Result<T, StoreError> {
        read.map_err(|error| match error {
            sqlx::Error::PoolClosed => StoreError::Closed,
            other => StoreError::unavailable(words(&other)),
        })
    }
}

/// How many rows the next slice may have.
fn slice_of(limit: u32, done: u64) -> u32 {
    let left = u64::from(limit).saturating_sub(done);
    u32::try_from(left).unwrap_or(u32::MAX).min(SLICE_ROWS)
}

/// What of `bounds` a page has not used; `None` when it is full.
fn left_of<C>(bounds: PageBounds, page: &Page<C>) -> Option<PageBounds> {
    let blobs = u32::try_from(page.blobs.len()).unwrap_or(u32::MAX);
    let used: usize = page
        .blobs
        .iter()
        .map(|blob| blob.sealed.len() + blob.body.len())
        .sum();
    let left = PageBounds {
        blobs_max: bounds.blobs_max.max(1).saturating_sub(blobs),
        bytes_max: bounds.bytes_max.saturating_sub(used as u64),
    };
    (left.blobs_max > 0 && (page.blobs.is_empty() || left.bytes_max > 0)).then_some(left)
}

#[async_trait]
impl Store for SqliteStore {
    async fn append(&self, envelope: Envelope) -> Result<Pending<Appended>, StoreError> {
        let checksum = self
            .secret
            .checksum(&envelope.mailbox, &envelope.id, &envelope.body);
        self.pipeline.append(envelope, checksum).await
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        self.pipeline.acknowledge(mailbox, ids, now).await
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let up_to = self.pipeline.mark().await?;
        let mut after = OrderKey::START;
        let mut purged = Removed::default();
        loop {
            let keys = self
                .readers
                .keys_of(mailbox.prefix64(), view, after, up_to, SLICE_ROWS)
                .await;
            let keys = self.read(keys)?;
            let Some(last) = keys.last().copied() else {
                return Ok(purged);
            };
            let cause = Cause::Purged { mailbox, view };
            let removed = self.pipeline.remove(Lane::Normal, keys, cause, now).await?;
            purged.blobs += removed.await?.blobs;
            after = last;
        }
    }

    async fn purge_owner(&self, owner: MailboxHash, now: Timestamp) -> Result<Removed, StoreError> {
        let up_to = self.pipeline.mark().await?;
        let mut after = OrderKey::START;
        let mut purged = Removed::default();
        loop {
            let keys = self
                .readers
                .keys_of_owner(owner.prefix64(), after, up_to, SLICE_ROWS)
                .await;
            let keys = self.read(keys)?;
            let Some(last) = keys.last().copied() else {
                return Ok(purged);
            };
            let cause = Cause::OwnerPurged { owner };
            let removed = self.pipeline.remove(Lane::Normal, keys, cause, now).await?;
            purged.blobs += removed.await?.blobs;
            after = last;
        }
    }

    async fn expire(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        if limit == 0 {
            let more = self.pipeline.tidy(now).await?;
            return Ok(Swept { blobs: 0, more });
        }
        let mut swept = Swept {
            blobs: self.expire_old_slots(limit, now).await?,
            more: true,
        };
        let left = limit.saturating_sub(u32::try_from(swept.blobs).unwrap_or(u32::MAX));
        if left == 0 {
            // Whether that was all decides whether the caller comes again for the current slot.
            let next = self.readers.expired_before(expiry_slot(now), 1).await;
            if !self.read(next)?.is_empty() {
                return Ok(swept);
            }
        }
        let current = self.expire_current_slot(left, now).await?;
        swept.blobs += current.blobs;
        swept.more = current.more || self.pipeline.tidy(now).await?;
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
        let mut page = Page {
            next: after,
            ..Page::default()
        };
        for _ in 0..PAGE_STEPS_MAX {
            let Some(left) = left_of(bounds, &page) else {
                break;
            };
            let is_first = page.blobs.is_empty();
            let mailbox64 = mailbox.prefix64();
            let cut = self
                .readers
                .cut(mailbox64, view, page.next, left, is_first, now)
                .await;
            let cut = self.read(cut)?;
            let extended = self.extend_page(&mut page, &mailbox, cut, now).await;
            if self.read(extended)? {
                break;
            }
        }
        Ok(page)
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        mut after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let mailbox64 = mailbox.prefix64();
        if after.up_to == OrderKey::START {
            // What is committed later has a larger key than what is visible now.
            after.up_to = self.read(self.readers.last_key(mailbox64).await)?;
        }
        let mut page = Page {
            next: after,
            ..Page::default()
        };
        for _ in 0..PAGE_STEPS_MAX {
            let Some(left) = left_of(bounds, &page) else {
                break;
            };
            let is_first = page.blobs.is_empty();
            let cut = self
                .readers
                .cut_backlog(mailbox64, page.next, left, is_first, now)
                .await;
            let cut = self.read(cut)?;
            let extended = self.extend_page(&mut page, &mailbox, cut, now).await;
            if self.read(extended)? {
                break;
            }
        }
        page.blobs.sort_by_key(|blob| (blob.version, blob.key));
        Ok(page)
    }

    async fn recovery_put(&self, proof: RecoveryProof) -> Result<RecoveryPut, StoreError> {
        self.pipeline.recovery_put(proof).await
    }

    async fn recovery_get(
        &self,
        key_hashes: Vec<[u8; 32]>,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        let found = self.readers.proofs(&key_hashes, bytes_max, now).await;
        self.read(found)
    }

    async fn recovery_remove(
        &self,
        key_hash: [u8; 32],
        owner: MailboxHash,
    ) -> Result<u64, StoreError> {
        self.pipeline.recovery_remove(key_hash, owner).await
    }

    async fn pin(&self, mailbox: MailboxHash, now: Timestamp) -> Result<(), StoreError> {
        let known = self.read(self.readers.pin(&mailbox).await)?;
        if known.is_some_and(|pin| pin.used(now).is_none()) {
            // As good as written today.
            return self.pipeline.check();
        }
        self.pipeline.pin(mailbox, now).await
    }

    async fn is_pinned(
        &self,
        mailbox: MailboxHash,
        max_ttl: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let pin = self.read(self.readers.pin(&mailbox).await)?;
        Ok(pin.is_some_and(|pin| pin.holds(max_ttl, now)))
    }

    async fn unpin(&self, mailbox: MailboxHash) -> Result<(), StoreError> {
        self.pipeline.unpin(mailbox).await
    }

    fn usage(&self) -> Usage {
        self.tally.usage()
    }

    async fn probe(&self, _now: Timestamp) -> Result<(), StoreError> {
        let last = self
            .probed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((at, answer)) = last
            && at.elapsed() < PROBE_FRESH
        {
            return answer;
        }
        let answer = tokio::time::timeout(PROBE_TIME_MAX, self.probe_now())
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::unavailable(
                    "storage has not answered within 2 s",
                ))
            });
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), answer.clone()));
        answer
    }

    async fn close(&self) {
        // The readers first, so that the writer leaves one complete file behind.
        self.readers.close().await;
        self.pipeline.close().await;
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
