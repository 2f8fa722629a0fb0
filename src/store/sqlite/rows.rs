//! The SQL of rows.
//!
//! What is read goes through sqlx, where every statement is a round trip to the connection's thread: so
//! there are few and large ones, each for 1, 10 and 100 rows, so that the cache of prepared statements hits.
//! What is written goes through the committer's own connection, row by row: a statement that is prepared
//! costs nothing to run again there.

use std::collections::HashSet;
use std::sync::LazyLock;

use rusqlite::Connection;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};

use super::columns::to_i64;
use super::errors::is_damage;
use super::guard::{GUARD_COLUMNS, header};
use crate::clock::Timestamp;
use crate::ids::{MailboxHash, Topic};
use crate::secrets::Secret;
use crate::store::engine::Header;
use crate::store::model::OrderKey;

/// What a statement of the committer's own connection comes to.
pub(super) type Sql<T> = rusqlite::Result<T>;

/// A query with its arguments.
pub(super) type Query = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

/// One statement in the three sizes.
pub(super) struct Sized {
    texts: [(usize, String); 3],
}

impl Sized {
    /// `part` once for each row between `head` and `tail`.
    pub(super) fn new(head: &str, part: &str, tail: &str) -> Self {
        let texts = [100, 10, 1].map(|rows| {
            let parts = vec![part; rows].join(",");
            (rows, format!("{head}{parts}{tail}"))
        });
        Self { texts }
    }

    /// The statement for so many rows.
    #[cfg(test)]
    pub(super) fn text(&self, rows: usize) -> &str {
        let sized = self.texts.iter().find(|(size, _)| *size == rows);
        sized.map_or("", |(_, text)| text)
    }

    /// The first rows of `rows` that one statement takes, exactly as many as it is for.
    pub(super) fn cut<'a, T>(&'static self, rows: &'a [T]) -> Option<(Query, &'a [T], &'a [T])> {
        let (size, text) = self.texts.iter().find(|(size, _)| *size <= rows.len())?;
        let (now, later) = rows.split_at_checked(*size)?;
        Some((sqlx::query(text.as_str()), now, later))
    }

    /// The same for a list of keys, where the last statement may be for more keys than there are:
    /// what is not bound is NULL and equals nothing.
    pub(super) fn cut_keys<'a>(&'static self, keys: &'a [i64]) -> Option<(Query, &'a [i64])> {
        self.cut_keys_after(&[], keys)
    }

    /// The same with arguments that come before the keys.
    pub(super) fn cut_keys_after<'a>(
        &'static self,
        first: &[i64],
        keys: &'a [i64],
    ) -> Option<(Query, &'a [i64])> {
        let [(most, _), ..] = &self.texts;
        let (now, later) = keys.split_at_checked(keys.len().min(*most))?;
        let (_, text) = self
            .texts
            .iter()
            .rev()
            .find(|(size, _)| *size >= now.len())?;
        if now.is_empty() {
            return None;
        }
        let query = first
            .iter()
            .chain(now)
            .fold(sqlx::query(text.as_str()), |query, key| query.bind(*key));
        Some((query, later))
    }
}

const DELETE_BLOB: &str = "DELETE FROM blob WHERE seq = ?";

const DELETE_GONE: &str = "DELETE FROM gone WHERE n = ?";

const COPY_CORRUPT: &str = "INSERT OR REPLACE INTO corrupt (seq, mailbox64, id64, size, \
     expires_slot, kind, expires_at, stored_at, mailbox, id, checksum, topic64, owner64, owner, \
     version, sealed, body) \
     SELECT seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, mailbox, id, \
     checksum, topic64, owner64, owner, version, sealed, body FROM blob WHERE seq = ?";

/// The same without what lies on pages of its own.
const COPY_CORRUPT_HEADER: &str = "INSERT OR REPLACE INTO corrupt (seq, mailbox64, id64, size, \
     expires_slot, kind, expires_at, stored_at, mailbox, id, checksum) \
     SELECT seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, mailbox, id, \
     checksum FROM blob WHERE seq = ?";

static SELECT_HEADERS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        &format!("SELECT seq, mailbox, id, {GUARD_COLUMNS} FROM blob WHERE seq IN ("),
        "?",
        ")",
    )
});

/// The rows of topics, given with their mailboxes: mailbox64, topic64 and seq.
pub(super) static SELECT_TOPICS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT mailbox64, topic64, seq FROM (VALUES ",
        "(?,?)",
        ") AS asked CROSS JOIN blob INDEXED BY blob_by_topic \
         WHERE mailbox64 = asked.column1 AND topic64 = asked.column2 AND topic64 IS NOT NULL",
    )
});

/// The index entries of owners: owner64, size and expires_slot.
pub(super) static SELECT_OWNERS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT owner64, size, expires_slot FROM blob INDEXED BY blob_by_owner \
         WHERE owner64 IN (",
        "?",
        ")",
    )
});

/// Reads the headers of these rows; what is not there is left out.
pub(super) async fn read_headers(
    connection: &mut SqliteConnection,
    mut keys: &[i64],
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    let mut headers = Vec::with_capacity(keys.len());
    while let Some((query, later)) = SELECT_HEADERS.cut_keys(keys) {
        for row in query.fetch_all(&mut *connection).await? {
            headers.push((OrderKey(row.try_get(0)?), header(&row, secret)?));
        }
        keys = later;
    }
    Ok(headers)
}

/// Reads the keys of the rows of these topics, given with their mailboxes.
pub(super) async fn read_topics(
    connection: &mut SqliteConnection,
    mut topics: &[(MailboxHash, Topic)],
) -> sqlx::Result<Vec<i64>> {
    let mut found = Vec::new();
    while let Some((mut query, now, later)) = SELECT_TOPICS.cut(topics) {
        for (mailbox, topic) in now {
            query = query.bind(mailbox.prefix64()).bind(topic.prefix64());
        }
        for row in query.fetch_all(&mut *connection).await? {
            found.push(row.try_get(2)?);
        }
        topics = later;
    }
    Ok(found)
}

/// Runs a PRAGMA, which may tell rows that nobody wants, and does a part of its work for each.
pub(super) fn run_through(connection: &Connection, sql: &str) -> Sql<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(())?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Deletes these rows.
pub(super) fn delete_blobs(connection: &Connection, keys: &[i64]) -> Sql<()> {
    for_each(connection, DELETE_BLOB, keys)
}

/// Deletes these numbers of `gone`.
pub(super) fn delete_gone(connection: &Connection, numbers: &[i64]) -> Sql<()> {
    for_each(connection, DELETE_GONE, numbers)
}

/// Runs a statement for each of these keys.
pub(super) fn for_each(connection: &Connection, sql: &str, keys: &[i64]) -> Sql<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare_cached(sql)?;
    keys.iter()
        .try_for_each(|key| statement.execute([key]).map(drop))
}

/// Corrupt rows that are kept, the newest ones: with bodies of 1 MiB this is 100 MiB.
const CORRUPT_ROWS_MAX: i64 = 100;

/// Which of these rows are on damaged pages. Asked outside of a transaction that writes: such a
/// failure within one leaves it unfit for anything else.
pub(super) async fn damaged(
    connection: &mut SqliteConnection,
    keys: &[i64],
) -> sqlx::Result<HashSet<i64>> {
    let mut damaged = HashSet::new();
    for key in keys {
        let read = sqlx::query("SELECT sealed, body FROM blob WHERE seq = ?")
            .bind(*key)
            .fetch_optional(&mut *connection)
            .await;
        match read {
            Ok(_) => {}
            Err(error) if is_damage(&error) => {
                damaged.insert(*key);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

/// Moves these rows to the corrupt ones, the `damaged` ones without their bodies.
pub(super) fn set_aside(
    connection: &Connection,
    keys: &[i64],
    damaged: &HashSet<i64>,
    now: Timestamp,
) -> Sql<()> {
    for key in keys {
        let copy = match damaged.contains(key) {
            true => COPY_CORRUPT_HEADER,
            false => COPY_CORRUPT,
        };
        connection.execute(copy, [key])?;
    }
    delete_blobs(connection, keys)?;
    connection.execute(
        "UPDATE corrupt SET set_aside_at = ? WHERE set_aside_at IS NULL",
        [to_i64(now.millis())],
    )?;
    let too_many = "DELETE FROM corrupt WHERE seq <= \
         (SELECT seq FROM corrupt ORDER BY seq DESC LIMIT 1 OFFSET ?)";
    connection.execute(too_many, [CORRUPT_ROWS_MAX]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    static KEYS: LazyLock<Sized> = LazyLock::new(|| Sized::new("x IN (", "?", ")"));

    #[test]
    fn rows_are_cut_into_the_sizes_that_there_are() {
        let rows: Vec<_> = (0..123).collect();
        let mut rows = rows.as_slice();
        let mut sizes = Vec::new();
        while let Some((_, now, later)) = KEYS.cut(rows) {
            sizes.push(now.len());
            rows = later;
        }
        assert_eq!(sizes, [100, 10, 10, 1, 1, 1]);
    }

    #[test]
    fn keys_are_cut_into_few_statements() {
        let keys: Vec<_> = (0..113).collect();
        let mut keys = keys.as_slice();
        let mut left = Vec::new();
        while let Some((_, later)) = KEYS.cut_keys(keys) {
            left.push(later.len());
            keys = later;
        }
        assert_eq!(left, [13, 0]);
    }
}
