//! What settled mailboxes hold: sorted runs of entries, and the SQL of them.
//!
//! The index of mailboxes is a small log-structured merge tree: new rows are in memory (`tail`), and now and
//! then become a run, whose entries are sorted by mailbox and appended at the end of the table `entry`. Each
//! run covers the keys behind the run before it, so a mailbox's entries are in order when its runs are read
//! in order. `settle` writes and merges runs; everything here is about those that there are.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use futures_util::TryStreamExt as _;
use rusqlite::Connection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row as _, SqliteExecutor};

use super::columns::{Size, to_i64, to_u64};
use super::errors::is_damage;
use super::rows::{Sized, Sql, for_each};
use super::tail::{Entry, Tail};
use crate::store::model::OrderKey;

/// The entries of a mailbox behind a key, in runs up to a key: seq, id64, size and expires_slot, in the order of
/// seq.
pub(super) const SELECT_ENTRIES: &str = "SELECT e.seq, e.id64, e.size, e.expires_slot \
     FROM run CROSS JOIN entry AS e \
     WHERE run.last_seq > ? AND run.last_seq <= ? AND e.run = run.run AND e.mailbox64 = ? AND e.seq > ? \
     ORDER BY run.last_seq, e.seq LIMIT ?";

/// The entries of mailboxes: seq, id64, size, expires_slot and, last, mailbox64.
pub(super) static SELECT_SETS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT e.seq, e.id64, e.size, e.expires_slot, e.mailbox64 FROM run CROSS JOIN entry AS e \
         WHERE e.run = run.run AND e.mailbox64 IN (",
        "?",
        ")",
    )
});

/// What mailboxes hold in runs up to a key: mailbox64, rows, bytes, and rows that wait.
pub(super) static SELECT_HOLDINGS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT e.mailbox64, count(*), sum(e.size >> 2), sum(e.expires_slot >= ?) \
         FROM run CROSS JOIN entry AS e \
         WHERE run.last_seq <= ? AND e.run = run.run AND (1 << (e.size & 3)) & ? <> 0 \
         AND e.mailbox64 IN (",
        "?",
        ") GROUP BY e.mailbox64",
    )
});

/// The condition that finds the entry of the settled row `b`.
pub(super) const ENTRY_OF_ROW: &str = "i.run = (SELECT run.run FROM run \
     WHERE run.last_seq >= b.seq ORDER BY run.last_seq LIMIT 1) \
     AND i.mailbox64 = b.mailbox64 AND i.seq = b.seq AND i.id64 = b.id64 AND i.size = b.size \
     AND i.expires_slot = b.expires_slot";

/// The condition that the row `b` is not settled.
pub(super) const IS_UNSETTLED: &str = "b.seq > (SELECT coalesce(max(last_seq), 0) FROM run)";

const DELETE_ENTRY: &str = "DELETE FROM entry WHERE run = ? AND mailbox64 = ? AND seq = ?";

const INSERT_ENTRY: &str = "INSERT INTO entry (run, mailbox64, seq, id64, size, expires_slot) \
     VALUES (?, ?, ?, ?, ?, ?)";

/// A finished run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) number: i64,
    /// It covers the keys behind the run before it, up to this one.
    pub(super) last_key: i64,
    /// How many entries it had when it was finished.
    pub(super) entries: u64,
}

/// All finished runs, in the order of their keys.
#[derive(Debug, Default, Clone)]
pub(super) struct Runs(pub(super) Vec<Run>);

impl Runs {
    /// Reads the table.
    pub(super) async fn read(connection: &mut SqliteConnection) -> sqlx::Result<Self> {
        let rows = sqlx::query("SELECT run, last_seq, entries FROM run ORDER BY last_seq")
            .fetch_all(connection)
            .await?;
        let run = |row: &SqliteRow| {
            Ok(Run {
                number: row.try_get(0)?,
                last_key: row.try_get(1)?,
                entries: to_u64(row.try_get(2)?),
            })
        };
        rows.iter().map(run).collect::<sqlx::Result<_>>().map(Self)
    }

    /// Rows with greater keys are not settled.
    pub(super) fn settled_to(&self) -> i64 {
        self.0.last().map_or(0, |run| run.last_key)
    }

    /// The run that covers this key, if it is settled.
    pub(super) fn of(&self, key: i64) -> Option<i64> {
        let place = self.0.partition_point(|run| run.last_key < key);
        self.0.get(place).map(|run| run.number)
    }
}

/// Reads the entries of the unsettled rows of a table: its rows behind this key.
pub(super) async fn read_unsettled(
    connection: &mut SqliteConnection,
    settled_to: i64,
) -> sqlx::Result<Unsettled> {
    let mut found = Unsettled::default();
    match read_together(connection, settled_to, &mut found).await {
        Err(error) if is_damage(&error) => {
            found = Unsettled::default();
            read_one_by_one(connection, settled_to, &mut found).await?;
        }
        read => read?,
    }
    Ok(found)
}

/// What a start finds behind the last run.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// Each with its mailbox64.
    pub(super) entries: Vec<(i64, Entry)>,
    /// Rows on pages that cannot be read.
    pub(super) unreadable: u64,
}

const SELECT_UNSETTLED: &str = "SELECT seq, id64, size, expires_slot, mailbox64 \
     FROM blob NOT INDEXED WHERE seq > ? AND seq <= ?";

async fn read_together(
    connection: &mut SqliteConnection,
    settled_to: i64,
    found: &mut Unsettled,
) -> sqlx::Result<()> {
    let mut rows = sqlx::query(SELECT_UNSETTLED)
        .bind(settled_to)
        .bind(i64::MAX)
        .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        found.entries.push((row.try_get(4)?, entry(&row)?));
    }
    Ok(())
}

/// A page of the table is damaged: the keys stand in the index of expiries, too.
async fn read_one_by_one(
    connection: &mut SqliteConnection,
    settled_to: i64,
    found: &mut Unsettled,
) -> sqlx::Result<()> {
    let keys = sqlx::query("SELECT seq FROM blob INDEXED BY blob_by_expiry WHERE seq > ?")
        .bind(settled_to)
        .fetch_all(&mut *connection)
        .await?;
    for key in &keys {
        let key: i64 = key.try_get(0)?;
        let read = sqlx::query(SELECT_UNSETTLED)
            .bind(key - 1)
            .bind(key)
            .fetch_optional(&mut *connection)
            .await;
        match read {
            Ok(None) => {}
            Ok(Some(row)) => found.entries.push((row.try_get(4)?, entry(&row)?)),
            Err(error) if is_damage(&error) => found.unreadable += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An entry as the selects of this file begin.
pub(super) fn entry(row: &SqliteRow) -> sqlx::Result<Entry> {
    Ok(Entry {
        key: row.try_get(0)?,
        id64: row.try_get(1)?,
        size: Size(row.try_get(2)?),
        slot: row.try_get(3)?,
    })
}

/// The first `limit` entries of a mailbox behind a key, settled or not.
pub(super) async fn entries_of(
    executor: impl SqliteExecutor<'_>,
    tail: &Tail,
    (mailbox64, after): (i64, OrderKey),
    limit: u32,
) -> sqlx::Result<Vec<Entry>> {
    let seen = tail.entries(mailbox64, after.0, limit as usize);
    let rows = sqlx::query(SELECT_ENTRIES)
        .bind(after.0)
        .bind(seen.settled_to)
        .bind(mailbox64)
        .bind(after.0)
        .bind(i64::from(limit))
        .fetch_all(executor)
        .await?;
    let mut entries = rows.iter().map(entry).collect::<sqlx::Result<Vec<_>>>()?;
    let room = (limit as usize).saturating_sub(entries.len());
    entries.extend(seen.unsettled.into_iter().take(room));
    Ok(entries)
}

/// The last key of a mailbox, or zero.
pub(super) async fn last_key(
    executor: impl SqliteExecutor<'_>,
    tail: &Tail,
    mailbox64: i64,
) -> sqlx::Result<i64> {
    if let Some(key) = tail.last_key(mailbox64) {
        return Ok(key);
    }
    let row = sqlx::query(
        "SELECT coalesce(max(last), 0) FROM (SELECT (SELECT max(seq) FROM entry \
         WHERE entry.run = run.run AND mailbox64 = ?) AS last FROM run)",
    )
    .bind(mailbox64)
    .fetch_one(executor)
    .await?;
    row.try_get(0)
}

/// Writes entries of a run.
pub(super) fn insert_entries(
    connection: &Connection,
    run: i64,
    entries: &[(i64, Entry)],
) -> Sql<()> {
    let mut insert = connection.prepare_cached(INSERT_ENTRY)?;
    for (mailbox64, entry) in entries {
        insert.execute([
            run,
            *mailbox64,
            entry.key,
            entry.id64,
            entry.size.0,
            entry.slot,
        ])?;
    }
    Ok(())
}

/// Deletes entries, each given as run, mailbox64 and key. What is not there does no harm.
pub(super) fn delete_entries(connection: &Connection, entries: &[(i64, i64, i64)]) -> Sql<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut delete = connection.prepare_cached(DELETE_ENTRY)?;
    for entry in entries {
        delete.execute(*entry)?;
    }
    Ok(())
}

/// Lets an entry expire at another time.
pub(super) fn set_slot(
    connection: &Connection,
    (run, mailbox64, key): (i64, i64, i64),
    slot: i64,
) -> Sql<()> {
    let sql = "UPDATE entry SET expires_slot = ? WHERE run = ? AND mailbox64 = ? AND seq = ?";
    let mut update = connection.prepare_cached(sql)?;
    update.execute([slot, run, mailbox64, key]).map(drop)
}

/// Writes down that a run is finished.
pub(super) fn insert_run(connection: &Connection, run: &Run) -> Sql<()> {
    let sql = "INSERT INTO run (last_seq, run, entries) VALUES (?, ?, ?)";
    let values = [run.last_key, run.number, to_i64(run.entries)];
    connection.execute(sql, values).map(drop)
}

/// The next entries of a run, each with its mailbox64.
pub(super) async fn next_entries(
    connection: &mut SqliteConnection,
    run: i64,
    behind: Option<(i64, i64)>,
    limit: usize,
) -> sqlx::Result<Vec<(i64, Entry)>> {
    let (mailbox64, key) = behind.unwrap_or((i64::MIN, i64::MIN));
    let rows = sqlx::query(
        "SELECT seq, id64, size, expires_slot, mailbox64 FROM entry \
         WHERE run = ? AND (mailbox64, seq) > (?, ?) ORDER BY mailbox64, seq LIMIT ?",
    )
    .bind(run)
    .bind(mailbox64)
    .bind(key)
    .bind(to_i64(limit as u64))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(4)?, entry(row)?)))
        .collect()
}

/// Runs that have entries and are not in the table of runs.
pub(super) async fn stale_runs(connection: &mut SqliteConnection) -> sqlx::Result<Vec<i64>> {
    let rows = sqlx::query(
        "WITH RECURSIVE found(number) AS ( \
           SELECT min(run) FROM entry \
           UNION ALL \
           SELECT (SELECT min(run) FROM entry WHERE run > number) FROM found \
           WHERE number IS NOT NULL) \
         SELECT number FROM found \
         WHERE number IS NOT NULL AND number NOT IN (SELECT run FROM run)",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Deletes up to `limit` entries of a run; answers how many.
pub(super) fn forget_entries(connection: &Connection, run: i64, limit: usize) -> Sql<usize> {
    let sql = "DELETE FROM entry WHERE run = ?1 AND (mailbox64, seq) IN \
         (SELECT mailbox64, seq FROM entry WHERE run = ?1 LIMIT ?2)";
    connection.execute(sql, [run, to_i64(limit as u64)])
}

/// Builds runs from the rows, but for some, in place of all that there are: one of what was settled, and one of
/// the rest up to a key. A reader that has seen the tail before still finds what was settled in the first one.
pub(super) fn rebuild(
    connection: &Connection,
    (settled_to, last_key): (i64, i64),
    but: &BTreeSet<i64>,
) -> Sql<Vec<Run>> {
    connection.execute_batch("DELETE FROM run; DELETE FROM entry")?;
    let mut runs = Vec::new();
    for (number, after, last_key) in [(1, 0, settled_to), (2, settled_to, last_key)] {
        let sql = "INSERT INTO entry (run, mailbox64, seq, id64, size, expires_slot) \
             SELECT ?, mailbox64, seq, id64, size, expires_slot FROM blob NOT INDEXED \
             WHERE seq > ? AND seq <= ? ORDER BY mailbox64, seq";
        let entries = connection.execute(sql, [number, after, last_key])? as u64;
        if entries > 0 {
            let run = Run {
                number,
                last_key,
                entries,
            };
            insert_run(connection, &run)?;
            runs.push(run);
        }
    }
    let but: Vec<_> = but.iter().copied().collect();
    for_each(connection, "DELETE FROM entry WHERE seq = ?", &but)?;
    Ok(runs)
}
