//! The log is moved while commits go on.
//!
//! To move a log takes as long as several commits, and what is written meanwhile waits. So a connection of
//! its own moves it, on another thread. In the end the committer moves what was written during that, which is
//! little: only when nothing is left in the log, SQLite begins it anew.

use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::spawn_blocking;

use super::errors::Fault;
use super::log::Log;

/// Pages that the committer moves itself.
const REST_MAX: i64 = 128;

/// How often the log is moved beside commits before the committer moves the rest, however much it is: each
/// time less should be left, unless a reader of an older state is in the way.
const TIMES_MAX: u32 = 4;

/// How soon is looked whether it has been moved, when nothing else is to be done.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// How the connection comes back, and what became of the move.
type Flight = oneshot::Receiver<(Connection, Result<(), Fault>)>;

/// The connection that moves the log, and where it is.
pub(super) enum Mover {
    Here(Connection),
    /// On another thread, for so many times in a row.
    Away(Flight, u32),
    /// It did not come back. The committer moves the log alone.
    Gone,
}

impl Mover {
    /// Begins to move the log when it is long, or goes on with it. An error says that what was moved may not
    /// be durable.
    pub(super) fn tend(&mut self, log: &mut Log, writes: &Connection) -> Result<(), Fault> {
        let times = match self {
            Self::Away(flight, times) => {
                let times = *times;
                match flight.try_recv() {
                    Err(TryRecvError::Empty) => return Ok(()),
                    Ok((connection, moved)) => {
                        *self = Self::Here(connection);
                        moved?;
                    }
                    Err(TryRecvError::Closed) => *self = Self::Gone,
                }
                times
            }
            Self::Here(_) | Self::Gone if log.is_long(writes)? => 0,
            Self::Here(_) | Self::Gone => return Ok(()),
        };
        let is_much = times < TIMES_MAX && log.rest(writes)? > REST_MAX;
        match std::mem::replace(self, Self::Gone) {
            Self::Here(connection) if is_much => {
                *self = Self::Away(fly(log.clone(), connection), times + 1);
                Ok(())
            }
            here => {
                *self = here;
                log.move_it(writes)
            }
        }
    }

    /// Whether it moves the log right now.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away(..))
    }

    /// Waits until it is back, and closes its connection.
    pub(super) async fn close(self) {
        if let Self::Away(flight, _) = self {
            flight.await.ok();
        }
    }
}

fn fly(log: Log, connection: Connection) -> Flight {
    let (back, flight) = oneshot::channel();
    spawn_blocking(move || {
        let moved = log.move_it(&connection);
        // Nobody waits for it once the database is opened anew.
        back.send((connection, moved)).ok();
    });
    flight
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::super::connections::open_writes;
    use super::*;

    /// A database whose log has 1,000 pages, its connection, and one that moves the log.
    fn long_log(folder: &std::path::Path) -> (Log, Connection, Mover) {
        let path = folder.join("relay.db");
        let create = "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; CREATE TABLE t (b BLOB)";
        Connection::open(&path)
            .unwrap()
            .execute_batch(create)
            .unwrap();
        let writes = open_writes(&path).unwrap();
        let mut log = Log::of(&path, Arc::new(File::open(&path).unwrap()));
        for _ in 0..1_000 {
            insert(&writes);
        }
        log.came(1_000, 0);
        let mover = Mover::Here(open_writes(&path).unwrap());
        (log, writes, mover)
    }

    fn insert(connection: &Connection) {
        let sql = "INSERT INTO t VALUES (zeroblob(7000))";
        connection.execute(sql, ()).unwrap();
    }

    #[tokio::test]
    async fn commits_go_on_while_the_log_is_moved_and_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, writes, mut mover) = long_log(folder.path());
        let before = log.rest(&writes).unwrap();
        assert!(before > 1_000);
        mover.tend(&mut log, &writes).unwrap();
        assert!(mover.is_away());
        while mover.is_away() {
            insert(&writes);
            mover.tend(&mut log, &writes).unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(log.rest(&writes).unwrap(), 0);
        insert(&writes);
        assert!(log.rest(&writes).unwrap() < before, "it has begun anew");
    }

    #[tokio::test]
    async fn a_connection_from_before_a_reopening_moves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, writes, _) = long_log(folder.path());
        let before = log.clone();
        log.open_anew();
        before.move_it(&writes).unwrap_err();
        assert!(log.rest(&writes).unwrap() > 1_000);
        log.move_it(&writes).unwrap();
        assert_eq!(log.rest(&writes).unwrap(), 0);
    }

    #[tokio::test]
    async fn what_never_comes_back_is_done_by_the_committer() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, writes, _) = long_log(folder.path());
        let (back, flight) = oneshot::channel();
        drop(back);
        let mut mover = Mover::Away(flight, 1);
        mover.tend(&mut log, &writes).unwrap();
        assert!(!mover.is_away());
        assert_eq!(log.rest(&writes).unwrap(), 0);
    }
}
