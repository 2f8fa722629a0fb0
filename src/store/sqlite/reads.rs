//! Pages of mailboxes, and what is due to be removed, from the read-only connections.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::columns::{expiry_slot, slot_start};
use super::doubts::Doubts;
use super::errors::words;
use super::pages::{Cut, Readers, Row, RowOfSlot, Rows};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::{ExpiryCursor, KeysOf, LookedAgain, Pin, Reads, Scrubbed};
use crate::store::model::{
    BacklogCursor, Holding, More, OrderKey, Page, PageBounds, RecoveryPage, View,
};

/// Steps of one page over rows that are not shown, before it comes back with what it has.
const PAGE_STEPS_MAX: u32 = 4;

/// Rows of the current slot that one slice looks at for expired ones, and slices of one call.
const SLOT_SCAN: (u32, u32) = (256, 16);

/// The reads of a SQLite database.
pub(super) struct SqliteReads {
    readers: Readers,
    doubts: Doubts,
    secret: Secret,
    /// Up to where the current slot was looked through for expired rows. Nothing awaits while it is
    /// locked.
    swept: Mutex<SlotCursor>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SlotCursor {
    slot: i64,
    after: OrderKey,
}

/// Why a page ends before its end: the first row that may be whole and cannot be read now.
struct Unread {
    key: OrderKey,
    error: StoreError,
}

/// Rows of a page, and why it ends before its end.
struct Readable {
    rows: Vec<Row>,
    unread: Option<Unread>,
}

impl SqliteReads {
    pub(super) fn new(readers: Readers, doubts: Doubts, secret: Secret) -> Self {
        Self {
            readers,
            doubts,
            secret,
            swept: Mutex::default(),
        }
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
        let Readable { mut rows, unread } = self.readable(mailbox, &keys).await?;
        let stop = unread.as_ref().and_then(|unread| {
            let is_first = |(key, _): &(i64, C)| *key == unread.key.0;
            cut.entries.iter().position(is_first)
        });
        let shown = &cut.entries[..stop.unwrap_or(cut.entries.len())];
        if stop.is_some() {
            rows.retain(|row| shown.iter().any(|(key, _)| *key == row.blob.key.0));
        }
        let ours = rows
            .into_iter()
            .filter(|row| row.is_ours && row.blob.expires_at > now)
            .filter(|row| !self.readers.is_gone(row.blob.key));
        page.blobs.extend(ours.map(|row| row.blob));
        let Some(unread) = unread else {
            page.next = cut.next;
            page.more = if cut.more { More::Yes } else { More::No };
            let are_all_shown = page.blobs.len() - before == keys.len();
            return Ok(!cut.more || (cut.is_full && are_all_shown));
        };
        if page.blobs.is_empty() {
            return Err(unread.error);
        }
        page.next = shown.last().map_or(page.next, |(_, cursor)| *cursor);
        page.more = More::Soon;
        Ok(true)
    }

    /// Reads rows, of which the quarantined ones are left out.
    async fn readable(&self, mailbox: &MailboxHash, keys: &[i64]) -> Result<Readable, StoreError> {
        let mut rows = self.read_rows(mailbox, keys).await?;
        let mut why = StoreError::unavailable("reading a stored blob fails at some attempts");
        if !rows.doubtful.is_empty() {
            let with = (&self.readers, &self.secret);
            match self.doubts.examine(&rows.doubtful, with).await {
                Ok(()) => rows = self.read_rows(mailbox, keys).await?,
                Err(error) => {
                    let quarantined = self.doubts.quarantined_of(&rows.doubtful);
                    rows.doubtful.retain(|key| !quarantined.contains(key));
                    why = error;
                }
            }
        }
        let mut in_order = keys.iter().map(|key| OrderKey(*key));
        let first = in_order.find(|key| rows.doubtful.contains(key));
        Ok(Readable {
            rows: rows.read,
            unread: first.map(|key| Unread { key, error: why }),
        })
    }

    async fn read_rows(&self, mailbox: &MailboxHash, keys: &[i64]) -> Result<Rows, StoreError> {
        let order: Vec<_> = keys.iter().copied().map(OrderKey).collect();
        let quarantined = self.doubts.quarantined_of(&order);
        if quarantined.is_empty() {
            return read(self.readers.rows(mailbox, keys, &self.secret).await);
        }
        let mut keys = keys.to_vec();
        keys.retain(|key| !quarantined.contains(&OrderKey(*key)));
        read(self.readers.rows(mailbox, &keys, &self.secret).await)
    }

    /// Rows of the current slot that are over, after the last ones that were found. Tells whether
    /// the slot was looked through to its end.
    async fn expired_of_slot(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        let slot = expiry_slot(expired_by);
        let mut cursor = *self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if cursor.slot != slot {
            cursor = SlotCursor {
                slot,
                after: OrderKey::START,
            };
        }
        let (slice, slices_max) = SLOT_SCAN;
        let (mut keys, mut is_end) = (Vec::new(), false);
        for _ in 0..slices_max {
            let scanned = read(self.readers.of_slot(slot, cursor.after, slice).await)?;
            is_end = scanned.len() < slice as usize;
            for row in scanned {
                if row.expires_at <= expired_by {
                    if keys.len() >= limit as usize {
                        is_end = false;
                        break;
                    }
                    keys.push(row.key);
                }
                cursor.after = row.key;
            }
            if is_end || (limit > 0 && keys.len() >= limit as usize) {
                break;
            }
        }
        if is_end {
            cursor.after = OrderKey::START;
        }
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = cursor;
        Ok((keys, is_end))
    }
}

/// What a read came to, in the words of the store.
fn read<T>(read: sqlx::Result<T>) -> Result<T, StoreError> {
    read.map_err(|error| match error {
        sqlx::Error::PoolClosed => StoreError::Closed,
        other => StoreError::unavailable(words(&other)),
    })
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
impl Reads for SqliteReads {
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
            if self
                .extend_page(&mut page, &mailbox, read(cut)?, now)
                .await?
            {
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
            after.up_to = read(self.readers.last_key(mailbox64).await)?;
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
            if self
                .extend_page(&mut page, &mailbox, read(cut)?, now)
                .await?
            {
                break;
            }
        }
        page.blobs.sort_by_key(|blob| (blob.version, blob.key));
        Ok(page)
    }

    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let prefixes: Vec<_> = mailboxes.iter().map(MailboxHash::prefix64).collect();
        let held = read(self.readers.holdings(&prefixes, view, now).await)?;
        let of = |mailbox64: i64| held.get(&mailbox64).copied().unwrap_or_default();
        Ok(prefixes.into_iter().map(of).collect())
    }

    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        read(self.readers.proofs(key_hashes, bytes_max, now).await)
    }

    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError> {
        let pins = read(self.readers.pins(mailboxes).await)?;
        let of = |mailbox: &MailboxHash| pins.get(mailbox).copied();
        Ok(mailboxes.iter().map(of).collect())
    }

    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError> {
        let readers = &self.readers;
        read(match of {
            KeysOf::Mailbox(mailbox, view) => {
                let mailbox64 = mailbox.prefix64();
                readers.keys_of(mailbox64, view, after, up_to, limit).await
            }
            KeysOf::Owner(owner) => {
                let owner64 = owner.prefix64();
                readers.keys_of_owner(owner64, after, up_to, limit).await
            }
        })
    }

    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        let (slot, one_more) = (expiry_slot(expired_by), limit as usize + 1);
        let mut keys = read(self.readers.expired_before(slot, one_more).await)?;
        if keys.len() > limit as usize {
            keys.truncate(limit as usize);
            return Ok((keys, true));
        }
        let left = limit.saturating_sub(u32::try_from(keys.len()).unwrap_or(u32::MAX));
        let (current, is_end) = self.expired_of_slot(left, expired_by).await?;
        keys.extend(current);
        Ok((keys, !is_end))
    }

    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError> {
        let slot = expiry_slot(from.expires_at);
        let scanned = read(self.readers.of_slot(slot, from.key, limit).await)?;
        let last = scanned.last().filter(|_| scanned.len() == limit as usize);
        let next = match last {
            Some(last) => Some(ExpiryCursor {
                expires_at: slot_start(slot),
                key: last.key,
            }),
            None => (slot < expiry_slot(expired_by)).then_some(ExpiryCursor {
                expires_at: slot_start(slot + 1),
                key: OrderKey::START,
            }),
        };
        let is_due = |row: &RowOfSlot| row.is_asking && row.expires_at <= expired_by;
        let due = scanned.into_iter().filter(is_due);
        Ok((due.map(|row| row.key).collect(), next))
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        read(self.readers.next_expiry().await)
    }

    async fn horizon(&self) -> Result<OrderKey, StoreError> {
        read(self.readers.horizon().await)
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.readers.look().await.map_err(StoreError::unavailable)
    }

    async fn look_again(&self) -> Result<LookedAgain, StoreError> {
        self.doubts.look_again(&self.readers, &self.secret).await
    }

    async fn read_again(&self) -> Result<(), StoreError> {
        self.doubts.read_again().await
    }

    async fn scrub(&self, after: OrderKey) -> Result<Scrubbed, StoreError> {
        let slice = read(self.readers.check_slice(after, &self.secret).await)?;
        let with = (&self.readers, &self.secret);
        let known = self.doubts.quarantined_of(&slice.doubtful);
        let mut doubtful = slice.doubtful;
        doubtful.retain(|key| !known.contains(key));
        self.doubts.examine(&doubtful, with).await?;
        let misplaced = slice.misplaced.into_iter().map(|row| row.key);
        let mut misplaced: Vec<_> = misplaced.collect();
        // What has left is in no run.
        self.readers.retain_present(&mut misplaced);
        let misplaced = self.doubts.misplaced_of(misplaced, with).await?;
        Ok(Scrubbed {
            next: slice.next,
            rows: slice.rows,
            bytes: slice.bytes,
            misplaced,
        })
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.doubts.check()?;
        read(self.readers.probe().await)
    }

    async fn close(&self) {
        self.readers.close().await;
    }
}
