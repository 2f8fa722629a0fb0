//! This relay among those that use the database: its number, its heartbeat, and whether it does the chores.
//!
//! Each start takes a number that no other start has had, so two relays never write under the same one. A
//! connection of its own writes every second that the relay is there; the same statement counts the others,
//! tells what is kept in all, and takes or keeps the lease of the chores. The server's clock judges all times.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::Uuid;
use sqlx::{Executor as _, Row as _};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connect::{Connector, Role, close};
use super::errors::{OpenError, leaves_connection, words};
use super::held_back::HeldBack;
use super::schema::known_schema;
use super::usage::{self, SUMS, Sums};
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::HeldInAll;
use crate::store::others::Serving;

/// How long a heartbeat may take.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1_500);

/// A heartbeat that is older than this tells nothing any more. The lease of the chores lasts two seconds
/// longer, so a relay that was stopped for a while has let go of it before another one takes it.
const FRESH: Duration = Duration::from_secs(3);

/// One that is younger need not be repeated.
const RECENT: Duration = Duration::from_millis(500);

/// A relay that has not been seen for this time counts as gone; in SQL.
pub(super) const GONE_AFTER: &str = "interval '15 seconds'";

static BEAT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH beat AS (INSERT INTO instance AS i (number, id, secret, version, schema, state, connections) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (number) DO UPDATE SET seen_at = now(), \
             state = excluded.state, connections = excluded.connections WHERE i.id = excluded.id RETURNING 1), \
         leased AS (INSERT INTO lease AS l (name, owner, backend, epoch, until) \
             VALUES ('chores', $1, pg_backend_pid(), 1, now() + interval '5 seconds') \
             ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, backend = excluded.backend, \
             until = excluded.until, epoch = l.epoch + (l.owner <> excluded.owner)::integer \
             WHERE l.owner = excluded.owner OR l.until < now() \
             OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = l.backend) RETURNING 1) \
         SELECT (SELECT count(*) FROM beat) AS beats, (SELECT count(*) FROM leased) AS leases, \
         (SELECT count(*) FROM instance WHERE number <> $1 AND seen_at > now() - {GONE_AFTER}) AS others, \
         pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest, \
         pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next, {SUMS} FROM usage"
    )
});

/// What the last heartbeat found.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    does_chores: bool,
    held: HeldInAll,
}

/// This relay's place among them.
pub(super) struct Instance {
    connector: Connector,
    id: Uuid,
    secret: Vec<u8>,
    number: AtomicI32,
    connection: Mutex<Option<PgConnection>>,
    /// Nothing awaits inside.
    seen: StdMutex<Option<Seen>>,
    others: AtomicU32,
    /// How this relay serves; `None` until it does. Nothing awaits inside.
    serving: StdMutex<Option<Serving>>,
    is_draining: AtomicBool,
    /// Nothing awaits inside.
    held_back: StdMutex<HeldBack>,
    metrics: Arc<Metrics>,
}

impl Instance {
    /// Takes a number, and tells that this relay is there.
    pub(super) async fn enter(
        connector: Connector,
        secret: &Secret,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let connecting = connector.connect(Role::Beat).await;
        let mut connection = connecting.map_err(|failed| connector.describe(failed))?;
        let told = |error| connector.describe_statement(&error);
        let number = take_number(&mut connection).await.map_err(told)?;
        let instance = Self {
            id: Uuid::from_bytes(rand::random()),
            secret: secret.check_value().to_vec(),
            number: AtomicI32::new(number),
            connection: Mutex::new(None),
            seen: StdMutex::new(None),
            others: AtomicU32::new(0),
            serving: StdMutex::new(None),
            is_draining: AtomicBool::new(false),
            held_back: StdMutex::default(),
            connector: connector.clone(),
            metrics,
        };
        instance.beat(&mut connection).await.map_err(told)?;
        usage::enter(&mut connection, number).await.map_err(told)?;
        *instance.connection.lock().await = Some(connection);
        Ok(instance)
    }

    /// The number that this relay writes under.
    pub(super) fn number(&self) -> i32 {
        self.number.load(Ordering::Acquire)
    }

    /// The same as rows carry it.
    pub(super) fn number16(&self) -> i16 {
        number16(self.number())
    }

    /// Tells from now on how this relay serves.
    pub(super) fn serves(&self, serving: Serving) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving);
    }

    /// Tells from now on that this relay is about to stop.
    pub(super) fn drains(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// How many other relays were there at the last heartbeat.
    pub(super) fn others(&self) -> u32 {
        self.others.load(Ordering::Acquire)
    }

    /// What all relays kept at the last heartbeat; `None` while this one is alone and knows it better.
    pub(super) fn held(&self) -> Option<HeldInAll> {
        let seen = (*self.seen()).filter(|_| self.others() > 0);
        seen.map(|seen| seen.held)
    }

    /// Tells that this relay is there, on another connection if the last one was lost.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        let mut kept = self.connection.lock().await;
        if self.seen_within(RECENT).is_some() {
            return Ok(());
        }
        let beating = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    let connecting = self.connector.connect(Role::Beat).await;
                    connecting.map_err(|failed| failed.words())?
                }
            };
            let Err(error) = self.beat(&mut connection).await else {
                return Ok(connection);
            };
            self.knows_nothing();
            match leaves_connection(&error) {
                // The server is there. Why it takes no heartbeat, the next write finds out.
                true => Ok(connection),
                false => Err(words(&error)),
            }
        };
        let said = match tokio::time::timeout(ANSWER_TIME_MAX, beating).await {
            Ok(Ok(connection)) => {
                *kept = Some(connection);
                return Ok(());
            }
            Ok(Err(said)) => said,
            Err(_) => String::from("no answer"),
        };
        self.knows_nothing();
        let why = format!("the connection that tells that this relay is there: {said}");
        Err(StoreError::unavailable(why))
    }

    /// Whether this relay does for all what one is to do.
    pub(super) async fn does_chores(&self) -> Result<bool, StoreError> {
        if self.seen_within(FRESH).is_none() {
            self.look().await?;
        }
        let seen = self.seen_within(FRESH);
        Ok(seen.is_some_and(|seen| seen.does_chores))
    }

    async fn beat(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let at = Instant::now();
        let mut row = self.beat_once(connection).await?;
        if row.try_get::<i64, _>("beats")? == 0 {
            // The database was restored from a time before this relay had its number.
            let number = take_number(connection).await?;
            self.number.store(number, Ordering::Release);
            row = self.beat_once(connection).await?;
            usage::enter(connection, number).await?;
        }
        let others: i64 = row.try_get("others")?;
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        self.others.store(others, Ordering::Release);
        self.metrics.instances.set(f64::from(others) + 1.0);
        let held_back = self
            .held_back()
            .note(at, row.try_get("oldest")?, row.try_get("next")?);
        let secs = held_back.as_secs_f64();
        self.metrics.deliveries_held_back_seconds.set(secs);
        *self.seen() = Some(Seen {
            at,
            does_chores: row.try_get::<i64, _>("leases")? > 0,
            held: Sums::read(&row)?.held,
        });
        Ok(())
    }

    async fn beat_once(&self, connection: &mut PgConnection) -> sqlx::Result<PgRow> {
        let connections = self.serving().map_or(0, |serving| serving.connections);
        sqlx::query(BEAT.as_str())
            .bind(self.number())
            .bind(self.id)
            .bind(self.secret.as_slice())
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(known_schema())
            .bind(self.state())
            .bind(i32::try_from(connections).unwrap_or(i32::MAX))
            .fetch_one(connection)
            .await
    }

    /// The series of a heartbeat that failed.
    fn knows_nothing(&self) {
        self.metrics.instances.set(0.0);
        self.metrics.deliveries_held_back_seconds.set(0.0);
    }

    /// As the others read it.
    fn state(&self) -> &'static str {
        match self.serving() {
            _ if self.is_draining.load(Ordering::Acquire) => "draining",
            None => "starting",
            Some(serving) if serving.is_ready => "ready",
            Some(_) => "not ready",
        }
    }

    /// Says good-bye: the others do not wait for it.
    pub(super) async fn leave(&self) {
        *self.seen() = None;
        let Some(mut connection) = self.connection.lock().await.take() else {
            return;
        };
        let leaving = async {
            sqlx::query("DELETE FROM instance WHERE number = $1 AND id = $2")
                .bind(self.number())
                .bind(self.id)
                .execute(&mut connection)
                .await
        };
        // Who does not get through is seen as gone a little later, and its session ends with the connection.
        tokio::time::timeout(ANSWER_TIME_MAX, leaving).await.ok();
        close(connection).await;
    }

    fn seen_within(&self, time: Duration) -> Option<Seen> {
        (*self.seen()).filter(|seen| seen.at.elapsed() < time)
    }

    fn serving(&self) -> Option<Serving> {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_back(&self) -> MutexGuard<'_, HeldBack> {
        self.held_back
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance's number as rows carry it: two that run at the same time are not 32,768 starts apart.
fn number16(number: i32) -> i16 {
    i16::try_from(number & 0x7fff).unwrap_or(0)
}

async fn take_number(connection: &mut PgConnection) -> sqlx::Result<i32> {
    let row = connection
        .fetch_one(
            "UPDATE meta SET number = number + 1 WHERE name = 'instances' \
             RETURNING (number % 2147483647)::integer AS number",
        )
        .await?;
    row.try_get("number")
}

/// How many relays use this database.
pub(super) async fn count(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let statement = sqlx::AssertSqlSafe(format!(
        "SELECT count(*) AS relays FROM instance WHERE seen_at > now() - {GONE_AFTER}"
    ));
    let row = sqlx::query(statement).fetch_one(connection).await?;
    super::columns::count(&row, "relays")
}

/// Adds what relays have changed that are long gone to what `heir` has changed, and forgets them. The sums
/// stay the same.
pub(super) async fn forget_gone(connection: &mut PgConnection, heir: i32) -> sqlx::Result<()> {
    connection
        .execute("DELETE FROM instance WHERE seen_at < now() - interval '10 minutes'")
        .await?;
    sqlx::query(
        "WITH gone AS (DELETE FROM usage u WHERE u.instance <> $1 \
             AND NOT EXISTS (SELECT FROM instance i WHERE i.number = u.instance) RETURNING *), \
         sums AS (SELECT count(*) AS relays, sum(blobs) AS blobs, sum(device_sync) AS device_sync, \
             sum(receipts) AS receipts, sum(recovery_proofs) AS recovery_proofs, sum(pins) AS pins, \
             sum(bytes) AS bytes, sum(departed) AS departed, sum(nonces) AS nonces FROM gone) \
         UPDATE usage u SET blobs = u.blobs + s.blobs, device_sync = u.device_sync + s.device_sync, \
             receipts = u.receipts + s.receipts, recovery_proofs = u.recovery_proofs + s.recovery_proofs, \
             pins = u.pins + s.pins, bytes = u.bytes + s.bytes, departed = u.departed + s.departed, \
             nonces = u.nonces + s.nonces \
         FROM sums s WHERE u.instance = $1 AND s.relays > 0",
    )
    .bind(heir)
    .execute(connection)
    .await
    .map(drop)
}
