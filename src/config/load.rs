//! From the environment to a [`Config`], or to the whole list of what is wrong with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::names::{self, Name};
use super::read::Reader;
use super::{
    CLIENTS_PER_ADDRESS, Config, ConfigError, DATA_DIR, KIB, Loaded, LogFormat, StorageBackend,
};

/// What the memory engine keeps in all unless it is told otherwise: it comes out of the machine's
/// memory, which is smaller than its disk.
const MEMORY_STORAGE_BYTES_MAX: u64 = 512 * KIB * KIB;

/// Blobs of one mailbox that PostgreSQL counts at each append without slowing down.
const COUNTED_BLOBS_MAX: u64 = 10_000;

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Loaded, ConfigError> {
        Self::from_vars(std::env::vars_os())
    }

    /// Reads these variables; the ones that do not begin with `RELAY_` are passed over.
    pub fn from_vars(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded, ConfigError> {
        Self::from_vars_on(variables, Path::new(DATA_DIR).is_dir())
    }

    /// As [`Config::from_vars`], on a machine that has or has not a `/data`.
    fn from_vars_on(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        has_data: bool,
    ) -> Result<Loaded, ConfigError> {
        // In order of their names, so that the same settings are always spoken of alike.
        let ours: BTreeMap<_, _> = variables
            .into_iter()
            .filter(|(name, _)| name.as_bytes().starts_with(b"RELAY_"))
            .collect();
        let mut sorted = Sorted::default();
        for (name, value) in ours {
            sorted.add(&name.to_string_lossy(), value);
        }
        let Sorted {
            settings,
            vauchi_only,
            unknown,
            mut faults,
        } = sorted;
        let mut warnings = Vec::new();
        if !vauchi_only.is_empty() {
            let names = vauchi_only.join(", ");
            warnings.push(format!(
                "{names}: a setting of the Vauchi relay that this relay does not use"
            ));
        }

        let mut reader = Reader::new(settings.into_iter().collect());
        let config = Self::read(&mut reader, has_data);
        if config.storage != StorageBackend::Postgres {
            let unused = [
                "RELAY_DATABASE_URL",
                "RELAY_DATABASE_URL_FILE",
                "RELAY_DATABASE_PASSWORD_FILE",
            ];
            let unused = unused.into_iter().filter(|name| reader.is_set(name));
            warnings.extend(unused.map(|name| {
                format!("{name} is set but not used: RELAY_STORAGE_BACKEND is not postgres")
            }));
        }
        faults.extend(config.contradictions(&reader));
        faults.append(&mut reader.faults);
        if !faults.is_empty() {
            return Err(ConfigError { faults });
        }
        warnings.extend(config.warnings());
        Ok(Loaded {
            config,
            warnings,
            unknown,
            in_force: reader.in_force(),
        })
    }

    fn read(reader: &mut Reader, has_data: bool) -> Self {
        let mut c = Self::default();
        reader.address("RELAY_LISTEN_ADDR", &mut c.listen_addr);
        reader.address("RELAY_HTTP_ADDR", &mut c.http_addr);
        c.metrics_token = reader.token("RELAY_METRICS_TOKEN", "RELAY_METRICS_TOKEN_FILE");
        reader.number("RELAY_MAX_CONNECTIONS", &mut c.connections_max);
        reader.number("RELAY_MAX_MESSAGE_SIZE", &mut c.message_bytes_max);
        reader.days_or_seconds("RELAY_BLOB_TTL_DAYS", &mut c.blob_ttl);
        reader.number("RELAY_RATE_LIMIT_PER_MIN", &mut c.rate_limit_per_min);
        reader.seconds("RELAY_CLEANUP_INTERVAL_SECS", &mut c.cleanup_interval);
        let engines = [
            ("sqlite", StorageBackend::Sqlite),
            ("memory", StorageBackend::Memory),
            ("postgres", StorageBackend::Postgres),
        ];
        reader.word("RELAY_STORAGE_BACKEND", &engines, &mut c.storage);
        match reader.path("RELAY_DATA_DIR") {
            Some(path) => c.data_dir = path,
            None if has_data => {}
            None => {
                // Only fails without a working directory; then the relative path is all there is.
                c.data_dir = std::path::absolute("data").unwrap_or_else(|_| "data".into());
                c.data_dir_is_fallback = true;
            }
        }
        reader.note("RELAY_DATA_DIR", c.data_dir.display());
        c.secret_file = reader.path("RELAY_SECRET_FILE");
        c.database = reader.database(c.storage == StorageBackend::Postgres);
        reader.flag("RELAY_ALLOW_NETWORK_FS", &mut c.allow_network_fs);
        c.storage_bytes_max = match c.storage {
            StorageBackend::Sqlite | StorageBackend::Postgres => c.storage_bytes_max,
            StorageBackend::Memory => MEMORY_STORAGE_BYTES_MAX,
        };
        reader.number("RELAY_MAX_STORAGE_BYTES", &mut c.storage_bytes_max);
        reader.number("RELAY_MIN_FREE_BYTES", &mut c.free_bytes_min);
        reader.number("RELAY_MAX_UNFINISHED_BYTES", &mut c.unfinished_bytes_max);
        reader.number("RELAY_MAILBOX_MAX_BLOBS", &mut c.mailbox_blobs_max);
        reader.number("RELAY_MAILBOX_MAX_BYTES", &mut c.mailbox_bytes_max);
        reader.seconds("RELAY_DEDUP_SECS", &mut c.dedup);
        reader.number("RELAY_DEDUP_MAX", &mut c.dedup_max);
        c.read_limits_per_address(reader);
        reader.number("RELAY_PINS_MAX", &mut c.pins_max);
        let unverified = [("allow", true), ("deny", false)];
        reader.word(
            "RELAY_V1_UNVERIFIED",
            &unverified,
            &mut c.v1_allows_unverified,
        );
        let sender_id = [("keep", true), ("drop", false)];
        reader.word("RELAY_V1_SENDER_ID", &sender_id, &mut c.v1_keeps_sender_id);
        reader.seconds("RELAY_IDLE_TIMEOUT_SECS", &mut c.idle_timeout);
        reader.seconds("RELAY_KEEPALIVE_SECS", &mut c.keepalive);
        reader.seconds("RELAY_DRAIN_DELAY_SECS", &mut c.drain_delay);
        reader.seconds("RELAY_DRAIN_TIMEOUT_SECS", &mut c.drain_timeout);
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        reader.word("RELAY_LOG_FORMAT", &formats, &mut c.log_format);
        c.log_filter_file = reader.path("RELAY_LOG_FILTER_FILE");
        c
    }

    fn read_limits_per_address(&mut self, reader: &mut Reader) {
        let mut per_address = self.rate_limit_per_min.saturating_mul(CLIENTS_PER_ADDRESS);
        reader.number("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", &mut per_address);
        self.rate_limit_per_address_per_min = per_address;
        let share = &mut self.mailbox_share_per_hour;
        reader.share("RELAY_MAILBOX_SHARE_PER_HOUR", share);
        let share = &mut self.address_share_per_day;
        reader.share("RELAY_ADDRESS_SHARE_PER_DAY", share);
        let max = &mut self.connections_per_address_max;
        reader.number("RELAY_MAX_CONNECTIONS_PER_ADDRESS", max);
        let per_min = &mut self.connections_per_address_per_min;
        reader.number("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", per_min);
        reader.number("RELAY_OPENINGS_PER_MIN", &mut self.openings_per_min);
        reader.number(
            "RELAY_FAILED_PROOFS_PER_MIN",
            &mut self.failed_proofs_per_min,
        );
        reader.number("RELAY_RECOVERY_RATE_LIMIT", &mut self.recovery_rate_limit);
        reader.networks("RELAY_TRUSTED_PROXIES", &mut self.trusted_proxies);
        reader.origins("RELAY_PUBLIC_ORIGINS", &mut self.public_origins);
        reader.alternates("RELAY_ALTERNATES", &mut self.alternates);
        reader.seconds("RELAY_RECEIPT_MIN_TTL_SECS", &mut self.receipt_min_ttl);
    }

    /// Settings that are each right and do not go together.
    fn contradictions(&self, reader: &Reader) -> Vec<String> {
        let mut faults = Vec::new();
        let addresses_are_read =
            !reader.is_faulty("RELAY_LISTEN_ADDR") && !reader.is_faulty("RELAY_HTTP_ADDR");
        if addresses_are_read && would_collide(self.listen_addr, self.http_addr) {
            faults.push(format!(
                "RELAY_LISTEN_ADDR {} and RELAY_HTTP_ADDR {} cannot share a port; change one of them (defaults 8080 and 8081)",
                self.listen_addr, self.http_addr
            ));
        }
        // A message over the limit is read up to twice its size, so that it can be refused by name.
        let one_message = 2 * self.message_bytes_max as u64 + 4 * KIB;
        let sizes_are_read = !reader.is_faulty("RELAY_MAX_MESSAGE_SIZE")
            && !reader.is_faulty("RELAY_MAX_UNFINISHED_BYTES");
        if sizes_are_read && (1..one_message).contains(&self.unfinished_bytes_max) {
            faults.push(format!(
                "RELAY_MAX_UNFINISHED_BYTES: {} is too small for one message; use at least {} \
                 (2 × RELAY_MAX_MESSAGE_SIZE + 4096)",
                self.unfinished_bytes_max, one_message
            ));
        }
        faults
    }

    /// What holds and should yet be known.
    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = self
            .limits_off()
            .into_iter()
            .map(|name| format!("{name} is 0: this limit is off"))
            .collect();
        if self.dedup.is_zero() {
            warnings.push(
                "RELAY_DEDUP_SECS is 0: a blob that is sent again after it was acknowledged is \
                 delivered again"
                    .to_owned(),
            );
        }
        if self.data_dir_is_fallback && self.needs_data_dir() {
            warnings.push(match self.storage {
                StorageBackend::Postgres => secret_warning(&self.data_dir),
                StorageBackend::Sqlite | StorageBackend::Memory => fallback_warning(&self.data_dir),
            });
        }
        if self.storage == StorageBackend::Postgres
            && !(1..=COUNTED_BLOBS_MAX).contains(&self.mailbox_blobs_max)
        {
            warnings.push(format!(
                "RELAY_MAILBOX_MAX_BLOBS is over {COUNTED_BLOBS_MAX}: with postgres, each new blob counts what its \
                 mailbox holds, and mailboxes of that size slow down all senders"
            ));
        }
        warnings
    }
}

/// Says where blobs are kept when nobody has said where.
fn fallback_warning(data_dir: &Path) -> String {
    // A process that runs in the root folder: its ./data is the /data that was missing.
    if data_dir == Path::new("/data") {
        return "RELAY_DATA_DIR is not set and /data is new: storing blobs in /data".to_owned();
    }
    format!(
        "RELAY_DATA_DIR is not set and /data does not exist: storing blobs in {}",
        data_dir.display()
    )
}

/// The same of the secret, when blobs are in a database elsewhere.
fn secret_warning(data_dir: &Path) -> String {
    format!(
        "RELAY_DATA_DIR and RELAY_SECRET_FILE are not set: keeping the relay's secret in {}; without it, nobody can use \
         the blobs in the database",
        data_dir.display()
    )
}

/// The variables that begin with `RELAY_`, sorted by what they are.
#[derive(Default)]
struct Sorted {
    settings: BTreeMap<String, String>,
    vauchi_only: Vec<String>,
    unknown: Vec<String>,
    faults: Vec<String>,
}

impl Sorted {
    fn add(&mut self, name: &str, value: OsString) {
        match names::classify(name, &value.to_string_lossy()) {
            Name::Setting => match value.into_string() {
                Ok(text) => {
                    self.settings.insert(name.to_owned(), text);
                }
                Err(_) => self
                    .faults
                    .push(format!("{name}: the value is not valid Unicode")),
            },
            // The rest of the name can be anything.
            Name::VauchiOnly => self.vauchi_only.push(name.escape_debug().to_string()),
            Name::RequireNoise => self.require_noise(name, &value.to_string_lossy()),
            Name::Kubernetes => {}
            Name::Unknown => {
                let hint = names::nearest(name)
                    .map(|known| format!("; did you mean {known}?"))
                    .unwrap_or_default();
                self.unknown
                    .push(format!("{name:?}: unknown setting, ignored{hint}"));
            }
        }
    }

    fn require_noise(&mut self, name: &str, value: &str) {
        match value.trim().to_ascii_lowercase().as_str() {
            // The Vauchi relay takes everything else for false.
            "true" | "1" => self.faults.push(format!(
                "{name}: this relay has no Noise encryption and would accept unencrypted connections; remove the variable and use a reverse proxy for TLS"
            )),
            _ => self.vauchi_only.push(name.to_owned()),
        }
    }
}

/// Whether the two cannot be bound at once. An unspecified address takes its port everywhere.
fn would_collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_without_data(variables: &[(&str, &str)]) -> Loaded {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Config::from_vars_on(variables, false).unwrap()
    }

    #[test]
    fn without_data_folder_and_setting_the_fallback_is_named_in_full() {
        let loaded = load_without_data(&[]);
        let path = std::env::current_dir().unwrap().join("data");
        assert!(loaded.config.data_dir_is_fallback);
        assert_eq!(loaded.config.data_dir, path);
        let [warning] = &loaded.warnings[..] else {
            panic!("one warning, not {:?}", loaded.warnings);
        };
        assert!(warning.contains(&*path.to_string_lossy()), "{warning}");
    }

    /// In the root folder `./data` is `/data`, and the warning said that blobs are kept in the folder
    /// that is not there.
    #[test]
    fn in_the_root_folder_the_warning_does_not_contradict_itself() {
        let elsewhere = fallback_warning(Path::new("/home/me/data"));
        assert!(elsewhere.contains("/data does not exist"), "{elsewhere}");
        assert!(elsewhere.contains("/home/me/data"), "{elsewhere}");
        let in_root = fallback_warning(Path::new("/data"));
        assert!(!in_root.contains("/data does not exist"), "{in_root}");
        assert!(in_root.contains("storing blobs in /data"), "{in_root}");
    }

    #[test]
    fn blobs_in_a_database_elsewhere_are_not_said_to_be_in_the_folder() {
        let loaded = load_without_data(&[
            ("RELAY_STORAGE_BACKEND", "postgres"),
            (
                "RELAY_DATABASE_URL",
                "postgres://relay@db.example.com/relay",
            ),
        ]);
        let [warning] = &loaded.warnings[..] else {
            panic!("one warning, not {:?}", loaded.warnings);
        };
        assert!(
            warning.contains("keeping the relay's secret in"),
            "{warning}"
        );
        assert!(!warning.contains("storing blobs"), "{warning}");
    }

    #[test]
    fn a_data_folder_that_is_set_is_taken_as_it_is() {
        let loaded = load_without_data(&[("RELAY_DATA_DIR", "/nowhere/at/all")]);
        assert!(!loaded.config.data_dir_is_fallback);
        assert_eq!(loaded.config.data_dir, Path::new("/nowhere/at/all"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }

    /// A line break in it would begin another line in the log.
    #[test]
    fn whatever_a_variable_is_called_a_warning_is_one_line() {
        let loaded = load_without_data(&[
            ("RELAY_STORAGE_BACKEND", "memory"),
            ("RELAY_NOISE_\nx", "1"),
            ("RELAY_\nx", "1"),
        ]);
        let mut said = loaded.warnings.iter().chain(&loaded.unknown);
        assert!(said.clone().count() == 2 && said.all(|line| !line.contains('\n')));
    }

    #[test]
    fn the_memory_engine_says_nothing_about_folders() {
        let loaded = load_without_data(&[("RELAY_STORAGE_BACKEND", "memory")]);
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }
}
