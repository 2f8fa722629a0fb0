//! Rows that were found damaged and stay where they are, skipped, until that is certain.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use crate::ids::MailboxHash;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::engine::LookedAgain;
use crate::store::model::{OrderKey, StoredBlob};

/// How often a row must be found bad before it is quarantined.
pub(in crate::store) const ROUNDS: u32 = 2;

/// Between two rounds.
pub(in crate::store) const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// So many further looks must agree before a row is lost. One a minute: ten minutes.
pub(in crate::store) const LOOKS_TO_LOSE: u32 = 10;

/// Rows that are quarantined at the most, 50 bytes each. Pages end before the next one.
const QUARANTINED_MAX: usize = 4_096;

/// What a look at one row finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Look {
    /// It cannot be read, or is not what was written.
    Bad,
    /// It is whole, and waits in this mailbox.
    Sound(MailboxHash),
    /// It is not there.
    Gone,
}

impl Look {
    /// At a row that is there, of what its checksums say.
    pub(in crate::store) fn of(sound: Option<(StoredBlob, MailboxHash)>) -> Self {
        sound.map_or(Self::Bad, |(_, mailbox)| Self::Sound(mailbox))
    }
}

/// The rows that are quarantined.
#[derive(Debug)]
pub(in crate::store) struct Quarantine {
    /// How many looks have agreed that a row is damaged. Nothing awaits while it is locked.
    rows: Mutex<BTreeMap<OrderKey, u32>>,
    metrics: Arc<Metrics>,
}

impl Quarantine {
    /// With nothing in it.
    pub(in crate::store) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            rows: Mutex::default(),
            metrics,
        }
    }

    /// All of them, in order.
    pub(in crate::store) fn keys(&self) -> Vec<OrderKey> {
        self.rows().keys().copied().collect()
    }

    /// Which of these rows are in it.
    pub(in crate::store) fn of(&self, keys: &[OrderKey]) -> HashSet<OrderKey> {
        let rows = self.rows();
        if rows.is_empty() {
            return HashSet::new();
        }
        let keys = keys.iter().copied();
        keys.filter(|key| rows.contains_key(key)).collect()
    }

    /// Takes rows in that were found bad. An error when there are too many.
    pub(in crate::store) fn take(&self, bad: &[OrderKey]) -> Result<(), StoreError> {
        let mut rows = self.rows();
        let room = QUARANTINED_MAX.saturating_sub(rows.len());
        let fit = &bad[..bad.len().min(room)];
        rows.extend(fit.iter().map(|key| (*key, 0)));
        self.show(&rows);
        if !fit.is_empty() {
            let blobs = fit.len();
            warn!(
                blobs,
                "store: {blobs} stored blobs cannot be read or do not match their checksum; they are skipped, kept, and looked at again every minute; check the disk of the database"
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

    /// All of them were looked at again: those that are sound leave, and those that were found bad often
    /// enough are told.
    pub(in crate::store) fn looked(
        &self,
        looks: impl IntoIterator<Item = (OrderKey, Look)>,
    ) -> LookedAgain {
        let mut looked = LookedAgain::default();
        let mut rows = self.rows();
        for (key, look) in looks {
            match look {
                Look::Gone => drop(rows.remove(&key)),
                Look::Sound(mailbox) => {
                    rows.remove(&key);
                    looked.sound.push((mailbox, key));
                }
                Look::Bad => {
                    let agreed = rows.entry(key).or_default();
                    *agreed += 1;
                    // One that cannot even be removed is tried again after as many looks.
                    if agreed.is_multiple_of(LOOKS_TO_LOSE) {
                        looked.damaged.push(key);
                    }
                }
            }
        }
        self.show(&rows);
        let sound = looked.sound.len();
        if sound > 0 {
            info!(
                blobs = sound,
                "store: {sound} stored blobs can be read again and are delivered"
            );
        }
        looked
    }

    fn show(&self, rows: &BTreeMap<OrderKey, u32>) {
        let blobs = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.metrics.blobs_quarantined.set(f64::from(blobs));
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<OrderKey, u32>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
