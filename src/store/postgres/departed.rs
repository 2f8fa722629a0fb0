//! The SQL of blobs that left a short time ago.
//!
//! They are asked for by name and forgotten from the oldest on: when their time is over, or when there are
//! too many. How many there are is in `usage`.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::columns::{blob_id, fixed, millis, timestamp};
use super::rows::columns_of;
use crate::clock::Timestamp;
use crate::store::engine::{Departed, Departure, Name};

/// What is remembered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) span: Duration,
    /// Zero means no bound.
    pub(super) count_max: u64,
}

/// What is remembered of those of these names that left.
pub(super) async fn find(
    connection: &mut PgConnection,
    names: &[Name],
) -> sqlx::Result<HashMap<Name, Departed>> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let (mailboxes, ids) = columns_of(names);
    let rows = sqlx::query(
        "SELECT d.mailbox64, d.id, d.left_at, d.expires_at, d.checksum \
         FROM unnest($1::bigint[], $2::uuid[]) AS asked (mailbox64, id) \
         JOIN departed d ON d.mailbox64 = asked.mailbox64 AND d.id = asked.id",
    )
    .bind(mailboxes)
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let departed = Departed {
            left_at: timestamp(row, "left_at")?,
            checksum: fixed(row, "checksum")?,
            expires_at: timestamp(row, "expires_at")?,
        };
        let place: (i64, _) = (row.try_get("mailbox64")?, blob_id(row, "id")?);
        found.insert(place, departed);
    }
    Ok(names
        .iter()
        .filter_map(|name| Some((*name, *found.get(&(name.0.prefix64(), name.1))?)))
        .collect())
}

/// Remembers what leaves, from this number on; tells by how many rows there are more.
pub(super) async fn remember(
    connection: &mut PgConnection,
    departures: &[Departure],
    first_number: i64,
) -> sqlx::Result<i64> {
    if departures.is_empty() {
        return Ok(0);
    }
    let names: Vec<_> = departures
        .iter()
        .map(|departure| (departure.mailbox, departure.id))
        .collect();
    let (mailboxes, ids) = columns_of(&names);
    let each = || departures.iter().map(|departure| departure.departed);
    let numbers: Vec<_> = (first_number..).take(departures.len()).collect();
    let left_at: Vec<_> = each().map(|departed| millis(departed.left_at)).collect();
    let expires_at: Vec<_> = each().map(|departed| millis(departed.expires_at)).collect();
    let checksums: Vec<_> = each().map(|departed| departed.checksum).collect();
    let rows = sqlx::query(
        "WITH written AS (INSERT INTO departed (mailbox64, id, n, left_at, expires_at, checksum) \
             SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], \
             $6::bytea[]) \
             ON CONFLICT (mailbox64, id) DO UPDATE SET n = excluded.n, left_at = excluded.left_at, \
             expires_at = excluded.expires_at, checksum = excluded.checksum \
             RETURNING xmax = 0 AS is_new) \
         SELECT count(*) FILTER (WHERE is_new) AS added FROM written",
    )
    .bind(mailboxes)
    .bind(ids)
    .bind(numbers)
    .bind(left_at)
    .bind(expires_at)
    .bind(checksums)
    .fetch_one(connection)
    .await?;
    rows.try_get("added")
}

/// What was forgotten, and what is left.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Forgotten {
    pub(super) rows: i64,
    /// Of these, how many went before their time.
    pub(super) early: u64,
    /// When the oldest one left that is still remembered, if any was looked at.
    pub(super) oldest: Option<Timestamp>,
    /// Whether there may be more to forget.
    pub(super) more: bool,
}

/// Forgets up to `rows_max` of the oldest, of `count` that there are: what was past its time by `forget_by`
/// and what is too much.
pub(super) async fn forget(
    connection: &mut PgConnection,
    memory: Memory,
    (count, rows_max): (u64, i64),
    (forget_by, now): (Timestamp, Timestamp),
) -> sqlx::Result<Forgotten> {
    // What another relay forgets at this moment is passed over: else one commit would wait for the other.
    let rows =
        sqlx::query("SELECT n, left_at FROM departed ORDER BY n LIMIT $1 FOR UPDATE SKIP LOCKED")
            .bind(rows_max)
            .fetch_all(&mut *connection)
            .await?;
    let mut forgotten = Forgotten::default();
    let mut over: Vec<i64> = Vec::new();
    for row in &rows {
        let left_at = timestamp(row, "left_at")?;
        let is_over = |by| left_at.plus(memory.span) <= by;
        let left = count.saturating_sub(u64::try_from(forgotten.rows).unwrap_or(0));
        let is_too_much = memory.count_max != 0 && left > memory.count_max;
        if !is_over(forget_by) && !is_too_much {
            forgotten.oldest = Some(left_at);
            break;
        }
        forgotten.rows += 1;
        forgotten.early += u64::from(!is_over(now));
        over.push(row.try_get("n")?);
    }
    if !over.is_empty() {
        let deleted = sqlx::query("DELETE FROM departed WHERE n = ANY($1)")
            .bind(over)
            .execute(connection)
            .await?;
        forgotten.rows = deleted.rows_affected().try_into().unwrap_or(i64::MAX);
        forgotten.more = forgotten.oldest.is_none() && rows.len() as i64 == rows_max;
    }
    Ok(forgotten)
}
