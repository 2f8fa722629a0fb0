//! The SQL of the time that the database knows.

use sqlx::postgres::PgConnection;

use super::columns::{millis, timestamp};
use crate::clock::Clock;
use crate::clock::resume::Reading;
use crate::store::sql::kept_time::KeptTime;

/// Lets the relay's time go on from what the database knows.
pub(super) async fn resume(connection: &mut PgConnection, clock: Clock) -> sqlx::Result<KeptTime> {
    let last = read(connection).await?;
    Ok(KeptTime::resume(last, clock))
}

/// Writes a reading.
pub(super) async fn write(connection: &mut PgConnection, reading: &Reading) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO meta (name, number) VALUES ('own_time', $1), ('wall_time', $2) \
         ON CONFLICT (name) DO UPDATE SET number = excluded.number",
    )
    .bind(millis(reading.relay))
    .bind(millis(reading.wall))
    .execute(connection)
    .await
    .map(drop)
}

async fn read(connection: &mut PgConnection) -> sqlx::Result<Option<Reading>> {
    let row = sqlx::query(
        "SELECT own.number AS own, wall.number AS wall FROM meta own, meta wall \
         WHERE own.name = 'own_time' AND wall.name = 'wall_time'",
    )
    .fetch_optional(connection)
    .await?;
    let reading = |row| {
        Ok(Reading {
            relay: timestamp(&row, "own")?,
            wall: timestamp(&row, "wall")?,
        })
    };
    row.map(reading).transpose()
}
