//! Connections that the system has completed and the relay has not accepted yet.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{PATIENCE, Relay, eventually};
use crate::process::Process;

/// More than the standard library's queue of 128, and as many sockets as any machine lets a test open.
const BURST: usize = 300;

/// A past bug: in a burst the queue overflowed, and clients whose connection was dropped there took
/// themselves for connected, while the relay never saw them.
#[tokio::test]
async fn a_burst_waits_while_the_relay_is_busy_and_everybody_is_answered() {
    if system_caps_queues_at() < BURST {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    // It cannot accept while it is stopped, however quick it is.
    relay.signal("STOP").await;
    let connecting = futures_util::future::join_all((0..BURST).map(|_| ask_for_health(&relay)));
    let asked = tokio::time::timeout(PATIENCE, connecting).await;
    relay.signal("CONT").await;
    let asked = asked.expect("all are connected while nobody accepts");
    let answers = futures_util::future::join_all(asked.into_iter().map(first_line));
    let answers = tokio::time::timeout(PATIENCE, answers).await.unwrap();
    let answered = answers.iter().filter(|line| *line == "HTTP/1.1 200");
    assert_eq!(answered.count(), BURST, "{answers:?}");
}

async fn ask_for_health(relay: &Process) -> TcpStream {
    let mut stream = TcpStream::connect(relay.clients).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

async fn first_line(mut stream: TcpStream) -> String {
    let mut line = [0; 12];
    stream.read_exact(&mut line).await.unwrap();
    String::from_utf8(line.to_vec()).unwrap()
}

fn system_caps_queues_at() -> usize {
    let told = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    told.map_or(0, |told| told.trim().parse().unwrap())
}

/// The system counts over all listeners of a network namespace, so one of the test's own will do.
#[tokio::test]
async fn connections_that_a_full_queue_drops_are_counted() {
    if system_caps_queues_at() == 0 {
        return;
    }
    const OVERFLOWS: &str = "relay_listen_overflows_total";
    const DROPS: &str = "relay_listen_drops_total";
    let relay = Relay::start(&[]).await;
    let (overflows, drops) = (relay.metric(OVERFLOWS).await, relay.metric(DROPS).await);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    // Nobody accepts, and the queue has room for two.
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut knocking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        knocking.spawn(TcpStream::connect(address));
    }
    eventually("both are counted", async || {
        relay.metric(OVERFLOWS).await > overflows && relay.metric(DROPS).await > drops
    })
    .await;
    // A part of them, and read at once.
    assert!(relay.metric(OVERFLOWS).await <= relay.metric(DROPS).await);
}
