//! How the memory engine deletes what has expired.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::shard::Row;
use super::{MemoryStore, SHARDS};
use crate::clock::Timestamp;
use crate::store::model::Swept;
use crate::store::plan::leaving::Leaving;
use crate::store::{LATELY, StoreError};

impl MemoryStore {
    /// Deletes up to `limit` expired blobs. Each shard has its own queue by expiry; always taking
    /// from the one whose head is oldest makes them one.
    pub(in crate::store) fn sweep(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<Swept, StoreError> {
        let mut heads = BinaryHeap::new();
        for index in 0..SHARDS {
            let head = self.shard_at(index)?.first_expired(expired_by);
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
            if let Some((_, key, mailbox)) = shard.first_expired(expired_by) {
                let removed = shard.remove(&mailbox, key);
                let leaving = Leaving::Expired;
                self.books()
                    .depart(leaving, mailbox, removed.as_slice(), expired_by);
                swept.blobs += removed.iter().count() as u64;
                let head = shard.first_expired(expired_by);
                heads.extend(head.map(|head| Reverse((head, index))));
                drop(shard);
                self.tell(leaving, &mailbox, removed.as_slice(), expired_by);
            }
        }
        if !swept.more {
            for index in 0..SHARDS {
                let next = self.shard_at(index)?.next_expiry();
                swept.next_expiry = [swept.next_expiry, next].into_iter().flatten().min();
            }
        }
        Ok(swept)
    }

    /// Deletes what asked for receipts and had expired by `expired_by`, not long before.
    pub(in crate::store) async fn sweep_asking(
        &self,
        expired_by: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut expired = 0;
        let since = expired_by.minus(LATELY);
        for index in 0..SHARDS {
            let due = self.shard_at(index)?.asking(since, expired_by);
            for (mailbox, key) in due {
                let mut shard = self.shard_at(index)?;
                // It may have been acknowledged by now.
                let removed = shard.remove(&mailbox, key);
                let rows: &[Row] = removed.as_slice();
                let leaving = Leaving::Expired;
                self.books().depart(leaving, mailbox, rows, expired_by);
                expired += rows.len() as u64;
                drop(shard);
                self.tell(leaving, &mailbox, rows, expired_by);
            }
            tokio::task::yield_now().await;
        }
        Ok(expired)
    }
}
