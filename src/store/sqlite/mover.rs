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
