//! The committer's hands: one plan becomes one SQLite transaction.
//!
//! Answer what a fold asks (`known`), write the plan, commit, and only then let the caches follow. What is
//! written is written here and now, on the thread of the committer, which is there for nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use tracing::warn;

use super::blobs::{Fresh, change_blobs, insert_blobs, read_extended};
use super::caches::Caches;
use super::connections::Connections;
use super::departed::{insert_departures, read_departures, trim_departures};
use super::disk::DiskWatch;
use super::errors::{Fault, classify, classify_commit, code, is_failed_write, primary_code, words};
use super::files::Files;
use super::known::{Totals, answer, read_totals};
use super::log::Log;
use super::mover::LOOK;
use super::nonces::{Nonces, Over, write_nonces};
use super::open::{DataDirLock, OpenError, SqliteOptions, describe};
use super::pins::write_pins;
use super::recovery::write_proofs;
use super::rows::{self, Sql, run_through};
use super::runs::delete_entries;
use super::settle::{Leaving, Pace, Settling};
use super::tail::Tail;
use super::time;
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
use crate::store::sql::kept_time::KeptTime;
use crate::store::tally::as_float;

/// The committer's connection and all that it remembers.
pub(super) struct SqliteWriter {
    pub(super) path: PathBuf,
    pub(super) secret: Secret,
    /// `None` after a failed write, until they are reopened.
    pub(super) connections: Option<Connections>,
    pub(super) caches: Caches,
    pub(super) settling: Settling,
    pub(super) pace: Pace,
    pub(super) totals: Totals,
    pub(super) disk: DiskWatch,
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
    Before(Fault),
    /// At its COMMIT.
    At(Fault),
}

/// What one transaction writes.
#[derive(Clone, Copy)]
pub(super) struct Writing<'a> {
    pub(super) plan: &'a Plan,
    pub(super) fresh: &'a [Fresh<'a>],
    pub(super) leaving: &'a Leaving,
    /// Nonces that may go.
    pub(super) over: &'a Over,
    /// Up to which number departures may go.
    pub(super) trim_to: Option<i64>,
}

impl SqliteWriter {
    /// The writer over a connection that was just opened; reads the counters and what is remembered.
    pub(super) async fn new(
        options: &SqliteOptions,
        path: PathBuf,
        mut connections: Connections,
        tail: Arc<Tail>,
        (files, log, lock): (Arc<Files>, Log, DataDirLock),
    ) -> Result<Self, OpenError> {
        let loaded = async {
            let connection = &mut connections.reads;
            let totals = read_totals(connection).await?;
            let (dedup, metrics) = (options.dedup, Arc::clone(&options.metrics));
            let departures = Departures::new(dedup, options.dedup_max, metrics);
            let departures = read_departures(connection, departures, options.dedup_max).await?;
            let nonces = Nonces::read(connection).await?;
            let time = time::resume(connection, options.clock.clone()).await?;
            let settling = Settling::read(connection, tail, options.pace).await?;
            Ok::<_, sqlx::Error>((totals, departures, nonces, time, settling))
        };
        let loaded = loaded.await.map_err(|error| describe(&path, &error))?;
        let (totals, departures, nonces, time, settling) = loaded;
        let mut disk = DiskWatch::new(&options.data_dir, options.free_bytes_min);
        disk.begin(&connections.writes, &log);
        let writer = Self {
            disk,
            log,
            broken: None,
            time,
            path,
            secret: options.secret.clone(),
            connections: Some(connections),
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
    pub(super) async fn write(
        &mut self,
        batch: &[&Write],
        writing: &Writing<'_>,
    ) -> Result<(), Failure> {
        let Writing {
            plan,
            fresh,
            leaving,
            over,
            trim_to,
        } = *writing;
        let Connections { writes, reads, .. } = self.connections.as_mut().ok_or_else(closed)?;
        let first_departure = self.caches.departures.next_number();
        let commits = self.totals.commits + 1;
        let deletes: Vec<_> = leaving.now.iter().map(|(_, key)| *key).collect();
        let aside: Vec<_> = plan.set_aside.iter().map(|(key, _)| key.0).collect();
        let damaged = rows::damaged(reads, &aside).await.map_err(before)?;
        let extended = read_extended(reads, plan, &self.secret)
            .await
            .map_err(before)?;
        let time = self.time.due();
        let body = || -> Sql<()> {
            begin(writes, plan, commits)?;
            insert_blobs(writes, fresh, &self.secret)?;
            rows::delete_blobs(writes, &deletes)?;
            delete_entries(writes, &leaving.entries)?;
            self.settling.write_gone(writes, leaving)?;
            change_blobs(writes, &extended, plan)?;
            self.settling.write_extended(writes, plan)?;
            if !aside.is_empty() {
                rows::set_aside(writes, &aside, &damaged, plan.now)?;
            }
            insert_departures(writes, &plan.departures, first_departure)?;
            write_pins(writes, &plan.pins)?;
            write_proofs(writes, plan, batch)?;
            write_nonces(writes, &plan.nonces, &over.nonces)?;
            if let Some(reading) = &time {
                time::write(writes, reading)?;
            }
            trim_departures(writes, trim_to)
        };
        body().map_err(before)?;
        execute(writes, "COMMIT").map_err(at)?;
        if let Some(reading) = time {
            self.time.saved(reading);
        }
        Ok(())
    }

    /// Undoes what a failed transaction left. What its failure means, and whether it failed at its
    /// COMMIT with an unknown end.
    pub(super) fn fail(&mut self, failure: Failure) -> (CommitError, bool) {
        let (failed, was_commit) = match &failure {
            Failure::Before(error) => (error, false),
            Failure::At(error) => (error, true),
        };
        let error = match (is_failed_write(failed), was_commit) {
            (true, _) => self.room_or_disk(failed),
            (false, false) => classify(failed),
            (false, true) => classify_commit(failed),
        };
        let (Some(connections), false) = (
            &mut self.connections,
            matches!(error, CommitError::Unknown(_)),
        ) else {
            return (error, was_commit);
        };
        match execute(&connections.writes, "ROLLBACK") {
            Ok(()) => (error, false),
            // SQLite has rolled back by itself; it says so with its general code.
            Err(rollback) if primary_code(&rollback) == Some(code::ERROR) => (error, false),
            Err(rollback) => (CommitError::Unknown(words(&rollback)), was_commit),
        }
    }

    /// What a write that failed in the log means. SQLite calls it an I/O error when a quota or a limit
    /// on the size of files is used up, and has then written as little as on a full disk.
    fn room_or_disk(&self, failed: &Fault) -> CommitError {
        match self.disk.why_nothing_grows() {
            Some(cause) => CommitError::DiskFull(format!("{failed}: {cause}")),
            None => CommitError::Unknown(words(failed)),
        }
    }

    /// The log was moved after a commit, or was not. The commit is durable in any case; a failed fsync of
    /// the database ends the handle before the next one.
    pub(super) fn look_at_move(&mut self, moved: Result<(), Fault>) {
        let Err(error) = moved else {
            return;
        };
        let error = match is_failed_write(&error) {
            true => self.room_or_disk(&error),
            false => classify(&error),
        };
        match (error, &self.connections) {
            (CommitError::DiskFull(cause), Some(connections)) => {
                self.disk.spend(&connections.writes, &self.log, &cause);
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
    pub(super) fn relieve(&mut self, error: &CommitError, plan: &Plan) -> bool {
        let (CommitError::DiskFull(cause), Some(connections)) = (error, &self.connections) else {
            return false;
        };
        self.disk.spend(&connections.writes, &self.log, cause) && !plan.brings_something()
    }

    /// Moves what is in the log into the database, so that one file holds it all, wherever it is now.
    fn gather(&self) {
        let Some(connections) = &self.connections else {
            return;
        };
        if let Err(error) = run_through(&connections.writes, "PRAGMA wal_checkpoint(FULL)") {
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
    fn blocks(&self) -> bool {
        true
    }

    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        self.caches.sets.shrink();
        let connections = self.connections.as_mut().ok_or_else(not_open)?;
        self.disk.look(&connections.writes, &self.log);
        let broken = self.broken.take().or_else(|| self.disk.take_failure());
        if let Some(cause) = broken {
            return Err(CommitError::Unknown(cause));
        }
        let with = (&**self.settling.tail(), &self.secret);
        let known = answer(&mut connections.reads, &mut self.caches, with, asked).await?;
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
        let fresh = Fresh::of(plan, batch, &self.secret);
        let writing = Writing {
            plan,
            fresh: &fresh,
            leaving: &leaving,
            over: &over,
            trim_to,
        };
        while let Err(failure) = self.write(batch, &writing).await {
            let (error, is_unsettled) = self.fail(failure);
            self.unsettled = is_unsettled.then(|| plan.departures.clone());
            // Ends, because the reserve can be given up only once.
            if !self.relieve(&error, plan) {
                return Err(error);
            }
        }
        // It is durable in a file that the next start may not find.
        if let Err(moved) = self.files.look() {
            self.unsettled = Some(plan.departures.clone());
            self.gather();
            return Err(CommitError::Unknown(moved.to_string()));
        }
        self.totals = Totals {
            next_key: plan.next_key,
            held: plan.change.applied_to(self.totals.held),
            commits: self.totals.commits + 1,
        };
        self.caches.follow(&fresh, plan, &self.secret);
        self.settling.follow((&fresh, plan), &leaving);
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
        let mut is_away = false;
        if let Some(Connections { writes, mover, .. }) = &mut self.connections {
            let moved = mover.tend(&mut self.log, writes);
            is_away = mover.is_away();
            self.look_at_move(moved);
        }
        let last_key = self.totals.next_key - 1;
        match self.settling.next_step(last_key, (is_idle, false)) {
            Some(step) => {
                self.take_step(step).await?;
                Ok(Some(Duration::ZERO))
            }
            None => {
                let look = is_away.then_some(LOOK);
                Ok(self.settling.wants().into_iter().chain(look).min())
            }
        }
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        // By these paths another database could be opened, or a log be deleted that is not ours.
        let looked = self.files.look();
        looked.map_err(|moved| StoreError::unavailable(moved.to_string()))?;
        if let Some(broken) = self.connections.take() {
            broken.give_up().await;
        }
        self.caches.sets.clear();
        self.broken = None;
        let reopened = self.open_again().await;
        let again = reopened.map_err(|error| StoreError::unavailable(error.to_string()))?;
        self.connections = Some(again.connections);
        self.caches.nonces = again.nonces;
        self.settling = again.settling;
        // The number of the last transaction tells whether the unsettled one took place.
        let took_place = match self.unsettled.take() {
            Some(departures) if again.totals.commits == self.totals.commits + 1 => {
                self.caches.departures.remember(&departures);
                TookPlace::Yes
            }
            _ => TookPlace::No,
        };
        self.totals = again.totals;
        Ok(took_place)
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        // First: it makes free pages.
        if let Some(step) = self.settling.delete_step() {
            self.take_step(step).await?;
        }
        match self.do_upkeep(expired_by) {
            Ok(more) => Ok(more || self.settling.delete_step().is_some()),
            Err(failure) => {
                let (error, _) = self.fail(failure);
                self.relieve(&error, &Plan::default());
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
            Err(failure) => Err(self.fail(failure).0),
        }
    }

    async fn close(&mut self) {
        if self.files.look().is_ok() {
            self.settle_all().await;
        }
        let moved = self.files.look().err();
        if moved.is_some() {
            self.gather();
        }
        if let Some(connections) = self.connections.take() {
            connections.close(moved, &self.time.last()).await;
            self.disk.leave();
        }
    }
}

fn not_open() -> CommitError {
    CommitError::Unknown(Fault::closed().to_string())
}

/// There is no connection to write by.
pub(super) fn closed() -> Failure {
    Failure::Before(Fault::closed())
}

/// It failed before its COMMIT.
pub(super) fn before(error: impl Into<Fault>) -> Failure {
    Failure::Before(error.into())
}

/// It failed at its COMMIT.
pub(super) fn at(error: rusqlite::Error) -> Failure {
    Failure::At(error.into())
}

pub(super) fn execute(connection: &Connection, sql: &str) -> Sql<()> {
    connection.prepare_cached(sql)?.execute(()).map(drop)
}

/// Begins a transaction with the totals and the high-water mark of the order keys after it.
fn begin(connection: &Connection, plan: &Plan, commits: i64) -> Sql<()> {
    execute(connection, "BEGIN IMMEDIATE")?;
    let change = &plan.change;
    let totals = "UPDATE usage SET blobs = max(0, blobs + ?), \
         device_sync = max(0, device_sync + ?), recovery_proofs = max(0, recovery_proofs + ?), \
         pins = max(0, pins + ?), bytes = max(0, bytes + ?), receipts = max(0, receipts + ?), \
         commits = ?, high_water = ? WHERE one = 1";
    connection.prepare_cached(totals)?.execute([
        change.blobs,
        change.device_sync,
        change.recovery_proofs,
        change.pins,
        change.bytes,
        change.receipts,
        commits,
        plan.next_key - 1,
    ])?;
    Ok(())
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
