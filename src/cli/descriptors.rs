//! File descriptors: each connection takes one, and the system allows a process only so many.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::server;

/// What is open beside the sockets: 4 connections to the database with 3 files each, its lock, the
/// log, the ports, the runtime. Some 30, doubled.
const BESIDE_SOCKETS: u64 = 64;

/// How many there may be, and how many a full house takes. `None` is without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// As many as the settings let clients and operators open.
    pub needed: Option<u64>,
    /// As many as this process may have.
    pub allowed: Option<u64>,
}

impl Descriptors {
    /// Those of a relay with this configuration in this process.
    pub fn of(config: &Config) -> Self {
        let limit = getrlimit(Resource::Nofile);
        Self {
            needed: needed(config),
            // A start lifts the current limit up to the other one.
            allowed: limit.maximum,
        }
    }

    /// What is wrong, if they do not suffice.
    pub fn warning(self) -> Option<String> {
        let allowed = self.allowed?;
        match self.needed {
            Some(needed) if needed <= allowed => None,
            Some(needed) => Some(format!(
                "the limit of {allowed} file descriptors is too low for RELAY_MAX_CONNECTIONS, which needs {needed}; raise the limit (LimitNOFILE in systemd, ulimit -Hn) or lower RELAY_MAX_CONNECTIONS"
            )),
            None => Some(format!(
                "RELAY_MAX_CONNECTIONS is 0, but the limit of {allowed} file descriptors still bounds the connections"
            )),
        }
    }
}

/// Lets this process have as many as a full house takes, as far as the system allows. Shells and
/// systemd give 1,024 at first and allow far more on request.
pub(super) fn raise(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = match (needed(config), limit.maximum) {
        (Some(needed), Some(maximum)) => needed.min(maximum),
        (Some(count), None) | (None, Some(count)) => count,
        (None, None) => return,
    };
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of file descriptors to {wanted}");
        }
    }
}

fn needed(config: &Config) -> Option<u64> {
    server::sockets_max(config).map(|sockets| sockets + BESIDE_SOCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limit_that_a_full_house_exceeds_is_warned_about() {
        let warning = |needed, allowed| Descriptors { needed, allowed }.warning();
        assert_eq!(warning(Some(1_024), Some(1_024)), None);
        assert_eq!(warning(Some(1_025), None), None);
        let told = warning(Some(1_025), Some(1_024)).unwrap();
        assert!(
            told.starts_with("the limit of 1024 file descriptors is too low"),
            "{told}"
        );
        assert!(told.contains("needs 1025"), "{told}");
        let told = warning(None, Some(1_024)).unwrap();
        assert!(told.starts_with("RELAY_MAX_CONNECTIONS is 0"), "{told}");
        assert_eq!(warning(None, None), None);
    }

    #[test]
    fn a_full_house_is_sessions_strangers_operators_and_files() {
        let config = |connections_max| Config {
            connections_max,
            ..Config::default()
        };
        assert_eq!(needed(&config(10)), Some(10 + 256 + 64 + 64));
        assert_eq!(needed(&config(1_000)), Some(2 * 1_000 + 64 + 64));
        assert_eq!(needed(&config(0)), None);
    }
}
