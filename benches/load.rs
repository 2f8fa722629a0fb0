//! What the relay does on this machine, seen from outside its process.
//!
//! `cargo bench --bench load` starts the release binary on a folder of its own and prints stores a
//! second and the time to `Stored` at 1, 32 and 512 in flight, beside a bare loop of 100-row
//! transactions into the same schema, and the memory of an idle connection. Both are measured in
//! the same run, so what counts is the ratio. `cargo bench --bench load -- SECONDS` runs longer, and
//! `cargo bench --bench load -- SECONDS BINARY BINARY…` measures these binaries in turn instead, for
//! example one of another target or allocator.
//!
//! `cargo bench --bench load -- backup` fills a relay with a GiB and backs it up under load: stores a
//! second before, during and after, the longest wait, and how large the log became.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use sqlx::{Connection as _, Executor as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Bytes of a blob.
const BODY: usize = 1_024;
/// Mailboxes that take turns.
const MAILBOXES: usize = 10_000;
/// Connections for the measurement of memory.
const IDLE: usize = 2_000;

/// How large the database is at least that is backed up.
const FILLING: u64 = 1 << 30;

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

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn main() {
    let (mut seconds, mut binaries) = (5, Vec::new());
    // Cargo says --bench to it.
    for word in std::env::args().skip(1).filter(|word| word != "--bench") {
        match word.parse() {
            Ok(number) => seconds = number,
            Err(_) if word == "backup" => {}
            Err(_) => binaries.push(PathBuf::from(word)),
        }
    }
    if binaries.is_empty() {
        binaries.push(env!("CARGO_BIN_EXE_vauchi-relay").into());
    }
    let span = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if std::env::args().any(|word| word == "backup") {
        runtime.block_on(backup_under_load(span));
        return;
    }
    println!(
        "bodies of {BODY} bytes, {MAILBOXES} mailboxes, {seconds} s a row, 2 cores shared by all"
    );
    let bare = runtime.block_on(bare_loop(span));
    println!("bare loop, 100 rows a transaction: {bare:.0} rows/s");
    for binary in &binaries {
        if binaries.len() > 1 {
            println!("{}", binary.display());
        }
        measure(&runtime, binary, span, bare);
    }
}

fn measure(runtime: &tokio::runtime::Runtime, binary: &Path, span: Duration, bare: f64) {
    for (connections, in_flight) in [(1, 1), (32, 1), (32, 16)] {
        let folder = tempfile::tempdir().unwrap();
        let relay = Relay::start(binary, folder.path());
        let until = Cell::new(Instant::now() + span);
        let answers = runtime.block_on(store_load(relay.clients, connections, in_flight, &until));
        let mut latencies: Vec<_> = answers.into_iter().map(|(_, took)| took).collect();
        let rate = latencies.len() as f64 / span.as_secs_f64();
        latencies.sort_unstable();
        let at = |share: f64| {
            latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
        };
        println!(
            "{:>4} in flight: {rate:>7.0} stores/s, {:.2} of the bare loop; answer p50 {:.2} ms, p99 {:.2} ms; relay CPU {:.1} µs a store",
            connections * in_flight,
            rate / bare,
            at(0.50),
            at(0.99),
            relay.cpu_seconds() * 1e6 / latencies.len() as f64,
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(binary, folder.path());
    runtime.block_on(idle_memory(&relay));
}

/// A running relay, killed when it is dropped.
struct Relay {
    child: Child,
    clients: SocketAddr,
}

impl Relay {
    fn start(binary: &Path, folder: &Path) -> Self {
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

    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    fn resident_bytes(&self) -> u64 {
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

async fn store_load(
    address: SocketAddr,
    connections: usize,
    in_flight: usize,
    until: &Cell<Instant>,
) -> Vec<(Instant, Duration)> {
    let frames: Vec<String> = (0..64).map(|_| blob_as_json()).collect();
    let clients = (0..connections).map(|number| client(address, number, in_flight, until, &frames));
    futures_util::future::join_all(clients).await.concat()
}

/// Keeps `in_flight` submits on their way until the time is up; returns when each was answered, and
/// how long it took.
async fn client(
    address: SocketAddr,
    number: usize,
    in_flight: usize,
    until: &Cell<Instant>,
    bodies: &[String],
) -> Vec<(Instant, Duration)> {
    let mut socket = connected(address, number).await;
    let (mut sent, mut waiting, mut latencies) = (0, VecDeque::new(), Vec::new());
    loop {
        while waiting.len() < in_flight && Instant::now() < until.get() {
            let mailbox = (number * 7_919 + sent * 104_729) % MAILBOXES;
            let frame = submit(number, sent, mailbox, &bodies[sent % bodies.len()]);
            socket.feed(Message::Binary(frame.into())).await.unwrap();
            waiting.push_back(Instant::now());
            sent += 1;
        }
        socket.flush().await.unwrap();
        if waiting.is_empty() {
            return latencies;
        }
        let answer = next(&mut socket).await;
        assert!(
            answer.windows(8).any(|word| word == b"\"Stored\""),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        latencies.push((Instant::now(), waiting.pop_front().unwrap().elapsed()));
    }
}

async fn connected(address: SocketAddr, number: usize) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(4_096)
        .write_buffer_size(4_096);
    let (mut socket, _) = tokio_tungstenite::connect_async_with_config(
        format!("ws://{address}/"),
        Some(config),
        true,
    )
    .await
    .unwrap();
    let hello = format!(
        r#"{{"version":1,"message_id":"11111111-1111-4111-8111-111111111111","timestamp":1795220095,"payload":{{"type":"Handshake","client_id":"{:064x}"}}}}"#,
        number + (1 << 40)
    );
    socket
        .send(Message::Binary(prefixed(&hello).into()))
        .await
        .unwrap();
    next(&mut socket).await;
    socket
}

async fn next(socket: &mut Socket) -> bytes::Bytes {
    loop {
        if let Message::Binary(frame) = socket.next().await.unwrap().unwrap() {
            return frame;
        }
    }
}

fn submit(client: usize, number: usize, mailbox: usize, body: &str) -> Vec<u8> {
    prefixed(&format!(
        r#"{{"version":1,"message_id":"22222222-2222-4222-{client:04}-{number:012}","timestamp":1795220095,"payload":{{"type":"EncryptedUpdate","recipient_id":"{mailbox:064x}","ciphertext":{body}}}}}"#
    ))
}

fn blob_as_json() -> String {
    let body: [u8; BODY] = std::array::from_fn(|_| rand::random());
    serde_json::to_string(&body[..]).unwrap()
}

fn prefixed(json: &str) -> Vec<u8> {
    [&(json.len() as u32).to_be_bytes(), json.as_bytes()].concat()
}

/// What a backup costs those who store meanwhile.
async fn backup_under_load(span: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(Path::new(env!("CARGO_BIN_EXE_vauchi-relay")), folder.path());
    let until = Cell::new(Instant::now() + Duration::from_secs(3_600));
    let log = folder.path().join("relay.db-wal");
    let log_bytes = || log.metadata().unwrap().len();
    let filling = async {
        let database = folder.path().join("relay.db");
        while database.metadata().unwrap().len() < FILLING {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until.set(Instant::now());
    };
    let (filled, ()) = tokio::join!(store_load(relay.clients, 32, 16, &until), filling);
    println!("filled with {} blobs of {BODY} bytes", filled.len());
    for (connections, in_flight) in [(1, 1), (32, 1), (32, 16)] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        until.set(Instant::now() + Duration::from_secs(3_600));
        let backup = async {
            tokio::time::sleep(span).await;
            let (began, mut largest) = (Instant::now(), 0);
            let to = folder.path().join(format!("{connections}-{in_flight}.tar"));
            let mut command = Command::new(env!("CARGO_BIN_EXE_vauchi-relay"));
            let mut running = command
                .env("RELAY_DATA_DIR", folder.path())
                .arg("backup")
                .arg(&to)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let status = loop {
                largest = largest.max(log_bytes());
                match running.try_wait().unwrap() {
                    Some(status) => break status,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            assert!(status.success());
            let ended = Instant::now();
            tokio::time::sleep(span).await;
            until.set(Instant::now());
            (began, ended, largest, to.metadata().unwrap().len())
        };
        let (answers, (began, ended, largest, bytes)) = tokio::join!(
            store_load(relay.clients, connections, in_flight, &until),
            backup
        );
        let between = |from: Instant, to: Instant| {
            let inside = answers.iter().filter(|(at, _)| (from..to).contains(at));
            let took: Vec<_> = inside.map(|(_, took)| *took).collect();
            let worst = took.iter().max().copied().unwrap_or_default();
            (
                took.len() as f64 / (to - from).as_secs_f64(),
                worst.as_secs_f64() * 1e3,
            )
        };
        let (before, during, after) = (
            between(began - span, began),
            between(began, ended),
            between(ended, ended + span),
        );
        println!(
            "{:>4} in flight: backup of {} MiB in {:.1} s; stores/s before {:.0}, during {:.0} ({:.2}), after {:.0} ({:.2}); longest answer {:.0}, {:.0}, {:.0} ms; largest log {} MiB, at the end {} MiB",
            connections * in_flight,
            bytes >> 20,
            (ended - began).as_secs_f64(),
            before.0,
            during.0,
            during.0 / before.0,
            after.0,
            after.0 / before.0,
            before.1,
            during.1,
            after.1,
            largest >> 20,
            log_bytes() >> 20,
        );
    }
}

async fn idle_memory(relay: &Relay) {
    let mut sockets = Vec::new();
    for number in 0..100 {
        sockets.push(connected(relay.clients, number).await);
    }
    let before = relay.resident_bytes();
    let began = Instant::now();
    for number in 100..100 + IDLE {
        sockets.push(connected(relay.clients, number).await);
    }
    let took = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (relay.resident_bytes() - before) / IDLE as u64;
    println!(
        "{IDLE} idle connections: {each} bytes each; {:.0} connects and handshakes/s, one at a time",
        IDLE as f64 / took
    );
}

/// What SQLite alone does with this schema and these settings, without network, rules or look-ups.
async fn bare_loop(span: Duration) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("bare.db"))
        .create_if_missing(true)
        .page_size(8_192)
        .auto_vacuum(sqlx::sqlite::SqliteAutoVacuum::Incremental)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full)
        .pragma("secure_delete", "FAST")
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "2000");
    let mut connection = sqlx::sqlite::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    connection
        .execute(include_str!("../migrations/sqlite/0001_mailboxes.sql"))
        .await
        .unwrap();
    let insert = format!(
        "INSERT INTO blob ({COLUMNS}) VALUES {}",
        vec![PLACES; 100].join(",")
    );
    let (began, mut rows) = (Instant::now(), 0_i64);
    while began.elapsed() < span {
        let mut transaction = connection.begin().await.unwrap();
        let mut query = sqlx::query(sqlx::AssertSqlSafe(insert.clone()));
        for _ in 0..100 {
            rows += 1;
            let mailbox = rand::random::<u64>() as usize % MAILBOXES;
            let hash = *blake3::hash(&mailbox.to_be_bytes()).as_bytes();
            let body: [u8; BODY] = std::array::from_fn(|place| (place as i64 + rows) as u8);
            query = query
                .bind(rows)
                .bind(i64::from_be_bytes(hash[..8].try_into().unwrap()))
                .bind(rand::random::<i64>())
                .bind((BODY as i64 + 256) * 4)
                .bind(2_992_033 + rows / 10_000)
                .bind(0_i64)
                .bind(1_795_220_095_000_i64)
                .bind(1_795_220_095_000_i64)
                .bind(hash.to_vec())
                .bind(rand::random::<[u8; 16]>().to_vec())
                .bind(rand::random::<[u8; 16]>().to_vec())
                .bind(Vec::<u8>::new())
                .bind(body.to_vec());
        }
        query.execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
    rows as f64 / began.elapsed().as_secs_f64()
}

const COLUMNS: &str = "seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, mailbox, id, checksum, sealed, body";
const PLACES: &str = "(?,?,?,?,?,?,?,?,?,?,?,?,?)";
