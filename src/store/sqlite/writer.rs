//! The committer's hands: one plan becomes one SQLite transaction.
//!
//! Answer what a fold asks (`known`), write the plan, commit, and only then let the caches follow.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tracing::warn;

use super::blobs::{change_blobs, insert_blobs};
use super::caches::Caches;
use super::disk::DiskWatch;
use super::errors::{classify, classify_commit, code, is_failed_write, primary_code, words};
use super::files::Files;
use super::known::{Totals, answer, read_departures, read_totals};
use super::log::{Log, move_log};
use super::nonces::{Nonces, Over, write_nonces};
use super::open::{DataDirLock, OpenError, SqliteOptions, describe, reopen_writer};
use super::pins::write_pins;
use super::recovery::write_proofs;
use super::rows;
use super::runs::delete_entries;
use super::settle::{Leaving, Pace, Settling};
use super::tail::Tail;
use super::time::{self, KeptTime};
use super::working_set::{WORKING_SETS_BYTES_MAX, WorkingSets};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::departures::Departures;
use crate::store::engine::{
    Asked, CommitError, Departure, Engine, HeldInAll, Known, Plan, TookPlace, Write,
};
use crate::store::model::OrderKey;
use crate::store::tally::as_float;

/// The committer's connection and all that it remembers.
pub(super) struct SqliteWriter {
    path: PathBuf,
    pub(super) secret: Secret,
    /// `None` after a failed write, until it is reopened.
    pub(super) connection: Option<SqliteConnection>,
    pub(super) caches: Caches,
    pub(super) settling: Settling,
    pace: Pace,
    pub(super) totals: Totals,
    disk: DiskWatch,
    time: KeptTime,
    pub(super) log: Log,
    /// Why the handle is finished although the last commit succeeded.
    broken: Option<String>,
    /// Of a plan whose commit failed with an unknown end.
    unsettled: Option<Vec<Departure>>,
    pub(super) metrics: Arc<Metrics>,
    files: Arc<Files>,
    /// Until the connection is closed the data directory stays ours.
    _lock: DataDirLock,
}

/// Where a transaction failed.
pub(super) enum Failure {
    /// Before its COMMIT: it did not happen.
    Before(sqlx::Error),
    /// At its COMMIT.
    At(sqlx::Error),
}

impl SqliteWriter {
    /// The writer over a connection that was just opened; reads the counters and what is remembered.
    pub(super) async fn new(
        options: &SqliteOptions,
        path: PathBuf,
        mut connection: SqliteConnection,
        tail: Arc<Tail>,
        (files, log, lock): (Arc<Files>, Log, DataDirLock),
    ) -> Result<Self, OpenError> {
        let loaded = async {
            let totals = read_totals(&mut connection).await?;
            let (dedup, metrics) = (options.dedup, Arc::clone(&options.metrics));
            let departures = Departures::new(dedup, options.dedup_max, metrics);
            let departures =
                read_departures(&mut connection, departures, options.dedup_max).await?;
            let nonces = Nonces::read(&mut connection).await?;
            let time = KeptTime::resume(&mut connection, options.clock.clone()).await?;
            let settling = Settling::read(&mut connection, tail, options.pace).await?;
            Ok((totals, departures, nonces, time, settling))
        };
        let loaded = loaded.await.map_err(|error| describe(&path, &error))?;
        let (totals, departures, nonces, time, settling) = loaded;
        let mut disk = DiskWatch::new(&options.data_dir, options.free_bytes_min);
        disk.begin(&mut connection).await;
        let writer = Self {
            disk,
            log,
            broken: None,
            time,
            path,
            secret: options.secret.clone(),
            connection: Some(connection),
            caches: Caches {
                sets: WorkingSets::new(WORKING_SETS_BYTES_MAX),
                departures,
                nonces,
            },
            settling,
            pace: options.pace,
            totals,
            unsettled: None,
            metrics: Arc::clone(&options.metrics),
            files,
            _lock: lock,
        };
        writer.caches.departures.show(options.clock.now());
        writer.show();
        Ok(writer)
    }

    pub(super) fn held(&self) -> HeldInAll {
        self.totals.held
    }

    /// Writes a plan in one transaction. Departures are trimmed in step with those that come, so that
    /// the table does not grow between two sweeps; nonces likewise.
    async fn write(
        &mut self,
        batch: &[&Write],
        plan: &Plan,
        leaving: &Leaving,
        (trim_to, over): (Option<i64>, &Over),
    ) -> Result<(), Failure> {
        let Some(connection) = &mut self.connection else {
            return Err(Failure::Before(sqlx::Error::WorkerCrashed));
        };
        let first_departure = self.caches.departures.next_number();
        let commits = self.totals.commits + 1;
        let deletes: Vec<_> = leaving.now.iter().map(|(_, key)| *key).collect();
        let settling = &self.settling;
        let aside: Vec<_> = plan.set_aside.iter().map(|(key, _)| key.0).collect();
        let time = self.time.due();
        let body = async {
            let damaged = rows::damaged(connection, &aside).await?;
            begin(connection, plan, commits).await?;
            insert_blobs(connection, plan, batch, &self.secret).await?;
            rows::delete_blobs(connection, &deletes).await?;
            delete_entries(connection, &leaving.entries).await?;
            settling.write_gone(connection, leaving).await?;
            change_blobs(connection, plan, &self.secret).await?;
            settling.write_extended(connection, plan).await?;
            if !aside.is_empty() {
                rows::set_aside(connection, &aside, &damaged, plan.now).await?;
            }
            rows::insert_departures(connection, &plan.departures, first_departure).await?;
            write_pins(connection, &plan.pins).await?;
            write_proofs(connection, plan, batch).await?;
            write_nonces(connection, &plan.nonces, &over.nonces).await?;
            if let Some(reading) = &time {
                time::write(connection, reading).await?;
            }
            trim_departures(connection, trim_to).await
        };
        if let Err(error) = body.await {
            return Err(Failure::Before(error));
        }
        execute(connection, "COMMIT").await.map_err(Failure::At)?;
        if let Some(reading) = time {
            self.time.saved(reading);
        }
        Ok(())
    }

    /// Undoes what a failed transaction left. What its failure means, and whether it failed at its
    /// COMMIT with an unknown end.
    pub(super) async fn fail(&mut self, failure: Failure) -> (CommitError, bool) {
        let (failed, was_commit) = match &failure {
            Failure::Before(error) => (error, false),
            Failure::At(error) => (error, true),
        };
        let error = match (is_failed_write(failed), was_commit) {
            (true, _) => self.room_or_disk(failed).await,
            (false, false) => classify(failed),
            (false, true) => classify_commit(failed),
        };
        let (Some(connection), false) = (
            &mut self.connection,
            matches!(error, CommitError::Unknown(_)),
        ) else {
            return (error, was_commit);
        };
        match execute(connection, "ROLLBACK").await {
            Ok(()) => (error, false),
            // SQLite has rolled back by itself; it says so with its general code.
            Err(rollback) if primary_code(&rollback) == Some(code::ERROR) => (error, false),
            Err(rollback) => (CommitError::Unknown(words(&rollback)), was_commit),
        }
    }

    /// What a write that failed in the log means. SQLite calls it an I/O error when a quota or a limit
    /// on the size of files is used up, and has then written as little as on a full disk.
    async fn room_or_disk(&self, failed: &sqlx::Error) -> CommitError {
        match self.disk.why_nothing_grows().await {
            Some(cause) => CommitError::DiskFull(format!("{}: {cause}", words(failed))),
            None => CommitError::Unknown(words(failed)),
        }
    }

    /// The log was moved after a commit, or was not. The commit is durable in any case; a failed fsync of
    /// the database ends the handle before the next one.
    pub(super) async fn look_at_move(&mut self, moved: sqlx::Result<()>) {
        let Err(error) = moved else {
            return;
        };
        let error = match is_failed_write(&error) {
            true => self.room_or_disk(&error).await,
            false => classify(&error),
        };
        match (error, &mut self.connection) {
            (CommitError::DiskFull(cause), Some(connection)) => {
                self.disk.spend(connection, &cause).await;
            }
            // Another process moves it right now.
            (CommitError::Refused(_), _) => {}
            (error, _) => {
                warn!("store: a checkpoint failed: {error}");
                self.broken = Some(error.to_string());
            }
        }
    }

    /// Makes room when a plan found none. Tells whether it is worth another try: when something was
    /// given up for it and it brings nothing.
    pub(super) async fn relieve(&mut self, error: &CommitError, plan: &Plan) -> bool {
        let (CommitError::DiskFull(cause), Some(connection)) = (error, &mut self.connection) else {
            return false;
        };
        self.disk.spend(connection, cause).await && !plan.brings_something()
    }

    /// Moves what is in the log into the database, so that one file holds it all, wherever it is now.
    async fn gather(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            self.gather_by(&mut connection).await;
            self.connection = Some(connection);
        }
    }

    async fn gather_by(&self, connection: &mut SqliteConnection) {
        if let Err(error) = execute(connection, "PRAGMA wal_checkpoint(FULL)").await {
            warn!("store: a checkpoint failed: {}", words(&error));
        }
    }

    pub(super) fn show(&self) {
        let bytes = self.caches.sets.bytes() + self.settling.bytes();
        self.metrics.working_sets_bytes.set(as_float(bytes));
    }
}

#[async_trait]
impl Engine for SqliteWriter {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        self.caches.sets.shrink();
        let connection = self.connection.as_mut().ok_or_else(not_open)?;
        self.disk.look(connection).await;
        let broken = self.broken.take().or_else(|| self.disk.take_failure());
        if let Some(cause) = broken {
            return Err(CommitError::Unknown(cause));
        }
        let with = (&**self.settling.tail(), &self.secret);
        let known = answer(connection, &mut self.caches, with, asked).await?;
        Ok(Known {
            next_key: self.totals.next_key,
            held: self.totals.held,
            has_room: self.disk.has_room() && !self.settling.is_overfull(),
            ..known
        })
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        self.caches.departures.forget(plan.forget_by, plan.now);
        if plan.is_empty() {
            return Ok(());
        }
        let trim_to = self.caches.departures.trim_to(2 * plan.departures.len());
        let over = match plan.nonces.burnt.is_empty() {
            true => Over::default(),
            false => self.caches.nonces.over(plan.forget_by),
        };
        let leaving = self.settling.leaving(plan);
        while let Err(failure) = self.write(batch, plan, &leaving, (trim_to, &over)).await {
            let (error, is_unsettled) = self.fail(failure).await;
            self.unsettled = is_unsettled.then(|| plan.departures.clone());
            // Ends, because the reserve can be given up only once.
            if !self.relieve(&error, plan).await {
                return Err(error);
            }
        }
        // It is durable in a file that the next start may not find.
        if let Err(moved) = self.files.look_beside().await {
            self.unsettled = Some(plan.departures.clone());
            self.gather().await;
            return Err(CommitError::Unknown(moved));
        }
        self.totals = Totals {
            next_key: plan.next_key,
            held: plan.change.applied_to(self.totals.held),
            commits: self.totals.commits + 1,
        };
        self.caches.follow(batch, plan, &self.secret);
        self.settling.follow((batch, plan), &leaving, &self.secret);
        let bytes = plan.bytes_that_come(batch);
        self.disk.came(bytes);
        self.log.came(plan.rows(), bytes);
        if let Some(to) = trim_to {
            self.caches.departures.trimmed(to);
        }
        self.caches.nonces.written(&plan.nonces, over.count);
        self.caches.departures.forget(plan.forget_by, plan.now);
        self.show();
        Ok(())
    }

    async fn tidy(&mut self, is_idle: bool) -> Result<Option<Duration>, CommitError> {
        if let Some(connection) = &mut self.connection {
            let moved = self.log.move_if_long(connection).await;
            self.look_at_move(moved).await;
        }
        let last_key = self.totals.next_key - 1;
        match self.settling.next_step(last_key, (is_idle, false)) {
            Some(step) => {
                self.take_step(step).await?;
                Ok(Some(Duration::ZERO))
            }
            None => Ok(self.settling.wants()),
        }
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        // By these paths another database could be opened, or a log be deleted that is not ours.
        let looked = self.files.look_beside().await;
        looked.map_err(StoreError::unavailable)?;
        if let Some(broken) = self.connection.take() {
            // Whatever it says: it is not used again.
            broken.close_hard().await.ok();
        }
        self.caches.sets.clear();
        self.broken = None;
        let reopened = async {
            // Before anything is read: from here on what can be read is on the disk.
            let forgotten = self.log.forget_cached().await;
            forgotten.map_err(|error| error.to_string())?;
            let mut connection = reopen_writer(&self.path, &self.secret).await?;
            self.disk.bound_growth(&mut connection).await;
            let written = try_to_write(&mut connection).await;
            let totals = written.map_err(|error| words(&error))?;
            let nonces = Nonces::read(&mut connection).await;
            let nonces = nonces.map_err(|error| words(&error))?;
            let tail = Arc::clone(self.settling.tail());
            let settling = Settling::read(&mut connection, tail, self.pace).await;
            let settling = settling.map_err(|error| words(&error))?;
            Ok::<_, String>((connection, totals, nonces, settling))
        };
        let (connection, totals, nonces, settling) =
            reopened.await.map_err(StoreError::unavailable)?;
        self.connection = Some(connection);
        self.caches.nonces = nonces;
        self.settling = settling;
        // The number of the last transaction tells whether the unsettled one took place.
        let took_place = match self.unsettled.take() {
            Some(departures) if totals.commits == self.totals.commits + 1 => {
                self.caches.departures.remember(&departures);
                TookPlace::Yes
            }
            _ => TookPlace::No,
        };
        self.totals = totals;
        Ok(took_place)
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        // First: it makes free pages.
        if let Some(step) = self.settling.delete_step() {
            self.take_step(step).await?;
        }
        match self.do_upkeep(expired_by).await {
            Ok(more) => Ok(more || self.settling.delete_step().is_some()),
            Err(failure) => {
                let (error, _) = self.fail(failure).await;
                self.relieve(&error, &Plan::default()).await;
                Err(error)
            }
        }
    }

    async fn mend(
        &mut self,
        keys: &[OrderKey],
    ) -> Result<Vec<(MailboxHash, OrderKey)>, CommitError> {
        match self.do_mend(keys).await {
            Ok(mended) => Ok(mended),
            Err(failure) => Err(self.fail(failure).await.0),
        }
    }

    async fn close(&mut self) {
        if self.files.look_beside().await.is_ok() {
            self.settle_all().await;
        }
        if let Some(mut connection) = self.connection.take() {
            if let Err(moved) = self.files.look_beside().await {
                warn!("store: closing leaves the files as they are: {moved}");
                self.gather_by(&mut connection).await;
                // SQLite would delete the log by its path, whatever that leads to. The system closes the
                // files at the end of the process.
                std::mem::forget(connection);
                return;
            }
            // Without it the last minute's is there.
            time::write(&mut connection, &self.time.last()).await.ok();
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
            self.disk.leave().await;
        }
    }
}

fn not_open() -> CommitError {
    CommitError::Unknown("the database is not open".to_owned())
}

pub(super) async fn execute(
    connection: &mut SqliteConnection,
    sql: &'static str,
) -> sqlx::Result<()> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

/// Moves the log, and writes something.
async fn try_to_write(connection: &mut SqliteConnection) -> sqlx::Result<Totals> {
    move_log(connection).await?;
    let trial = "UPDATE meta SET value = value + 1 WHERE name = 'trial'";
    execute(connection, trial).await?;
    read_totals(connection).await
}

pub(super) async fn trim_departures(
    connection: &mut SqliteConnection,
    trim_to: Option<i64>,
) -> sqlx::Result<()> {
    if let Some(to) = trim_to {
        sqlx::query("DELETE FROM departed WHERE n <= ?")
            .bind(to)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Begins a transaction with the totals and the high-water mark of the order keys after it: in one
/// query, because each is a way to the connection's thread and back.
async fn begin(connection: &mut SqliteConnection, plan: &Plan, commits: i64) -> sqlx::Result<()> {
    let change = &plan.change;
    sqlx::query(
        "BEGIN IMMEDIATE; \
         UPDATE usage SET blobs = max(0, blobs + ?), device_sync = max(0, device_sync + ?), \
         recovery_proofs = max(0, recovery_proofs + ?), pins = max(0, pins + ?), \
         bytes = max(0, bytes + ?), receipts = max(0, receipts + ?), commits = ? WHERE one = 1; \
         UPDATE meta SET value = ? WHERE name = 'high_water'",
    )
    .bind(change.blobs)
    .bind(change.device_sync)
    .bind(change.recovery_proofs)
    .bind(change.pins)
    .bind(change.bytes)
    .bind(change.receipts)
    .bind(commits)
    .bind(plan.next_key - 1)
    .execute(connection)
    .await
    .map(drop)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
