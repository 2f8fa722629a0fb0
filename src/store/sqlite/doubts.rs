//! Rows that a reader could not read, or that did not match their checksum: are they damaged?
//!
//! SQLite reports a failed read (EIO) by the same code as a damaged page, and memory may hold what the
//! disk does not, so one look is no reason to delete anything. A row goes through these states:
//!
//! - **in doubt**: somebody has just found it bad. Pages end before it, so no reader passes it.
//! - **quarantined**: the database and its log were read from the disk from end to end without an error,
//!   and a fresh connection still found the row bad, twice, a second apart. It stays where it is, pages
//!   skip it, and it is looked at again ([`Doubts::look_again`], once a minute).
//! - **sound again**: a later look found it whole. It is delivered, also by sessions that have passed it.
//! - **lost**: ten looks, each in a minute of its own, agree, and the committer finds the
//!   same. Only then does the row leave.
//!
//! While the files cannot be read from end to end, nobody comes to a verdict, no page passes a row in
//! doubt, and the store is not ready. All this is in memory: after a restart a row is in doubt again, and
//! its looks are counted from the beginning.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tokio::time::Instant;
use tracing::{info, warn};

use super::errors::words;
use super::files::Files;
use super::log::log_path;
use super::pages::Readers;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::LookedAgain;
use crate::store::model::OrderKey;
use crate::store::sql::quarantine::{Look, Quarantine, ROUND_PAUSE, ROUNDS};

/// After the files could not be read to their end, nobody tries again for this long: each session that
/// waits for a row in doubt comes once a second.
const READ_PAUSE: Duration = Duration::from_secs(2);

/// Bytes that are read of a file at once.
const READ_BYTES: usize = 1 << 20;

/// The rows that were found damaged, and whether the files can be read.
pub(super) struct Doubts {
    files: Arc<Files>,
    log: PathBuf,
    /// Held by the one who reads the files through.
    examining: tokio::sync::Mutex<()>,
    quarantine: Quarantine,
    /// Why the files could not be read to their end, and when, if that was so the last time. Nothing awaits
    /// while it is locked.
    unreadable: Mutex<Option<(StoreError, Instant)>>,
}

impl Doubts {
    pub(super) fn new(database: &Path, files: Arc<Files>, metrics: Arc<Metrics>) -> Self {
        Self {
            files,
            log: log_path(database),
            examining: tokio::sync::Mutex::default(),
            quarantine: Quarantine::new(metrics),
            unreadable: Mutex::default(),
        }
    }

    /// Which of these rows are quarantined.
    pub(super) fn quarantined_of(&self, keys: &[OrderKey]) -> HashSet<OrderKey> {
        self.quarantine.of(keys)
    }

    /// An error while the files cannot be read from end to end.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.unreadable() {
            Some((error, _)) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Looks at rows in doubt and quarantines those that are damaged. An error when that cannot be told
    /// now.
    pub(super) async fn examine(
        &self,
        in_doubt: &[OrderKey],
        (readers, secret): (&Readers, &Secret),
    ) -> Result<(), StoreError> {
        if in_doubt.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.examining.lock().await;
        // Somebody else may have found out meanwhile.
        let known = self.quarantined_of(in_doubt);
        let mut bad: Vec<_> = in_doubt.to_vec();
        bad.retain(|key| !known.contains(key));
        for round in 0..ROUNDS {
            if bad.is_empty() {
                return Ok(());
            }
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            let tried_at = self.unreadable().as_ref().map(|(_, at)| *at);
            if tried_at.is_some_and(|at| at.elapsed() < READ_PAUSE) {
                return self.check();
            }
            self.read_through().await?;
            let looks = look(readers, &bad, secret).await?;
            bad = looks
                .into_iter()
                .filter_map(|(key, look)| matches!(look, Look::Bad).then_some(key))
                .collect();
        }
        self.quarantine.take(&bad)
    }

    /// Those of these rows that still stand wrongly after the files were read from end to end, on a
    /// fresh connection.
    pub(super) async fn misplaced_of(
        &self,
        keys: Vec<OrderKey>,
        (readers, secret): (&Readers, &Secret),
    ) -> Result<Vec<OrderKey>, StoreError> {
        if keys.is_empty() {
            return Ok(keys);
        }
        let _one_at_a_time = self.examining.lock().await;
        self.read_through().await?;
        let found = readers.misplaced_afresh(&keys, secret).await;
        let found = found.map_err(|error| StoreError::unavailable(words(&error)))?;
        Ok(found.into_iter().map(|row| row.key).collect())
    }

    /// Looks at all quarantined rows again. Called once a minute.
    pub(super) async fn look_again(
        &self,
        readers: &Readers,
        secret: &Secret,
    ) -> Result<LookedAgain, StoreError> {
        let keys = self.quarantine.keys();
        if keys.is_empty() {
            return Ok(LookedAgain::default());
        }
        let _one_at_a_time = self.examining.lock().await;
        self.read_through().await?;
        let looks = look(readers, &keys, secret).await?;
        Ok(self.quarantine.looked(looks))
    }

    /// Tries again to read the files, if that failed the last time.
    pub(super) async fn read_again(&self) -> Result<(), StoreError> {
        if self.check().is_ok() {
            return Ok(());
        }
        let _one_at_a_time = self.examining.lock().await;
        self.read_through().await
    }

    /// Reads all that the database consists of, from the disk and not from the system's memory as far as
    /// the system lets us; an error means that the disk does not give it back.
    async fn read_through(&self) -> Result<(), StoreError> {
        let (files, log) = (Arc::clone(&self.files), self.log.clone());
        let read = tokio::task::spawn_blocking(move || {
            files.read_database()?;
            match read_file(&log) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                read => read,
            }
        });
        let read = read.await.map_err(StoreError::unavailable)?;
        let read = read.map_err(|error| {
            StoreError::unavailable(format!("the disk returns read errors: {error}"))
        });
        let mut unreadable = self.unreadable();
        let was_readable = unreadable.is_none();
        *unreadable = read.clone().err().map(|error| (error, Instant::now()));
        match (&read, was_readable) {
            (Err(error), true) => warn!(
                "store: {error}; deliveries wait at what cannot be read, nothing is deleted for it; check the disk"
            ),
            (Ok(()), false) => info!("store: the disk can be read again"),
            _ => {}
        }
        read
    }

    fn unreadable(&self) -> MutexGuard<'_, Option<(StoreError, Instant)>> {
        let unreadable = self.unreadable.lock();
        unreadable.unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look(
    readers: &Readers,
    keys: &[OrderKey],
    secret: &Secret,
) -> Result<Vec<(OrderKey, Look)>, StoreError> {
    let looks = readers.look_afresh(keys, secret).await;
    looks.map_err(|error| StoreError::unavailable(words(&error)))
}

fn read_file(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    // What the system remembers may be what is damaged. It may decline.
    fadvise(&file, 0, None, Advice::DontNeed).ok();
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}
