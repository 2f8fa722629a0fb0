//! The SQL of the time that the database knows.

use rusqlite::Connection;
use sqlx::sqlite::SqliteConnection;

use super::columns::{timestamp, to_i64};
use super::departed::last_left_at;
use super::rows::Sql;
use crate::clock::Clock;
use crate::clock::resume::Reading;
use crate::store::sql::kept_time::KeptTime;

/// Lets the relay's time go on from what the database knows.
pub(super) async fn resume(
    connection: &mut SqliteConnection,
    clock: Clock,
) -> sqlx::Result<KeptTime> {
    let last = match read(connection).await? {
        Some(last) => Some(last),
        None => read_from_rows(connection, &clock).await?,
    };
    Ok(KeptTime::resume(last, clock))
}

/// Writes a reading.
pub(super) fn write(connection: &Connection, reading: &Reading) -> Sql<()> {
    let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES ('own_time', ?), ('wall_time', ?)";
    let times = [reading.relay, reading.wall].map(|time| to_i64(time.millis()));
    connection.execute(sql, times).map(drop)
}

async fn read(connection: &mut SqliteConnection) -> sqlx::Result<Option<Reading>> {
    let row = sqlx::query(
        "SELECT own.value, wall.value FROM meta own, meta wall \
         WHERE own.name = 'own_time' AND wall.name = 'wall_time'",
    )
    .fetch_optional(connection)
    .await?;
    let reading = |row| {
        Ok(Reading {
            relay: timestamp(&row, 0)?,
            wall: timestamp(&row, 1)?,
        })
    };
    row.map(reading).transpose()
}

/// A database of an older relay: when something last came or left. Whether the clock was right then
/// nobody knows, so the earlier one of that and the wall clock is taken.
async fn read_from_rows(
    connection: &mut SqliteConnection,
    clock: &Clock,
) -> sqlx::Result<Option<Reading>> {
    let row =
        sqlx::query("SELECT coalesce((SELECT stored_at FROM blob ORDER BY seq DESC LIMIT 1), 0)")
            .fetch_one(&mut *connection)
            .await?;
    let last = timestamp(&row, 0)?.max(last_left_at(connection).await?);
    let last = last.min(clock.wall());
    Ok((last.millis() > 0).then_some(Reading {
        relay: last,
        wall: last,
    }))
}
