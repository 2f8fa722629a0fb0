//! Clients that are slow, broken or hostile: each costs only itself.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use futures_util::{SinkExt as _, StreamExt as _};

use crate::harness::{
    Goodbye, PATIENCE, Peer, Relay, SILENCE, envelope, eventually, frame, http_get, id, prefixed,
    update,
};

/// First bytes of WebSocket frames: whole, or the pieces of a message.
pub(crate) const BINARY: u8 = 0x82;
const BINARY_BEGINS: u8 = 0x02;
const CONTINUES: u8 = 0x00;
const ENDS: u8 = 0x80;
pub(crate) const PING: u8 = 0x89;

/// How fast a slow client is.
const DRIBBLE: Duration = Duration::from_millis(10);

/// The header of a client's WebSocket frame. Its mask is zero, so the payload goes as it is.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(0x80 | length as u8),
        126..65_536 => {
            header.push(0x80 | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend([0; 4]);
    header
}

/// A whole WebSocket frame.
pub(crate) fn websocket(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64);
    bytes.extend(payload);
    bytes
}

/// A submit whose blob is `count` zeros; written by hand, because these are large.
pub(crate) fn zeros(message_id: &str, to: &str, count: usize) -> Vec<u8> {
    let blob = vec!["0"; count].join(",");
    let json = format!(
        r#"{{"version":1,"message_id":"{message_id}","timestamp":1795220095,"payload":{{"type":"EncryptedUpdate","recipient_id":"{to}","ciphertext":[{blob}]}}}}"#
    );
    prefixed(json.as_bytes())
}

/// Sends these bytes one by one until the relay has had enough; returns its goodbye.
async fn dribble(peer: &mut Peer, bytes: impl IntoIterator<Item = u8>) -> Goodbye {
    for byte in bytes {
        // A write that fails means that the relay has gone; what it said is still to be read.
        peer.write_raw(&[byte]).await.ok();
        match tokio::time::timeout(DRIBBLE, peer.socket.next()).await {
            Ok(Some(Ok(Message::Close(Some(close))))) => {
                return Goodbye::Frame(close.code.into(), close.reason.to_string());
            }
            Ok(None | Some(Err(_))) => return Goodbye::Bare,
            Ok(Some(Ok(_))) | Err(_) => {}
        }
    }
    panic!("the relay has taken it all")
}

/// A client that takes little at a time.
async fn with_small_buffers(relay: &Relay, id: &str) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let stream = socket.connect(relay.running.clients).await.unwrap();
    let mut peer = Peer::over(stream).await.unwrap();
    peer.handshake(json!({ "client_id": id })).await;
    peer
}

/// Everything that comes until the connection ends, as it is on the wire.
pub(crate) async fn rest_of(peer: &mut Peer) -> Vec<u8> {
    let mut rest = Vec::new();
    let reading = peer.socket.get_mut().read_to_end(&mut rest);
    // A reset after the goodbye is an end as well.
    drop(
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("an end"),
    );
    rest
}

/// The frames of a server: first byte and payload.
pub(crate) fn frames(mut wire: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, length, rest @ ..] = wire {
        let length = usize::from(*length);
        assert!(length < 126, "a short frame");
        let (payload, rest) = rest.split_at(length);
        frames.push((*first, payload.to_vec()));
        wire = rest;
    }
    frames
}

/// A round trip of another client, to see that the relay is well.
pub(crate) async fn others_are_served(relay: &Relay) {
    // A mailbox of its own each time: what was acknowledged last may come once more.
    let own = uuid::Uuid::new_v4().simple().to_string().repeat(2);
    let mut other = relay.client(&own).await;
    let delivered = other.round_trip(&own, b"still served").await;
    other.acknowledge(&delivered.id).await;
    other.leave().await;
}

#[tokio::test]
async fn a_request_head_that_never_ends_is_cut_off() {
    let relay = Relay::configured(&[], |config| {
        config.header_timeout = Duration::from_millis(300)
    })
    .await;
    let silent = TcpStream::connect(relay.running.clients).await.unwrap();
    let loris = TcpStream::connect(relay.running.clients).await.unwrap();
    let dribbling = async |mut stream: TcpStream, byte: &[u8]| {
        for _ in 0..10_000 {
            if stream.write_all(byte).await.is_err() {
                return;
            }
            let mut answer = [0; 1024];
            let read = tokio::time::timeout(DRIBBLE, stream.read(&mut answer)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
        panic!("the relay reads on for ever")
    };
    tokio::join!(dribbling(silent, b""), dribbling(loris, b"G"));
    others_are_served(&relay).await;
}

#[tokio::test]
async fn a_first_frame_that_does_not_come_ends_the_session() {
    let relay = Relay::configured(&[], |config| {
        config.first_frame_timeout = Duration::from_millis(300)
    })
    .await;
    let mut silent = Peer::connect(relay.running.clients).await;
    let reason = silent.expect_close(4408).await;
    assert!(reason.contains("first frame"), "{reason}");

    // Pings are no first frame, and half a frame is none either.
    let mut pinging = Peer::connect(relay.running.clients).await;
    let pings = websocket(PING, b"").into_iter().cycle().take(100_000);
    let Goodbye::Frame(code, _) = dribble(&mut pinging, pings).await else {
        panic!("no close frame")
    };
    assert_eq!(code, 4408);
    let mut half = Peer::connect(relay.running.clients).await;
    half.write_raw(&header(BINARY, 500)).await.unwrap();
    half.expect_close(4408).await;
}

#[tokio::test]
async fn a_message_that_comes_byte_by_byte_is_not_waited_for() {
    let relay = Relay::configured(&[], |config| {
        config.message_timeout = Duration::from_millis(500)
    })
    .await;
    let mut slow = relay.client(&id(1)).await;
    let bytes = header(BINARY, 60_000)
        .into_iter()
        .chain(std::iter::repeat_n(b' ', 60_000));
    let Goodbye::Frame(code, reason) = dribble(&mut slow, bytes).await else {
        panic!("no close frame")
    };
    assert_eq!(code, 1013, "{reason}");
    assert!(reason.contains("complete"), "{reason}");

    // Neither is one in pieces, however many of them are empty.
    let mut pieces = relay.client(&id(1)).await;
    pieces.write_raw(&header(BINARY_BEGINS, 0)).await.unwrap();
    let empty = header(CONTINUES, 0).into_iter().cycle().take(100_000);
    let Goodbye::Frame(code, _) = dribble(&mut pieces, empty).await else {
        panic!("no close frame")
    };
    assert_eq!(code, 1013);
    others_are_served(&relay).await;
}

#[tokio::test]
async fn a_message_over_the_hard_cap_is_judged_by_its_header() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "65536")]).await;
    let cap = 2 * 65_536 + 4096;
    for length in [cap + 1, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX] {
        let mut peer = relay.client(&id(1)).await;
        peer.write_raw(&header(BINARY, length)).await.unwrap();
        let reason = peer.expect_close(1009).await;
        assert!(reason.contains("large"), "{reason}");
        let mut first = Peer::connect(relay.running.clients).await;
        first.write_raw(&header(BINARY, length)).await.unwrap();
        first.expect_close(1009).await;
    }
    // In pieces it is the sum that counts.
    let mut peer = relay.client(&id(1)).await;
    peer.write_raw(&websocket(BINARY_BEGINS, &[b' '; 100_000]))
        .await
        .unwrap();
    peer.write_raw(&websocket(CONTINUES, &[b' '; 100_000]))
        .await
        .unwrap();
    peer.expect_close(1009).await;
    assert_eq!(relay.metric("relay_unfinished_bytes").await, 0.0);
    others_are_served(&relay).await;
}

#[tokio::test]
async fn a_control_frame_cannot_carry_a_message() {
    // A ping may have 125 bytes. One that announced two megabytes used to be read to its end,
    // without a deadline and beside the bound on unfinished bytes.
    let relay = Relay::start(&[]).await;
    for first in [PING, 0x8A, 0x88] {
        let mut peer = relay.client(&id(1)).await;
        peer.write_raw(&header(first, 2 << 20)).await.unwrap();
        peer.expect_close(4400).await;
    }
    let mut peer = relay.client(&id(1)).await;
    peer.write_raw(&websocket(PING, &[7; 125])).await.unwrap();
    peer.store(&id(2), b"a ping of the largest size is fine")
        .await;
}

#[tokio::test]
async fn a_reader_that_never_reads_is_given_up_and_costs_nobody_else() {
    // The deadline used to grow with every byte that was written since the last pause: a client
    // that stopped reading in the middle of its backlog was waited for as long as the whole took.
    let relay = Relay::configured(&[], |config| {
        config.write_timeout = Duration::from_millis(500)
    })
    .await;
    let mut sender = relay.client(&id(1)).await;
    let blobs = 600;
    for number in 0..blobs {
        sender
            .send_bytes(zeros(&format!("blob number {number}"), &id(2), 15_000))
            .await;
    }
    for _ in 0..blobs {
        assert_eq!(sender.receive().await["payload"]["status"], "Stored");
    }
    let _deaf = with_small_buffers(&relay, &id(2)).await;
    others_are_served(&relay).await;
    relay
        .metric_becomes("relay_connection_errors_total", 1.0)
        .await;
    relay.metric_becomes("relay_connections_active", 1.0).await;
    let delivered = relay.metric("relay_blobs_delivered_total").await;
    assert!(delivered < f64::from(blobs), "{delivered}");

    // Nothing is lost for the one that comes back and reads.
    let mut reader = relay.client(&id(2)).await;
    for _ in 0..blobs {
        reader.next().await.unwrap();
    }
}

/// Each page of their mailbox is one blob, so while the first is stuck in a write the next page is
/// being read: that must not keep the store's few connections.
#[tokio::test]
async fn readers_that_are_stuck_keep_nobody_from_reading() {
    let relay = Relay::configured(&[], |config| {
        config.write_timeout = Duration::from_secs(600)
    })
    .await;
    let mut sender = relay.client(&id(1)).await;
    // Seven megabytes: more than the system's buffers hold for one connection.
    for number in 0..12 {
        let name = format!("large blob {number}");
        sender.send_bytes(zeros(&name, &id(2), 300_000)).await;
        sender.expect_stored(&name).await;
    }
    let mut stuck = Vec::new();
    for _ in 0..8 {
        stuck.push(with_small_buffers(&relay, &id(2)).await);
    }
    let mut delivered = 0.0;
    eventually("all of them are stuck", async || {
        tokio::time::sleep(SILENCE).await;
        let now = relay.metric("relay_blobs_delivered_total").await;
        std::mem::replace(&mut delivered, now) == now && now >= 8.0
    })
    .await;
    for _ in 0..5 {
        others_are_served(&relay).await;
    }
    let (status, body) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn both_sides_may_send_their_largest_frames_at_once() {
    let relay = Relay::start(&[]).await;
    let mut peer = with_small_buffers(&relay, &id(1)).await;
    // Twenty megabytes either way: more than all buffers between the two hold. The client writes
    // all of its own before it reads anything, which old clients do.
    let count = 20;
    let numbers = 524_000 - 200;
    for number in 0..count {
        let submit = zeros(&format!("large blob {number}"), &id(1), numbers);
        assert!(submit.len() <= 1_048_576);
        peer.send_bytes(submit).await;
    }
    let (mut stored, mut delivered) = (0, 0);
    while stored < count || delivered < count {
        let frame = peer.receive().await;
        match frame["payload"]["ciphertext"].as_array() {
            Some(blob) => {
                assert_eq!(blob.len(), numbers);
                delivered += 1;
            }
            None => stored += 1,
        }
    }
    assert_eq!((stored, delivered), (count, count));
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_and_bounded() {
    let relay = Relay::configured(&[("RELAY_MAX_MESSAGE_SIZE", "1024")], |config| {
        config.keepalive = Duration::from_millis(200);
        config.write_timeout = Duration::from_millis(500);
    })
    .await;
    let mut peer = relay.client(&id(1)).await;
    let flood = websocket(PING, b"flood").repeat(20_000);
    peer.write_raw(&flood).await.unwrap();
    peer.write_raw(&websocket(PING, b"the last")).await.unwrap();
    let answered = async {
        loop {
            if let Message::Pong(payload) = peer.socket.next().await.unwrap().unwrap()
                && &payload[..] == b"the last"
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered)
        .await
        .expect("the last ping is answered");
    peer.store(&id(2), b"still served").await;

    // Who floods and never reads the answers is given up.
    let mut deaf = with_small_buffers(&relay, &id(3)).await;
    let flood = websocket(PING, &[7; 125]).repeat(1_000);
    let flooding = async { while deaf.write_raw(&flood).await.is_ok() {} };
    let served = async {
        for _ in 0..5 {
            others_are_served(&relay).await;
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(flooding, served) })
        .await
        .expect("the flood ends");
}

#[tokio::test]
async fn a_message_in_very_many_pieces_is_one_message() {
    let relay = Relay::start(&[]).await;
    let mut peer = relay.client(&id(1)).await;
    let whole = zeros("in pieces", &id(2), 10_000);
    let (first, rest) = whole.split_first().unwrap();
    let mut wire = websocket(BINARY_BEGINS, &[*first]);
    for byte in rest {
        wire.extend(websocket(CONTINUES, &[*byte]));
        wire.extend(websocket(CONTINUES, &[]));
    }
    wire.extend(websocket(PING, b"in between"));
    wire.extend(websocket(ENDS, &[]));
    peer.write_raw(&wire).await.unwrap();
    peer.expect_stored("in pieces").await;
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, vec![0; 10_000]);
    assert_eq!(relay.metric("relay_unfinished_bytes").await, 0.0);
}

#[tokio::test]
async fn a_close_frame_is_answered_with_one() {
    let relay = Relay::start(&[]).await;
    for first in [true, false] {
        let mut peer = if first {
            relay.client(&id(1)).await
        } else {
            Peer::connect(relay.running.clients).await
        };
        // 1000, "done".
        peer.write_raw(&websocket(0x88, b"\x03\xE8done"))
            .await
            .unwrap();
        let wire = rest_of(&mut peer).await;
        assert_eq!(
            frames(&wire),
            [(0x88, b"\x03\xE8done".to_vec())],
            "the same code, and then nothing"
        );
    }
    relay.metric_becomes("relay_connections_active", 0.0).await;
    assert_eq!(relay.metric("relay_connection_errors_total").await, 0.0);
}

#[tokio::test]
async fn what_is_no_websocket_is_closed_with_a_reason() {
    let relay = Relay::start(&[]).await;
    let unmasked = [&[BINARY, 5][..], b"hello"].concat();
    let reserved_bit = websocket(0xC2, b"hello");
    let reserved_opcode = websocket(0x83, b"hello");
    let out_of_nowhere = websocket(ENDS, b"hello");
    let ping_in_pieces = websocket(0x09, b"hello");
    let text_that_is_none = websocket(0x81, b"\xff\xff");
    for wire in [
        unmasked,
        reserved_bit,
        reserved_opcode,
        out_of_nowhere,
        ping_in_pieces,
        text_that_is_none,
    ] {
        let mut peer = relay.client(&id(1)).await;
        peer.write_raw(&wire).await.unwrap();
        peer.expect_close(4400).await;
        let mut first = Peer::connect(relay.running.clients).await;
        first.write_raw(&wire).await.unwrap();
        first.expect_close(4400).await;
    }
}

#[tokio::test]
async fn a_noise_handshake_is_told_that_there_is_none() {
    let relay = Relay::start(&[]).await;
    for first in [&b"\x00V2"[..], b"\x00V2 and a handshake of some length"] {
        let mut peer = Peer::connect(relay.running.clients).await;
        peer.send_bytes(first.to_vec()).await;
        let reason = peer.expect_close(4406).await;
        assert!(reason.contains("Noise"), "{reason}");
    }
}

#[tokio::test]
async fn deep_nesting_is_refused_and_harms_nothing() {
    let relay = Relay::start(&[]).await;
    let mut peer = relay.client(&id(1)).await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let in_a_field = format!(
        r#"{{"version":1,"message_id":"a deep field","timestamp":1,"payload":{{"type":"EncryptedUpdate","recipient_id":"{}","ciphertext":{deep}}}}}"#,
        id(2)
    );
    let before_the_name = format!(
        r#"{{"payload":{{"type":"SomethingNew","x":{deep}}},"version":1,"message_id":"named late","timestamp":1}}"#
    );
    let objects = format!(
        r#"{{"version":1,"message_id":"deep objects","timestamp":1,"payload":{}1{}}}"#,
        r#"{"a":"#.repeat(100_000),
        "}".repeat(100_000)
    );
    peer.send_bytes(prefixed(in_a_field.as_bytes())).await;
    peer.expect_refusal("a deep field", "invalid").await;
    peer.send_bytes(prefixed(objects.as_bytes())).await;
    peer.expect_refusal("deep objects", "invalid").await;
    for unnamed in [before_the_name, deep, "[".repeat(1_000_000)] {
        peer.send_bytes(prefixed(unnamed.as_bytes())).await;
        peer.expect_refusal("00000000-0000-0000-0000-000000000000", "invalid")
            .await;
    }
    peer.store(&id(2), b"still served").await;
}

/// Numbers that look random and are the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound) as usize
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }
}

/// Bytes that are nearly a frame.
fn garbage(noise: &mut Noise) -> Vec<u8> {
    let mut good = frame(&update("a broken frame", &id(2), &noise.bytes(40)));
    match noise.below(4) {
        0 => noise.bytes(300),
        1 => prefixed(&noise.bytes(300)),
        2 => {
            for _ in 0..=noise.below(8) {
                let at = noise.below(good.len() as u64);
                good[at] = noise.next() as u8;
            }
            good
        }
        _ => {
            good.truncate(noise.below(good.len() as u64));
            good
        }
    }
}

#[tokio::test]
async fn garbage_on_many_connections_disturbs_nobody() {
    let relay = Relay::start(&[]).await;
    let mut noise = Noise(2026);
    let mut others = relay.client(&id(0xEE)).await;
    let mut sent = 0;
    while sent < 2_000 {
        let mut peer = if noise.below(4) == 0 {
            Peer::connect(relay.running.clients).await
        } else {
            relay.client(&id(1)).await
        };
        for _ in 0..20 {
            sent += 1;
            let bytes = garbage(&mut noise);
            // Beneath the WebSocket it may be garbage as well.
            let written = match noise.below(10) {
                0 => peer.write_raw(&bytes).await.is_ok(),
                _ => {
                    let message = Message::Binary(bytes.into());
                    peer.socket.send(message).await.is_ok()
                }
            };
            if !written {
                break;
            }
        }
        if noise.below(2) == 0 {
            rest_of_or_leave(peer).await;
        }
        let delivered = others
            .round_trip(&id(0xEE), &sent.to_string().into_bytes())
            .await;
        others.acknowledge(&delivered.id).await;
    }
    others.leave().await;
    relay.metric_becomes("relay_connections_active", 0.0).await;
    let (status, _) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 200);
}

/// Says goodbye and reads what still comes, if the connection lets it.
async fn rest_of_or_leave(mut peer: Peer) {
    // The WebSocket may be broken already; then the end comes by itself.
    peer.socket.close(None).await.ok();
    peer.socket.get_mut().shutdown().await.ok();
    rest_of(&mut peer).await;
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_given_up_and_one_that_answers_stays() {
    let relay = Relay::configured(&[("RELAY_IDLE_TIMEOUT_SECS", "2")], |config| {
        config.keepalive = Duration::from_millis(200)
    })
    .await;
    let mut silent = relay.client(&id(1)).await;
    let mut answering = relay.client(&id(2)).await;
    // The library answers pings while somebody reads.
    let staying = async {
        let mut pings = 0;
        // More than two seconds' worth.
        while pings < 15 {
            match answering.socket.next().await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                other => panic!("{other:?}"),
            }
        }
        answering.store(&id(3), b"still there").await;
    };
    let (wire, ()) = tokio::join!(rest_of(&mut silent), staying);
    let mut frames = frames(&wire);
    let (first, goodbye) = frames.pop().unwrap();
    assert_eq!(first, 0x88);
    assert_eq!(goodbye[..2], 4408_u16.to_be_bytes());
    assert!(frames.len() > 1, "pings came before");
    assert!(frames.iter().all(|(first, _)| *first == PING), "{frames:?}");
}

#[tokio::test]
async fn a_large_message_waits_while_too_much_is_unfinished_and_then_passes() {
    let relay = Relay::start(&[
        ("RELAY_MAX_MESSAGE_SIZE", "262144"),
        ("RELAY_MAX_UNFINISHED_BYTES", "528384"),
    ])
    .await;
    let waits = "relay_unfinished_waits_total";
    let mut holder = relay.client(&id(1)).await;
    let mut waiter = relay.client(&id(2)).await;
    let held = zeros("held", &id(3), 200_000);
    let hold = [&header(BINARY, held.len() as u64), &held[..150_000]].concat();
    holder.write_raw(&hold).await.unwrap();
    // What has come beyond 64 KiB, in steps of 64 KiB.
    relay
        .metric_becomes("relay_unfinished_bytes", 131_072.0)
        .await;

    let large = zeros("waiting", &id(3), 100_000);
    waiter.write_raw(&websocket(BINARY, &large)).await.unwrap();
    relay.metric_becomes(waits, 1.0).await;
    // Small messages are not held up.
    others_are_served(&relay).await;
    waiter.expect_silence().await;

    holder.write_raw(&held[150_000..]).await.unwrap();
    holder.expect_refusal("held", "too_large").await;
    waiter.expect_stored("waiting").await;
    relay.metric_becomes("relay_unfinished_bytes", 0.0).await;
    assert_eq!(relay.metric(waits).await, 1.0);

    // Who leaves in the middle gives its room back.
    holder.write_raw(&hold).await.unwrap();
    relay
        .metric_becomes("relay_unfinished_bytes", 131_072.0)
        .await;
    drop(holder);
    relay.metric_becomes("relay_unfinished_bytes", 0.0).await;
}

#[tokio::test]
async fn who_speaks_before_it_is_answered_is_heard() {
    // The first frame in the same packet as the request: the HTTP layer reads it with the head.
    let relay = Relay::start(&[]).await;
    let mut stream = TcpStream::connect(relay.running.clients).await.unwrap();
    let handshake = json!({ "type": "Handshake", "client_id": id(1) });
    let mut eager =
        b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    eager.extend(websocket(BINARY, &frame(&envelope("eager", handshake))));
    let submit: Value = update("eager too", &id(2), b"blob");
    eager.extend(websocket(BINARY, &frame(&submit)));
    eager.extend(websocket(0x88, b"\x03\xE8"));
    stream.write_all(&eager).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("an end")
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"blob");
}
