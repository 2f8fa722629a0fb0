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
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::errors::words;
use super::files::Files;
use super::log::log_path;
use super::pages::Readers;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::model::OrderKey;

/// How often a row must be found bad by a fresh connection.
const ROUNDS: u32 = 2;

/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// For how long a row that was found damaged is passed over without another look.
const VERDICT_HOLDS: Duration = Duration::from_secs(60);

/// Verdicts that are remembered: 50 bytes each.
const VERDICTS_MAX: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Bytes that are read of a file at once.
const READ_BYTES: usize = 1 << 20;

/// The rows that were found damaged lately. One examination runs at a time.
#[derive(Debug)]
pub(super) struct Doubts {
    files: Arc<Files>,
    log: PathBuf,
    damaged: tokio::sync::Mutex<LruCache<OrderKey, Instant>>,
}

impl Doubts {
    pub(super) fn new(database: &Path, files: Arc<Files>) -> Self {
        Self {
            files,
            log: log_path(database),
            damaged: tokio::sync::Mutex::new(LruCache::new(VERDICTS_MAX)),
        }
    }

    /// Which of these rows are damaged, so that they may be passed over and taken out. The others
    /// can be read again. An error when that cannot be told now.
    pub(super) async fn damaged_of(
        &self,
        doubtful: &[OrderKey],
        (readers, secret): (&Readers, &Secret),
    ) -> Result<Judged, StoreError> {
        if doubtful.is_empty() {
            return Ok(Judged::default());
        }
        let mut known = self.damaged.lock().await;
        let is_known = |key: &OrderKey| {
            let found_at = known.peek(key);
            found_at.is_some_and(|at| at.elapsed() < VERDICT_HOLDS)
        };
        let (damaged, mut open): (Vec<OrderKey>, Vec<OrderKey>) =
            doubtful.iter().partition(|key| is_known(key));
        for round in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            self.read_through().await?;
            let bad = readers.bad_rows(&open, secret).await;
            open = bad.map_err(|error| StoreError::unavailable(words(&error)))?;
        }
        for key in &open {
            known.put(*key, Instant::now());
        }
        Ok(Judged {
            damaged: damaged.into_iter().chain(open.iter().copied()).collect(),
            found_now: open,
        })
    }

    /// Reads all that the database consists of; an error means that the disk does not give it back.
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
        read.map_err(|error| {
            StoreError::unavailable(format!("the disk returns read errors: {error}"))
        })
    }
}

/// What became of doubtful rows.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Those that are damaged.
    pub(super) damaged: HashSet<OrderKey>,
    /// Those of them that nobody has found before, or not for a while: they are to be taken out.
    pub(super) found_now: Vec<OrderKey>,
}

fn read_file(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}
