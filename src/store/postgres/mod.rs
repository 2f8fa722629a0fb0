//! The engine over PostgreSQL: a database that a server keeps.
//!
//! Several relays use a database at the same time (`instance`). Order keys come from the server's own
//! transaction numbers (`keys`), what may leave is locked before it is counted, and what another relay has
//! changed meanwhile has the batch folded again. The committer has one connection (`writer`, which answers
//! questions from `known`, with `reopen` and `upkeep`), pages come from a few others (`reads`, with the SQL in
//! `pages` and the connections in `readers`). `exchange` is the way to the other relays (`voice` speaks,
//! `payloads` are the words, `kept` the connections, `members` who is registered, `held_back` how long
//! deliveries wait for a transaction). Beside them: `connect` (hosts and sessions), `schema`
//! (migrations, and whose database it is), `usage` (what is kept in all, and which commit was the last one),
//! `rows`, `departed`, `pins`, `recovery`, `nonces` and `time` (the statements), `columns` and `guard` (what is
//! read of a row), `doubts` (whether what cannot be read is damaged), `errors` (what failed), `advice` (unsafe
//! settings of the server).

mod advice;
mod columns;
mod connect;
mod departed;
mod doubts;
mod errors;
mod exchange;
mod guard;
mod held_back;
mod instance;
mod kept;
mod keys;
mod known;
mod members;
mod nonces;
mod pages;
mod payloads;
mod pins;
mod readers;
mod reads;
mod recovery;
mod reopen;
mod rows;
mod schema;
mod time;
mod upkeep;
mod usage;
mod voice;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tracing::warn;

use super::engine::Opened;
use super::model::OrderKey;
use crate::clock::Clock;
use crate::config::Database;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use connect::{Connector, Role};
use departed::Memory;
use doubts::Doubts;
use exchange::Exchange;
use instance::Instance;
use readers::Readers;
use reads::PostgresReads;
use schema::Stale;
use writer::{Ground, PostgresWriter};

pub use errors::OpenError;

/// What [`open`] opens.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Where it is.
    pub database: Database,
    /// What mailboxes and checksums at rest hang on.
    pub secret: Secret,
    /// The file of the secret, for the text of an error.
    pub secret_file: PathBuf,
    /// How long a departed blob is remembered; zero remembers none.
    pub dedup: Duration,
    /// How many departed blobs are remembered; zero for no bound.
    pub dedup_max: u64,
    /// What the store counts into.
    pub metrics: Arc<Metrics>,
    /// Goes on from the time that the database knows.
    pub clock: Clock,
}

/// Opens the database, and makes its tables when it is empty.
pub async fn open(options: PostgresOptions) -> Result<Opened, OpenError> {
    let connector = Connector::new(&options.database)?;
    let connecting = connector.connect(Role::Writer).await;
    let mut connection = connecting.map_err(|failed| connector.describe(failed))?;
    make_ready(&mut connection, &connector, &options).await?;
    let metrics = Arc::clone(&options.metrics);
    let instance = Instance::enter(connector.clone(), &options.secret, metrics).await?;
    let instance = Arc::new(instance);
    let told = |error| connector.describe_statement(&error);
    let start = exchange::edge(&mut connection).await.map_err(told)?;
    let time = time::resume(&mut connection, options.clock.clone());
    let ground = Ground {
        time: time.await.map_err(told)?,
        connector: connector.clone(),
        instance: Arc::clone(&instance),
        secret: options.secret.clone(),
        memory: Memory {
            span: options.dedup,
            count_max: options.dedup_max,
        },
        metrics: Arc::clone(&options.metrics),
    };
    let (writer, sums) = PostgresWriter::new(ground, connection)
        .await
        .map_err(told)?;
    let others = Exchange::new(
        connector.clone(),
        Arc::clone(&instance),
        start,
        Arc::clone(&options.metrics),
    );
    let others = Arc::new(others);
    let beside = (
        Readers::new(connector.clone()),
        Doubts::new(Arc::clone(&options.metrics)),
    );
    Ok(Opened {
        held: sums.held,
        engine: Box::new(writer),
        reads: Arc::new(PostgresReads::new(
            beside,
            (instance, Arc::clone(&others)),
            options.secret.clone(),
        )),
        others: Some(others),
    })
}

/// Schema, secret, positions above all that there are; and a word on unsafe settings.
async fn make_ready(
    connection: &mut PgConnection,
    connector: &Connector,
    options: &PostgresOptions,
) -> Result<(), OpenError> {
    let place = || connector.place().to_owned();
    schema::migrate(connection)
        .await
        .map_err(|stale| match stale {
            Stale::Newer(found) => OpenError::NewerSchema {
                place: place(),
                found,
                known: schema::known_schema(),
            },
            Stale::Sql(error) => connector.describe_statement(&error),
            Stale::Words(words) => OpenError::Database {
                place: place(),
                words,
            },
        })?;
    let readied = async {
        if !schema::bind_secret(connection, &options.secret).await? {
            return Ok(false);
        }
        keys::raise_base(connection, OrderKey::START).await?;
        for line in advice::read(connection).await? {
            warn!("{line}");
        }
        Ok(true)
    };
    let readied = readied.await;
    if readied.map_err(|error: sqlx::Error| connector.describe_statement(&error))? {
        return Ok(());
    }
    Err(OpenError::SecretMismatch {
        place: place(),
        secret: options.secret_file.clone(),
    })
}

/// What a start would find, without changing anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The server's version, in its own words.
    pub version: String,
    /// One line for each unsafe setting.
    pub advice: Vec<String>,
    /// Whether there are tables of a relay.
    pub is_empty: bool,
    /// Relays that use it.
    pub relays: u64,
}

/// Looks at the database as a start would find it: that it answers and takes writes, that its schema is known,
/// and that `secret` belongs to it, if there is one yet.
pub async fn look(
    database: &Database,
    secret: Option<(&Secret, PathBuf)>,
) -> Result<Looked, OpenError> {
    let connector = Connector::new(database)?;
    let connecting = connector.connect(Role::Reader).await;
    let mut connection = connecting.map_err(|failed| connector.describe(failed))?;
    let told = |error: sqlx::Error| connector.describe_statement(&error);
    let place = || connector.place().to_owned();
    let schema = schema::schema(&mut connection).await.map_err(told)?;
    let known = schema::known_schema();
    if let Some(found) = schema.filter(|found| *found > known) {
        return Err(OpenError::NewerSchema {
            place: place(),
            found,
            known,
        });
    }
    if schema.is_some() {
        let (matches, file) = match secret {
            None => (None, PathBuf::new()),
            Some((secret, file)) => {
                let matches = schema::secret_matches(&mut connection, secret).await;
                (matches.map_err(told)?, file)
            }
        };
        if matches == Some(false) {
            return Err(OpenError::SecretMismatch {
                place: place(),
                secret: file,
            });
        }
    }
    let version = async {
        let row = sqlx::query("SELECT current_setting('server_version') AS version")
            .fetch_one(&mut connection)
            .await?;
        let version: String = row.try_get("version")?;
        Ok((version, advice::read(&mut connection).await?))
    };
    let (version, advice) = version.await.map_err(told)?;
    let relays = match schema {
        Some(schema) if schema == known => {
            let counted = instance::count(&mut connection).await;
            counted.map_err(told)?
        }
        _ => 0,
    };
    connect::close(connection).await;
    Ok(Looked {
        version,
        advice,
        is_empty: schema.is_none(),
        relays,
    })
}
