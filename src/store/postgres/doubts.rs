//! Rows that could not be read, or are not what was written: are they damaged?
//!
//! One look is no reason to delete anything: the server may have read a page badly once. A row goes through
//! these states:
//!
//! - **in doubt**: somebody has just found it bad. Pages end before it, so no reader passes it.
//! - **quarantined**: fresh connections found it bad twice, a second apart. It stays where it is, pages skip
//!   it, and it is looked at again ([`Doubts::look_again`], once a minute).
//! - **sound again**: a later look found it whole. It is delivered, also by sessions that have passed it.
//! - **lost**: ten looks agree, each in a minute of its own, and the committer finds the same.
//!   Only then does the row leave.
//!
//! A read that fails for another reason is no look. All this is in memory: after a restart a row is in doubt
//! again, and its looks are counted from the beginning.

use std::sync::Arc;

use foldhash::HashMap;
use tokio::sync::Mutex;

use super::readers::Readers;
use super::rows::look_at;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::LookedAgain;
use crate::store::model::OrderKey;
use crate::store::sql::quarantine::{Look, Quarantine, ROUND_PAUSE, ROUNDS};

/// The rows that were found damaged.
pub(super) struct Doubts {
    /// Held by the one who looks.
    examining: Mutex<()>,
    quarantine: Quarantine,
}

impl Doubts {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            examining: Mutex::default(),
            quarantine: Quarantine::new(metrics),
        }
    }

    /// All rows that are quarantined, in order.
    pub(super) fn quarantined(&self) -> Vec<OrderKey> {
        self.quarantine.keys()
    }

    /// Looks at rows in doubt and quarantines those that are damaged. An error when that cannot be told now.
    pub(super) async fn examine(
        &self,
        in_doubt: &[OrderKey],
        (readers, secret): (&Readers, &Secret),
    ) -> Result<(), StoreError> {
        let _one_at_a_time = self.examining.lock().await;
        let mut bad = in_doubt.to_vec();
        // Somebody else may have found out meanwhile.
        let known = self.quarantine.of(in_doubt);
        bad.retain(|key| !known.contains(key));
        for round in 0..ROUNDS {
            if bad.is_empty() {
                return Ok(());
            }
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            let looks = look(readers, &bad, secret).await?;
            bad.retain(|key| looks.get(key) == Some(&Look::Bad));
        }
        self.quarantine.take(&bad)
    }

    /// Looks at all quarantined rows again. Called once a minute.
    pub(super) async fn look_again(
        &self,
        readers: &Readers,
        secret: &Secret,
    ) -> Result<LookedAgain, StoreError> {
        let keys = self.quarantined();
        if keys.is_empty() {
            return Ok(LookedAgain::default());
        }
        let _one_at_a_time = self.examining.lock().await;
        let looks = look(readers, &keys, secret).await?;
        Ok(self.quarantine.looked(looks))
    }
}

async fn look(
    readers: &Readers,
    keys: &[OrderKey],
    secret: &Secret,
) -> Result<HashMap<OrderKey, Look>, StoreError> {
    let looking = readers.read_afresh(|mut connection| async move {
        let looks = look_at(&mut connection, keys, (secret, false)).await;
        (looks, connection)
    });
    Ok(looking.await?)
}
