//! One relay at a time: an advisory lock, held by a connection that does nothing else.
//!
//! The lock is the session's: it is gone when the connection is, so nothing is left behind by a relay that
//! was killed. The connection is asked every second whether it is still there. Should it be lost without
//! anybody noticing, the number of commits (`usage`) refuses the next transaction once another relay has
//! written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connect::{Connector, Role, close};
use super::errors::{OpenError, words};
use crate::store::StoreError;

/// "vauchi-r" as a number: nobody else's lock by accident.
const LOCK: i64 = 0x7661_7563_6869_2d72;

/// How long a start waits for the sessions of a relay that was just killed to end.
const TAKE_WAIT_MAX: Duration = Duration::from_secs(2);
const TAKE_PAUSE: Duration = Duration::from_millis(100);

/// How long the connection may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1_500);

/// What everybody else is told.
const IN_USE: &str =
    "another relay is using this database; several instances on one database are not supported yet";

/// The lock, held or lost.
pub(super) struct Lock {
    connector: Connector,
    connection: Mutex<Option<PgConnection>>,
    is_held: AtomicBool,
}

impl Lock {
    /// Takes the lock, or says that another relay has it.
    pub(super) async fn take(connector: Connector) -> Result<Self, OpenError> {
        let connecting = connector.connect(Role::Lock).await;
        let mut connection = connecting.map_err(|failed| connector.describe(failed))?;
        let until = Instant::now() + TAKE_WAIT_MAX;
        loop {
            let took = try_take(&mut connection).await;
            if took.map_err(|error| connector.describe_statement(&error))? {
                break;
            }
            if Instant::now() >= until {
                return Err(OpenError::InUse(connector.place().to_owned()));
            }
            tokio::time::sleep(TAKE_PAUSE).await;
        }
        Ok(Self {
            connector,
            connection: Mutex::new(Some(connection)),
            is_held: AtomicBool::new(true),
        })
    }

    /// Whether nobody holds it, without taking it for longer than that.
    pub(super) async fn is_free(connection: &mut PgConnection) -> sqlx::Result<bool> {
        let is_free = try_take(connection).await?;
        if is_free {
            sqlx::query("SELECT pg_advisory_unlock($1)")
                .bind(LOCK)
                .execute(connection)
                .await?;
        }
        Ok(is_free)
    }

    /// Whether it was held at the last look.
    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    /// Asks the connection whether it is there.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        let mut held = self.connection.lock().await;
        let said = match held.as_mut() {
            None => "it was lost".to_owned(),
            Some(connection) => {
                match tokio::time::timeout(ANSWER_TIME_MAX, connection.ping()).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) => words(&error),
                    Err(_) => "no answer".to_owned(),
                }
            }
        };
        *held = None;
        self.is_held.store(false, Ordering::Release);
        let why = format!("the connection that holds the database's lock: {said}");
        Err(StoreError::unavailable(why))
    }

    /// Takes it again if it was lost.
    pub(super) async fn hold(&self) -> Result<(), String> {
        if self.look().await.is_ok() {
            return Ok(());
        }
        let mut held = self.connection.lock().await;
        let connecting = self.connector.connect(Role::Lock).await;
        let mut connection = connecting.map_err(|failed| failed.words())?;
        let took = try_take(&mut connection).await;
        if !took.map_err(|error| words(&error))? {
            return Err(IN_USE.to_owned());
        }
        *held = Some(connection);
        self.is_held.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives it back.
    pub(super) async fn release(&self) {
        self.is_held.store(false, Ordering::Release);
        let held = self.connection.lock().await.take();
        if let Some(connection) = held {
            close(connection).await;
        }
    }
}

async fn try_take(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT pg_try_advisory_lock($1) AS took")
        .bind(LOCK)
        .fetch_one(connection)
        .await?;
    row.try_get("took")
}
