//! Rows that a reader could not read, or that did not match their checksum: are they damaged?
//!
//! SQLite reports a failed read (EIO) by the same code as a damaged page, so its word alone is no
//! reason to delete anything. A row is taken for damaged only after the database and its log were
//! read from end to end without an error and a fresh connection still found the row bad, twice, a
//! second apart; and it leaves only if the committer then finds the same. Until that is known the
//! page ends before the row, so no reader passes over a row that may become readable again.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::SqliteStore;
use crate::clock::Timestamp;
use crate::store::StoreError;
use crate::store::commit::{Cause, Lane};
use crate::store::model::OrderKey;

/// How often a row must be found bad by a fresh connection.
const ROUNDS: u32 = 2;

/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// For how long a row that is damaged and cannot be removed is passed over without another look.
const VERDICT_HOLDS: Duration = Duration::from_secs(60);

/// Verdicts that are remembered: 50 bytes each.
const VERDICTS_MAX: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Bytes that are read of a file at once.
const READ_BYTES: usize = 1 << 20;

/// The rows that were found damaged lately. One examination runs at a time.
#[derive(Debug)]
pub(in crate::store) struct Doubts {
    database: PathBuf,
    damaged: tokio::sync::Mutex<LruCache<OrderKey, Instant>>,
}

impl Doubts {
    pub(in crate::store) fn new(database: &Path) -> Self {
        Self {
            database: database.to_owned(),
            damaged: tokio::sync::Mutex::new(LruCache::new(VERDICTS_MAX)),
        }
    }

    /// Reads all that the database consists of; an error means that the disk does not give it back.
    async fn read_through(&self) -> Result<(), StoreError> {
        let database = self.database.clone();
        let read = tokio::task::spawn_blocking(move || {
            read_file(&database)?;
            let mut log = database.into_os_string();
            log.push("-wal");
            match read_file(Path::new(&log)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                read => read,
            }
        });
        let read = read.await.map_err(StoreError::unavailable)?;
        read.map_err(|error| {
            StoreError::unavailable(format!(
                "the disk does not give back what is stored: {error}"
            ))
        })
    }
}

fn read_file(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

impl SqliteStore {
    /// Which of these rows are damaged: they may be passed over, and those that can be removed have
    /// left. The others can be read again. An error when that cannot be told now.
    pub(in crate::store) async fn damaged_of(
        &self,
        doubtful: &[OrderKey],
        now: Timestamp,
    ) -> Result<HashSet<OrderKey>, StoreError> {
        if doubtful.is_empty() {
            return Ok(HashSet::new());
        }
        let mut known = self.doubts.damaged.lock().await;
        let is_known = |key: &OrderKey| {
            let found_at = known.peek(key);
            found_at.is_some_and(|at| at.elapsed() < VERDICT_HOLDS)
        };
        let (damaged, mut open): (Vec<OrderKey>, Vec<OrderKey>) =
            doubtful.iter().partition(|key| is_known(key));
        let mut damaged = HashSet::from_iter(damaged);
        for round in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            self.doubts.read_through().await?;
            let bad = self.readers.bad_rows(&open, &self.secret).await;
            open = self.read(bad)?;
        }
        if !open.is_empty() {
            for key in &open {
                known.put(*key, Instant::now());
            }
            damaged.extend(&open);
            let removed = self
                .pipeline
                .remove(Lane::Normal, open, Cause::Corrupt, now)
                .await?;
            // What cannot be removed stays where it is; the committer has said why.
            removed.await.ok();
        }
        Ok(damaged)
    }
}
