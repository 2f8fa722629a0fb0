//! The relay as a process of its own: for what only a kill, a signal or an exit code can show.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{LIMITS_OFF, PATIENCE, eventually};

/// A running `vauchi-relay`; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) clients: SocketAddr,
    pub(crate) operators: SocketAddr,
    log: Arc<Mutex<String>>,
    reading: tokio::task::JoinHandle<()>,
}

/// The binary with ports and a folder of its own, and no other setting of this machine's.
pub(crate) fn command(data_dir: &Path) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_vauchi-relay")), data_dir)
}

/// As [`command`], after a shell has done what `before` says to itself.
pub(crate) fn command_after(before: &str, data_dir: &Path) -> Command {
    shell(&format!("{before} && exec \"$0\""), data_dir)
}

/// A shell that runs `script`, in which the binary is "$0" and what is added are "$1" and so on.
pub(crate) fn shell(script: &str, data_dir: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_vauchi-relay")]);
    prepared(shell, data_dir)
}

fn prepared(mut command: Command, data_dir: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RELAY_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
        .env("RELAY_LISTEN_ADDR", "127.0.0.1:0")
        .env("RELAY_HTTP_ADDR", "127.0.0.1:0")
        .env("RELAY_DATA_DIR", data_dir)
        .envs(LIMITS_OFF)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl Process {
    /// Starts the relay and waits until it listens.
    pub(crate) async fn start(data_dir: &Path) -> Self {
        Self::spawn(&mut command(data_dir)).await
    }

    /// Starts what `command` says and waits until it listens.
    pub(crate) async fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let note = |log: &Mutex<String>, line: &str| {
            let mut log = log.lock().unwrap();
            log.push_str(line);
            log.push('\n');
        };
        let (mut clients, mut operators) = (None, None);
        let listening = async {
            while clients.is_none() || operators.is_none() {
                let line = lines.next_line().await.unwrap();
                let line =
                    line.unwrap_or_else(|| panic!("the relay ended:\n{}", log.lock().unwrap()));
                clients = clients.or_else(|| address_after(&line, "ws://"));
                operators = operators.or_else(|| address_after(&line, "http://"));
                note(&log, &line);
            }
        };
        tokio::time::timeout(PATIENCE, listening)
            .await
            .expect("the relay listens");
        // Lines that nobody reads are dropped once the pipe is full.
        let page = Arc::clone(&log);
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                note(&page, &line);
            }
        });
        let (Some(clients), Some(operators)) = (clients, operators) else {
            unreachable!()
        };
        Self {
            child,
            clients,
            operators,
            log,
            reading,
        }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged `words` so many times.
    pub(crate) async fn logs(&self, words: &str, times: usize) {
        eventually(&format!("{words} × {times}"), async || {
            self.log().matches(words).count() >= times
        })
        .await;
    }

    /// As a power cut for the process: no handler runs.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends a signal by its name, as an operator would.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end: exit status and log.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("the relay ends")
            .unwrap();
        self.reading.await.unwrap();
        let log = self.log.lock().unwrap().clone();
        (status, log)
    }
}

/// Runs a command that is expected to end by itself: exit code, standard output, standard error.
pub(crate) async fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let mut child = command.spawn().unwrap();
    let (mut output, mut errors) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = async {
        let (out, err) = tokio::join!(
            stdout.read_to_string(&mut output),
            stderr.read_to_string(&mut errors)
        );
        out.unwrap();
        err.unwrap();
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the command ends");
    (status.code(), output, errors)
}

fn address_after(line: &str, scheme: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(scheme)?;
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c)))
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}
