//! Files that are moved, deleted or replaced under a running relay.
//!
//! Once, a relay whose database was moved away went on saying `Stored` and `/ready` 200, and after a
//! restart all of that was gone.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::json;
use vauchi_relay::clock::Clock;
use vauchi_relay::server;

use crate::harness::{BEGINNING, Peer, Relay, eventually, http_get, id};
use crate::process::Process;

/// All that a relay has open of its data directory.
const FILES: [&str; 4] = ["relay.db", "relay.db-wal", "relay.db-shm", "relay.lock"];

/// Waits until a probe says what is wrong.
async fn is_not_ready(relay: &Relay, name: &str) {
    let says = format!("{name} was moved, deleted or replaced");
    eventually(&says, async || {
        let (status, body) = http_get(relay.running.operators, "/ready", &[]).await;
        status == 503 && body.contains(&says)
    })
    .await;
}

/// Moves a path away, sees that nothing is confirmed, moves it back, and sees that all is served.
async fn moved_and_back(path: &Path, relay: &Relay, name: &str) {
    let away = PathBuf::from(format!("{}.away", path.display()));
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"before").await;
    fs::rename(path, &away).unwrap();
    // No look of the watch is waited for.
    let meanwhile = sender.submit(&id(2), b"meanwhile").await;
    sender.expect_refusal(&meanwhile, "unavailable").await;
    is_not_ready(relay, name).await;
    let refused = sender.submit(&id(2), b"not taken").await;
    sender.expect_refusal(&refused, "unavailable").await;

    fs::rename(&away, path).unwrap();
    relay.metric_becomes("relay_store_up", 1.0).await;
    sender.store(&id(2), b"after").await;
    let mut recipient = relay.client(&id(2)).await;
    // Nobody was told of the second one, and it is in the file that has come back.
    for blob in [&b"before"[..], b"meanwhile", b"after"] {
        assert_eq!(recipient.delivery().await.blob, blob, "{name}");
    }
    let (status, _) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn nothing_is_confirmed_while_a_file_is_elsewhere() {
    let all = FILES.map(|name| async move {
        let relay = Relay::start(&[]).await;
        let path = relay.config.data_dir.join(name);
        moved_and_back(&path, &relay, name).await;
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn nothing_is_confirmed_while_the_folder_is_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let relay = Relay::start(&[("RELAY_DATA_DIR", data.to_str().unwrap())]).await;
    moved_and_back(&data, &relay, "the data directory").await;
}

#[tokio::test]
async fn a_relay_that_nobody_asks_notices_by_itself_and_takes_no_other_file_for_its_own() {
    let relay = Relay::start(&[]).await;
    relay.client(&id(1)).await.store(&id(2), b"one").await;
    let path = relay.config.data_dir.join("relay.db");
    let away = relay.config.data_dir.join("away");
    fs::rename(&path, &away).unwrap();
    fs::copy(&away, &path).unwrap();
    // A scrape is no probe.
    relay.metric_becomes("relay_store_up", 0.0).await;
    let (_, body) = http_get(relay.running.operators, "/ready", &[]).await;
    assert!(body.contains("relay.db was moved"), "{body}");
    fs::rename(&away, &path).unwrap();
    relay.metric_becomes("relay_store_up", 1.0).await;
}

/// A log that was deleted takes nothing with it: what is in it is moved into the database at once.
#[tokio::test]
async fn a_deleted_log_loses_nothing() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"confirmed").await;
    sender.leave().await;
    for name in ["relay.db-wal", "relay.db-shm"] {
        fs::remove_file(relay.config.data_dir.join(name)).unwrap();
    }
    relay.metric_becomes("relay_store_up", 0.0).await;
    // As a restart would find it; this one has not closed its files.
    let copy = tempfile::tempdir().unwrap();
    for name in ["relay.db", "relay.secret"] {
        fs::copy(relay.config.data_dir.join(name), copy.path().join(name)).unwrap();
    }
    let settings = [("RELAY_DATA_DIR", copy.path().to_str().unwrap())];
    let other = Relay::start_at(BEGINNING, &settings).await;
    let mut recipient = other.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"confirmed");
}

#[tokio::test]
async fn a_removed_lock_file_lets_no_second_relay_in() {
    let relay = Relay::start(&[]).await;
    fs::remove_file(relay.config.data_dir.join("relay.lock")).unwrap();
    let started = server::start(&relay.config, Clock::manual(BEGINNING).0).await;
    let Err(error) = started else {
        panic!("a second relay runs on the same database");
    };
    let line = error.to_string();
    assert!(
        line.contains("another relay is using this folder"),
        "{line}"
    );
}

#[tokio::test]
async fn a_log_without_its_database_is_not_taken_for_another_s() {
    let relay = Relay::start(&[]).await;
    let data = relay.config.data_dir.clone();
    relay.client(&id(1)).await.store(&id(2), b"one").await;
    let other = tempfile::tempdir().unwrap();
    fs::copy(data.join("relay.db-wal"), other.path().join("relay.db-wal")).unwrap();
    fs::copy(data.join("relay.secret"), other.path().join("relay.secret")).unwrap();
    let mut config = relay.config.clone();
    config.data_dir = other.path().to_owned();
    let started = server::start(&config, Clock::manual(BEGINNING).0).await;
    let line = started.err().expect("it does not start").to_string();
    assert!(line.contains("relay.db-wal: is there without"), "{line}");
    assert!(!other.path().join("relay.db").exists(), "and makes nothing");
}

/// A relay of its own process that has confirmed a blob, and the file that SQLite maps its memory from.
async fn with_a_blob(folder: &Path) -> (Process, fs::File) {
    let relay = Process::start(folder).await;
    let mut sender = client(&relay, &id(1)).await;
    sender.store(&id(2), b"confirmed").await;
    sender.leave().await;
    let memory = folder.join("relay.db-shm");
    let memory = OpenOptions::new().write(true).open(memory).unwrap();
    (relay, memory)
}

async fn client(relay: &Process, id: &str) -> Peer {
    let mut peer = Peer::connect(relay.clients).await;
    peer.handshake(json!({ "client_id": id })).await;
    peer
}

/// Once, the system killed such a relay by SIGBUS, and nothing said why. One byte less is enough to notice,
/// and takes no page away that the relay may look at before.
#[tokio::test]
async fn a_relay_whose_shared_memory_is_truncated_says_so_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, memory) = with_a_blob(folder.path()).await;
    let bytes = memory.metadata().unwrap().len();
    memory.set_len(bytes - 1).unwrap();
    let (status, log) = relay.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let says = "relay.db-shm was truncated while the relay has it open; stopping";
    assert!(log.contains(says), "{log}");

    let relay = Process::start(folder.path()).await;
    let delivered = client(&relay, &id(2)).await.delivery().await.blob;
    assert_eq!(delivered, b"confirmed");
}

/// The system may have killed the relay before it noticed.
#[tokio::test]
async fn a_start_says_that_shared_memory_was_truncated_before() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, memory) = with_a_blob(folder.path()).await;
    relay.kill().await;
    memory.set_len(0).unwrap();
    let relay = Process::start(folder.path()).await;
    let says = "relay.db-shm was truncated while a relay had it open";
    relay.logs(says, 1).await;
    let delivered = client(&relay, &id(2)).await.delivery().await.blob;
    assert_eq!(delivered, b"confirmed");
}
