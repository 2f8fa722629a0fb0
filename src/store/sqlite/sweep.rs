//! Deleting what has expired, in slices between other writes.

use std::sync::PoisonError;

use super::working_set::expiry_slot;
use super::{SLICE_ROWS, SqliteStore};
use crate::clock::Timestamp;
use crate::store::commit::{Cause, Lane};
use crate::store::model::{OrderKey, Swept};
use crate::store::{LATELY, StoreError};

/// Slices of the current slot that one step of the sweep looks through.
const SLOT_SCANS_MAX: u32 = 16;

#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct SlotCursor {
    slot: i64,
    after: OrderKey,
}

impl SqliteStore {
    /// One step of the sweep: up to `limit` rows, or with zero only the housekeeping.
    pub(in crate::store) async fn sweep(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<Swept, StoreError> {
        if limit == 0 {
            let more = self.pipeline.tidy(expired_by).await?;
            return Ok(Swept {
                more,
                ..Swept::default()
            });
        }
        let mut swept = Swept {
            blobs: self.expire_old_slots(limit, expired_by).await?,
            more: true,
            next_expiry: None,
        };
        let left = limit.saturating_sub(u32::try_from(swept.blobs).unwrap_or(u32::MAX));
        if left == 0 {
            // Whether that was all decides whether the caller comes again for the current slot.
            let next = self
                .readers
                .expired_before(expiry_slot(expired_by), 1)
                .await;
            if !self.read(next)?.is_empty() {
                return Ok(swept);
            }
        }
        let current = self.expire_current_slot(left, expired_by).await?;
        swept.blobs += current.blobs;
        swept.more = current.more || self.pipeline.tidy(expired_by).await?;
        if !swept.more {
            let next = self.readers.next_expiry().await;
            swept.next_expiry = self.read(next)?;
        }
        Ok(swept)
    }

    /// Deletes up to `limit` rows of slots that are over.
    async fn expire_old_slots(&self, limit: u32, expired_by: Timestamp) -> Result<u64, StoreError> {
        let mut expired = 0;
        while expired < u64::from(limit) {
            let slice = slice_of(limit, expired);
            let due = self
                .readers
                .expired_before(expiry_slot(expired_by), slice)
                .await;
            let keys = self.read(due)?;
            let found = keys.len() as u64;
            let removed = self.remove_expired(keys, expired_by).await?;
            expired += removed;
            if removed == 0 || found < u64::from(slice) {
                break;
            }
        }
        Ok(expired)
    }

    /// Deletes up to `limit` rows of the current slot that are over. Looks through a bounded part
    /// of it and goes on from there the next time.
    async fn expire_current_slot(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<Swept, StoreError> {
        let slot = expiry_slot(expired_by);
        let mut cursor = self.slot_cursor();
        if cursor.slot != slot {
            cursor = SlotCursor {
                slot,
                after: OrderKey::START,
            };
        }
        let mut swept = Swept {
            more: true,
            ..Swept::default()
        };
        for _ in 0..SLOT_SCANS_MAX {
            let scanned = self.readers.of_slot(slot, cursor.after, SLICE_ROWS).await;
            let scanned = self.read(scanned)?;
            let is_end = scanned.len() < SLICE_ROWS as usize;
            let last = scanned.last().map_or(cursor.after, |row| row.key);
            let expired = scanned.iter().filter(|row| row.expires_at <= expired_by);
            let mut keys: Vec<_> = expired.map(|row| row.key).collect();
            let room = slice_of(limit, swept.blobs) as usize;
            if keys.len() > room {
                // The cursor stays before the first one that is left.
                keys.truncate(room);
                cursor.after = keys.last().copied().unwrap_or(cursor.after);
                swept.blobs += self.remove_expired(keys, expired_by).await?;
                break;
            }
            swept.blobs += self.remove_expired(keys, expired_by).await?;
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

    /// Deletes the rows that asked for receipts of the current slot and of those before it that
    /// were over lately.
    pub(in crate::store) async fn sweep_asking(
        &self,
        expired_by: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut expired = 0;
        for slot in expiry_slot(expired_by.minus(LATELY))..=expiry_slot(expired_by) {
            let mut after = Some(OrderKey::START);
            while let Some(from) = after {
                let scanned = self.readers.of_slot(slot, from, SLICE_ROWS).await;
                let scanned = self.read(scanned)?;
                let due = scanned
                    .iter()
                    .filter(|row| row.is_asking && row.expires_at <= expired_by);
                let keys = due.map(|row| row.key).collect();
                expired += self.remove_expired(keys, expired_by).await?;
                let is_end = scanned.len() < SLICE_ROWS as usize;
                after = scanned.last().filter(|_| !is_end).map(|row| row.key);
            }
        }
        Ok(expired)
    }

    fn slot_cursor(&self) -> SlotCursor {
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn remove_expired(
        &self,
        keys: Vec<OrderKey>,
        expired_by: Timestamp,
    ) -> Result<u64, StoreError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let removed = self
            .pipeline
            .remove(Lane::Low, keys, Cause::Expired, expired_by)
            .await?;
        Ok(removed.await?.rows())
    }
}

/// How many rows the next slice may have.
fn slice_of(limit: u32, done: u64) -> u32 {
    let left = u64::from(limit).saturating_sub(done);
    u32::try_from(left).unwrap_or(u32::MAX).min(SLICE_ROWS)
}
