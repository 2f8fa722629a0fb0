//! How the database is opened again after a failed write.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use tokio::task::spawn_blocking;

use super::connections::{Connections, open_writes};
use super::errors::Fault;
use super::known::{Totals, read_totals};
use super::nonces::Nonces;
use super::open::{known_schema, secret_matches};
use super::settle::Settling;
use super::writer::{SqliteWriter, execute};
use crate::secrets::Secret;

/// What a database has when it was opened again.
pub(super) struct Again {
    pub(super) connections: Connections,
    pub(super) totals: Totals,
    pub(super) nonces: Nonces,
    pub(super) settling: Settling,
}

impl SqliteWriter {
    /// Opens the database again after a failed write and sees that it is the same one, that it can be
    /// written, and what it holds.
    pub(super) async fn open_again(&mut self) -> Result<Again, Fault> {
        self.log.open_anew();
        let (log, path) = (self.log.clone(), self.path.clone());
        let writes = beside(move || {
            // Before anything is read: from here on what can be read is on the disk.
            log.forget_cached()?;
            log.move_again()?;
            Ok(open_writes(&path)?)
        });
        let Connections {
            writes,
            mut reads,
            mover,
        } = Connections::with(writes.await?, &self.path).await?;
        if !is_same(&mut reads, &self.secret).await? {
            return Err(Fault::said("the file is now a different database"));
        }
        self.disk.bound_growth(&writes);
        let log = self.log.clone();
        let written = beside(move || {
            log.move_it(&writes)?;
            let trial = "UPDATE meta SET value = value + 1 WHERE name = 'trial'";
            execute(&writes, trial)?;
            Ok(writes)
        });
        let writes = written.await?;
        let tail = Arc::clone(self.settling.tail());
        Ok(Again {
            totals: read_totals(&mut reads).await?,
            nonces: Nonces::read(&mut reads).await?,
            settling: Settling::read(&mut reads, tail, self.pace).await?,
            connections: Connections {
                writes,
                reads,
                mover,
            },
        })
    }
}

/// Runs this not on the committer's thread: a disk that hangs must not hold up those who wait for an answer.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::said(&error.to_string())))
}

/// Whether it is the database that was open before: schema and secret.
async fn is_same(connection: &mut SqliteConnection, secret: &Secret) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await?;
    let schema: i64 = row.try_get(0)?;
    Ok(schema == known_schema() && secret_matches(connection, secret).await?)
}
