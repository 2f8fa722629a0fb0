//! The servers: how each is started, what it promises with an answer, and who talks to it how.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Bench;
use crate::dialect::Dialect;
use crate::dialect::mqtt::Mqtt;
use crate::dialect::nats::Nats;
use crate::dialect::resp::Resp;
use crate::dialect::v1::V1;
use crate::dialect::v2::{Keep, V2};
use crate::launch;
use crate::mailbox::Mailbox;
use crate::relay::{LIMITS_OFF, Relay};
use crate::verify;

/// What is measured: a server, how it is set, and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    V2,
    V1,
    LiveOnly,
    Memory,
    Redis,
    Mosquitto,
    Nats,
}

impl Subject {
    pub fn is_ours(self) -> bool {
        matches!(self, Self::V2 | Self::V1 | Self::LiveOnly | Self::Memory)
    }

    /// A name and what has happened to a blob when it is answered.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::V2 => ("v2", "SQLite, synced before the answer"),
            Self::V1 => ("v1", "SQLite, synced before the answer"),
            Self::LiveOnly => ("v2 live_only", "not stored"),
            Self::Memory => ("v2, memory engine", "in memory"),
            Self::Redis => ("redis always", "AOF, synced before the answer"),
            Self::Mosquitto => ("mosquitto QoS 1", "in memory, snapshot every 30 min"),
            Self::Nats => ("NATS JetStream", "file, synced every 2 min"),
        }
    }

    /// A peer's program and its package.
    pub fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Redis => Some(("redis-server", "redis-server")),
            Self::Mosquitto => Some(("mosquitto", "mosquitto")),
            Self::Nats => Some(("nats-server", "nats-server")),
            _ => None,
        }
    }

    /// Where it is installed. Ours always is.
    pub fn installed(self) -> Result<PathBuf, String> {
        let Some((program, package)) = self.program() else {
            return Ok(PathBuf::new());
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian has some servers where only root looks.
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        folders
            .map(|folder| folder.join(program))
            .find(|file| file.is_file())
            .ok_or_else(|| format!("{program} is not installed; run: apt-get install {package}"))
    }
}

/// A running server with a data folder of its own; both end with this value.
pub struct Server {
    pub subject: Subject,
    host: Host,
    pub address: SocketAddr,
    folder: TempDir,
}

enum Host {
    Relay(Relay),
    Peer(Peer),
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; the measurement has noticed then.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Server {
    /// `binary` is the relay's; a peer's is found.
    pub fn start(bench: &Bench, subject: Subject, binary: &Path) -> Result<Self, String> {
        let folder = bench.folder();
        if subject.is_ours() {
            let relay = relay(bench, subject, binary, folder.path());
            return Ok(Self {
                subject,
                address: relay.clients,
                host: Host::Relay(relay),
                folder,
            });
        }
        let address = free_address();
        let mut command = launch::command(subject.installed()?, bench.cores);
        match subject {
            Subject::Redis => redis(&mut command, address, folder.path()),
            Subject::Mosquitto => mosquitto(&mut command, address, folder.path()),
            _ => nats(&mut command, address, folder.path()),
        }
        let log = File::create(folder.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut peer = Peer(command.stdin(Stdio::null()).spawn().unwrap());
        wait_for(&mut peer.0, address, folder.path())?;
        if subject == Subject::Nats {
            verify::create_stream(address)?;
        }
        Ok(Self {
            subject,
            host: Host::Peer(peer),
            address,
            folder,
        })
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        match &self.host {
            Host::Relay(relay) => relay.id(),
            Host::Peer(peer) => peer.0.id(),
        }
    }

    pub fn relay(&self) -> Option<&Relay> {
        match &self.host {
            Host::Relay(relay) => Some(relay),
            Host::Peer(_) => None,
        }
    }

    pub fn sender(&self, number: usize) -> Box<dyn Dialect> {
        match self.subject {
            Subject::V1 => Box::new(V1::sender(self.address, number)),
            Subject::V2 | Subject::Memory => Box::new(V2::sender(self.address, Keep::Stored)),
            Subject::LiveOnly => Box::new(V2::sender(self.address, Keep::LiveOnly)),
            Subject::Redis => Box::new(Resp::sender()),
            Subject::Mosquitto => Box::new(Mqtt::sender(number)),
            Subject::Nats => Box::new(Nats::sender(number)),
        }
    }

    pub fn recipient(&self, mailbox: &Mailbox) -> Box<dyn Dialect> {
        let keep = match self.subject {
            Subject::LiveOnly => Keep::LiveOnly,
            _ => Keep::Stored,
        };
        match self.subject {
            Subject::V2 | Subject::Memory | Subject::LiveOnly => {
                Box::new(V2::recipient(self.address, keep, mailbox))
            }
            Subject::Redis => Box::new(Resp::recipient(mailbox)),
            Subject::Mosquitto => Box::new(Mqtt::recipient(mailbox)),
            Subject::V1 | Subject::Nats => unreachable!("no row has a recipient of these"),
        }
    }

    /// The last lines that a peer wrote.
    pub fn last_words(&self) -> String {
        last_words(self.folder.path())
    }
}

/// No limit binds, so that nothing is refused.
fn relay(bench: &Bench, subject: Subject, binary: &Path, folder: &Path) -> Relay {
    let engine = if subject == Subject::Memory {
        "memory"
    } else {
        "sqlite"
    };
    let mut settings: Vec<_> = LIMITS_OFF.map(|name| (name, "0")).into();
    settings.extend([
        ("RELAY_MAILBOX_MAX_BLOBS", "0"),
        ("RELAY_MAX_STORAGE_BYTES", "0"),
        ("RELAY_MIN_FREE_BYTES", "0"),
        ("RELAY_STORAGE_BACKEND", engine),
    ]);
    Relay::start_by(launch::command(binary, bench.cores), folder, &settings)
}

fn redis(command: &mut Command, address: SocketAddr, folder: &Path) {
    let port = address.port().to_string();
    command.args(["--bind", "127.0.0.1", "--port", &port]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    command.args(["--save", "", "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(folder);
}

fn mosquitto(command: &mut Command, address: SocketAddr, folder: &Path) {
    let config = folder.join("mosquitto.conf");
    // Without `user root` it becomes another user, whom the kernel no longer ends with this program.
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n\
         persistence_location {}/\nmax_queued_messages 0\nset_tcp_nodelay true\n\
         log_type error\nlog_type warning\n",
        address.port(),
        folder.display(),
    );
    std::fs::write(&config, text).unwrap();
    command.arg("-c").arg(config);
}

fn nats(command: &mut Command, address: SocketAddr, folder: &Path) {
    let port = address.port().to_string();
    command.args(["--addr", "127.0.0.1", "--port", &port]);
    command.arg("--jetstream").arg("--store_dir").arg(folder);
}

/// Free a moment ago: these servers cannot choose one themselves.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

fn wait_for(child: &mut Child, address: SocketAddr, folder: &Path) -> Result<(), String> {
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = child.try_wait().unwrap().is_some();
        if ended || began.elapsed() > Duration::from_secs(20) {
            return Err(format!("it did not start: {}", last_words(folder)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn last_words(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
