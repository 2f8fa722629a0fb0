//! The connections for reads, taken for one statement each.
//!
//! A connection that has failed is not used again, and neither are the others that were idle then: a server
//! that was restarted has dropped them all. A read that met such a connection is tried once more on a new one.
//! A read that is given up midway takes its connection with it.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::Semaphore;

use super::connect::{Connector, Role, close};
use super::errors::{leaves_connection, words};
use crate::store::StoreError;

/// Connections for reads. Each is a process of the server.
const READERS: usize = 4;

/// How long a read waits for a connection, and how long it may then take.
const WAIT_MAX: Duration = Duration::from_secs(10);
const READ_TIME_MAX: Duration = Duration::from_secs(10);

/// The idle connections and the permits for all.
pub(super) struct Readers {
    connector: Connector,
    permits: Semaphore,
    /// Nothing awaits while it is locked.
    idle: Mutex<Vec<PgConnection>>,
}

/// Why a read failed.
pub(super) enum Unread {
    /// The server says so of this statement.
    Sql(sqlx::Error),
    /// There is no connection, or no answer.
    Store(StoreError),
}

impl From<Unread> for StoreError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Sql(error) => Self::unavailable(words(&error)),
            Unread::Store(error) => error,
        }
    }
}

impl Readers {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            permits: Semaphore::new(READERS),
            idle: Mutex::default(),
        }
    }

    /// Reads on one of the connections, which the statement takes and hands back.
    pub(super) async fn read<T, F>(
        &self,
        statement: impl Fn(PgConnection) -> F,
    ) -> Result<T, Unread>
    where
        F: Future<Output = (sqlx::Result<T>, PgConnection)>,
    {
        let waiting = tokio::time::timeout(WAIT_MAX, self.permits.acquire());
        let busy = || unavailable("all connections to the database were busy for 10 s");
        let _permit = match waiting.await {
            Ok(permit) => permit.map_err(|_closed| Unread::Store(StoreError::Closed))?,
            Err(_) => return Err(busy()),
        };
        let idle = self.idle().pop();
        if let Some(connection) = idle {
            match self.read_on(connection, &statement).await {
                Err(Unread::Sql(error)) if !leaves_connection(&error) => self.idle().clear(),
                read => return read,
            }
        }
        self.read_on(self.connect().await?, &statement).await
    }

    async fn read_on<T, F>(
        &self,
        connection: PgConnection,
        statement: &impl Fn(PgConnection) -> F,
    ) -> Result<T, Unread>
    where
        F: Future<Output = (sqlx::Result<T>, PgConnection)>,
    {
        let reading = tokio::time::timeout(READ_TIME_MAX, statement(connection));
        let Ok((read, connection)) = reading.await else {
            return Err(unavailable("the database did not answer within 10 s"));
        };
        if read.as_ref().err().is_none_or(leaves_connection) && !self.permits.is_closed() {
            self.idle().push(connection);
        }
        read.map_err(Unread::Sql)
    }

    async fn connect(&self) -> Result<PgConnection, Unread> {
        let connecting = self.connector.connect(Role::Reader).await;
        connecting.map_err(|failed| unavailable(failed.words()))
    }

    /// Reads on a connection that has read nothing before.
    pub(super) async fn read_afresh<T, F>(
        &self,
        statement: impl Fn(PgConnection) -> F,
    ) -> Result<T, Unread>
    where
        F: Future<Output = (sqlx::Result<T>, PgConnection)>,
    {
        self.read_on(self.connect().await?, &statement).await
    }

    /// Closes those that are idle, and the others when they are done.
    pub(super) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            close(connection).await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<PgConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(why: impl std::fmt::Display) -> Unread {
    Unread::Store(StoreError::unavailable(why))
}
