//! The committer's hands: one batch becomes one SQLite transaction.
//!
//! Read what the batch needs to know, fold it (`plan`), write what comes out of that, commit, and
//! only then let the world see it: departures, counters, metrics.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use tracing::{info, warn};

use super::blobs::{change_blobs, insert_blobs};
use super::departures::Departures;
use super::disk::DiskWatch;
use super::errors::{classify, classify_commit, code, primary_code, words};
use super::load::{Totals, read_departures, read_known, read_totals};
use super::open::{DataDirLock, OpenError, SqliteOptions, describe, reopen_writer};
use super::pins::write_pins;
use super::recovery::{SWEPT_PROOFS_MAX, write_proofs};
use super::rows;
use super::working_set::{WORKING_SETS_BYTES_MAX, WorkingSets, to_i64};
use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::commit::{CommitError, Engine, Outcome, Write};
use crate::store::plan::quota::Quota;
use crate::store::plan::{self, Plan, Rules};
use crate::store::tally::{Tally, as_float};
use crate::store::{OnStored, StoreError};

/// Rows of `departed` that one slice of housekeeping deletes.
const TRIM_ROWS: usize = 1_000;

/// Free pages that the database keeps for what comes next: 8 MiB.
const FREE_PAGES_KEPT: i64 = 1_024;

/// The committer's connection and all that it remembers.
pub(in crate::store) struct SqliteWriter {
    path: PathBuf,
    secret: Secret,
    quota: Quota,
    receipt_ttl: Duration,
    on_stored: OnStored,
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
    pub(in crate::store) async fn new(
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
            receipt_ttl: options.receipt_ttl,
            on_stored: Arc::clone(&options.on_stored),
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
        let known = read_known(
            connection,
            &mut self.sets,
            &self.secret,
            (&self.quota, self.totals.held),
            batch,
        )
        .await?;
        let rules = Rules {
            secret: &self.secret,
            quota: self.quota,
            has_room: self.disk.has_room(),
            departures: &self.departures,
            receipt_ttl: self.receipt_ttl,
        };
        let Totals { next_key, held, .. } = self.totals;
        let plan = plan::fold(batch, &rules, known, &mut self.sets, next_key, held);
        self.forget(plan.expired_by, plan.now);
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
            begin(connection, plan, commits).await?;
            insert_blobs(connection, plan, batch, &self.secret).await?;
            rows::delete_blobs(connection, &plan.deletes).await?;
            change_blobs(connection, plan).await?;
            if !plan.set_aside.is_empty() {
                rows::set_aside(connection, &plan.set_aside, &damaged, plan.now).await?;
            }
            rows::insert_departures(connection, &plan.departures, first_departure).await?;
            write_pins(connection, &plan.pins).await?;
            write_proofs(connection, &plan.proofs, batch).await?;
            do_chores(connection, plan, chores).await
        };
        if let Err(error) = body.await {
            return Err(Failure::Before(error));
        }
        execute(connection, "COMMIT").await.map_err(Failure::At)
    }

    /// Undoes what a failed transaction left, and tells what its failure means.
    async fn fail(&mut self, plan: Plan, failure: Failure) -> CommitError {
        self.sets.forget(plan.touched.iter().copied());
        let owners = plan.touched_owners.iter().copied();
        self.sets.owners.forget(owners);
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
            self.forget(plan.expired_by, plan.now);
            self.tally.written();
        }
        let happened = &plan.happened;
        let lost = happened.blobs.lost + happened.device_sync.lost + happened.receipts.lost;
        if lost > 0 {
            warn!(
                blobs = lost,
                "store: {lost} stored blobs did not match their checksum and were set aside; check the disk"
            );
        }
        self.tally.count(plan.happened, plan.held);
        self.show(plan.now);
        self.wake_for_receipts(&plan);
        let more = chores.vacuums
            || self.departures.trim_to(1).is_some()
            || plan.proofs.deletes.len() >= SWEPT_PROOFS_MAX;
        for outcome in &mut plan.outcomes {
            if let Outcome::Tidied { .. } = outcome {
                *outcome = Outcome::Tidied { more };
            }
        }
        plan.outcomes
    }

    /// Wakes those who wait for receipts; blobs are the committer's.
    fn wake_for_receipts(&self, plan: &Plan) {
        let mailboxes = plan.receipts.iter().map(|(receipt, _)| receipt.mailbox);
        for mailbox in mailboxes.collect::<HashSet<_>>() {
            (self.on_stored)(&mailbox);
        }
    }

    fn forget(&mut self, expired_by: Timestamp, now: Timestamp) {
        let early = self.departures.forget(expired_by, now);
        self.metrics.dedup_forgotten_total.increment(early);
    }

    fn show(&self, now: Timestamp) {
        let metrics = &self.metrics;
        metrics
            .dedup_remembered
            .set(as_float(self.departures.len() as u64));
        // Not every batch tells the time.
        if now > Timestamp::default() {
            let reach = self.departures.reach(now);
            metrics.dedup_memory_seconds.set(reach.as_secs_f64());
        }
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
            // reader is open still; nothing is lost without it. A backup that is being made is not
            // waited for.
            execute(&mut connection, "PRAGMA busy_timeout = 0")
                .await
                .ok();
            execute(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)")
                .await
                .ok();
            if let Err(error) = connection.close().await {
                warn!("store: closing failed: {}", words(&error));
            }
        }
    }
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

/// The number of `auto_vacuum=INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Whether a good part of the file is free.
async fn has_much_free(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    let row = sqlx::query(
        "SELECT freelist_count, page_count, auto_vacuum \
         FROM pragma_freelist_count, pragma_page_count, pragma_auto_vacuum",
    )
    .fetch_one(connection)
    .await?;
    let (free, pages): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    // A file that was rebuilt by hand may not be able to shrink; trying would never end.
    let can_shrink = row.try_get::<i64, _>(2)? == INCREMENTAL;
    Ok(can_shrink && free > FREE_PAGES_KEPT.max(pages / 10))
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
            .bind(to_i64(plan.expired_by.millis()))
            .execute(&mut *connection)
            .await?;
    }
    if chores.vacuums {
        // A slice of 256 pages: 2 MiB.
        execute(connection, "PRAGMA incremental_vacuum(256)").await?;
    }
    Ok(())
}

/// Begins a transaction with the totals and the high-water mark of the order keys after it: in one
/// query, because each is a way to the connection's thread and back.
async fn begin(connection: &mut SqliteConnection, plan: &Plan, commits: i64) -> sqlx::Result<()> {
    sqlx::query(
        "BEGIN IMMEDIATE; \
         UPDATE usage SET blobs = ?, device_sync = ?, recovery_proofs = ?, pins = ?, bytes = ?, \
         receipts = ?, commits = ? WHERE one = 1; \
         UPDATE meta SET value = ? WHERE name = 'high_water'",
    )
    .bind(to_i64(plan.held.blobs))
    .bind(to_i64(plan.held.device_sync))
    .bind(to_i64(plan.held.recovery_proofs))
    .bind(to_i64(plan.held.pins))
    .bind(to_i64(plan.held.bytes))
    .bind(to_i64(plan.held.receipts))
    .bind(commits)
    .bind(plan.next_key() - 1)
    .execute(connection)
    .await
    .map(drop)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
