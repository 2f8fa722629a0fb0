//! The committer's hands: one plan becomes one transaction.
//!
//! `known` begins the transaction, takes its number and locks what may leave; `commit` writes and ends it.
//! While that is open, readers of all mailboxes stop before its keys, so it is never left open: `tidy`, which
//! is called after each batch, ends what a batch has left, and the server ends what a relay has left. `reopen`
//! has what follows a failure, `upkeep` the housekeeping.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _, raw_sql};
use tracing::warn;

use super::connect::{Connector, close};
use super::departed::{self, Forgotten, Memory};
use super::errors::{classify, classify_commit, leaves_connection, words};
use super::instance::Instance;
use super::keys::{BEGIN_GIVING_KEYS, KEYS_OF_TRANSACTION};
use super::known::Begun;
use super::time;
use super::usage::{self, Delta, Moved, Sums};
use super::{nonces, pins, recovery, rows};
use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::{Asked, CommitError, Engine, Known, Name, Plan, TookPlace, Write};
use crate::store::model::OrderKey;
use crate::store::sql::kept_time::KeptTime;
use crate::store::tally::as_float;

/// How long a call may take, whatever becomes of the connection: shorter than senders wait for a batch.
const CALL_TIME_MAX: Duration = Duration::from_secs(8);

/// A commit forgets twice as many departures as it brings, so that there are never many too many.
const FORGETS_MIN: i64 = 16;

/// The committer's connection and what it must know between two transactions.
pub(super) struct PostgresWriter {
    pub(super) connector: Connector,
    pub(super) instance: Arc<Instance>,
    pub(super) secret: Secret,
    /// `None` after a failure, until it is reopened.
    pub(super) connection: Option<PgConnection>,
    /// The transaction that is open.
    pub(super) begun: Option<Begun>,
    /// The number of the last transaction that was committed.
    pub(super) commits: i64,
    /// The server's process behind the connection.
    pub(super) process: i32,
    /// The largest key that was given out.
    pub(super) last_key: OrderKey,
    pub(super) memory: Memory,
    time: KeptTime,
    /// Whether COMMIT was sent and nothing was heard of it: the number that it would have made.
    pub(super) unsettled: Option<i64>,
    /// What became of it, once that is known.
    pub(super) settled: Option<TookPlace>,
    metrics: Arc<Metrics>,
}

/// What the writer is made with.
pub(super) struct Ground {
    pub(super) connector: Connector,
    pub(super) instance: Arc<Instance>,
    pub(super) secret: Secret,
    pub(super) memory: Memory,
    pub(super) time: KeptTime,
    pub(super) metrics: Arc<Metrics>,
}

/// Where a transaction failed, or what it found.
pub(super) enum Failure {
    /// Before its COMMIT: it did not happen.
    Before(sqlx::Error),
    /// At its COMMIT.
    At(sqlx::Error),
    /// Another instance came first; nothing happened.
    Raced,
    /// Somebody else writes as this instance; nothing happened.
    NotAlone,
    /// It needs more keys than a transaction has; nothing happened.
    TooManyRows,
}

/// There is no connection.
const CLOSED: Failure = Failure::Before(sqlx::Error::WorkerCrashed);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Before(error)
    }
}

/// What a transaction did that the metrics show once it is durable.
#[derive(Default)]
pub(super) struct Done {
    pub(super) departed: u64,
    pub(super) forgotten: Option<Forgotten>,
}

impl PostgresWriter {
    pub(super) async fn new(
        ground: Ground,
        mut connection: PgConnection,
    ) -> sqlx::Result<(Self, Sums)> {
        let row = sqlx::query(
            "SELECT commits, pg_backend_pid() AS process FROM usage WHERE instance = $1",
        )
        .bind(ground.instance.number())
        .fetch_one(&mut connection)
        .await?;
        let statement = sqlx::AssertSqlSafe(format!("SELECT {} FROM usage", usage::SUMS));
        let sums = sqlx::query(statement).fetch_one(&mut connection).await?;
        let sums = Sums::read(&sums)?;
        let now = ground.time.last().relay;
        let memory = ground.memory;
        // Of none it looks at one, to know how old it is.
        let oldest = departed::forget(
            &mut connection,
            Memory {
                count_max: 0,
                ..memory
            },
            (sums.departed, 1),
            (Timestamp::default(), now),
        );
        let forgotten = oldest.await?;
        let writer = Self {
            commits: row.try_get("commits")?,
            process: row.try_get("process")?,
            connector: ground.connector,
            instance: ground.instance,
            secret: ground.secret,
            connection: Some(connection),
            begun: None,
            last_key: OrderKey::START,
            memory,
            time: ground.time,
            unsettled: None,
            settled: None,
            metrics: ground.metrics,
        };
        let done = Done {
            departed: sums.departed,
            forgotten: Some(forgotten),
        };
        writer.show(&done, now);
        Ok((writer, sums))
    }

    /// Shows in the metrics what is remembered.
    pub(super) fn show(&self, done: &Done, now: Timestamp) {
        self.metrics.dedup_remembered.set(as_float(done.departed));
        let Some(forgotten) = done.forgotten else {
            return;
        };
        let early = &self.metrics.dedup_forgotten_total;
        early.increment(forgotten.early);
        if now > Timestamp::default() {
            let reach = forgotten.oldest.map_or(Duration::ZERO, |at| now.since(at));
            self.metrics.dedup_memory_seconds.set(reach.as_secs_f64());
        }
    }

    fn connection(&mut self) -> Result<&mut PgConnection, CommitError> {
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| CommitError::Unknown("the database is not open".to_owned()))
    }

    /// Begins a transaction, unless one is open, and answers in it.
    async fn begin_and_answer(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        let mut begun = self.begun.take();
        let secret = self.secret.clone();
        let connection = self.connection()?;
        let answered = async {
            if begun.is_none() {
                connection
                    .execute(raw_sql(BEGIN_GIVING_KEYS.as_str()))
                    .await?;
                begun = Some(Begun::read(connection).await?);
            }
            let begun = begun.get_or_insert_default();
            begun.answer(connection, asked, &secret).await
        };
        match answered.await {
            Ok(known) => {
                self.begun = begun;
                Ok(known)
            }
            Err(error) => Err(self.fail(Failure::Before(error)).await),
        }
    }

    /// Writes a plan and commits it. What was begun is ended in any case.
    async fn write(
        &mut self,
        batch: &[&Write],
        plan: &Plan,
        begun: &Begun,
    ) -> Result<Done, Failure> {
        let connection = self.connection.as_mut().ok_or(CLOSED)?;
        // A receipt or a departure has a number as a row has: the same range must do for each.
        let keys = (plan.next_key - begun.first_key).max(plan.departures.len() as i64);
        if keys > KEYS_OF_TRANSACTION {
            return Err(Failure::TooManyRows);
        }
        let mut delta = Delta {
            change: plan.change,
            ..Delta::default()
        };
        delete(connection, plan).await?;
        let as_instance = (self.instance.number16(), &self.secret);
        let (wanted, inserted) = rows::insert(connection, plan, batch, as_instance).await?;
        if wanted != inserted {
            return Err(Failure::Raced);
        }
        rows::change(connection, plan, &self.secret).await?;
        let done = self.remember(plan, begun, &mut delta).await?;
        let connection = self.connection.as_mut().ok_or(CLOSED)?;
        if !plan.pins.changed.is_empty()
            && !pins::write(connection, &plan.pins, &begun.pinned).await?
        {
            return Err(Failure::Raced);
        }
        if !recovery::write(connection, plan, batch).await? {
            return Err(Failure::Raced);
        }
        match nonces::burn(connection, &plan.nonces.burnt, &begun.burnt).await? {
            Some(more) => delta.nonces = more,
            None => return Err(Failure::Raced),
        }
        if !plan.nonces.burnt.is_empty() {
            let rows_max = 2 * plan.nonces.burnt.len() as i64;
            delta.nonces -= nonces::forget(connection, plan.forget_by, rows_max).await?;
        }
        let came = plan.new_rows(batch).map(|row| {
            let name: Name = (row.envelope.mailbox, row.envelope.id);
            name
        });
        let came: Vec<_> = came.filter(|name| !begun.departed.contains(name)).collect();
        self.finish(&delta, &came).await?;
        Ok(done)
    }

    /// Remembers what leaves, and forgets as much and more of what is over.
    async fn remember(
        &mut self,
        plan: &Plan,
        begun: &Begun,
        delta: &mut Delta,
    ) -> Result<Done, Failure> {
        let connection = self.connection.as_mut().ok_or(CLOSED)?;
        let departures = plan.departures.as_slice();
        delta.departed = departed::remember(connection, departures, begun.first_key).await?;
        let before = begun.sums.departed.saturating_add_signed(delta.departed);
        let mut done = Done::default();
        if !departures.is_empty() {
            let rows_max = 2 * departures.len() as i64 + FORGETS_MIN;
            let when = (plan.forget_by, plan.now);
            let forgotten = departed::forget(connection, self.memory, (before, rows_max), when);
            let forgotten = forgotten.await?;
            delta.departed -= forgotten.rows;
            done.forgotten = Some(forgotten);
        }
        done.departed = begun.sums.departed.saturating_add_signed(delta.departed);
        Ok(done)
    }

    /// Moves the sums and commits.
    pub(super) async fn finish(&mut self, delta: &Delta, came: &[Name]) -> Result<(), Failure> {
        let connection = self.connection.as_mut().ok_or(CLOSED)?;
        let time = self.time.due();
        if let Some(reading) = &time {
            time::write(connection, reading).await?;
        }
        let commits = self.commits + 1;
        let names = rows::columns_of(came);
        let moved = (self.instance.number(), delta, commits);
        match usage::advance(connection, moved, names).await? {
            Moved::Yes => {}
            Moved::Raced => return Err(Failure::Raced),
            Moved::NotAlone => return Err(Failure::NotAlone),
        }
        // From here on the end is unknown until the server tells it, also when nobody waits for that.
        self.unsettled = Some(commits);
        connection.execute("COMMIT").await.map_err(Failure::At)?;
        self.unsettled = None;
        self.commits = commits;
        if let Some(reading) = time {
            self.time.saved(reading);
        }
        Ok(())
    }

    /// Ends what a failed transaction left; what its failure means.
    async fn fail(&mut self, failure: Failure) -> CommitError {
        self.begun = None;
        let (error, is_usable) = match &failure {
            Failure::Before(error) => (classify(error), leaves_connection(error)),
            Failure::At(error) => (classify_commit(error), leaves_connection(error)),
            Failure::Raced => (CommitError::Raced, true),
            Failure::TooManyRows => (CommitError::TooWide, true),
            Failure::NotAlone => {
                let why = "another relay has written to this database as this one";
                (CommitError::Unknown(why.to_owned()), true)
            }
        };
        if let CommitError::Unknown(_) = error {
            self.connection = None;
            return error;
        }
        // The server has told that it did not commit.
        self.unsettled = None;
        if !is_usable || self.roll_back().await.is_err() {
            self.connection = None;
            return CommitError::Unknown(error.to_string());
        }
        error
    }

    async fn roll_back(&mut self) -> sqlx::Result<()> {
        self.begun = None;
        match &mut self.connection {
            Some(connection) => connection.execute("ROLLBACK").await.map(drop),
            None => Ok(()),
        }
    }

    /// Gives up the connection of a call that takes too long.
    fn late(&mut self) -> CommitError {
        self.begun = None;
        self.connection = None;
        let secs = CALL_TIME_MAX.as_secs();
        CommitError::Unknown(format!("the database did not answer within {secs} s"))
    }
}

/// Begins a transaction.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

async fn in_time<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(CALL_TIME_MAX, call).await.ok()
}

/// Deletes the rows that leave, the damaged ones after they were copied.
async fn delete(connection: &mut PgConnection, plan: &Plan) -> Result<(), Failure> {
    let aside: Vec<_> = plan.set_aside.iter().map(|(key, _)| *key).collect();
    if !aside.is_empty() {
        rows::set_aside(connection, &aside, plan.now).await?;
    }
    let leaving = plan.deletes.iter().map(|(key, _)| *key).chain(aside);
    let leaving = rows::numbers(leaving);
    if !leaving.is_empty() {
        let wanted = leaving.len() as u64;
        if rows::delete(connection, leaving).await? != wanted {
            return Err(Failure::Raced);
        }
    }
    Ok(())
}

#[async_trait]
impl Engine for PostgresWriter {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        match in_time(self.begin_and_answer(asked)).await {
            Some(answered) => answered,
            None => Err(self.late()),
        }
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        let begun = self.begun.take();
        self.connection()?;
        let begun = begun.ok_or_else(|| CommitError::Refused("nothing was asked".to_owned()))?;
        if plan.is_empty() {
            return match in_time(self.roll_back()).await {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err(self.fail(Failure::Before(error)).await),
                None => Err(self.late()),
            };
        }
        let written = in_time(self.write(batch, plan, &begun)).await;
        match written {
            Some(Ok(done)) => {
                self.last_key = OrderKey(plan.next_key - 1).max(self.last_key);
                self.show(&done, plan.now);
                Ok(())
            }
            Some(Err(failure)) => Err(self.fail(failure).await),
            None => Err(self.late()),
        }
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        let reopened = self.reopen_now().await;
        reopened.map_err(StoreError::unavailable)?;
        Ok(self.settled.take().unwrap_or(TookPlace::No))
    }

    async fn tidy(&mut self, _is_idle: bool) -> Result<Option<Duration>, CommitError> {
        if self.begun.is_none() {
            return Ok(None);
        }
        match in_time(self.roll_back()).await {
            Some(Ok(())) => Ok(None),
            Some(Err(error)) => Err(self.fail(Failure::Before(error)).await),
            None => Err(self.late()),
        }
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        if self.begun.is_some() {
            self.tidy(false).await?;
        }
        self.connection()?;
        match in_time(self.forget(expired_by)).await {
            Some(Ok(more)) => Ok(more),
            Some(Err(failure)) => Err(self.fail(failure).await),
            None => Err(self.late()),
        }
    }

    async fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            let reading = self.time.last();
            if let Some(Err(error)) = in_time(time::write(&mut connection, &reading)).await {
                let said = words(&error);
                warn!("store: the time of this stop was not written: {said}");
            }
            close(connection).await;
        }
        self.instance.leave().await;
    }
}
