//! What an operator asks first, answered in the first lines of the log.

use data_encoding::HEXLOWER;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::descriptors::Descriptors;
use crate::config::{Config, StorageBackend};

/// What is known only once the relay is up.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Where clients connect, the port that was really bound.
    pub listen_addr: SocketAddr,
    /// Where health and metrics are, the port that was really bound.
    pub http_addr: SocketAddr,
    /// The relay's public key.
    pub relay_id: [u8; 32],
    /// Bytes charged for what is kept already.
    pub stored_bytes: u64,
    /// Bytes free on the disk of the data directory; `None` when there is no disk or no answer.
    pub disk_free_bytes: Option<u64>,
    /// File descriptors, needed and allowed.
    pub descriptors: Descriptors,
}

/// Lines for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Banner {
    /// To be logged as information.
    pub lines: Vec<String>,
    /// To be logged as warnings.
    pub warnings: Vec<String>,
}

/// Says which relay this is, where it listens, what it keeps where, and what is open or off.
pub fn banner(config: &Config, facts: &Facts) -> Banner {
    let mut lines = vec![
        concat!("vauchi-relay ", env!("VAUCHI_VERSION")).to_owned(),
        clients_line(config, facts),
        operators_line(config, facts),
        storage_line(config),
        bounds_line(config),
        format!(
            "relay id: {}; clients that connect to wss://HOST#ID accept no other relay",
            HEXLOWER.encode(&facts.relay_id)
        ),
    ];
    if config.public_origins.is_empty() {
        lines.push(
            "protocol v2: RELAY_PUBLIC_ORIGINS is not set: the host that an upgrade request names counts as the relay's name".to_owned(),
        );
    }
    let off = config.limits_off();
    if !off.is_empty() {
        lines.push(format!("disabled limits: {}", off.join(", ")));
    }
    Banner {
        lines,
        warnings: disk_warning(config, facts)
            .into_iter()
            .chain(facts.descriptors.warning())
            .collect(),
    }
}

fn clients_line(config: &Config, facts: &Facts) -> String {
    let connections = match config.connections_max {
        0 => "unlimited connections".to_owned(),
        1 => "at most 1 connection".to_owned(),
        max => format!("at most {max} connections"),
    };
    format!(
        "clients: ws://{}, {connections}; no built-in TLS, use a reverse proxy",
        facts.listen_addr
    )
}

fn operators_line(config: &Config, facts: &Facts) -> String {
    let guard = if config.metrics_token.is_some() {
        "metrics require the token"
    } else {
        "metrics require no token"
    };
    format!(
        "operators: http://{}/health, /ready, /metrics; {guard}",
        facts.http_addr
    )
}

fn storage_line(config: &Config) -> String {
    match config.storage {
        StorageBackend::Memory => "storage: memory; a restart deletes everything".to_owned(),
        StorageBackend::Sqlite => format!("storage: SQLite in {}", full_path(&config.data_dir)),
        StorageBackend::Postgres => match &config.database {
            Some(database) => format!("storage: PostgreSQL, database {}", database.place()),
            None => "storage: PostgreSQL".to_owned(),
        },
    }
}

fn bounds_line(config: &Config) -> String {
    let bytes_max = match config.storage_bytes_max {
        0 => "unlimited storage".to_owned(),
        max => format!("at most {}", in_bytes(max)),
    };
    format!(
        "limits: {bytes_max} in total, each blob expires after {}",
        in_time(config.blob_ttl)
    )
}

/// Warns when the disk is full before `RELAY_MAX_STORAGE_BYTES` is reached.
fn disk_warning(config: &Config, facts: &Facts) -> Option<String> {
    let free = facts.disk_free_bytes?;
    if !config.storage.keeps_files() || config.storage_bytes_max == 0 {
        return None;
    }
    let to_come = config.storage_bytes_max.saturating_sub(facts.stored_bytes);
    (free < to_come.saturating_add(config.free_bytes_min)).then(|| {
        format!(
            "the disk of {} has {} free, but RELAY_MAX_STORAGE_BYTES allows another {} (plus RELAY_MIN_FREE_BYTES); lower RELAY_MAX_STORAGE_BYTES or free disk space",
            full_path(&config.data_dir),
            in_bytes(free),
            in_bytes(to_come)
        )
    })
}

pub(super) fn full_path(path: &Path) -> String {
    // Only fails without a working directory; then the path as it was set says the most.
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    full.display().to_string()
}

/// `10 GiB`, `47.6 MiB`, `900 bytes`.
pub(super) fn in_bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    let whole = bytes >> shift;
    match ((bytes - (whole << shift)) * 10) >> shift {
        0 => format!("{whole} {unit}"),
        tenths => format!("{whole}.{tenths} {unit}"),
    }
}

/// `90 days`, `1 day`, `3 hours`, `90 seconds`.
fn in_time(span: Duration) -> String {
    let secs = span.as_secs();
    let units = [("day", 86_400), ("hour", 3_600), ("second", 1)];
    let fitting = units
        .into_iter()
        .find(|(_, length)| secs >= *length && secs.is_multiple_of(*length));
    let (unit, length) = fitting.unwrap_or(("second", 1));
    match secs / length {
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Token;

    fn facts() -> Facts {
        Facts {
            listen_addr: "0.0.0.0:8080".parse().unwrap(),
            http_addr: "0.0.0.0:8081".parse().unwrap(),
            relay_id: [1; 32],
            stored_bytes: 0,
            disk_free_bytes: Some(1 << 40),
            descriptors: Descriptors {
                needed: Some(2_128),
                allowed: Some(4_096),
            },
        }
    }

    #[test]
    fn the_first_questions_are_answered() {
        let banner = banner(&Config::default(), &facts());
        assert_eq!(
            banner.lines,
            [
                concat!("vauchi-relay ", env!("VAUCHI_VERSION")),
                "clients: ws://0.0.0.0:8080, at most 1000 connections; no built-in TLS, use a reverse proxy",
                "operators: http://0.0.0.0:8081/health, /ready, /metrics; metrics require no token",
                "storage: SQLite in /data",
                "limits: at most 10 GiB in total, each blob expires after 90 days",
                "relay id: 0101010101010101010101010101010101010101010101010101010101010101; clients that connect to wss://HOST#ID accept no other relay",
                "protocol v2: RELAY_PUBLIC_ORIGINS is not set: the host that an upgrade request names counts as the relay's name",
            ]
        );
        assert_eq!(banner.warnings, [""; 0]);
    }

    #[test]
    fn memory_says_that_a_restart_loses_everything() {
        let config = Config {
            storage: StorageBackend::Memory,
            ..Config::default()
        };
        let text = banner(&config, &facts()).lines.join("\n");
        assert!(
            text.contains("memory; a restart deletes everything"),
            "{text}"
        );
        assert!(!text.contains("/data"), "{text}");
    }

    #[test]
    fn the_folder_is_named_in_full() {
        let config = Config {
            data_dir: "somewhere".into(),
            ..Config::default()
        };
        let full = std::env::current_dir().unwrap().join("somewhere");
        let text = banner(&config, &facts()).lines.join("\n");
        assert!(text.contains(&*full.to_string_lossy()), "{text}");
    }

    #[test]
    fn a_relay_that_knows_its_hosts_says_nothing_of_other_hosts() {
        let config = Config {
            public_origins: vec!["relay.example".to_owned()],
            ..Config::default()
        };
        let text = banner(&config, &facts()).lines.join("\n");
        assert!(!text.contains("RELAY_PUBLIC_ORIGINS"), "{text}");
    }

    #[test]
    fn limits_that_are_off_are_named() {
        let config = Config {
            connections_max: 0,
            storage_bytes_max: 0,
            ..Config::default()
        };
        let banner = banner(&config, &facts());
        let last = banner.lines.last().unwrap();
        assert_eq!(
            last,
            "disabled limits: RELAY_MAX_CONNECTIONS, RELAY_MAX_STORAGE_BYTES"
        );
        assert_eq!(banner.warnings, [""; 0]);
    }

    #[test]
    fn a_token_is_mentioned_and_not_shown() {
        let config = Config {
            metrics_token: Some(Token::new("swordfish")),
            ..Config::default()
        };
        let text = banner(&config, &facts()).lines.join("\n");
        assert!(text.contains("metrics require the token"), "{text}");
        assert!(!text.contains("swordfish"), "{text}");
    }

    #[test]
    fn a_disk_with_less_room_than_may_be_stored_is_warned_about() {
        let short = Facts {
            disk_free_bytes: Some(1 << 30),
            ..facts()
        };
        let warnings = banner(&Config::default(), &short).warnings;
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("/data has 1 GiB free"),
            "{}",
            warnings[0]
        );

        // What is stored already does not have to fit a second time.
        let mostly_full = Facts {
            stored_bytes: (10 << 30) - (512 << 20),
            ..short
        };
        assert_eq!(banner(&Config::default(), &mostly_full).warnings, [""; 0]);
    }

    #[test]
    fn too_few_file_descriptors_are_warned_about() {
        let short = Facts {
            descriptors: Descriptors {
                needed: Some(2_128),
                allowed: Some(1_024),
            },
            ..facts()
        };
        let warnings = banner(&Config::default(), &short).warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("RELAY_MAX_CONNECTIONS"));
    }

    #[test]
    fn numbers_are_rounded_for_people() {
        assert_eq!(in_bytes(900), "900 bytes");
        assert_eq!(in_bytes(1536), "1.5 KiB");
        assert_eq!(in_bytes(50_000_000), "47.6 MiB");
        assert_eq!(in_bytes(10 << 30), "10 GiB");
        assert_eq!(in_bytes(u64::MAX), "17179869183.9 GiB");
        assert_eq!(in_time(Duration::from_secs(86_400)), "1 day");
        assert_eq!(in_time(Duration::from_secs(7_200)), "2 hours");
        assert_eq!(in_time(Duration::from_secs(90)), "90 seconds");
    }
}
