//! The relay that is measured: a process of its own.

#![allow(dead_code, reason = "each measurement uses its part")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// All load comes from one address, which no limit means.
pub const LIMITS_OFF: [&str; 11] = [
    "RELAY_RATE_LIMIT_PER_MIN",
    "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
    "RELAY_MAILBOX_SHARE_PER_HOUR",
    "RELAY_ADDRESS_SHARE_PER_DAY",
    "RELAY_MAX_CONNECTIONS_PER_ADDRESS",
    "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
    "RELAY_OPENINGS_PER_MIN",
    "RELAY_FAILED_PROOFS_PER_MIN",
    "RELAY_RECOVERY_RATE_LIMIT",
    "RELAY_MAILBOX_MAX_BYTES",
    "RELAY_MAX_CONNECTIONS",
];

/// A running relay, killed when it is dropped.
pub struct Relay {
    child: Child,
    pub clients: SocketAddr,
    operators: SocketAddr,
    pub started: Instant,
    /// From the start to the first connection.
    pub took: Duration,
}

impl Relay {
    pub fn start(binary: &Path, folder: &Path) -> Self {
        Self::start_with(binary, folder, &LIMITS_OFF.map(|name| (name, "0")))
    }

    pub fn start_with(binary: &Path, folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(binary), folder, settings)
    }

    /// By a command that becomes the relay.
    pub fn start_by(mut command: Command, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let began = Instant::now();
        let mut child = command
            .env("RELAY_LISTEN_ADDR", "127.0.0.1:0")
            .env("RELAY_HTTP_ADDR", "127.0.0.1:0")
            .env("RELAY_DATA_DIR", folder)
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut after = |scheme: &str| -> SocketAddr {
            let found = lines.find_map(|line| {
                let line = line.unwrap();
                let (_, rest) = line.split_once(scheme)?;
                rest.split([',', ' ', '/']).next()?.parse().ok()
            });
            found.expect("the relay says where it listens")
        };
        let (clients, operators) = (after("ws://"), after("http://"));
        TcpStream::connect(clients).unwrap();
        let took = began.elapsed();
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            clients,
            operators,
            started: began,
            took,
        }
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.clients)
    }

    /// As an operator does, so that the log is in the database.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(told.success() && self.child.wait().unwrap().success());
    }

    /// Blobs that wait.
    pub fn stored(&self) -> u64 {
        let scrape = self.scrape();
        let line = scrape
            .lines()
            .find_map(|line| line.strip_prefix("relay_blobs_stored "));
        line.unwrap().parse::<f64>().unwrap() as u64
    }

    /// All metrics.
    pub fn scrape(&self) -> String {
        let mut socket = TcpStream::connect(self.operators).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut scrape = String::new();
        socket.read_to_string(&mut scrape).unwrap();
        scrape
    }

    /// How many entries this folder of its process has: `fd` or `task`.
    pub fn count(&self, what: &str) -> f64 {
        let folder = format!("/proc/{}/{what}", self.child.id());
        std::fs::read_dir(folder).unwrap().count() as f64
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
        // Stopped already, unless a measurement failed or its row is done.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
