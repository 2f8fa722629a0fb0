//! The relays that are registered in the database, for the operator.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::instance::GONE_AFTER;
use crate::store::others::Member;

/// Rows at the most, those that were seen last: each start adds one, and one that is gone stays for ten minutes.
const MEMBERS_MAX: i64 = 256;

/// By the server's clock. A heartbeat that is five seconds late has lost the lease of the chores, too.
static MEMBERS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT i.number, i.version, i.connections, l.epoch, \
         CASE WHEN i.seen_at <= now() - {GONE_AFTER} THEN 'gone' \
             WHEN i.seen_at <= now() - interval '5 seconds' THEN 'stale' ELSE i.state END AS state, \
         greatest(extract(epoch FROM now() - i.seen_at), 0)::double precision AS silent \
         FROM instance i LEFT JOIN lease l \
             ON l.name = 'chores' AND l.owner = i.number AND l.until >= now() \
         ORDER BY i.seen_at DESC LIMIT {MEMBERS_MAX}"
    )
});

/// Reads them, ordered by their numbers; `own` is the number of this one.
pub(super) async fn read(connection: &mut PgConnection, own: i32) -> sqlx::Result<Vec<Member>> {
    let rows = sqlx::query(MEMBERS.as_str()).fetch_all(connection).await?;
    let members = rows.iter().map(|row| member(row, own));
    let mut members = members.collect::<sqlx::Result<Vec<_>>>()?;
    members.sort_unstable_by_key(|member| member.number);
    Ok(members)
}

fn member(row: &PgRow, own: i32) -> sqlx::Result<Member> {
    let number = row.try_get("number")?;
    let connections: i32 = row.try_get("connections")?;
    Ok(Member {
        number,
        is_this: number == own,
        version: row.try_get("version")?,
        state: row.try_get("state")?,
        connections: u32::try_from(connections).unwrap_or(0),
        silent: Duration::try_from_secs_f64(row.try_get("silent")?).unwrap_or_default(),
        chores_epoch: row.try_get("epoch")?,
    })
}
