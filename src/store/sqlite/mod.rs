//! The default engine: one SQLite file in the data directory.
//!
//! Writes go through the commit pipeline to the one writing connection (`writer`), pages
//! come from a few read-only ones (`pages`). What the promises are: [`Store`]; how opening
//! goes and fails: [`SqliteOptions`], [`OpenError`].

pub mod backup;
mod blobs;
pub(super) mod departures;
mod disk;
mod doubts;
mod errors;
mod load;
mod open;
mod owners;
mod pages;
mod pins;
mod recovery;
mod rows;
mod sweep;
pub(super) mod working_set;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::commit::{Cause, Lane, Pipeline, Write};
use super::model::{
    Appended, BacklogCursor, Envelope, Holding, Opener, OrderKey, Page, PageBounds, RecoveryPage,
    RecoveryProof, RecoveryPut, Removed, Swept, Tells, Usage, View,
};
use super::tally::Tally;
use super::{Pending, Store, StoreError};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use doubts::Doubts;
use errors::words;
use open::{describe, look_at_log, open_writer, take_data_dir};
use pages::{Cut, Readers, Row};
use sweep::SlotCursor;
use writer::SqliteWriter;

pub use open::{DATABASE_FILE, DataDirLock, LOCK_FILE, OpenError, SqliteOptions};

/// Rows that a purge or the sweep removes in one transaction.
pub(in crate::store) const SLICE_ROWS: u32 = 256;

/// Steps of one page over rows that are not shown, before it comes back with what it has.
const PAGE_STEPS_MAX: u32 = 4;

/// How long a probe may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);

/// How long the answer of a probe holds.
const PROBE_FRESH: Duration = Duration::from_secs(1);

/// A probe writes when nothing else was written for this long.
const PROBE_WRITE_AFTER: Duration = Duration::from_secs(5);

/// Blobs in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    pub(in crate::store) pipeline: Pipeline,
    pub(in crate::store) readers: Readers,
    pub(in crate::store) doubts: Doubts,
    pub(in crate::store) secret: Secret,
    tally: Arc<Tally>,
    /// Up to where the sweep has looked through the current slot. Nothing awaits while it is locked.
    pub(in crate::store) swept: Mutex<SlotCursor>,
    /// The last answer. Nothing awaits while it is locked.
    probed: Mutex<Option<(Instant, Result<(), StoreError>)>>,
}

impl SqliteStore {
    /// Opens the database in the data directory, or makes it there.
    pub async fn open(options: SqliteOptions) -> Result<Arc<Self>, OpenError> {
        let lock = take_data_dir(&options.data_dir, options.allow_network_fs)?;
        let path: PathBuf = options.data_dir.join(DATABASE_FILE);
        look_at_log(&path)?;
        let connection = open_writer(&path, &options.secret).await?;
        let readers = Readers::new(&path);
        let doubts = Doubts::new(&path);
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
            doubts,
            secret: options.secret,
            tally,
            swept: Mutex::default(),
            probed: Mutex::default(),
        }))
    }

    /// Reads the rows of one more step of a page. Tells whether it is done. A page ends before a row
    /// that cannot be read for now.
    async fn extend_page<C: Copy>(
        &self,
        page: &mut Page<C>,
        mailbox: &MailboxHash,
        cut: Cut<C>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let keys: Vec<_> = cut.entries.iter().map(|(key, _)| *key).collect();
        let before = page.blobs.len();
        let (mut rows, unread) = self.readable_rows(mailbox, &keys, now).await?;
        let stop = unread.as_ref().and_then(|(first, _)| {
            let is_first = |(key, _): &(i64, C)| *key == first.0;
            cut.entries.iter().position(is_first)
        });
        let shown = &cut.entries[..stop.unwrap_or(cut.entries.len())];
        rows.retain(|row| shown.iter().any(|(key, _)| *key == row.blob.key.0));
        let ours = rows
            .into_iter()
            .filter(|row| row.is_ours && row.blob.expires_at > now);
        page.blobs.extend(ours.map(|row| row.blob));
        let Some((_, error)) = unread else {
            (page.next, page.more) = (cut.next, cut.more);
            let are_all_shown = page.blobs.len() - before == keys.len();
            return Ok(!cut.more || (cut.is_full && are_all_shown));
        };
        if page.blobs.is_empty() {
            return Err(error);
        }
        page.next = shown.last().map_or(page.next, |(_, cursor)| *cursor);
        page.more = true;
        Ok(true)
    }

    /// Reads rows of which the damaged ones are left out. Beside them the first one, in the order of
    /// `keys`, that may be whole and cannot be read now, and why.
    async fn readable_rows(
        &self,
        mailbox: &MailboxHash,
        keys: &[i64],
        now: Timestamp,
    ) -> Result<(Vec<Row>, Option<(OrderKey, StoreError)>), StoreError> {
        let rows = self.readers.rows(mailbox, keys, &self.secret).await;
        let mut rows = self.read(rows)?;
        let judged = self.damaged_of(&rows.doubtful, now).await;
        let error = match judged {
            Ok(damaged) if damaged.len() == rows.doubtful.len() => return Ok((rows.read, None)),
            Ok(damaged) => {
                let again = self.readers.rows(mailbox, keys, &self.secret).await;
                rows = self.read(again)?;
                rows.doubtful.retain(|key| !damaged.contains(key));
                StoreError::unavailable("a stored blob cannot be read at every try")
            }
            Err(error) => error,
        };
        let first = keys.iter().map(|key| OrderKey(*key));
        let first = first.into_iter().find(|key| rows.doubtful.contains(key));
        Ok((rows.read, first.map(|first| (first, error))))
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
    pub(in crate::store) fn read<T>(&self, read: sqlx::Result<T>) -> Result<T, StoreError> {
        read.map_err(|error| match error {
            sqlx::Error::PoolClosed => StoreError::Closed,
            other => StoreError::unavailable(words(&other)),
        })
    }
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
    async fn append(
        &self,
        envelope: Envelope,
        expired_by: Timestamp,
    ) -> Result<Pending<Appended>, StoreError> {
        let checksum = self
            .secret
            .checksum(&envelope.mailbox, &envelope.id, &envelope.body);
        self.pipeline.append(envelope, checksum, expired_by).await
    }

    async fn acknowledge(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    ) -> Result<Pending<Removed>, StoreError> {
        self.pipeline.acknowledge(mailbox, ids, by, now).await
    }

    async fn delivered(
        &self,
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = Write::Delivered { mailbox, ids, now };
        self.pipeline.queue(write).await
    }

    async fn extend(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = Write::Extend {
            mailbox,
            id,
            expires_at,
            now,
        };
        self.pipeline.queue(write).await
    }

    async fn cancel(
        &self,
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    ) -> Result<Pending<()>, StoreError> {
        let write = Write::Cancel { mailbox, id, now };
        self.pipeline.queue(write).await
    }

    async fn purge(
        &self,
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
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
            let cause = Cause::Purged {
                mailbox,
                view,
                tells,
            };
            let removed = self.pipeline.remove(Lane::Normal, keys, cause, now).await?;
            let removed = removed.await?;
            purged.blobs += removed.blobs;
            purged.receipts += removed.receipts;
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

    async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError> {
        self.sweep(limit, expired_by).await
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
            if self.extend_page(&mut page, &mailbox, cut, now).await? {
                break;
            }
        }
        Ok(page)
    }

    async fn holdings(
        &self,
        mailboxes: Vec<MailboxHash>,
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let prefixes: Vec<_> = mailboxes.iter().map(MailboxHash::prefix64).collect();
        let held = self.read(self.readers.holdings(&prefixes, view, now).await)?;
        let of = |mailbox64: i64| held.get(&mailbox64).copied().unwrap_or_default();
        Ok(prefixes.into_iter().map(of).collect())
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
            if self.extend_page(&mut page, &mailbox, cut, now).await? {
                break;
            }
        }
        page.blobs.sort_by_key(|blob| (blob.version, blob.key));
        Ok(page)
    }

    async fn recovery_put(
        &self,
        proof: RecoveryProof,
        expired_by: Timestamp,
    ) -> Result<RecoveryPut, StoreError> {
        self.pipeline.recovery_put(proof, expired_by).await
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
