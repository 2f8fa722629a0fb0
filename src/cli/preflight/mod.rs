//! What a start would need, tried without starting: the disk, the secret, the ports, the limits.
//!
//! Nothing is left behind: the one file that is written is removed, ports are given back, and a
//! secret or a folder that a start would make is not made. `disk`, with its timed writes in `syncs`, `database`
//! and `secret` have files of their own.

mod database;
mod disk;
mod secret;
mod syncs;

use std::net::{SocketAddr, TcpListener};

use self::database::database;
use self::disk::storage;
use self::secret::secret;
use super::descriptors::Descriptors;
use crate::config::{Config, StorageBackend};
use crate::server::StartError;
use crate::server::accept_queue::{self, Dropped};
use crate::telemetry;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// The relay would start, and the operator should know.
    Warn,
    /// The relay would not start, not take a blob, or not do what a setting is there for.
    Fail,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at, in a word or two.
    pub(super) subject: &'static str,
    /// One line.
    pub(super) text: String,
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, text)
    }

    pub(super) fn warn(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Warn, subject, text)
    }

    pub(super) fn fail(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Fail, subject, text)
    }

    fn new(level: Level, subject: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            level,
            subject,
            text,
        }
    }
}

/// Tries everything.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = match config.storage {
        StorageBackend::Memory => {
            vec![Finding::ok(
                "storage",
                "memory; a restart deletes everything",
            )]
        }
        StorageBackend::Sqlite => storage(config),
        StorageBackend::Postgres => database(config),
    };
    findings.extend(secret(config));
    findings.extend(ports(config));
    findings.push(queue(accept_queue::room_max(), Dropped::read()));
    findings.push(descriptors(config));
    findings.extend(log_filter(config));
    findings
}

/// Both are held until both were tried.
fn ports(config: &Config) -> [Finding; 2] {
    let (clients, _held) = port("RELAY_LISTEN_ADDR", config.listen_addr);
    let (operators, _held_too) = port("RELAY_HTTP_ADDR", config.http_addr);
    [clients, operators]
}

fn port(variable: &'static str, address: SocketAddr) -> (Finding, Option<TcpListener>) {
    const SUBJECT: &str = "port";
    match TcpListener::bind(address) {
        Ok(listener) => {
            let text = format!("{address} ({variable}) is free");
            (Finding::ok(SUBJECT, text), Some(listener))
        }
        Err(source) => {
            let error = StartError::Bind {
                variable,
                address,
                source,
            };
            (Finding::fail(SUBJECT, error.to_string()), None)
        }
    }
}

/// By what the system allows and what it has dropped.
fn queue(room_max: Option<u32>, dropped: Option<Dropped>) -> Finding {
    const SUBJECT: &str = "accept queue";
    let wanted = accept_queue::ROOM;
    let dropped = match dropped {
        Some(dropped) => format!(
            "{} dropped so far by full queues (all programs of this network namespace)",
            dropped.overflows
        ),
        None => "the system does not report drops".to_owned(),
    };
    match room_max {
        Some(max) if max < wanted => Finding::warn(
            SUBJECT,
            format!(
                "room for {max} connections waiting to be accepted, not {wanted}, because net.core.somaxconn is {max}; {dropped}; run: sysctl -w net.core.somaxconn={wanted}"
            ),
        ),
        Some(_) => Finding::ok(
            SUBJECT,
            format!("room for {wanted} connections waiting to be accepted; {dropped}"),
        ),
        None => Finding::ok(
            SUBJECT,
            format!(
                "the relay asks for room for {wanted} connections waiting to be accepted; {dropped}"
            ),
        ),
    }
}

fn descriptors(config: &Config) -> Finding {
    const SUBJECT: &str = "file descriptors";
    let descriptors = Descriptors::of(config);
    if let Some(warning) = descriptors.warning() {
        return Finding::warn(SUBJECT, warning);
    }
    let count = |count: Option<u64>| count.map_or("no limit".to_owned(), |count| count.to_string());
    let (allowed, needed) = (count(descriptors.allowed), count(descriptors.needed));
    let text = format!("limit: {allowed}; needed for RELAY_MAX_CONNECTIONS: {needed}");
    Finding::ok(SUBJECT, text)
}

fn log_filter(config: &Config) -> Vec<Finding> {
    telemetry::faults(config.log_filter_file.as_deref())
        .into_iter()
        .map(|fault| Finding::warn("log filter", fault))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_the_system_caps_is_warned_about() {
        let dropped = Some(Dropped {
            overflows: 856,
            all: 900,
        });
        let capped = queue(Some(128), dropped);
        assert_eq!(capped.level, Level::Warn);
        for words in ["room for 128", "856 dropped so far", "somaxconn=4096"] {
            assert!(capped.text.contains(words), "{}", capped.text);
        }
        for (room_max, dropped) in [
            (Some(4_096), dropped),
            (Some(65_535), dropped),
            (None, None),
        ] {
            assert_eq!(queue(room_max, dropped).level, Level::Ok);
        }
    }
}
