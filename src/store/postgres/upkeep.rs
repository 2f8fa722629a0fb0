//! What is over is forgotten, in transactions of their own.

use sqlx::Executor as _;

use super::columns::millis;
use super::known::Begun;
use super::usage::Delta;
use super::writer::{BEGIN, Done, Failure, PostgresWriter};
use super::{departed, instance, nonces};
use crate::clock::Timestamp;

/// Departures and nonces that one transaction forgets.
const UPKEEP_ROWS_MAX: i64 = 2_000;

impl PostgresWriter {
    /// One transaction of the housekeeping.
    pub(super) async fn forget(&mut self, expired_by: Timestamp) -> Result<bool, Failure> {
        let Some(connection) = &mut self.connection else {
            return Err(Failure::Before(sqlx::Error::WorkerCrashed));
        };
        instance::forget_gone(connection, self.instance.number()).await?;
        connection.execute(BEGIN).await?;
        let begun = Begun::read(connection).await?;
        let forgotten = departed::forget(
            connection,
            self.memory,
            (begun.sums.departed, UPKEEP_ROWS_MAX),
            (expired_by, expired_by),
        )
        .await?;
        let nonces = nonces::forget(connection, expired_by, UPKEEP_ROWS_MAX).await?;
        let corrupt = sqlx::query("DELETE FROM corrupt WHERE expires_at <= $1")
            .bind(millis(expired_by))
            .execute(&mut *connection)
            .await?;
        let delta = Delta {
            departed: -forgotten.rows,
            nonces: -nonces,
            ..Delta::default()
        };
        if delta == Delta::default() && corrupt.rows_affected() == 0 {
            connection.execute("ROLLBACK").await?;
        } else {
            self.finish(&delta, &[]).await?;
        }
        let done = Done {
            departed: begun.sums.departed.saturating_add_signed(delta.departed),
            forgotten: Some(forgotten),
        };
        self.show(&done, expired_by);
        Ok(forgotten.more || nonces >= UPKEEP_ROWS_MAX)
    }
}
