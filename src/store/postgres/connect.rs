//! Connections to the database: which host, as whom, and what holds for each session.
//!
//! Of several hosts the first is taken that takes writes. Names are looked up anew for each connection, and
//! the password is read from its file each time, because both may change while the relay runs.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _, raw_sql};

use super::errors::{OpenError, words};
use crate::config::Database;

/// The oldest server that is tested.
pub(super) const VERSION_MIN: u32 = 15;

/// How long one host may take to answer.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The committer's.
    Writer,
    /// Reads beside it.
    Reader,
    /// Short statements whose loss nobody minds.
    Beat,
}

/// What holds for every session. A dead relay must not hold its rows for long, and stale
/// statistics of a table that swings between empty and millions of rows must not choose another plan than
/// by the index. The limits that a database's owner may have set for idle sessions do not concern ours.
const OF_ALL: &str = "SET idle_session_timeout = 0; SET tcp_keepalives_idle = 10; \
     SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
     SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; \
     SET enable_mergejoin = off; SET jit = off; SET lock_timeout = '4s'";

/// The committer's. A transaction that is left open holds back deliveries and row locks, so the server ends
/// it. With `synchronous_commit` off it would confirm what is not durable; any other level is the operator's choice.
const OF_WRITER: &str = "SET idle_in_transaction_session_timeout = '10s'; \
     SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') = 'off'";

/// How long a statement of the committer may take.
pub(super) const TIME_OUT_OF_WRITER: &str = "SET statement_timeout = '6s'";

const OF_READER: &str = "SET statement_timeout = '8s'; SET default_transaction_read_only = on; \
     SET idle_in_transaction_session_timeout = '10s'";

/// Nothing of it must outlive a crash.
const OF_BEAT: &str = "SET statement_timeout = '2s'; SET synchronous_commit = off; \
     SET idle_in_transaction_session_timeout = '10s'";

/// Makes connections. It knows passwords, so it prints nothing of itself.
#[derive(Clone)]
pub(super) struct Connector {
    hosts: Vec<PgConnectOptions>,
    password_file: Option<PathBuf>,
    place: String,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failed {
    /// None of the hosts will do, each in its words.
    Hosts(String),
    Password(String),
    TooOld(u32),
}

impl Failed {
    /// One line.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Hosts(words) | Self::Password(words) => words.clone(),
            Self::TooOld(found) => format!("PostgreSQL {found} is too old"),
        }
    }
}

impl Connector {
    pub(super) fn new(database: &Database) -> Result<Self, OpenError> {
        let hosts = database.urls().map(|url| {
            let options = PgConnectOptions::from_str(url);
            let options = options.map_err(|error| OpenError::Url(words(&error)))?;
            Ok(options
                .application_name("vauchi-relay")
                .disable_statement_logging())
        });
        Ok(Self {
            hosts: hosts.collect::<Result<_, OpenError>>()?,
            password_file: database.password_file.clone(),
            place: database.place(),
        })
    }

    /// Hosts and name of the database, for the operator.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A connection to the first host that takes writes.
    pub(super) async fn connect(&self, role: Role) -> Result<PgConnection, Failed> {
        let prepare = async |host| prepare(&host, role).await;
        self.first_host(CONNECT_TIME_MAX, prepare).await
    }

    /// A connection to the first host that takes writes, on which this channel is heard.
    pub(super) async fn listen(&self, channel: &str) -> Result<PgListener, Failed> {
        let listen = async |host| listen(&host, channel).await;
        // That makes two connections.
        self.first_host(2 * CONNECT_TIME_MAX, listen).await
    }

    /// What the first host gives that will do and answers within this time.
    async fn first_host<T, F: Future<Output = Result<T, Unfit>>>(
        &self,
        time_max: Duration,
        ask: impl Fn(PgConnectOptions) -> F,
    ) -> Result<T, Failed> {
        let password = self.password().await?;
        let mut said: Vec<String> = Vec::new();
        for host in &self.hosts {
            let with_password = match &password {
                Some(password) => host.clone().password(password),
                None => host.clone(),
            };
            match tokio::time::timeout(time_max, ask(with_password)).await {
                Ok(Ok(given)) => return Ok(given),
                Ok(Err(Unfit::TooOld(found))) => return Err(Failed::TooOld(found)),
                Ok(Err(Unfit::Words(words))) => said.push(format!("{}: {words}", name(host))),
                Err(_) => {
                    let secs = time_max.as_secs();
                    said.push(format!("{}: no answer within {secs} s", name(host)));
                }
            }
        }
        Err(Failed::Hosts(said.join("; ")))
    }

    /// What the password file has, if there is one.
    async fn password(&self) -> Result<Option<String>, Failed> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let read = tokio::fs::read_to_string(path).await;
        let text = read.map_err(|error| {
            Failed::Password(format!("cannot read {}: {error}", path.display()))
        })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// The same failure as a start tells it.
    pub(super) fn describe(&self, failed: Failed) -> OpenError {
        let place = self.place.clone();
        match failed {
            Failed::Hosts(words) => OpenError::Unreachable { place, words },
            Failed::Password(words) => OpenError::Password(words),
            Failed::TooOld(found) => OpenError::TooOld {
                place,
                found,
                needed: VERSION_MIN,
            },
        }
    }

    /// What the server says of a statement, as a start tells it.
    pub(super) fn describe_statement(&self, error: &sqlx::Error) -> OpenError {
        let (place, words) = (self.place.clone(), words(error));
        OpenError::Database { place, words }
    }
}

fn name(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

/// Why a host will not do.
enum Unfit {
    TooOld(u32),
    Words(String),
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        Self::Words(words(&error))
    }
}

async fn prepare(host: &PgConnectOptions, role: Role) -> Result<PgConnection, Unfit> {
    let mut connection = host.connect().await?;
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int / 10000 AS version, \
         pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only",
    )
    .fetch_one(&mut connection)
    .await?;
    let version = u32::try_from(row.try_get::<i32, _>("version")?).unwrap_or(0);
    if version < VERSION_MIN {
        return Err(Unfit::TooOld(version));
    }
    if row.try_get("is_read_only")? {
        // It is closed when it is dropped; nobody waits for that.
        return Err(Unfit::Words("takes no writes (a standby?)".to_owned()));
    }
    connection.execute(raw_sql(OF_ALL)).await?;
    let of_role = match role {
        Role::Writer => OF_WRITER,
        Role::Reader => OF_READER,
        Role::Beat => OF_BEAT,
    };
    connection.execute(raw_sql(of_role)).await?;
    if role == Role::Writer {
        connection.execute(TIME_OUT_OF_WRITER).await?;
    }
    Ok(connection)
}

/// The driver's listener makes its connection by itself, so whether the host will do is asked on another one.
async fn listen(host: &PgConnectOptions, channel: &str) -> Result<PgListener, Unfit> {
    close(prepare(host, Role::Reader).await?).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(CONNECT_TIME_MAX)
        .after_connect(|connection, _| {
            Box::pin(async { connection.execute(raw_sql(OF_ALL)).await.map(drop) })
        });
    let pool = pool.connect_lazy_with(host.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    // Who listens connects again, and looks for what was missed.
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    Ok(listener)
}

/// Tells the server good-bye, within a second.
pub(super) async fn close(connection: PgConnection) {
    // One that does not answer is dropped, which closes it as well.
    tokio::time::timeout(Duration::from_secs(1), connection.close())
        .await
        .ok();
}
