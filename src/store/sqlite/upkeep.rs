//! What the writer does for the database itself: it settles, mends, trims and gives space back. All of it
//! is asked for by the committer between commits, and each piece is a transaction of its own.

use rusqlite::Connection;
use tokio::time::Instant;
use tracing::warn;

use super::columns::to_i64;
use super::connections::Connections;
use super::departed::trim_departures;
use super::errors::classify;
use super::nonces::write_nonces;
use super::rows::{Sql, run_through};
use super::scrub::{MAILBOXES, mend, misplaced_of};
use super::settle::Settling;
use super::step::{Step, Written};
use super::writer::{Failure, SqliteWriter, at, before, closed, execute};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::engine::{CommitError, Plan};
use crate::store::model::OrderKey;

/// Departures that one slice of housekeeping deletes.
const TRIM_ROWS: usize = 1_000;

/// Free pages that the database keeps for what comes next: 8 MiB.
const FREE_PAGES_KEPT: i64 = 1_024;

impl Failure {
    /// Whether it was about the rows and pages that the transaction touched, and not about storage as such.
    fn is_of_what_was_touched(&self) -> bool {
        match self {
            Self::Before(error) => matches!(classify(error), CommitError::Rejected(_)),
            Self::At(_) => false,
        }
    }
}

impl SqliteWriter {
    /// Mends those of these rows that stand wrongly, in a transaction of its own. Readers go on;
    /// writes wait for as long as the rows of the table take to be sorted.
    pub(super) async fn do_mend(
        &mut self,
        keys: &[OrderKey],
    ) -> Result<Vec<(MailboxHash, OrderKey)>, Failure> {
        let began = Instant::now();
        let Connections { writes, reads, .. } = self.connections.as_mut().ok_or_else(closed)?;
        let mut keys = keys.to_vec();
        self.settling.tail().retain_present(&mut keys);
        let misplaced = misplaced_of(reads, &keys, &self.secret);
        let misplaced = misplaced.await.map_err(before)?;
        if misplaced.is_empty() {
            return Ok(Vec::new());
        }
        execute(writes, "BEGIN IMMEDIATE").map_err(before)?;
        mend(writes, &misplaced).map_err(before)?;
        execute(writes, "COMMIT").map_err(at)?;
        if misplaced.iter().any(|row| row.is_in(MAILBOXES)) {
            self.take(Step::Rebuild(self.totals.next_key - 1)).await?;
        }
        // They were read from the index.
        self.caches.sets.clear();
        self.metrics.index_rebuilds_total.increment(1);
        let (blobs, took) = (misplaced.len(), began.elapsed().as_millis());
        warn!(
            blobs,
            "store: an index did not find {blobs} stored blobs; it was rebuilt in {took} ms and finds them now; check the disk and the memory of this machine"
        );
        Ok(misplaced.iter().map(|row| (row.mailbox, row.key)).collect())
    }

    /// A step of settling.
    pub(super) async fn take_step(&mut self, step: Step) -> Result<(), CommitError> {
        let Err(failure) = self.take(step).await else {
            return Ok(());
        };
        let (error, _) = self.fail(failure);
        self.relieve(&error, &Plan::default());
        match error {
            // Told in its own words, and tried another way.
            CommitError::Rejected(words) => {
                warn!("store: housekeeping failed and is tried in another way: {words}");
                Ok(())
            }
            error => Err(error),
        }
    }

    /// A step of settling in a transaction of its own.
    async fn take(&mut self, step: Step) -> Result<(), Failure> {
        let Connections { writes, reads, .. } = self.connections.as_mut().ok_or_else(closed)?;
        let taken = match self.settling.read_ahead(reads, &step).await {
            Ok(read) => write_step(writes, &self.settling, &step, read),
            Err(error) => Err(before(error)),
        };
        match taken {
            Ok(written) => {
                self.log.came(step.rows(), 0);
                self.settling.done(step, &written);
                Ok(())
            }
            Err(failure) => {
                self.settling
                    .failed(&step, failure.is_of_what_was_touched());
                Err(failure)
            }
        }
    }

    /// Settles all that there is, so that the next start finds little to read.
    pub(super) async fn settle_all(&mut self) {
        let last_key = self.totals.next_key - 1;
        while let Some(step) = self.settling.next_step(last_key, (false, true)) {
            if self.take_step(step).await.is_err() {
                return;
            }
        }
    }

    /// A slice of housekeeping in a transaction of its own.
    pub(super) fn do_upkeep(&mut self, expired_by: Timestamp) -> Result<bool, Failure> {
        self.caches.departures.forget(expired_by, expired_by);
        let trim_to = self.caches.departures.trim_to(TRIM_ROWS);
        let over = self.caches.nonces.over(expired_by);
        let connection = &self.connections.as_ref().ok_or_else(closed)?.writes;
        let body = || -> Sql<Option<bool>> {
            let vacuums = has_much_free(connection)?;
            let corrupt = has_old_corrupt(connection, expired_by)?;
            if trim_to.is_none() && over.count == 0 && !vacuums && !corrupt {
                return Ok(None);
            }
            execute(connection, "BEGIN IMMEDIATE")?;
            trim_departures(connection, trim_to)?;
            write_nonces(connection, &Default::default(), &over.nonces)?;
            let old = "DELETE FROM corrupt WHERE expires_at <= ?";
            connection.execute(old, [to_i64(expired_by.millis())])?;
            if vacuums {
                // A slice of 256 pages: 2 MiB.
                run_through(connection, "PRAGMA incremental_vacuum(256)")?;
            }
            Ok(Some(vacuums))
        };
        let Some(vacuums) = body().map_err(before)? else {
            return Ok(false);
        };
        execute(connection, "COMMIT").map_err(at)?;
        self.log.came(TRIM_ROWS, 0);
        if vacuums {
            // What was given back leaves the file when the log is moved.
            let moved = self.log.move_it(connection);
            self.look_at_move(moved);
        }
        if let Some(to) = trim_to {
            self.caches.departures.trimmed(to);
        }
        self.caches.nonces.written(&Default::default(), over.count);
        let departures = &self.caches.departures;
        let more = vacuums
            || departures.trim_to(1).is_some()
            || self.caches.nonces.over(expired_by).count > 0;
        self.show();
        Ok(more)
    }
}

/// Writes a step in a transaction of its own.
fn write_step(
    connection: &Connection,
    settling: &Settling,
    step: &Step,
    mut written: Written,
) -> Result<Written, Failure> {
    execute(connection, "BEGIN IMMEDIATE").map_err(before)?;
    let stepped = settling.write(connection, step, &mut written);
    stepped.map_err(before)?;
    execute(connection, "COMMIT").map_err(at)?;
    Ok(written)
}

/// The number of `auto_vacuum=INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Whether a good part of the file is free.
fn has_much_free(connection: &Connection) -> Sql<bool> {
    let sql = "SELECT freelist_count, page_count, auto_vacuum \
         FROM pragma_freelist_count, pragma_page_count, pragma_auto_vacuum";
    let numbers = connection.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let (free, pages, auto_vacuum): (i64, i64, i64) = numbers?;
    // A file that was rebuilt by hand may not be able to shrink; trying would never end.
    let can_shrink = auto_vacuum == INCREMENTAL;
    Ok(can_shrink && free > FREE_PAGES_KEPT.max(pages / 10))
}

/// Whether corrupt rows are kept that would have expired by then.
fn has_old_corrupt(connection: &Connection, expired_by: Timestamp) -> Sql<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM corrupt WHERE expires_at <= ?)";
    connection.query_row(sql, [to_i64(expired_by.millis())], |row| row.get(0))
}
