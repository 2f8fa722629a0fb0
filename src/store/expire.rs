//! Rows whose time is over are removed, in small steps.

use std::time::Duration;

use super::engine::{ExpiryCursor, SWEPT_PROOFS_MAX};
use super::model::{OrderKey, Removed, Swept};
use super::write::{Cause, Write};
use super::{SLICE_ROWS, Store, StoreError};
use crate::clock::Timestamp;

/// How far back [`Store::expire_asking`] looks, at least.
const LATELY: Duration = Duration::from_secs(600);

impl Store {
    /// Deletes up to `limit` rows that had expired by `expired_by`, the oldest expiry first, recovery
    /// proofs that had, and forgets departures past their time; durable when it returns. Runs at
    /// lower priority than the other writes. Where another relay does so for all, this one does nothing.
    pub async fn expire(&self, limit: u32, expired_by: Timestamp) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        if !self.read(self.reads.does_chores()).await? {
            swept.next_expiry = self.read(self.reads.next_expiry()).await?;
            return Ok(swept);
        }
        while swept.blobs < u64::from(limit) {
            let left = limit.saturating_sub(u32::try_from(swept.blobs).unwrap_or(u32::MAX));
            let slice = left.min(SLICE_ROWS);
            let (keys, more) = self.read(self.reads.expired(slice, expired_by)).await?;
            let keys_found = keys.len();
            let removed: Removed = match keys.is_empty() {
                true => Removed::default(),
                false => self.remove_expired(keys, expired_by).await?,
            };
            swept.blobs += removed.rows();
            // Rows that cannot be removed are found again and again: they end it, too.
            swept.more = more && (removed.rows() > 0 || keys_found == 0);
            if !swept.more || keys_found == 0 {
                break;
            }
        }
        let proofs: Removed = self.write_low(Write::ExpireProofs { expired_by }).await?;
        let upkeep = self.counted(self.pipeline.upkeep(expired_by).await)?;
        swept.more |= upkeep || proofs.blobs >= SWEPT_PROOFS_MAX as u64;
        if !swept.more {
            swept.next_expiry = self.read(self.reads.next_expiry()).await?;
        }
        Ok(swept)
    }

    /// Deletes what [`Store::expire`] would delete later of the blobs that asked for receipts, so that
    /// their senders hear soon: those that had expired by `expired_by`, and not ten minutes before.
    /// Answers how many; durable when it returns.
    pub async fn expire_asking(&self, expired_by: Timestamp) -> Result<u64, StoreError> {
        let mut expired = 0;
        if !self.read(self.reads.does_chores()).await? {
            return Ok(0);
        }
        let mut next = Some(ExpiryCursor {
            expires_at: expired_by.minus(LATELY),
            key: OrderKey::START,
        });
        while let Some(from) = next {
            let slice = self.reads.expired_asking(from, SLICE_ROWS, expired_by);
            let (keys, later) = self.read(slice).await?;
            if !keys.is_empty() {
                expired += self.remove_expired(keys, expired_by).await?.rows();
            }
            next = later;
            // An engine may answer without waiting for anything.
            tokio::task::yield_now().await;
        }
        Ok(expired)
    }

    async fn remove_expired(
        &self,
        keys: Vec<OrderKey>,
        expired_by: Timestamp,
    ) -> Result<Removed, StoreError> {
        let write = Write::Remove {
            keys,
            cause: Cause::Expired,
            now: expired_by,
        };
        self.write_low(write).await
    }
}
