//! How the database is opened again after a failed write.

use std::sync::Arc;

use super::connections::Connections;
use super::errors::{Fault, words};
use super::known::{Totals, read_totals};
use super::nonces::Nonces;
use super::settle::Settling;
use super::writer::{SqliteWriter, execute};

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
        // Before anything is read: from here on what can be read is on the disk.
        let forgotten = self.log.forget_cached();
        let on_disk = forgotten.and_then(|()| self.log.move_again());
        on_disk.map_err(|error| error.to_string())?;
        let opened = async {
            let mut connections = Connections::open(&self.path).await?;
            if !connections.is_same(&self.secret).await? {
                return Ok(Err("the file is now a different database".to_owned()));
            }
            self.disk.bound_growth(&connections.writes);
            self.log.move_it(&connections.writes)?;
            let trial = "UPDATE meta SET value = value + 1 WHERE name = 'trial'";
            execute(&connections.writes, trial)?;
            let totals = read_totals(&mut connections.reads).await?;
            let nonces = Nonces::read(&mut connections.reads).await?;
            let tail = Arc::clone(self.settling.tail());
            let settling = Settling::read(&mut connections.reads, tail, self.pace).await?;
            Ok::<_, Fault>(Ok(Again {
                connections,
                totals,
                nonces,
                settling,
            }))
        };
        opened.await.unwrap_or_else(|error| Err(words(&error)))
    }
}
