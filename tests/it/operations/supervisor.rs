//! What systemd is told: through the real binary and a real socket.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::{PATIENCE, Peer, Relay, SILENCE, http_get, id};
use crate::process::{Process, command, run};
use crate::store::faulty::{Call, Fault, Faults, Stall};

/// The supervisor's end of the line.
struct Listener {
    socket: UnixDatagram,
    name: String,
}

type Message = HashMap<String, String>;

impl Listener {
    fn at(folder: &Path) -> Self {
        let path = folder.join("notify.socket");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            name: path.to_str().unwrap().to_owned(),
        }
    }

    #[cfg(target_os = "linux")]
    fn without_a_path() -> Self {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net;
        let name = format!("vauchi-relay-test-{}", std::process::id());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = net::UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket: UnixDatagram::from_std(socket).unwrap(),
            name: format!("@{name}"),
        }
    }

    /// What is told next.
    async fn next(&self) -> Message {
        let mut text = [0; 4096];
        let length = timeout(PATIENCE, self.socket.recv(&mut text))
            .await
            .expect("something is told")
            .unwrap();
        let text = std::str::from_utf8(&text[..length]).unwrap();
        let pairs = text.lines().map(|line| line.split_once('=').unwrap());
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// What is told next that has this name in it.
    async fn next_with(&self, name: &str) -> Message {
        loop {
            let message = self.next().await;
            if message.contains_key(name) {
                return message;
            }
        }
    }

    /// What is told next as the status, when it says this.
    async fn status(&self, words: &str) -> String {
        loop {
            let message = self.next_with("STATUS").await;
            if message["STATUS"].contains(words) {
                return message["STATUS"].clone();
            }
        }
    }
}

fn told_to(listener: &Listener, data_dir: &Path) -> Command {
    let mut command = command(data_dir);
    command
        .env("NOTIFY_SOCKET", &listener.name)
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID");
    command
}

#[tokio::test]
async fn the_supervisor_hears_of_each_stage_of_a_relay_s_life() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::at(folder.path());
    let relay = Process::spawn(&mut told_to(&listener, folder.path())).await;
    let first = listener.next().await;
    assert_eq!(first["STATUS"], "starting: opening storage");
    assert!(first["EXTEND_TIMEOUT_USEC"].parse::<u64>().unwrap() > 5_000_000);
    let ready = listener.next_with("READY").await;
    assert_eq!(ready["READY"], "1");
    assert_eq!(http_get(relay.operators, "/ready", &[]).await.0, 200);
    for _ in 0..3 {
        assert_eq!(listener.next_with("WATCHDOG").await["WATCHDOG"], "1");
    }

    let mut peer = Peer::connect(relay.clients).await;
    assert!(peer.try_handshake(&id(1)).await);
    peer.store(&id(2), b"waits").await;
    let status = listener.status("blobs waiting: 1").await;
    assert_eq!(status, "serving; connections: 1, blobs waiting: 1");
    peer.leave().await;

    relay.signal("TERM").await;
    let stopping = listener.next_with("STOPPING").await;
    assert_eq!(stopping["STATUS"], "draining");
    // 0 s of delay, 8 s of drain, 7 s for the store and the last requests, 5 s to spare.
    assert_eq!(stopping["EXTEND_TIMEOUT_USEC"], "20000000");
    let (status, log) = relay.ended().await;
    assert!(status.success(), "{log}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_without_a_path_is_told_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::without_a_path();
    let relay = Process::spawn(&mut told_to(&listener, folder.path())).await;
    listener.next_with("READY").await;
    relay.kill().await;
}

#[tokio::test]
async fn signs_of_life_go_on_in_a_drain() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::at(folder.path());
    let mut command = told_to(&listener, folder.path());
    let relay = Process::spawn(command.env("RELAY_DRAIN_DELAY_SECS", "3600")).await;
    relay.signal("TERM").await;
    listener.next_with("STOPPING").await;
    listener.next_with("WATCHDOG").await;
    listener.next_with("WATCHDOG").await;
    relay.kill().await;
}

#[tokio::test]
async fn a_stopped_process_gives_no_sign_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::at(folder.path());
    let relay = Process::spawn(&mut told_to(&listener, folder.path())).await;
    listener.next_with("WATCHDOG").await;
    relay.signal("STOP").await;
    // What was said before the stop is heard first.
    let mut heard = 0;
    while timeout(Duration::from_secs(1), listener.next())
        .await
        .is_ok()
    {
        heard += 1;
        assert!(heard < 100, "it goes on");
    }
    relay.signal("CONT").await;
    listener.next_with("WATCHDOG").await;
    relay.kill().await;
}

#[tokio::test]
async fn a_relay_that_does_not_start_is_never_ready_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::at(folder.path());
    let mut command = told_to(&listener, &folder.path().join("missing"));
    let (code, _, errors) = run(&mut command).await;
    assert_eq!(code, Some(1), "{errors}");
    let mut last = listener.next().await;
    // It may have failed before it asked for more time.
    if last.contains_key("EXTEND_TIMEOUT_USEC") {
        last = listener.next().await;
    }
    assert_eq!(last.len(), 1, "{last:?}");
    let why = &last["STATUS"];
    assert!(why.starts_with("the data directory /"), "{why}");
    assert!(
        why.contains(" does not exist; create it: install -d "),
        "{why}"
    );
    assert!(errors.contains(why), "{why}");
    let mut left = [0; 16];
    assert!(listener.socket.try_recv(&mut left).is_err(), "{left:?}");
}

#[tokio::test]
async fn a_supervisor_that_is_gone_is_warned_about_once_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::at(folder.path());
    let mut command = told_to(&listener, folder.path());
    std::fs::remove_file(&listener.name).unwrap();
    let relay = Process::spawn(command.env("WATCHDOG_USEC", "2000")).await;
    let words = "cannot reach the supervisor (systemd)";
    relay.logs(words, 1).await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(relay.log().matches(words).count(), 1, "{}", relay.log());
    assert_eq!(http_get(relay.operators, "/ready", &[]).await.0, 200);
    relay.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_threads_all_hang_has_no_pulse() {
    let relay = Relay::start(&[]).await;
    assert!(relay.running.pulse.feel().await.is_some());
    let held = Arc::new(Mutex::new(()));
    let guard = held.lock().unwrap();
    let hanging = Arc::new(Barrier::new(3));
    for _ in 0..2 {
        let (held, hanging) = (Arc::clone(&held), Arc::clone(&hanging));
        tokio::spawn(async move {
            hanging.wait();
            drop(held.lock());
        });
    }
    hanging.wait();
    // This thread does not hang; what it waits for is taken up by one that does.
    let mut feeling = Box::pin(relay.running.pulse.feel());
    assert!(feeling.as_mut().now_or_never().is_none());
    thread::sleep(SILENCE);
    assert!(feeling.as_mut().now_or_never().is_none());
    drop(guard);
    assert!(feeling.await.is_some());
    relay.stop().await;
}

#[tokio::test]
async fn a_disk_that_hangs_or_fails_stops_no_pulse() {
    let mut faulty = None;
    let relay = Relay::start_with(
        &[],
        |_| {},
        |opened| {
            let (faults, opened) = Faults::under(opened);
            faulty = Some(faults);
            opened
        },
    )
    .await;
    let (faulty, stall) = (faulty.unwrap(), Stall::default());
    faulty.on_every(Call::Append, Fault::Stall(stall.clone()));
    faulty.on_every(Call::Probe, Fault::Stall(stall.clone()));
    faulty.on_every(Call::Page, Fault::Fail);
    let mut peer = relay.client(&id(1)).await;
    peer.submit(&id(2), b"hangs").await;
    stall.reached().await;
    let pulse = || async {
        let felt = timeout(PATIENCE, relay.running.pulse.feel()).await;
        felt.expect("there is a pulse").unwrap()
    };
    assert!(pulse().await.takes_writes);
    relay.running.metrics.store_up.set(0.0);
    assert!(!pulse().await.takes_writes);
    stall.release();
    relay.stop().await;
}
