//! Rows that could not be read, or are not what was written: are they damaged?
//!
//! One look is no reason to delete anything: the server may have read a page badly once. A row goes through
//! these states:
//!
//! - **in doubt**: somebody has just found it bad. Pages end before it, so no reader passes it.
//! - **quarantined**: fresh connections found it bad twice, a second apart. It stays where it is, pages skip
//!   it, and it is looked at again ([`Doubts::look_again`], once a minute).
//! - **sound again**: a later look found it whole. It is delivered, also by sessions that have passed it.
//! - **lost**: [`LOOKS_TO_LOSE`] looks agree, each in a minute of its own, and the committer finds the same.
//!   Only then does the row leave.
//!
//! A read that fails for another reason is no look. All this is in memory: after a restart a row is in doubt
//! again, and its looks are counted from the beginning.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use tracing::{info, warn};

use super::readers::Readers;
use super::rows::{Look, look_at};
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::LookedAgain;
use crate::store::model::OrderKey;

/// How often a row must be found bad before it is quarantined.
const ROUNDS: u32 = 2;

/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// So many further looks must agree before a row is lost. One a minute: ten minutes.
const LOOKS_TO_LOSE: u32 = 10;

/// Rows that are quarantined at the most, 50 bytes each. Pages end before the next one.
const QUARANTINED_MAX: usize = 4_096;

/// The rows that were found damaged.
pub(super) struct Doubts {
    /// Held by the one who looks.
    examining: tokio::sync::Mutex<()>,
    /// How many looks have agreed that a quarantined row is damaged. Nothing awaits while it is locked.
    quarantined: Mutex<BTreeMap<OrderKey, u32>>,
    metrics: Arc<Metrics>,
}

impl Doubts {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            examining: tokio::sync::Mutex::default(),
            quarantined: Mutex::default(),
            metrics,
        }
    }

    /// All rows that are quarantined, in order.
    pub(super) fn quarantined(&self) -> Vec<OrderKey> {
        self.state().keys().copied().collect()
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
        bad.retain(|key| !self.state().contains_key(key));
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
        self.quarantine(&bad)
    }

    fn quarantine(&self, bad: &[OrderKey]) -> Result<(), StoreError> {
        let mut quarantined = self.state();
        let room = QUARANTINED_MAX.saturating_sub(quarantined.len());
        let fit = &bad[..bad.len().min(room)];
        quarantined.extend(fit.iter().map(|key| (*key, 0)));
        self.show(&quarantined);
        if !fit.is_empty() {
            let blobs = fit.len();
            warn!(
                blobs,
                "store: {blobs} stored blobs cannot be read or do not match their checksum; they are skipped, kept, and looked at again every minute; check the database server's disk"
            );
        }
        if fit.len() < bad.len() {
            let full = format!(
                "{QUARANTINED_MAX} stored blobs are damaged; deliveries wait at the next one"
            );
            return Err(StoreError::unavailable(full));
        }
        Ok(())
    }

    /// Looks at all quarantined rows again: those that are sound leave the quarantine, and those that were
    /// found bad often enough are told. Called once a minute.
    pub(super) async fn look_again(
        &self,
        readers: &Readers,
        secret: &Secret,
    ) -> Result<LookedAgain, StoreError> {
        let keys = self.quarantined();
        let mut looked = LookedAgain::default();
        if keys.is_empty() {
            return Ok(looked);
        }
        let _one_at_a_time = self.examining.lock().await;
        let looks = look(readers, &keys, secret).await?;
        let mut quarantined = self.state();
        for (key, look) in looks {
            match look {
                Look::Gone => drop(quarantined.remove(&key)),
                Look::Sound(mailbox) => {
                    quarantined.remove(&key);
                    looked.sound.push((mailbox, key));
                }
                Look::Bad => {
                    let agreed = quarantined.entry(key).or_default();
                    *agreed += 1;
                    // One that cannot even be removed is tried again after as many looks.
                    if agreed.is_multiple_of(LOOKS_TO_LOSE) {
                        looked.damaged.push(key);
                    }
                }
            }
        }
        self.show(&quarantined);
        let sound = looked.sound.len();
        if sound > 0 {
            info!(
                blobs = sound,
                "store: {sound} stored blobs can be read again and are delivered"
            );
        }
        Ok(looked)
    }

    fn show(&self, quarantined: &BTreeMap<OrderKey, u32>) {
        let blobs = u32::try_from(quarantined.len()).unwrap_or(u32::MAX);
        self.metrics.blobs_quarantined.set(f64::from(blobs));
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<OrderKey, u32>> {
        self.quarantined
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
