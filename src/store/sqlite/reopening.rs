//! How the database is opened again after a failed write.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::task::spawn_blocking;

use super::connections::{Connections, open_writes};
use super::errors::{Fault, words};
use super::known::{Totals, read_totals};
use super::log::Log;
use super::nonces::Nonces;
use super::open::known_schema;
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
    pub(super) async fn open_again(&mut self) -> Result<Again, String> {
        // Not on the committer's thread: a disk that hangs must not hold up those who wait for an answer.
        let (log, path, secret) = (self.log.clone(), self.path.clone(), self.secret.clone());
        let written = spawn_blocking(move || write_again(&log, &path, &secret)).await;
        let writes = written.map_err(|error| error.to_string())??;
        let opened = async {
            let mut connections = Connections::with(writes, &self.path).await?;
            self.disk.bound_growth(&connections.writes);
            let totals = read_totals(&mut connections.reads).await?;
            let nonces = Nonces::read(&mut connections.reads).await?;
            let tail = Arc::clone(self.settling.tail());
            let settling = Settling::read(&mut connections.reads, tail, self.pace).await?;
            Ok::<_, Fault>(Again {
                connections,
                totals,
                nonces,
                settling,
            })
        };
        opened.await.map_err(|error| words(&error))
    }
}

/// Has the system forget what may differ from the disk, opens the connection that writes, and writes something.
fn write_again(log: &Log, path: &Path, secret: &Secret) -> Result<Connection, String> {
    // Before anything is read: from here on what can be read is on the disk.
    let on_disk = log.forget_cached().and_then(|()| log.move_again());
    on_disk.map_err(|error| error.to_string())?;
    let opened = || {
        let writes = open_writes(path)?;
        if !is_same(&writes, secret)? {
            return Ok(Err("the file is now a different database".to_owned()));
        }
        log.move_it(&writes)?;
        let trial = "UPDATE meta SET value = value + 1 WHERE name = 'trial'";
        execute(&writes, trial)?;
        Ok::<_, Fault>(Ok(writes))
    };
    opened().unwrap_or_else(|error| Err(words(&error)))
}

/// Whether it is the database that was open before: schema and secret.
fn is_same(connection: &Connection, secret: &Secret) -> rusqlite::Result<bool> {
    let schema = "SELECT max(version) FROM _sqlx_migrations";
    let schema: i64 = connection.query_row(schema, (), |row| row.get(0))?;
    let check = "SELECT value FROM meta WHERE name = 'secret_check'";
    let check: Vec<u8> = connection.query_row(check, (), |row| row.get(0))?;
    Ok(schema == known_schema() && check == secret.check_value())
}
