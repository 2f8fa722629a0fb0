//! The table of settings: what an operator may set, what is accepted, what happens otherwise.
//!
//! `docs/configuration.md` shows this table, and README the first eight rows; a test compares them.

use super::KIB;

/// One environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// An older spelling that means the same; the Vauchi relay's.
    pub alias: Option<&'static str>,
    /// The default as one would write it, or `none`.
    pub default: &'static str,
    /// What values there are.
    pub accepts: Accepts,
    /// A value that one might want, for error texts.
    pub example: &'static str,
    /// What it sets, in half a sentence.
    pub what: &'static str,
}

/// What a setting accepts.
#[derive(Debug, Clone, Copy)]
pub enum Accepts {
    /// An IP address with a port.
    Address,
    /// A whole number within these bounds, both included.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A decimal number from 0 to 1.
    Share,
    /// IP addresses and networks, separated by commas, or `none`.
    Networks,
    /// Hosts as clients dial them, separated by commas, or `none`.
    Origins,
    /// URLs of relays, separated by commas, or `none`.
    Relays,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `1`, `false` or `0`.
    Flag,
    /// A path.
    Path,
    /// Visible ASCII without spaces; never quoted in a message.
    Secret,
}

/// Every setting, in the order in which the documents show them: the guide's eight first.
pub const SETTINGS: &[Setting] = &[
    address(
        "RELAY_LISTEN_ADDR",
        "0.0.0.0:8080",
        "127.0.0.1:8080",
        "WebSocket listen address",
    ),
    number(
        "RELAY_MAX_CONNECTIONS",
        0..=u32::MAX as u64,
        "1000",
        "10000",
        "Max concurrent connections",
    ),
    number(
        "RELAY_MAX_MESSAGE_SIZE",
        1024..=64 * KIB * KIB,
        "1048576",
        "4194304",
        "Max message size in bytes, framing included",
    ),
    number(
        "RELAY_BLOB_TTL_DAYS",
        1..=BLOB_TTL_DAYS_MAX,
        "90",
        "30",
        "Blob expiration in days",
    )
    .or("RELAY_BLOB_TTL_SECS"),
    number(
        "RELAY_RATE_LIMIT_PER_MIN",
        0..=u32::MAX as u64,
        "60",
        "600",
        "Max requests per client per minute",
    )
    .or("RELAY_RATE_LIMIT"),
    number(
        "RELAY_CLEANUP_INTERVAL_SECS",
        1..=SECS_MAX,
        "3600",
        "600",
        "Cleanup interval in seconds",
    )
    .or("RELAY_CLEANUP_INTERVAL"),
    word(
        "RELAY_STORAGE_BACKEND",
        &["sqlite", "memory", "postgres"],
        "sqlite",
        "`memory`, `sqlite` or `postgres`",
    ),
    path(
        "RELAY_DATA_DIR",
        "/data",
        "/var/lib/vauchi-relay",
        "Data directory for SQLite",
    ),
    address(
        "RELAY_HTTP_ADDR",
        "0.0.0.0:8081",
        "127.0.0.1:8081",
        "Listen address for health checks and metrics",
    )
    .or("RELAY_METRICS_ADDR"),
    secret(
        "RELAY_METRICS_TOKEN",
        "a word of 32 random letters",
        "Bearer token required for `/metrics`",
    ),
    path(
        "RELAY_METRICS_TOKEN_FILE",
        "none",
        "/run/secrets/metrics-token",
        "File that contains the bearer token",
    ),
    path(
        "RELAY_SECRET_FILE",
        "none",
        "/run/secrets/relay-secret",
        "File that contains the relay's secret; by default `relay.secret` in the data directory",
    ),
    secret(
        "RELAY_DATABASE_URL",
        "postgres://relay@db.example.com/relay?sslmode=verify-full",
        "URL of the PostgreSQL database, with one host or several; required with `postgres`",
    ),
    path(
        "RELAY_DATABASE_URL_FILE",
        "none",
        "/run/secrets/database-url",
        "File that contains that URL",
    ),
    path(
        "RELAY_DATABASE_PASSWORD_FILE",
        "none",
        "/run/secrets/database-password",
        "File that contains the password for the database; read for each connection",
    ),
    number(
        "RELAY_MAX_STORAGE_BYTES",
        0..=BYTES_MAX,
        "10737418240",
        "1073741824",
        "Max bytes stored in total (536870912 with `memory`)",
    ),
    number(
        "RELAY_MIN_FREE_BYTES",
        0..=BYTES_MAX,
        "67108864",
        "1073741824",
        "Min free disk space in bytes; with less, new blobs are refused",
    ),
    number(
        "RELAY_MAX_UNFINISHED_BYTES",
        0..=BYTES_MAX,
        "268435456",
        "1073741824",
        "Max bytes of incomplete incoming messages, over all connections",
    ),
    number(
        "RELAY_MAILBOX_MAX_BLOBS",
        0..=1_000_000,
        "1000",
        "10000",
        "Max blobs per mailbox",
    )
    .or("RELAY_MAX_BLOBS_PER_USER"),
    number(
        "RELAY_MAILBOX_MAX_BYTES",
        0..=BYTES_MAX,
        "50000000",
        "200000000",
        "Max bytes per mailbox",
    )
    .or("RELAY_MAX_STORAGE_PER_USER"),
    number(
        "RELAY_DEDUP_SECS",
        0..=SECS_MAX,
        "3600",
        "86400",
        "Seconds for which a blob is remembered after it has left, so that a repeat is not stored again",
    ),
    number(
        "RELAY_DEDUP_MAX",
        1..=100_000_000,
        "1000000",
        "100000",
        "Max blobs remembered for that (about 64 bytes of memory each)",
    ),
    number(
        "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
        0..=u32::MAX as u64,
        "600",
        "6000",
        "Max requests per address per minute (by default 10 × `RELAY_RATE_LIMIT_PER_MIN`)",
    ),
    share(
        "RELAY_MAILBOX_SHARE_PER_HOUR",
        "0.5",
        "0.25",
        "Share of one mailbox's limits that one address may fill per hour",
    ),
    share(
        "RELAY_ADDRESS_SHARE_PER_DAY",
        "0.05",
        "0.2",
        "Share of `RELAY_MAX_STORAGE_BYTES` that one address may store per day",
    ),
    number(
        "RELAY_MAX_CONNECTIONS_PER_ADDRESS",
        0..=u32::MAX as u64,
        "100",
        "1000",
        "Max concurrent connections per address",
    ),
    number(
        "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
        0..=u32::MAX as u64,
        "300",
        "3000",
        "Max new connections per address per minute",
    ),
    number(
        "RELAY_OPENINGS_PER_MIN",
        0..=1_000_000,
        "1024",
        "4096",
        "Max mailboxes opened per connection per minute, and four times as many per address",
    ),
    number(
        "RELAY_FAILED_PROOFS_PER_MIN",
        0..=u32::MAX as u64,
        "20",
        "100",
        "Max failed proofs per address per minute",
    ),
    number(
        "RELAY_RECOVERY_RATE_LIMIT",
        0..=u32::MAX as u64,
        "10",
        "60",
        "Max recovery requests per client per minute",
    ),
    row(
        "RELAY_TRUSTED_PROXIES",
        Accepts::Networks,
        "127.0.0.0/8,::1",
        "172.16.0.0/12",
        "Proxies whose `Forwarded` or `X-Forwarded-For` header is trusted",
    ),
    row(
        "RELAY_PUBLIC_ORIGINS",
        Accepts::Origins,
        "none",
        "relay.example.com",
        "Hosts that v2 clients dial; with `none`, the host that an upgrade request names counts",
    ),
    row(
        "RELAY_ALTERNATES",
        Accepts::Relays,
        "none",
        "wss://relay2.example.com",
        "Relays that v2 clients may use while this one stops",
    ),
    number(
        "RELAY_RECEIPT_MIN_TTL_SECS",
        60..=SECS_MAX,
        "3600",
        "7200",
        "Min time to live in seconds of a blob that asks for receipts",
    ),
    number(
        "RELAY_PINS_MAX",
        1..=100_000_000,
        "1000000",
        "100000",
        "Max ids that require a signature because they have used one before",
    ),
    word(
        "RELAY_V1_UNVERIFIED",
        &["allow", "deny"],
        "allow",
        "`allow` or `deny` v1 clients that open a mailbox without a signature",
    ),
    word(
        "RELAY_V1_SENDER_ID",
        &["keep", "drop"],
        "keep",
        "`keep` or `drop` the `sender_id` of v1 blobs; public v1 clients need it",
    ),
    number(
        "RELAY_IDLE_TIMEOUT_SECS",
        1..=SECS_MAX,
        "300",
        "600",
        "Seconds of silence after which a connection is closed",
    )
    .or("RELAY_IDLE_TIMEOUT"),
    number(
        "RELAY_KEEPALIVE_SECS",
        1..=SECS_MAX,
        "30",
        "20",
        "Seconds between two pings to a client",
    ),
    number(
        "RELAY_DRAIN_DELAY_SECS",
        0..=3600,
        "0",
        "5",
        "Seconds for which connections are still accepted after the stop signal",
    ),
    number(
        "RELAY_DRAIN_TIMEOUT_SECS",
        0..=3600,
        "8",
        "25",
        "Seconds that open connections then have to finish",
    ),
    word(
        "RELAY_LOG_FORMAT",
        &["text", "json"],
        "text",
        "`text`, or `json` with one object per line",
    ),
    path(
        "RELAY_LOG_FILTER_FILE",
        "none",
        "/etc/vauchi-relay/log-filter",
        "File that contains the log filter; read at startup and on SIGHUP",
    ),
    flag(
        "RELAY_ALLOW_NETWORK_FS",
        "false",
        "Allow a data directory on a network file system, where SQLite can lose data",
    ),
];

/// The setting of this name or older spelling.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.spellings().any(|spelling| spelling == name))
}

/// The most days a blob may live: ten years.
pub(super) const BLOB_TTL_DAYS_MAX: u64 = 3650;

/// The most seconds of any setting: ten years, far from every overflow.
const SECS_MAX: u64 = BLOB_TTL_DAYS_MAX * 86_400;

/// The most bytes of any setting: 1 EiB, far from every overflow, also as a signed number in SQL.
const BYTES_MAX: u64 = 1 << 60;

impl Setting {
    /// The name and, where there is one, the older spelling.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.alias)
    }

    const fn or(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }
}

impl std::fmt::Display for Accepts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address => f.write_str("IP address and port"),
            Self::Number { min, max } => write!(f, "{min} to {max}"),
            Self::Share => f.write_str("0 to 1, as a decimal"),
            Self::Networks => f.write_str("addresses and networks, separated by commas, or none"),
            Self::Origins => {
                f.write_str("hosts as clients dial them, separated by commas, or none")
            }
            Self::Relays => f.write_str("wss:// or ws:// URLs, separated by commas, or none"),
            Self::Word(words) => f.write_str(&words.join(", ")),
            Self::Flag => f.write_str("true, false"),
            Self::Path => f.write_str("path"),
            Self::Secret => f.write_str("visible ASCII, no spaces"),
        }
    }
}

const fn row(
    name: &'static str,
    accepts: Accepts,
    default: &'static str,
    example: &'static str,
    what: &'static str,
) -> Setting {
    Setting {
        name,
        alias: None,
        default,
        accepts,
        example,
        what,
    }
}

const fn number(
    name: &'static str,
    bounds: std::ops::RangeInclusive<u64>,
    default: &'static str,
    example: &'static str,
    what: &'static str,
) -> Setting {
    let accepts = Accepts::Number {
        min: *bounds.start(),
        max: *bounds.end(),
    };
    row(name, accepts, default, example, what)
}

const fn share(
    name: &'static str,
    default: &'static str,
    example: &'static str,
    what: &'static str,
) -> Setting {
    row(name, Accepts::Share, default, example, what)
}

const fn address(
    name: &'static str,
    default: &'static str,
    example: &'static str,
    what: &'static str,
) -> Setting {
    row(name, Accepts::Address, default, example, what)
}

const fn word(
    name: &'static str,
    words: &'static [&'static str],
    default: &'static str,
    what: &'static str,
) -> Setting {
    row(name, Accepts::Word(words), default, default, what)
}

const fn flag(name: &'static str, default: &'static str, what: &'static str) -> Setting {
    row(name, Accepts::Flag, default, "true", what)
}

const fn path(
    name: &'static str,
    default: &'static str,
    example: &'static str,
    what: &'static str,
) -> Setting {
    row(name, Accepts::Path, default, example, what)
}

const fn secret(name: &'static str, example: &'static str, what: &'static str) -> Setting {
    row(name, Accepts::Secret, "none", example, what)
}
