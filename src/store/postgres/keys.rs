//! Which order keys a transaction gives out.
//!
//! A key is `base + the transaction's number × 65,536 + the row's ordinal`. The number is the server's own
//! (`pg_current_xact_id`, 64 bits), so two transactions never give out the same key, and a reader knows from
//! its snapshot which smaller keys can still appear: those from the number of the oldest transaction that
//! runs (`pages`). A database that was restored from a dump counts transactions from the beginning again, and
//! a standby that took over may have missed some; `base` is then raised above all that was given out.

use std::sync::LazyLock;

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use crate::store::model::OrderKey;

/// Rows of one transaction: a batch of 500 writes changes at the most 2,048 rows, a single write of
/// thousands of ids a few thousand.
pub(super) const KEYS_OF_TRANSACTION: i64 = 65_536;

/// Readers do not pass this key: what has a smaller one is committed or never will be.
pub(super) const EDGE: &str = "(SELECT number FROM meta WHERE name = 'base') \
     + pg_snapshot_xmin(pg_current_snapshot())::text::bigint * 65536";

/// Whoever gives out keys holds this lock together with others who do, and who raises `base` holds it alone:
/// otherwise a reader would take its end of the page from the new `base` while smaller keys of the old one can
/// still appear.
const GIVING_KEYS: i64 = 8_530_219_521_447_980_658;

/// Begins a transaction that gives out keys.
pub(super) static BEGIN_GIVING_KEYS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SELECT pg_advisory_xact_lock_shared({GIVING_KEYS})"
    )
});

/// Sees that the next transaction's keys are larger than all that the database has and larger than `least`,
/// and raises `base` where they are not. To be called outside a transaction.
pub(super) async fn raise_base(
    connection: &mut PgConnection,
    least: OrderKey,
) -> sqlx::Result<bool> {
    let row = sqlx::query(
        "SELECT number + pg_snapshot_xmax(pg_current_snapshot())::text::bigint * 65536 <= greatest($1, \
             coalesce((SELECT pos FROM blob ORDER BY pos DESC LIMIT 1), 0), \
             coalesce((SELECT n FROM departed ORDER BY n DESC LIMIT 1), 0)) AS is_low \
         FROM meta WHERE name = 'base'",
    )
    .bind(least.0)
    .fetch_one(&mut *connection)
    .await?;
    if !row.try_get::<bool, _>("is_low")? {
        return Ok(false);
    }
    connection.execute("BEGIN").await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(GIVING_KEYS)
        .execute(&mut *connection)
        .await?;
    let raised = raise(connection, least).await?;
    connection.execute("COMMIT").await?;
    Ok(raised)
}

/// The snapshot of the statement is older than its number, so no key that it sees is larger for another reason.
async fn raise(connection: &mut PgConnection, least: OrderKey) -> sqlx::Result<bool> {
    let raised = sqlx::query(
        "WITH last AS (SELECT greatest($1, \
             coalesce((SELECT pos FROM blob ORDER BY pos DESC LIMIT 1), 0), \
             coalesce((SELECT n FROM departed ORDER BY n DESC LIMIT 1), 0)) AS pos) \
         UPDATE meta SET number = last.pos + 1 - pg_current_xact_id()::text::bigint * 65536 FROM last \
         WHERE name = 'base' AND number + pg_current_xact_id()::text::bigint * 65536 <= last.pos",
    )
    .bind(least.0)
    .execute(connection)
    .await?;
    Ok(raised.rows_affected() > 0)
}

/// The largest key that was given out to a transaction that has ended.
pub(super) async fn horizon(connection: &mut PgConnection) -> sqlx::Result<OrderKey> {
    let row = sqlx::query(
        "SELECT number + pg_snapshot_xmax(pg_current_snapshot())::text::bigint * 65536 - 1 AS pos \
         FROM meta WHERE name = 'base'",
    )
    .fetch_one(connection)
    .await?;
    row.try_get("pos").map(OrderKey)
}
