//! Every setting, validated: where the relay listens, what it keeps, what it allows.
//!
//! Settings come from `RELAY_*` variables only. All faults are reported at once, each in a line
//! that says what to write instead. Reading order: [`Config`] (what the rest of the relay sees),
//! `settings` (the table that the documents show), `load` (variables to a [`Config`]), `read` (one
//! text to one value), `share` and `networks` (values that are no numbers), `database` (where PostgreSQL is), `names` (variables that
//! are no settings of ours).

mod database;
mod hosts;
mod load;
mod names;
mod networks;
mod read;
mod settings;
mod share;

pub use database::Database;
pub use networks::Networks;
pub use settings::{Accepts, SETTINGS, Setting, setting};
pub use share::Share;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Bytes.
const KIB: u64 = 1024;

/// The data directory of the guide, where it exists.
const DATA_DIR: &str = "/data";

/// An address may make as many requests as this many clients, unless it is told otherwise.
const CLIENTS_PER_ADDRESS: u32 = 10;

/// All settings, validated. A limit of zero means that there is none.
#[derive(Debug, Clone)]
pub struct Config {
    /// `RELAY_LISTEN_ADDR`: where clients connect.
    pub listen_addr: SocketAddr,
    /// `RELAY_HTTP_ADDR`: health, readiness and metrics.
    pub http_addr: SocketAddr,
    /// `RELAY_METRICS_TOKEN`: bearer token of `/metrics`.
    pub metrics_token: Option<Token>,
    /// `RELAY_MAX_CONNECTIONS`: sessions at once; zero for no limit.
    pub connections_max: u32,
    /// `RELAY_MAX_MESSAGE_SIZE`: bytes of a v1 frame, its length prefix included.
    pub message_bytes_max: usize,
    /// `RELAY_BLOB_TTL_DAYS`: how long a blob lives.
    pub blob_ttl: Duration,
    /// `RELAY_RATE_LIMIT_PER_MIN`: requests a minute of one client.
    pub rate_limit_per_min: u32,
    /// `RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN`: requests a minute of one address.
    pub rate_limit_per_address_per_min: u32,
    /// `RELAY_RECOVERY_RATE_LIMIT`: recovery requests a minute of one client.
    pub recovery_rate_limit: u32,
    /// `RELAY_MAILBOX_SHARE_PER_HOUR`: what one address may store in one mailbox in an hour.
    pub mailbox_share_per_hour: Share,
    /// `RELAY_ADDRESS_SHARE_PER_DAY`: what one address may store in the relay in a day.
    pub address_share_per_day: Share,
    /// `RELAY_OPENINGS_PER_MIN`: mailboxes opened on one connection.
    pub openings_per_min: u32,
    /// `RELAY_MAX_CONNECTIONS_PER_ADDRESS`: sessions of one address at once.
    pub connections_per_address_max: u32,
    /// `RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN`: new sessions of one address.
    pub connections_per_address_per_min: u32,
    /// `RELAY_FAILED_PROOFS_PER_MIN`: bad proofs of one address.
    pub failed_proofs_per_min: u32,
    /// `RELAY_TRUSTED_PROXIES`: whose word on a client's address is believed.
    pub trusted_proxies: Networks,
    /// `RELAY_PUBLIC_ORIGINS`: what v2 clients dial; empty where anything will do.
    pub public_origins: Vec<String>,
    /// `RELAY_ALTERNATES`: where v2 clients may go while this relay stops.
    pub alternates: Vec<String>,
    /// `RELAY_RECEIPT_MIN_TTL_SECS`: the shortest life of a blob that asks for receipts.
    pub receipt_min_ttl: Duration,
    /// `RELAY_CLEANUP_INTERVAL_SECS`: between two sweeps of expired blobs.
    pub cleanup_interval: Duration,
    /// `RELAY_STORAGE_BACKEND`.
    pub storage: StorageBackend,
    /// `RELAY_DATABASE_URL`; given exactly for [`StorageBackend::Postgres`].
    pub database: Option<Database>,
    /// `RELAY_DATA_DIR`: database, secret and lock.
    pub data_dir: PathBuf,
    /// `RELAY_DATA_DIR` is not set and there is no `/data`: the folder is `./data`, and it is made.
    pub data_dir_is_fallback: bool,
    /// `RELAY_SECRET_FILE`: where the secret is, when it is not in the data directory.
    pub secret_file: Option<PathBuf>,
    /// `RELAY_ALLOW_NETWORK_FS`: a data directory on a network file system is accepted.
    pub allow_network_fs: bool,
    /// `RELAY_MAX_STORAGE_BYTES`: bytes kept in all.
    pub storage_bytes_max: u64,
    /// `RELAY_MIN_FREE_BYTES`: new blobs are refused while the disk has less free.
    pub free_bytes_min: u64,
    /// `RELAY_MAILBOX_MAX_BLOBS`.
    pub mailbox_blobs_max: u64,
    /// `RELAY_MAILBOX_MAX_BYTES`.
    pub mailbox_bytes_max: u64,
    /// `RELAY_MAX_UNFINISHED_BYTES`: bytes of messages that have begun and not ended, over all sessions.
    pub unfinished_bytes_max: u64,
    /// `RELAY_DEDUP_SECS`: how long a departed blob is remembered.
    pub dedup: Duration,
    /// `RELAY_DEDUP_MAX`: how many departed blobs are remembered.
    pub dedup_max: u64,
    /// `RELAY_PINS_MAX`: ids remembered as opened only with a proof.
    pub pins_max: u64,
    /// `RELAY_V1_UNVERIFIED`: a v1 client may open a mailbox without a proof.
    pub v1_allows_unverified: bool,
    /// `RELAY_V1_SENDER_ID`: a v1 delivery tells who says to have sent it.
    pub v1_keeps_sender_id: bool,
    /// `RELAY_IDLE_TIMEOUT_SECS`: a silent v1 session is closed after this time.
    pub idle_timeout: Duration,
    /// `RELAY_KEEPALIVE_SECS`: between two pings.
    pub keepalive: Duration,
    /// `RELAY_DRAIN_DELAY_SECS`: how long connections are still accepted after the stop signal.
    pub drain_delay: Duration,
    /// `RELAY_DRAIN_TIMEOUT_SECS`: how long sessions may take to end after that.
    pub drain_timeout: Duration,
    /// `RELAY_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `RELAY_LOG_FILTER_FILE`: holds the log filter.
    pub log_filter_file: Option<PathBuf>,
    /// A connection must have sent its HTTP request within this time. Not a variable.
    pub header_timeout: Duration,
    /// A session must have sent its first frame within this time. Not a variable.
    pub first_frame_timeout: Duration,
    /// A message must be complete within this time plus a second per 64 KiB. Not a variable.
    pub message_timeout: Duration,
    /// A connection whose frames are refused or of no use is read slowly for so long, and then closed.
    pub slow_reading_max: Duration,
    /// A frame must be taken by the client within this time plus a second per 64 KiB. Not a variable.
    pub write_timeout: Duration,
    /// How often blobs that were found damaged are looked at again, at the most. Not a variable.
    pub look_again_every: Duration,
    /// How long the scrub rests after it has looked at everything. Not a variable.
    pub scrub_rest: Duration,
}

/// Where blobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageBackend {
    /// A file in the data directory.
    Sqlite,
    /// This process's memory; a restart deletes everything.
    Memory,
    /// A PostgreSQL server.
    Postgres,
}

impl StorageBackend {
    /// Whether it keeps its database in the data directory, and so needs that folder, its disk and its secret.
    pub const fn keeps_files(self) -> bool {
        match self {
            Self::Sqlite => true,
            Self::Memory | Self::Postgres => false,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A secret word; `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret word `word`.
    pub fn new(word: impl Into<String>) -> Self {
        Self(word.into())
    }

    /// The word itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen_addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            http_addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8081),
            metrics_token: None,
            connections_max: 1_000,
            message_bytes_max: 1_048_576,
            blob_ttl: Duration::from_secs(90 * 86_400),
            rate_limit_per_min: 60,
            rate_limit_per_address_per_min: 60 * CLIENTS_PER_ADDRESS,
            recovery_rate_limit: 10,
            mailbox_share_per_hour: Share::percent(50),
            address_share_per_day: Share::percent(5),
            openings_per_min: 1_024,
            connections_per_address_max: 100,
            connections_per_address_per_min: 300,
            failed_proofs_per_min: 20,
            trusted_proxies: Networks::loopback(),
            public_origins: Vec::new(),
            alternates: Vec::new(),
            receipt_min_ttl: Duration::from_secs(3_600),
            cleanup_interval: Duration::from_secs(3_600),
            storage: StorageBackend::Sqlite,
            database: None,
            data_dir: PathBuf::from(DATA_DIR),
            data_dir_is_fallback: false,
            secret_file: None,
            allow_network_fs: false,
            storage_bytes_max: 10 << 30,
            free_bytes_min: 64 << 20,
            mailbox_blobs_max: 1_000,
            mailbox_bytes_max: 50_000_000,
            unfinished_bytes_max: 256 << 20,
            dedup: Duration::from_secs(3_600),
            dedup_max: 1_000_000,
            pins_max: 1_000_000,
            v1_allows_unverified: true,
            v1_keeps_sender_id: true,
            idle_timeout: Duration::from_secs(300),
            keepalive: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(8),
            log_format: LogFormat::Text,
            log_filter_file: None,
            header_timeout: Duration::from_secs(5),
            first_frame_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(30),
            slow_reading_max: Duration::from_secs(60),
            write_timeout: Duration::from_secs(20),
            look_again_every: Duration::from_secs(60),
            scrub_rest: Duration::from_secs(3_600),
        }
    }
}

/// Settings that hold, and what the operator should know about them.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// One line each, to be logged once logging is set up.
    pub warnings: Vec<String>,
    /// One line for each variable that begins with `RELAY_` and is no setting. A start warns: a relay
    /// that does not start serves nobody. A check fails.
    pub unknown: Vec<String>,
    /// Every setting, in the order of [`SETTINGS`].
    pub in_force: Vec<InForce>,
}

/// One setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The variable.
    pub name: &'static str,
    /// Its value as one would write it; a secret is [`InForce::MASK`].
    pub value: String,
    /// Where the value comes from.
    pub origin: Origin,
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The variable is set.
    Set,
    /// This older spelling is set.
    Alias(&'static str),
}

impl InForce {
    /// Stands for a secret.
    pub const MASK: &'static str = "***";
}

/// Everything that is wrong with the settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", faults.join("\n"))]
pub struct ConfigError {
    faults: Vec<String>,
}

impl ConfigError {
    /// The lines.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl Config {
    /// Whether something lies in the data directory that must last: the database, or the secret alone.
    pub fn needs_data_dir(&self) -> bool {
        match self.storage {
            StorageBackend::Sqlite => true,
            StorageBackend::Memory => false,
            StorageBackend::Postgres => self.secret_file.is_none(),
        }
    }

    /// What the data directory holds, for sentences about it.
    pub(crate) fn data_dir_holds(&self) -> &'static str {
        match self.storage {
            StorageBackend::Sqlite | StorageBackend::Memory => "all blobs and the relay's secret",
            StorageBackend::Postgres => {
                "the relay's secret, without which nobody can use the blobs in the database"
            }
        }
    }

    /// The limits that are switched off by a zero, by the names of their settings.
    pub fn limits_off(&self) -> Vec<&'static str> {
        [
            ("RELAY_MAX_CONNECTIONS", u64::from(self.connections_max)),
            (
                "RELAY_RATE_LIMIT_PER_MIN",
                u64::from(self.rate_limit_per_min),
            ),
            ("RELAY_MAX_STORAGE_BYTES", self.storage_bytes_max),
            ("RELAY_MIN_FREE_BYTES", self.free_bytes_min),
            ("RELAY_MAX_UNFINISHED_BYTES", self.unfinished_bytes_max),
            ("RELAY_MAILBOX_MAX_BLOBS", self.mailbox_blobs_max),
            ("RELAY_MAILBOX_MAX_BYTES", self.mailbox_bytes_max),
        ]
        .into_iter()
        .chain(self.limits_per_address())
        .filter(|(_, limit)| *limit == 0)
        .map(|(name, _)| name)
        .collect()
    }

    fn limits_per_address(&self) -> [(&'static str, u64); 8] {
        let share = |share: Share| u64::from(!share.is_zero());
        [
            (
                "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
                self.rate_limit_per_address_per_min.into(),
            ),
            (
                "RELAY_MAILBOX_SHARE_PER_HOUR",
                share(self.mailbox_share_per_hour),
            ),
            (
                "RELAY_ADDRESS_SHARE_PER_DAY",
                share(self.address_share_per_day),
            ),
            (
                "RELAY_MAX_CONNECTIONS_PER_ADDRESS",
                self.connections_per_address_max.into(),
            ),
            (
                "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
                self.connections_per_address_per_min.into(),
            ),
            ("RELAY_OPENINGS_PER_MIN", self.openings_per_min.into()),
            (
                "RELAY_FAILED_PROOFS_PER_MIN",
                self.failed_proofs_per_min.into(),
            ),
            ("RELAY_RECOVERY_RATE_LIMIT", self.recovery_rate_limit.into()),
        ]
    }
}
