//! The relay that is measured: a process of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// All load comes from one address, which no limit means.
const LIMITS_OFF: [&str; 7] = [
    "RELAY_RATE_LIMIT_PER_MIN",
    "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
    "RELAY_MAILBOX_SHARE_PER_HOUR",
    "RELAY_ADDRESS_SHARE_PER_DAY",
    "RELAY_MAX_CONNECTIONS_PER_ADDRESS",
    "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
    "RELAY_OPENINGS_PER_MIN",
];

/// A running relay, killed when it is dropped.
pub struct Relay {
    child: Child,
    pub clients: SocketAddr,
}

impl Relay {
    pub fn start(binary: &Path, folder: &Path) -> Self {
        let mut child = Command::new(binary)
            .env("RELAY_LISTEN_ADDR", "127.0.0.1:0")
            .env("RELAY_HTTP_ADDR", "127.0.0.1:0")
            .env("RELAY_DATA_DIR", folder)
            .envs(LIMITS_OFF.map(|name| (name, "0")))
            .env("RELAY_MAX_CONNECTIONS", "0")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let clients = lines
            .find_map(|line| {
                let line = line.unwrap();
                let (_, rest) = line.split_once("ws://")?;
                rest.split([',', ' ']).next()?.parse().ok()
            })
            .expect("the relay listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, clients }
    }

    /// Of user and system, since it started.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
