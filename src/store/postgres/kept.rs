//! A connection that is kept for one purpose, and made anew when it was lost.

use std::future::Future;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::connect::{Connector, Role, close};
use super::errors::{leaves_connection, words};
use crate::store::others::Unheard;

/// How long one use may take, the connecting included.
const USE_TIME_MAX: Duration = Duration::from_secs(4);

/// The connection, and how to make another one.
pub(super) struct Kept {
    connector: Connector,
    role: Role,
    connection: Mutex<Option<PgConnection>>,
}

impl Kept {
    pub(super) fn new(connector: Connector, role: Role) -> Self {
        let connection = Mutex::new(None);
        Self {
            connector,
            role,
            connection,
        }
    }

    /// Runs a statement, which takes the connection and hands it back; on another one if the last was lost.
    /// One user waits for the other.
    pub(super) async fn run<T, F>(
        &self,
        statement: impl Fn(PgConnection) -> F,
    ) -> Result<T, Unheard>
    where
        F: Future<Output = (sqlx::Result<T>, PgConnection)>,
    {
        let running = tokio::time::timeout(USE_TIME_MAX, self.run_now(&statement));
        let late = "the database did not answer within 4 s";
        running
            .await
            .unwrap_or_else(|_| Err(Unheard(late.to_owned())))
    }

    async fn run_now<T, F>(&self, statement: &impl Fn(PgConnection) -> F) -> Result<T, Unheard>
    where
        F: Future<Output = (sqlx::Result<T>, PgConnection)>,
    {
        let mut kept = self.connection.lock().await;
        let mut is_fresh = kept.is_none();
        loop {
            let connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    let connecting = self.connector.connect(self.role).await;
                    connecting.map_err(|failed| Unheard(failed.words()))?
                }
            };
            let (done, connection) = statement(connection).await;
            let error = match done {
                Ok(done) => {
                    *kept = Some(connection);
                    return Ok(done);
                }
                Err(error) => error,
            };
            if leaves_connection(&error) {
                *kept = Some(connection);
            }
            if is_fresh || kept.is_some() {
                return Err(Unheard(words(&error)));
            }
            is_fresh = true;
        }
    }

    /// Closes it.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            close(connection).await;
        }
    }
}
