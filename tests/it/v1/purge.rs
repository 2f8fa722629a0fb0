//! v1: what a purge has deleted does not come any more, however slowly the client reads.

use serde_json::json;
use tokio::net::TcpSocket;

use crate::harness::{Peer, Relay, envelope, eventually, id};

/// The page that was in memory went on to the client after the answer.
#[tokio::test]
async fn nothing_purged_comes_after_the_answer() {
    let relay = Relay::start(&[]).await;
    let own = id(1);
    let mut sender = relay.client(&id(2)).await;
    for _ in 0..200 {
        sender.store(&own, &[7; 16 << 10]).await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let stream = socket.connect(relay.running.clients).await.unwrap();
    let mut slow = Peer::over(stream).await.unwrap();
    slow.handshake(json!({ "client_id": own })).await;
    let (mut before, delivered) = (-1.0, "relay_blobs_delivered_total");
    eventually("deliveries stand still", async || {
        let now = relay.metric(delivered).await;
        std::mem::replace(&mut before, now) == now && now > 0.0
    })
    .await;
    assert!(before < 200.0, "all went out at once");
    let purge = json!({ "type": "PurgeRequest" });
    slow.send(&envelope("purge", purge)).await;
    let mut answered = None;
    while answered.is_none() {
        let frame = slow.receive_any().await;
        if frame["payload"]["type"] == "PurgeResponse" {
            answered = frame["payload"]["blobs_deleted"].as_u64();
        }
    }
    assert_eq!(answered, Some(200));
    sender.store(&own, b"new").await;
    assert!(slow.delivery().await.blob == b"new", "a purged blob came");
}
