//! The SQL of used nonces.

use foldhash::{HashMap, HashMapExt as _};
use sqlx::postgres::PgConnection;

use super::columns::{fixed, millis, timestamp};
use crate::clock::Timestamp;
use crate::store::engine::is_nonce_over;

type Nonce = [u8; 32];

/// When those of these nonces were burnt that were.
pub(super) async fn find(
    connection: &mut PgConnection,
    nonces: &[Nonce],
) -> sqlx::Result<HashMap<Nonce, Timestamp>> {
    if nonces.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query("SELECT nonce, burnt_at FROM nonce WHERE nonce = ANY($1)")
        .bind(nonces)
        .fetch_all(connection)
        .await?;
    let found = |row| Ok((fixed(row, "nonce")?, timestamp(row, "burnt_at")?));
    rows.iter().map(found).collect()
}

/// Burns these; `before` are those that there are, whose time is over. Tells by how many rows there are
/// more; `None` when another instance has burnt one of them meanwhile.
pub(super) async fn burn(
    connection: &mut PgConnection,
    burnt: &HashMap<Nonce, Timestamp>,
    before: &HashMap<Nonce, Timestamp>,
) -> sqlx::Result<Option<i64>> {
    if burnt.is_empty() {
        return Ok(Some(0));
    }
    let again: Vec<_> = burnt
        .keys()
        .filter(|nonce| before.contains_key(*nonce))
        .copied()
        .collect();
    let mut deleted = 0;
    if !again.is_empty() {
        let gone = sqlx::query("DELETE FROM nonce WHERE nonce = ANY($1)")
            .bind(again)
            .execute(&mut *connection)
            .await?;
        deleted = gone.rows_affected();
    }
    let (nonces, times): (Vec<_>, Vec<_>) = burnt.iter().map(|(n, at)| (*n, millis(*at))).unzip();
    let inserted = sqlx::query(
        "INSERT INTO nonce (nonce, burnt_at) SELECT * FROM unnest($1::bytea[], $2::bigint[]) \
         ON CONFLICT DO NOTHING",
    )
    .bind(nonces)
    .bind(times)
    .execute(connection)
    .await?;
    let inserted = inserted.rows_affected();
    let more = inserted.cast_signed() - deleted.cast_signed();
    Ok((inserted == burnt.len() as u64).then_some(more))
}

/// Forgets up to `rows_max` of the oldest whose time was over by then; tells how many.
pub(super) async fn forget(
    connection: &mut PgConnection,
    forget_by: Timestamp,
    rows_max: i64,
) -> sqlx::Result<i64> {
    let rows = sqlx::query(
        "SELECT nonce, burnt_at FROM nonce ORDER BY burnt_at LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(rows_max)
    .fetch_all(&mut *connection)
    .await?;
    let mut over: Vec<Nonce> = Vec::new();
    for row in &rows {
        if !is_nonce_over(timestamp(row, "burnt_at")?, forget_by) {
            break;
        }
        over.push(fixed(row, "nonce")?);
    }
    if over.is_empty() {
        return Ok(0);
    }
    let deleted = sqlx::query("DELETE FROM nonce WHERE nonce = ANY($1)")
        .bind(over)
        .execute(connection)
        .await?;
    Ok(deleted.rows_affected().try_into().unwrap_or(i64::MAX))
}
