//! The committer's hands: one batch becomes one SQLite transaction.
//!
//! Read what the batch needs to know, fold it (`plan`), write what comes out of that, commit, and
//! only then let the world see it: departures, counters, metrics.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use tracing::{info, warn};

use super::StoreError;
use super::commit::{CommitError, Engine, Outcome, Write};
use super::departures::Departures;
use super::disk::DiskWatch;
use super::plan::{self, Plan, Rules};
use super::quota::Quota;
use super::sqlite_errors::{classify, classify_commit, code, primary_code, words};
use super::sqlite_load::{Totals, read_departures, read_known, read_sets, read_totals};
use super::sqlite_open::{DataDirLock, OpenError, SqliteOptions, describe, reopen_writer};
use super::sqlite_rows as rows;
use super::tally::{Tally, as_float};
use super::working_set::{WORKING_SETS_BYTES_MAX, WorkingSets, to_i64};
use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::secrets::Secret;

/// Rows of `departed` that one slice of housekeeping deletes.
const TRIM_ROWS: usize = 1_000;

/// Free pages that the database keeps for what comes next: 8 MiB.
const FREE_PAGES_KEPT: i64 = 1_024;

/// The committer's connection and all that it remembers.
pub(super) struct SqliteWriter {
    path: PathBuf,
    secret: Secret,
    quota: Quota,
    /// `None` after a failed write, until it is reopened.
    connection: Option<SqliteConnection>,
    sets: WorkingSets,
    departures: Departures,
    totals: Totals,
    disk: DiskWatch,
    /// A plan whose commit failed with an unknown end.
    unsettled: Option<Plan>,
    /// What became of it, once that is known.
    settled: Option<Vec<Outcome>>,
    tally: Arc<Tally>,
    metrics: Arc<Metrics>,
    /// Until the connection is closed the data directory stays ours.
    _lock: Arc<DataDirLock>,
}

/// Housekeeping that a transaction has on top.
#[derive(Debug, Clone, Copy, Default)]
struct Chores {
    /// Departures up to this number go.
    trim_to: Option<i64>,
    /// Free pages are given back.
    vacuums: bool,
}

/// Where a transaction failed.
enum Failure {
    /// Before its COMMIT: it did not happen.
    Before(sqlx::Error),
    /// At its COMMIT.
    At(sqlx::Error),
}

impl SqliteWriter {
    /// The writer over a connection that was just opened; reads the counters and the departures.
    pub(super) async fn new(
        options: &SqliteOptions,
        path: PathBuf,
        mut connection: SqliteConnection,
        lock: Arc<DataDirLock>,
    ) -> Result<(Self, Arc<Tally>), OpenError> {
        let loaded = async {
            let totals = read_totals(&mut connection).await?;
            Ok((totals, read_departures(&mut connection, options).await?))
        };
        let (totals, departures) = loaded.await.map_err(|error| describe(&path, &error))?;
        let metrics = Arc::clone(&options.metrics);
        let tally = Tally::new(totals.held, Arc::clone(&metrics));
        let tally = Arc::new(tally);
        let writer = Self {
            disk: DiskWatch::new(&options.data_dir, options.free_bytes_min),
            path,
            secret: options.secret.clone(),
            quota: options.quota,
            connection: Some(connection),
            sets: WorkingSets::new(WORKING_SETS_BYTES_MAX),
            departures,
            totals,
            unsettled: None,
            settled: None,
            tally: Arc::clone(&tally),
            metrics,
            _lock: lock,
        };
        writer.show(options.now);
        Ok((writer, tally))
    }

    /// Reads what the batch needs and folds it.
    async fn plan(&mut self, batch: &[&Write]) -> Result<Plan, CommitError> {
        let connection = self.connection.as_mut().ok_or_else(not_open)?;
        read_sets(connection, &mut self.sets, batch).await?;
        let known = read_known(connection, &mut self.sets, &self.secret, &self.quota, batch)
            .await
            .map_err(|error| classify(&error))?;
        let rules = Rules {
            secret: &self.secret,
            quota: self.quota,
            has_room: self.disk.has_room(),
            departures: &self.departures,
        };
        let Totals { next_key, held, .. } = self.totals;
        let plan = plan::fold(batch, &rules, known, &mut self.sets, next_key, held);
        forget(&mut self.departures, plan.now, &self.metrics);
        Ok(plan)
    }

    /// What is to be trimmed beside this plan. Departures go in step with those that come, so that
    /// the table does not grow between two sweeps.
    async fn chores(&mut self, plan: &Plan) -> sqlx::Result<Chores> {
        let trim_rows = if plan.tidies {
            TRIM_ROWS
        } else {
            2 * plan.departures.len()
        };
        let trim_to = self.departures.trim_to(trim_rows);
        let vacuums = match &mut self.connection {
            Some(connection) if plan.tidies => has_much_free(connection).await?,
            _ => false,
        };
        Ok(Chores { trim_to, vacuums })
    }

    /// Writes a plan in one transaction.
    async fn write(
        &mut self,
        batch: &[&Write],
        plan: &Plan,
        chores: Chores,
    ) -> Result<(), Failure> {
        let Some(connection) = &mut self.connection else {
            return Err(Failure::Before(sqlx::Error::WorkerCrashed));
        };
        let first_departure = self.departures.next_number();
        let commits = self.totals.commits + 1;
        let body = async {
            let damaged = rows::damaged(connection, &plan.set_aside).await?;
            execute(connection, "BEGIN IMMEDIATE").await?;
            rows::insert_blobs(connection, plan, batch, &self.secret).await?;
            rows::delete_blobs(connection, &plan.deletes).await?;
            if !plan.set_aside.is_empty() {
                rows::set_aside(connection, &plan.set_aside, &damaged, plan.now).await?;
            }
            rows::insert_departures(connection, &plan.departures, first_departure).await?;
            do_chores(connection, plan, chores).await?;
            write_totals(connection, plan, commits).await
        };
        if let Err(error) = body.await {
            return Err(Failure::Before(error));
        }
        execute(connection, "COMMIT").await.map_err(Failure::At)
    }

    /// Undoes what a failed transaction left, and tells what its failure means.
    async fn fail(&mut self, plan: Plan, failure: Failure) -> CommitError {
        self.sets.forget(plan.touched.iter().copied());
        let (error, was_commit) = match failure {
            Failure::Before(error) => (classify(&error), false),
            Failure::At(error) => (classify_commit(&error), true),
        };
        let Some(connection) = &mut self.connection else {
            return error;
        };
        let error = match error {
            unknown @ CommitError::Unknown(_) => unknown,
            known => match execute(connection, "ROLLBACK").await {
                Ok(()) => return known,
                // SQLite has rolled back by itself; it says so with its general code.
                Err(rollback) if primary_code(&rollback) == Some(code::ERROR) => return known,
                Err(rollback) => CommitError::Unknown(words(&rollback)),
            },
        };
        self.unsettled = was_commit.then_some(plan);
        error
    }

    /// Lets the world see a plan that is durable; returns the answers.
    fn finish(&mut self, mut plan: Plan, chores: Chores, was_written: bool) -> Vec<Outcome> {
        if was_written {
            self.totals = Totals {
                next_key: plan.next_key(),
                held: plan.held,
                commits: self.totals.commits + 1,
            };
            self.departures.remember(&plan.departures);
            if let Some(to) = chores.trim_to {
                self.departures.trimmed(to);
            }
            forget(&mut self.departures, plan.now, &self.metrics);
            self.tally.written();
        }
        if plan.counts.lost > 0 {
            let lost = plan.counts.lost;
            warn!(
                blobs = lost,
                "store: {lost} stored blobs did not match their checksum and were set aside; check the disk"
            );
        }
        self.tally.count(plan.counts, plan.held);
        self.show(plan.now);
        let more = chores.vacuums || self.departures.trim_to(1).is_some();
        for outcome in &mut plan.outcomes {
            if let Outcome::Tidied { .. } = outcome {
                *outcome = Outcome::Tidied { more };
            }
        }
        plan.outcomes
    }

    fn show(&self, now: Timestamp) {
        let metrics = &self.metrics;
        metrics
            .dedup_remembered
            .set(as_float(self.departures.len() as u64));
        metrics
            .dedup_memory_seconds
            .set(self.departures.reach(now).as_secs_f64());
        metrics.working_sets_bytes.set(as_float(self.sets.bytes()));
    }

    /// After a slice of vacuum: what was given back leaves the file with a checkpoint.
    async fn checkpoint(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = execute(connection, "PRAGMA wal_checkpoint(PASSIVE)").await
        {
            // The next commit does it again by itself.
            warn!("store: a checkpoint failed: {}", words(&error));
        }
    }
}

#[async_trait]
impl Engine for SqliteWriter {
    async fn commit(&mut self, batch: &[&Write]) -> Result<Vec<Outcome>, CommitError> {
        self.disk.look().await;
        self.sets.shrink();
        let plan = self.plan(batch).await?;
        let chores = match self.chores(&plan).await {
            Ok(chores) => chores,
            Err(error) => return Err(self.fail(plan, Failure::Before(error)).await),
        };
        let has_chores = plan.tidies && (chores.trim_to.is_some() || chores.vacuums);
        let is_written = has_chores || !plan.is_empty();
        if is_written && let Err(failure) = self.write(batch, &plan, chores).await {
            return Err(self.fail(plan, failure).await);
        }
        if chores.vacuums {
            self.checkpoint().await;
        }
        Ok(self.finish(plan, chores, is_written))
    }

    async fn reopen(&mut self) -> Result<(), StoreError> {
        if let Some(broken) = self.connection.take() {
            // Whatever it says: it is not used again.
            broken.close_hard().await.ok();
        }
        self.sets.clear();
        let reopened = async {
            let mut connection = reopen_writer(&self.path, &self.secret).await?;
            let totals = make_durable(&mut connection).await?;
            Ok::<_, String>((connection, totals))
        };
        let (connection, totals) = reopened.await.map_err(StoreError::unavailable)?;
        self.connection = Some(connection);
        // The number of the last transaction tells whether the unsettled one took place.
        if let Some(plan) = self.unsettled.take()
            && totals.commits == self.totals.commits + 1
        {
            info!("store: the failed commit had taken place after all");
            self.settled = Some(self.finish(plan, Chores::default(), true));
        }
        self.totals = totals;
        Ok(())
    }

    async fn settle(&mut self, batch: &[&Write]) -> Result<Vec<Option<Outcome>>, StoreError> {
        Ok(match self.settled.take() {
            Some(outcomes) => outcomes.into_iter().map(Some).collect(),
            None => vec![None; batch.len()],
        })
    }

    async fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            // So that a copy of the one file is the whole database. Closing does it too, unless a
            // reader is open still; nothing is lost without it.
            execute(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)")
                .await
                .ok();
            if let Err(error) = connection.close().await {
                warn!("store: closing failed: {}", words(&error));
            }
        }
    }
}

fn forget(departures: &mut Departures, now: Timestamp, metrics: &Metrics) {
    metrics
        .dedup_forgotten_total
        .increment(departures.forget(now));
}

fn not_open() -> CommitError {
    CommitError::Unknown("the database is not open".to_owned())
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> sqlx::Result<()> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

/// Writes something and moves everything that is in the log into the database, fsynced: what was
/// read from a log whose fsync had failed might otherwise be gone after a power cut.
async fn make_durable(connection: &mut SqliteConnection) -> Result<Totals, String> {
    let made = async {
        execute(
            connection,
            "UPDATE meta SET value = value + 1 WHERE name = 'trial'",
        )
        .await?;
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut *connection)
            .await?;
        let is_busy: i64 = row.try_get(0)?;
        Ok::<_, sqlx::Error>((is_busy != 0, read_totals(connection).await?))
    };
    match made.await {
        Ok((false, totals)) => Ok(totals),
        Ok((true, _)) => Err("a reader holds the log; it is tried again".to_owned()),
        Err(error) => Err(words(&error)),
    }
}

/// Whether a good part of the file is free.
async fn has_much_free(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    let row = sqlx::query(
        "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count",
    )
    .fetch_one(connection)
    .await?;
    let (free, pages): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(free > FREE_PAGES_KEPT.max(pages / 10))
}

async fn do_chores(
    connection: &mut SqliteConnection,
    plan: &Plan,
    chores: Chores,
) -> sqlx::Result<()> {
    if let Some(to) = chores.trim_to {
        sqlx::query("DELETE FROM departed WHERE n <= ?")
            .bind(to)
            .execute(&mut *connection)
            .await?;
    }
    if plan.tidies {
        sqlx::query("DELETE FROM corrupt WHERE expires_at <= ?")
            .bind(to_i64(plan.now.millis()))
            .execute(&mut *connection)
            .await?;
    }
    if chores.vacuums {
        // A slice of 256 pages: 2 MiB.
        execute(connection, "PRAGMA incremental_vacuum(256)").await?;
    }
    Ok(())
}

/// Writes the totals and the high-water mark of the order keys, in the transaction that they
/// belong to.
async fn write_totals(
    connection: &mut SqliteConnection,
    plan: &Plan,
    commits: i64,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE usage SET blobs = ?, bytes = ?, commits = ? WHERE one = 1; \
         UPDATE meta SET value = ? WHERE name = 'high_water'",
    )
    .bind(to_i64(plan.held.blobs))
    .bind(to_i64(plan.held.bytes))
    .bind(commits)
    .bind(plan.next_key() - 1)
    .execute(connection)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::model::{Appended, Class, Envelope};
    use super::super::sqlite_open::{DATABASE_FILE, open_writer, take_data_dir};
    use super::*;
    use crate::ids::{BlobId, MailboxHash};

    async fn writer(folder: &std::path::Path, blobs_max: u64) -> SqliteWriter {
        let options = SqliteOptions {
            data_dir: folder.to_owned(),
            secret: Secret::from_bytes([7; 32]),
            quota: Quota {
                mailbox_blobs_max: blobs_max,
                mailbox_bytes_max: 0,
                relay_bytes_max: 0,
            },
            free_bytes_min: 0,
            dedup: Duration::from_secs(3600),
            dedup_max: 0,
            allow_network_fs: false,
            on_stored: Arc::new(|_| {}),
            metrics: Arc::new(Metrics::new()),
            now: Timestamp::from_millis(1),
        };
        let lock = Arc::new(take_data_dir(folder, false).unwrap());
        let path = folder.join(DATABASE_FILE);
        let connection = open_writer(&path, &options.secret).await.unwrap();
        let opened = SqliteWriter::new(&options, path, connection, lock).await;
        opened.unwrap().0
    }

    fn append(id: u8, now: u64, expires_at: u64) -> Write {
        Write::Append {
            envelope: Envelope {
                mailbox: MailboxHash::from_bytes([1; 32]),
                id: BlobId::from_bytes([id; 16]),
                class: Class::SeenByV1,
                stored_at: Timestamp::from_millis(now),
                expires_at: Timestamp::from_millis(expires_at),
                sealed: bytes::Bytes::new(),
                body: bytes::Bytes::from_static(b"body"),
            },
            checksum: [id; 16],
        }
    }

    fn acknowledge(id: u8) -> Write {
        Write::Acknowledge {
            mailbox: MailboxHash::from_bytes([1; 32]),
            ids: vec![BlobId::from_bytes([id; 16])],
            now: Timestamp::from_millis(5),
        }
    }

    fn is_stored(outcomes: &[Outcome]) -> bool {
        matches!(outcomes, [Outcome::Appended(Appended::Stored { .. })])
    }

    /// Runs a batch up to its COMMIT, whose end is then unknown.
    async fn lose_the_end_of(writer: &mut SqliteWriter, batch: &[&Write], takes_place: bool) {
        let plan = writer.plan(batch).await.unwrap();
        if takes_place {
            let written = writer.write(batch, &plan, Chores::default()).await;
            assert!(written.is_ok());
        }
        let failure = Failure::At(sqlx::Error::WorkerCrashed);
        let error = writer.fail(plan, failure).await;
        assert!(matches!(error, CommitError::Unknown(_)));
    }

    #[tokio::test]
    async fn a_commit_with_an_unknown_end_that_took_place_counts_in_full() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        assert!(is_stored(
            &writer.commit(&[&append(1, 1, 900)]).await.unwrap()
        ));
        let (second, gone) = (append(2, 2, 900), acknowledge(1));
        lose_the_end_of(&mut writer, &[&second, &gone], true).await;
        writer.reopen().await.unwrap();
        let settled = writer.settle(&[&second, &gone]).await.unwrap();
        assert!(settled.iter().all(Option::is_some));
        let usage = writer.tally.usage();
        assert_eq!((usage.created, usage.acknowledged, usage.stored), (2, 1, 1));
        assert!(usage.is_conserved());
        // Both are known as what they are: one is stored, one has left.
        for id in [1, 2] {
            let outcomes = writer.commit(&[&append(id, 3, 900)]).await.unwrap();
            let [Outcome::Appended(Appended::Duplicate { .. })] = outcomes[..] else {
                panic!("{outcomes:?}");
            };
        }
        assert!(is_stored(
            &writer.commit(&[&append(3, 3, 900)]).await.unwrap()
        ));
        writer.close().await;
    }

    #[tokio::test]
    async fn a_commit_with_an_unknown_end_that_did_not_take_place_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        let lost = append(1, 1, 900);
        lose_the_end_of(&mut writer, &[&lost], false).await;
        writer.reopen().await.unwrap();
        // A second time, as after a first attempt that was given up half-way.
        writer.reopen().await.unwrap();
        assert_eq!(writer.settle(&[&lost]).await.unwrap(), [None]);
        assert_eq!(writer.tally.usage().stored, 0);
        assert!(is_stored(&writer.commit(&[&lost]).await.unwrap()));
        assert_eq!(writer.totals.held.blobs, 1);
        writer.close().await;
    }

    #[tokio::test]
    async fn without_a_connection_every_commit_asks_to_be_reopened() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        writer.connection = None;
        let error = writer.commit(&[&append(1, 1, 900)]).await.unwrap_err();
        assert!(matches!(error, CommitError::Unknown(_)));
        writer.reopen().await.unwrap();
        assert!(is_stored(
            &writer.commit(&[&append(1, 1, 900)]).await.unwrap()
        ));
        writer.close().await;
    }

    #[tokio::test]
    async fn a_full_disk_is_told_apart_and_deletions_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        writer.commit(&[&append(1, 1, 900)]).await.unwrap();
        let connection = writer.connection.as_mut().unwrap();
        execute(connection, "PRAGMA max_page_count = 1")
            .await
            .unwrap();
        let mut large = append(2, 2, 900);
        if let Write::Append { envelope, .. } = &mut large {
            envelope.body = vec![1; 1 << 20].into();
        }
        for _ in 0..3 {
            let error = writer.commit(&[&large]).await.unwrap_err();
            assert!(matches!(error, CommitError::DiskFull(_)), "{error}");
        }
        writer.commit(&[&acknowledge(1)]).await.unwrap();
        assert!(writer.tally.usage().is_conserved());
        assert_eq!(writer.tally.usage().stored, 0);
        writer.close().await;
    }

    #[tokio::test]
    async fn a_failed_transaction_leaves_neither_rows_nor_memories() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON departed \
                     BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
        execute(writer.connection.as_mut().unwrap(), spoil)
            .await
            .unwrap();
        writer.commit(&[&append(1, 1, 900)]).await.unwrap();
        let error = writer
            .commit(&[&append(2, 2, 900), &acknowledge(1)])
            .await
            .unwrap_err();
        assert!(matches!(&error, CommitError::Rejected(words) if words == "spoiled"));
        assert!(is_stored(
            &writer.commit(&[&append(2, 2, 900)]).await.unwrap()
        ));
        let usage = writer.tally.usage();
        assert_eq!((usage.created, usage.acknowledged, usage.stored), (2, 0, 2));
        writer.close().await;
    }

    #[tokio::test]
    async fn a_full_mailbox_loses_its_expired_rows_and_is_searched_once_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 2).await;
        writer.commit(&[&append(1, 1, 5_000)]).await.unwrap();
        writer.commit(&[&append(2, 1, 900_000)]).await.unwrap();
        // Read from the database the set knows no more than the slot of the earliest expiry.
        writer.sets.clear();
        let full = [Outcome::Appended(Appended::MailboxFull)];
        let third = |now| append(3, now, 900_000);
        assert_eq!(writer.commit(&[&third(4_000)]).await.unwrap(), full);
        let set = writer
            .sets
            .peek(MailboxHash::from_bytes([1; 32]).prefix64());
        assert_eq!(
            set.unwrap().earliest_expiry(),
            Timestamp::from_millis(5_000)
        );
        assert!(is_stored(&writer.commit(&[&third(5_000)]).await.unwrap()));
        assert_eq!(writer.tally.usage().expired, 1);
        writer.close().await;
    }

    #[tokio::test]
    async fn a_batch_that_touches_too_much_is_split_and_a_single_write_never_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), 0).await;
        writer.commit(&[&append(1, 1, 900)]).await.unwrap();
        writer.sets = WorkingSets::new(0);
        let batch = [&append(2, 1, 900), &append(3, 1, 900)];
        let error = writer.commit(&batch).await.unwrap_err();
        assert!(matches!(error, CommitError::TooWide));
        assert!(is_stored(&writer.commit(&batch[..1]).await.unwrap()));
        writer.close().await;
    }
}
