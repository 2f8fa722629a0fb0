//! What clients share: connections, storage, memory of unfinished messages, the lobby. A flood takes
//! its own share, however many addresses of one network it has, and strangers hardly notice.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::harness::{Peer, Relay, eventually, id};
use crate::v1::hostile::{BINARY, header, websocket, zeros};

const STRANGER: &str = "203.0.113.7";

/// The `number`th /64 of a /56.
fn of_56(number: usize) -> String {
    format!("2001:db8:0:{number:x}::1")
}

/// Connects from these addresses, taking turns, until none is let in any more.
async fn flood(relay: &Relay, addresses: &[String]) -> Vec<Peer> {
    let mut inside = Vec::new();
    loop {
        let before = inside.len();
        for address in addresses {
            match relay.connect_from(address).await {
                Ok(peer) => inside.push(peer),
                Err(WsError::Http(response)) => {
                    assert!(matches!(response.status().as_u16(), 429 | 503));
                    assert!(response.headers().contains_key("retry-after"));
                }
                Err(other) => panic!("{other}"),
            }
        }
        if inside.len() == before {
            return inside;
        }
    }
}

/// 1,792 bytes did this: headers that announced 256 MiB, from two addresses.
#[tokio::test]
async fn headers_alone_hold_no_room() {
    let relay = Relay::start(&[("RELAY_MAX_UNFINISHED_BYTES", "4194304")]).await;
    let mut flood = Vec::new();
    for number in 0..12 {
        let address = ["198.51.100.1", "192.0.2.1"][number % 2];
        let mut peer = relay.client_from(address, &id(number as u8)).await;
        peer.write_raw(&header(BINARY, 2 << 20)).await.unwrap();
        flood.push(peer);
    }
    let mut stranger = relay.client_from(STRANGER, &id(0xA0)).await;
    let large = zeros("large", &id(0xA1), 150_000);
    let frame = websocket(BINARY, &large);
    stranger.write_raw(&frame).await.unwrap();
    stranger.expect_stored("large").await;
    assert_eq!(relay.metric("relay_unfinished_waits_total").await, 0.0);
    assert_eq!(relay.metric("relay_unfinished_bytes").await, 0.0);
}

#[tokio::test]
async fn whoever_holds_memory_with_large_messages_holds_a_share_and_must_go_on_sending() {
    let relay = Relay::start(&[("RELAY_MAX_UNFINISHED_BYTES", "4194304")]).await;
    let mut flood = Vec::new();
    for number in 0..10 {
        let mut peer = relay.client_from("198.51.100.1", &id(number)).await;
        let begun = [header(BINARY, 1 << 20), vec![b' '; 400 << 10]].concat();
        // The relay stops reading some of them, so not all of it may be taken.
        let written = tokio::time::timeout(crate::harness::SILENCE, peer.write_raw(&begun));
        drop(written.await);
        flood.push(peer);
    }
    let of_address = "relay_share_refusals_total{of=\"unfinished\",why=\"address\"}";
    eventually("some of them wait", async || {
        relay.metric(of_address).await > 0.0
    })
    .await;
    let held = relay.metric("relay_unfinished_bytes").await;
    // An eighth, and what the oldest has beyond it.
    assert!(held <= 524_288.0 + 400.0 * 1024.0, "{held}");

    let mut stranger = relay.client_from(STRANGER, &id(0xA0)).await;
    for number in 0..3 {
        let large = zeros(&format!("large {number}"), &id(0xA1), 400_000 + number);
        let frame = websocket(BINARY, &large);
        stranger.write_raw(&frame).await.unwrap();
        stranger.expect_stored(&format!("large {number}")).await;
    }
    // Ten seconds later those that sent no more are gone, one after the other.
    let reason = flood[0].expect_close(1013).await;
    assert!(reason.contains("64 KiB in 10 seconds"), "{reason}");
}

#[tokio::test]
async fn a_56_has_twice_and_a_48_four_times_the_connections_of_a_64() {
    let relay = Relay::start(&[
        ("RELAY_MAX_CONNECTIONS", "64"),
        ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "4"),
    ])
    .await;
    let one_56: Vec<_> = (0..10).map(of_56).collect();
    let first = flood(&relay, &one_56).await;
    assert_eq!(first.len(), 8);
    let others: Vec<_> = (1..10).map(|number| of_56(number << 8)).collect();
    let second = flood(&relay, &others).await;
    assert_eq!(second.len(), 8, "16 of the /48");
    let one_24: Vec<_> = (0..10).map(|last| format!("192.0.2.{last}")).collect();
    let third = flood(&relay, &one_24).await;
    assert_eq!(third.len(), 16);
    let of_network = "relay_share_refusals_total{of=\"connections\",why=\"network\"}";
    assert!(relay.metric(of_network).await > 0.0);
    relay.client_from(STRANGER, &id(1)).await;
}

#[tokio::test]
async fn the_last_connections_are_for_those_who_have_none() {
    let relay = Relay::start(&[
        ("RELAY_MAX_CONNECTIONS", "40"),
        ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "10"),
    ])
    .await;
    let many: Vec<_> = (0..8).map(|number| format!("198.51.{number}.1")).collect();
    let inside = flood(&relay, &many).await;
    assert!((30..40).contains(&inside.len()), "{}", inside.len());
    let scarce = "relay_share_refusals_total{of=\"connections\",why=\"scarce\"}";
    assert!(relay.metric(scarce).await > 0.0);
    relay.client_from(STRANGER, &id(1)).await;
}

/// Stores blobs from these addresses, taking turns, until none may store any more.
async fn fill(relay: &Relay, addresses: &[String]) -> usize {
    let mut stored = 0;
    for (number, address) in addresses.iter().enumerate() {
        let name = format!("{:064x}", 1_000 + number);
        let mut sender = relay.client_from(address, &name).await;
        loop {
            // Each blob is another one, in a mailbox of its own.
            let mailbox = format!("{:064x}", rand::random::<u64>());
            sender.submit(&mailbox, &[7; 3_500]).await;
            let answer = sender.receive().await;
            if answer["payload"]["status"] != "Stored" {
                assert_eq!(answer["payload"]["error"], "rate_limited", "{answer}");
                break;
            }
            stored += 1;
        }
    }
    stored
}

#[tokio::test]
async fn a_56_and_a_24_store_no_more_than_their_share_of_the_relay() {
    let relay = Relay::start(&[
        ("RELAY_MAX_STORAGE_BYTES", "1638400"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.05"),
    ])
    .await;
    // 80 KiB of 1,600 a day; a blob takes 4.
    let one_56: Vec<_> = (0..6).map(of_56).collect();
    assert_eq!(fill(&relay, &one_56).await, 40);
    let one_24: Vec<_> = (0..6).map(|last| format!("192.0.2.{last}")).collect();
    assert_eq!(fill(&relay, &one_24).await, 80);
}

#[tokio::test]
async fn the_last_of_the_storage_is_for_those_who_have_stored_little() {
    let relay = Relay::start(&[
        ("RELAY_MAX_STORAGE_BYTES", "409600"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.1"),
    ])
    .await;
    let many: Vec<_> = (0..14).map(|number| format!("198.51.{number}.1")).collect();
    let stored = fill(&relay, &many).await;
    // 109 would fill it.
    assert!((80..108).contains(&stored), "{stored}");
    let scarce = "relay_share_refusals_total{of=\"storage\",why=\"scarce\"}";
    assert!(relay.metric(scarce).await > 0.0);
    let mut stranger = relay.client_from(STRANGER, &id(1)).await;
    stranger.store(&id(2), &[7; 3_500]).await;
}

#[tokio::test]
async fn the_64s_of_a_customer_share_requests_too() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "3")]).await;
    let mut stored = 0;
    for number in 0..4 {
        let mut peer = relay
            .client_from(&of_56(number), &id(number as u8 + 1))
            .await;
        for _ in 0..3 {
            peer.submit(&id(0xA0), &[stored]).await;
            stored += u8::from(peer.receive().await["payload"]["status"] == "Stored");
        }
    }
    assert_eq!(stored, 6, "twice what one /64 has");
    let mut stranger = relay.client_from(STRANGER, &id(9)).await;
    stranger.store(&id(0xA0), b"mine").await;
}

/// A connection to the relay from this address of loopback.
async fn connect_from_loopback(relay: &Relay, last: [u8; 2]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let [third, fourth] = last;
    let own = format!("127.0.{third}.{fourth}:0").parse().unwrap();
    socket.bind(own).unwrap();
    socket.connect(relay.running.clients).await.unwrap()
}

#[tokio::test]
async fn a_flood_of_silent_connections_shows_itself_the_door() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS", "100")]).await;
    let mut slow = connect_from_loopback(&relay, [1, 1]).await;
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: relay\r\n")
        .await
        .unwrap();
    let mut flood = Vec::new();
    for _ in 0..600 {
        flood.push(connect_from_loopback(&relay, [0, 1]).await);
    }
    let shown_out = "relay_lobby_shown_out_total";
    eventually("the lobby is full", async || {
        relay.metric(shown_out).await >= 340.0
    })
    .await;
    slow.write_all(b"\r\n").await.unwrap();
    let mut answer = Vec::new();
    let reading = slow.read_to_end(&mut answer);
    let read = tokio::time::timeout(crate::harness::PATIENCE, reading).await;
    read.expect("an answer").unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}
