//! Every bound on number and speed, and who is not touched by it; and what is answered in HTTP.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::harness::{PATIENCE, Peer, Relay, eventually, http, http_get, id};

/// Sends an HTTP request as it is; returns the whole answer, head and body.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    answer
}

/// An upgrade request to `path` that is right but for what `change` does to it.
fn upgrade_request(path: &str, change: impl FnOnce(String) -> String) -> String {
    change(format!(
        "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))
}

#[tokio::test]
async fn one_session_too_many_is_told_to_wait_and_probes_are_answered() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS", "2")]).await;
    let mut first = relay.client(&id(1)).await;
    // A session counts from its upgrade on, whether it has said hello or not.
    let second = Peer::connect(relay.running.clients).await;
    let Err(WsError::Http(answer)) = Peer::try_connect(relay.running.clients).await else {
        panic!("the third is let in")
    };
    assert_eq!(answer.status(), 503);
    let wait = answer.headers()["retry-after"].to_str().unwrap();
    assert!(wait.parse::<u32>().unwrap() > 0);
    assert_eq!(relay.metric("relay_connections_refused_total").await, 1.0);

    for path in ["/health", "/up", "/ready"] {
        let (status, body) = http_get(relay.running.clients, path, &[]).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    first.store(&id(2), b"who is in is served").await;

    second.leave().await;
    eventually("a place is given back", async || {
        Peer::try_connect(relay.running.clients).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_place_is_given_back_however_the_session_ends() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS", "1")]).await;
    let come_in = async || {
        let mut peer = None;
        eventually("there is room", async || {
            peer = Peer::try_connect(relay.running.clients).await.ok();
            peer.is_some()
        })
        .await;
        peer.unwrap()
    };
    come_in().await.leave().await;
    drop(come_in().await);
    let mut bad = come_in().await;
    bad.send_bytes(b"no handshake".to_vec()).await;
    bad.expect_close(4400).await;
    drop(bad);
    let mut good = come_in().await;
    good.handshake(json!({ "client_id": id(1) })).await;
    good.store(&id(2), b"served").await;
}

#[tokio::test]
async fn silent_connections_shut_nobody_out() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS", "3")]).await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(relay.running.clients).await.unwrap());
    }
    let mut clients = Vec::new();
    for number in 1..=3 {
        clients.push(relay.client(&id(number)).await);
    }
    let (status, _) = http_get(relay.running.clients, "/ready", &[]).await;
    assert_eq!(status, 200);
    for client in &mut clients {
        client.store(&id(9), b"served").await;
    }
}

#[tokio::test]
async fn a_quota_is_exact_however_many_send_at_once() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "50")]).await;
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..32_u8 {
        let mut sender = relay.client(&id(100 + number)).await;
        senders.spawn(async move {
            for blob in 0..4_u8 {
                sender.submit(&id(2), &[number, blob]).await;
            }
            let mut stored = 0;
            for _ in 0..4 {
                let answer = sender.receive().await;
                match answer["payload"]["status"].as_str() {
                    Some("Stored") => stored += 1,
                    _ => assert_eq!(answer["payload"]["error"], "mailbox_full"),
                }
            }
            stored
        });
    }
    let stored: u32 = senders.join_all().await.into_iter().sum();
    assert_eq!(stored, 50);
    let mut recipient = relay.client(&id(2)).await;
    for _ in 0..50 {
        recipient.delivery().await;
    }
    recipient.expect_silence().await;
}

#[tokio::test]
async fn one_client_s_haste_is_nobody_else_s() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "2")]).await;
    let mut hasty = relay.client(&id(1)).await;
    hasty.store(&id(2), b"first").await;
    hasty.store(&id(2), b"second").await;
    let third = hasty.submit(&id(2), b"third").await;
    hasty.expect_refusal(&third, "rate_limited").await;

    // A second connection of the same client draws from the same bucket.
    let mut again = relay.client(&id(1)).await;
    let fourth = again.submit(&id(2), b"fourth").await;
    again.expect_refusal(&fourth, "rate_limited").await;

    let mut other_name = relay.client(&id(3)).await;
    other_name.store(&id(2), b"another name").await;

    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(relay.running.clients).await.unwrap();
    let mut other_address = Peer::over(stream).await.unwrap();
    other_address.handshake(json!({ "client_id": id(1) })).await;
    other_address.store(&id(2), b"another address").await;
}

#[tokio::test]
async fn zero_means_no_limit() {
    let relay = Relay::start(&[
        ("RELAY_MAX_CONNECTIONS", "0"),
        ("RELAY_RATE_LIMIT_PER_MIN", "0"),
        ("RELAY_MAX_STORAGE_BYTES", "0"),
        ("RELAY_MAX_UNFINISHED_BYTES", "0"),
        ("RELAY_MAILBOX_MAX_BLOBS", "0"),
        ("RELAY_MAILBOX_MAX_BYTES", "0"),
    ])
    .await;
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(relay.client(&id(100 + number)).await);
    }
    for client in &mut clients {
        // One message over 64 KiB, which would be counted as unfinished.
        client.store(&id(2), &[7; 50_000]).await;
        for number in 0..70_u8 {
            client.submit(&id(2), &[number]).await;
        }
        for _ in 0..70 {
            assert_eq!(client.receive().await["payload"]["status"], "Stored");
        }
    }
    assert_eq!(relay.metric("relay_blobs_stored").await, 20.0 * 71.0);
}

#[tokio::test]
async fn an_offered_subprotocol_is_answered_with_what_is_spoken() {
    let relay = Relay::start(&[]).await;
    for offered in ["vauchi.relay.v3", "mqtt", "mqtt, vauchi.relay.v1"] {
        let request = upgrade_request("/", |request| {
            request.replace(
                "\r\n\r\n",
                &format!("\r\nSec-WebSocket-Protocol: {offered}\r\n\r\n"),
            )
        });
        let (status, body) = http(relay.running.clients, &request).await;
        assert_eq!(status, 400, "{offered}");
        assert!(
            body.contains("subprotocol") && body.contains("v1"),
            "{body}"
        );
    }
}

/// RFC 9110, 5.3 and 5.6.1; Firefox sends `keep-alive, Upgrade`, and proxies split and join such lists.
#[tokio::test]
async fn an_upgrade_is_accepted_in_every_shape_that_its_headers_may_have() {
    let relay = Relay::start(&[]).await;
    for (usual, other) in [
        (
            "Connection: Upgrade",
            "Connection: keep-alive\r\nConnection: Upgrade",
        ),
        ("Connection: Upgrade", "Connection: keep-alive,\tupgrade"),
        ("Connection: Upgrade", "connection:\t,keep-alive ,UPGRADE,"),
        ("Upgrade: websocket", "Upgrade: websocket, h2c"),
        ("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: WebSocket"),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version:\t13 "),
        ("GET / HTTP", "GET http://relay/ HTTP"),
        (
            "Host: relay",
            "Host: relay\r\nSec-WebSocket-Protocol: other\r\nSec-WebSocket-Protocol:\tx,,vauchi.relay.v2",
        ),
    ] {
        let request = upgrade_request("/", |request| request.replace(usual, other));
        let mut stream = TcpStream::connect(relay.running.clients).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 128];
        let length = stream.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..length]);
        assert!(head.starts_with("HTTP/1.1 101"), "{other:?}: {head}");
        let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";
        assert!(
            head.to_lowercase().contains(accept),
            "RFC 6455, 1.3: {head}"
        );
    }
}

#[tokio::test]
async fn a_bad_upgrade_is_answered_in_clear_words() {
    let relay = Relay::start(&[]).await;
    let without_key = upgrade_request("/", |request| {
        request.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")
    });
    let short_key = upgrade_request("/", |request| {
        request.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")
    });
    let old_version = upgrade_request("/", |request| request.replace("Version: 13", "Version: 12"));
    let not_connected = upgrade_request("/", |request| {
        request.replace("Connection: Upgrade", "Connection: close")
    });
    let posted = upgrade_request("/", |request| request.replace("GET", "POST"));
    for (request, word) in [
        (without_key, "Key"),
        (short_key, "Key"),
        (old_version, "13"),
        (not_connected, "upgrade"),
        (posted, "GET"),
    ] {
        let answer = exchange(relay.running.clients, &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(
            body.to_lowercase().contains(&word.to_lowercase()),
            "{answer}"
        );
        // RFC 6455, 4.4: who speaks another version is told which is spoken.
        assert!(
            head.to_lowercase().contains("sec-websocket-version: 13"),
            "{answer}"
        );
    }
    relay.client(&id(1)).await.store(&id(2), b"served").await;
}

#[tokio::test]
async fn federation_is_not_there_and_any_other_path_is_a_client_s() {
    let relay = Relay::start(&[]).await;
    for path in ["/federation", "/ws/federation", "/ws/peers"] {
        let upgrade = upgrade_request(path, |request| request);
        let (status, _) = http(relay.running.clients, &upgrade).await;
        assert_eq!(status, 404, "{path}");
        let (status, _) = http_get(relay.running.clients, path, &[]).await;
        assert_eq!(status, 404, "{path}");
    }
    for path in ["/", "/ws", "/some/path?and=more"] {
        let mut stream = TcpStream::connect(relay.running.clients).await.unwrap();
        let upgrade = upgrade_request(path, |request| request);
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101", "{path}");
    }
}

#[tokio::test]
async fn a_browser_and_other_visitors_are_answered() {
    let relay = Relay::start(&[]).await;
    let clients = relay.running.clients;
    let (status, body) = http_get(clients, "/", &[]).await;
    assert_eq!(status, 200);
    assert!(
        body.contains("WebSocket") && body.contains("/health"),
        "{body}"
    );
    let (status, _) = http_get(clients, "/favicon.ico", &[]).await;
    assert_eq!(status, 404);

    for path in ["/", "/health", "/ready"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
        assert_eq!(
            http(clients, &request).await,
            (200, String::new()),
            "{path}"
        );
    }
    let (status, _) = http(clients, "OPTIONS / HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert_eq!(status, 200);
    let answer = exchange(clients, "OPTIONS /health HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.to_lowercase().contains("allow: get"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_head_that_is_no_request_or_too_long_is_refused() {
    let relay = Relay::start(&[]).await;
    let (status, _) = http(relay.running.clients, "\x16\x03\x01\x02\r\n\r\n").await;
    assert_eq!(status, 400, "a TLS hello on the plain port");
    let long = format!(
        "GET / HTTP/1.1\r\nHost: relay\r\nCookie: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let (status, _) = http(relay.running.clients, &long).await;
    assert_eq!(status, 431);
    let (status, _) = http_get(relay.running.clients, "/health", &[]).await;
    assert_eq!(status, 200);
}
