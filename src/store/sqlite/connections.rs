//! The committer's three connections.
//!
//! One writes, through rusqlite: its calls are made where the committer runs, so a transaction costs no way
//! to another thread and back. The other one reads what a fold asks, through sqlx, like the readers of
//! pages. Both are of the same process, and only the committer uses them, one at a time: so what the one has
//! committed the other one sees, and none waits for a lock. The third one moves the log beside them.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tracing::warn;

use super::errors::{Fault, words};
use super::files::Moved;
use super::mover::Mover;
use super::open::{LOCK_WAIT_MAX, WRITER_PRAGMAS, reader_options};
use super::rows::{Sql, run_through};
use super::time;
use crate::clock::resume::Reading;

/// Statements of a connection that stay prepared: all that there are.
const PREPARED_MAX: usize = 64;

/// The committer's connections.
pub(super) struct Connections {
    pub(super) writes: Connection,
    pub(super) reads: SqliteConnection,
    pub(super) mover: Mover,
}

impl Connections {
    /// Opens them to a database whose schema is up to date.
    pub(super) async fn open(path: &Path) -> Result<Self, Fault> {
        let writes = open_writes(path)?;
        Self::with(writes, path).await
    }

    /// Opens the others beside the one that writes.
    pub(super) async fn with(writes: Connection, path: &Path) -> Result<Self, Fault> {
        let mover = Mover::Here(open_writes(path)?);
        let options = reader_options(path).thread_name(|_| "store-questions".to_owned());
        let reads = options.connect().await?;
        Ok(Self {
            writes,
            reads,
            mover,
        })
    }

    /// Lets go of connections after a failure. Whatever they say: they are not used again. The one that moves
    /// the log may still be at it ([`Log::open_anew`]).
    ///
    /// [`Log::open_anew`]: super::log::Log::open_anew
    pub(super) async fn give_up(self) {
        self.reads.close_hard().await.ok();
        drop((self.writes, self.mover));
    }

    /// Closes them at the end of the relay. `moved` says that the files are not where they were.
    pub(super) async fn close(self, moved: Option<Moved>, last: &Reading) {
        if let Some(moved) = moved {
            warn!("store: closing leaves the files as they are: {moved}");
            // SQLite would delete the log by its path, whatever that leads to. The system closes the
            // files at the end of the process.
            std::mem::forget(self);
            return;
        }
        self.mover.close().await;
        let writes = &self.writes;
        // Without it the last minute's is there.
        time::write(writes, last).ok();
        // So that a copy of the one file is the whole database. Closing does it too, unless a
        // reader is open still; nothing is lost without it. A backup that is being made is not
        // waited for.
        run_through(writes, "PRAGMA busy_timeout = 0").ok();
        run_through(writes, "PRAGMA wal_checkpoint(TRUNCATE)").ok();
        if let Err(error) = self.reads.close().await {
            warn!("store: closing failed: {}", words(&error));
        }
        if let Err((_, error)) = self.writes.close() {
            warn!("store: closing failed: {}", words(&error));
        }
    }
}

/// Opens the connection that writes.
pub(super) fn open_writes(path: &Path) -> Sql<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(PREPARED_MAX);
    connection.busy_timeout(LOCK_WAIT_MAX)?;
    for (name, value) in WRITER_PRAGMAS {
        run_through(&connection, &format!("PRAGMA {name} = {value}"))?;
    }
    Ok(connection)
}
