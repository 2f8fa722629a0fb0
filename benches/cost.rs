//! What each request costs the relay, beside the bytes that a client sends for it.
//!
//! `cargo bench --bench cost` starts the release binary on a folder of its own, without limits, and
//! prints for each request its bytes on the wire, the relay's processor time for one (user and system,
//! reading and answering included), the same for each byte, and by how much its memory grew over all of
//! them. `docs/limits.md` has the table. `cargo bench --bench cost -- BINARY` measures another binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::too_many_lines,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails may panic, and its output is its purpose"
)]

use std::path::PathBuf;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use vauchi_relay::clock::{Clock, Timestamp};
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery};
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v1::client as v1_client;
use vauchi_relay::protocol::v1::message::HandshakeProof;
use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use vauchi_relay::protocol::v2::message::{
    Opening, Submit, SubmitTerms, Subscribe, Welcome, Withdrawal, WithdrawalKind,
};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};
use vauchi_relay::protocol::{v1, v2};

use relay::Relay;

#[path = "load/relay.rs"]
mod relay;

const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);

/// Requests that wait for their answers at once.
const IN_FLIGHT: usize = 100;

/// Processor time is counted in hundredths of a second: a row takes at least half of one, so that this
/// is exact to 2 %.
const CPU_MIN: f64 = 0.5;

/// Bytes of a WebSocket frame's header with its mask, in the largest of the three forms.
const HEADER_BYTES: usize = 14;

/// Makes a request, given its number.
type Make<'a> = Box<dyn FnMut(u32) -> Request + 'a>;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn main() {
    // Cargo says --bench to it.
    let named = std::env::args().skip(1).find(|word| word != "--bench");
    let binary = named.map_or_else(|| env!("CARGO_BIN_EXE_vauchi-relay").into(), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(&binary, folder.path());
    println!("| Request | Bytes | CPU of one, µs | CPU for each byte, ns | Memory, MB |");
    println!("|---------|-------|----------------|-----------------------|------------|");
    runtime.block_on(async {
        every_v2(&relay).await;
        every_v1(&relay).await;
    });
}

async fn every_v2(relay: &Relay) {
    // The host that the upgrade names; for another one no signature would be looked at.
    let origin = relay.clients.to_string();
    let badly_signed = || {
        let opening = Opening {
            mailbox: MailboxId::from_bytes(rand::random()),
            signature: Some([9; 64]),
            tells_senders: false,
            no_pin: false,
        };
        Request::Subscribe(Subscribe {
            origin: origin.as_str().into(),
            openings: vec![opening],
        })
    };
    let submit = |bytes: usize, ttl_days: u64| {
        move |_| {
            Request::Submit(Submit {
                recipient: MailboxId::from_bytes(rand::random()),
                id: BlobId::from_bytes(rand::random()),
                terms: SubmitTerms {
                    ttl: Some(std::time::Duration::from_secs(ttl_days * 86_400)),
                    ..SubmitTerms::default()
                },
                body: Bytes::from(vec![7; bytes]),
            })
        }
    };
    let nobody = |count| (0..count).map(|_| MailboxId::from_bytes(rand::random()));

    let live_only = |_| {
        Request::Submit(Submit {
            recipient: MailboxId::from_bytes(rand::random()),
            id: BlobId::from_bytes(rand::random()),
            terms: SubmitTerms {
                live_only: true,
                ..SubmitTerms::default()
            },
            body: Bytes::from(vec![7; 1_024]),
        })
    };

    let (mut socket, welcome) = connect_v2(relay).await;
    let own = open(&mut socket, &welcome, &origin).await;
    measure(relay, &mut socket, "WebSocket ping", &mut |_| {
        Message::Ping(Bytes::new())
    })
    .await;
    let mut rows: Vec<(&str, Make<'_>)> = vec![
        ("`Ping`", Box::new(|_| Request::Ping)),
        (
            "`Window`",
            Box::new(|_| Request::Window {
                blobs: 8,
                bytes: 1 << 20,
            }),
        ),
        ("`Hello`", Box::new(|_| Request::Hello(None))),
        (
            "`Unsubscribe`, 28,000 that are not open",
            Box::new(move |_| Request::Unsubscribe(nobody(28_000).collect())),
        ),
        (
            "`Subscribe`, 1 with a bad signature",
            Box::new(|_| badly_signed()),
        ),
        (
            "`Withdraw`, an unknown blob",
            Box::new(|_| {
                Request::Withdraw(Withdrawal {
                    mailbox: MailboxId::from_bytes(rand::random()),
                    shown: rand::random(),
                    kind: WithdrawalKind::Cancel,
                })
            }),
        ),
        (
            "`RecoveryQuery`, 50 hashes",
            Box::new(|_| {
                let key_hashes = (0..50).map(|_| rand::random()).collect();
                Request::RecoveryQuery(RecoveryQuery { key_hashes })
            }),
        ),
        (
            "`RecoveryStore`, 1 KiB",
            Box::new(|_| {
                Request::RecoveryStore(RecoveryProof {
                    key_hash: rand::random(),
                    proof: Bytes::from(vec![7; 1_024]),
                })
            }),
        ),
        (
            "`Acknowledge`, 100 unknown ids",
            Box::new(move |_| {
                let ids = (0..100).map(|_| (own, BlobId::from_bytes(rand::random())));
                Request::Acknowledge(ids.collect())
            }),
        ),
        (
            "`Purge`, an empty mailbox",
            Box::new(move |_| Request::Purge(vec![own])),
        ),
        ("`Unpin`", Box::new(move |_| Request::Unpin(own))),
        (
            "`Submit` with `live_only`, 1 KiB, nobody there",
            Box::new(live_only),
        ),
        ("`Submit`, 1 KiB, refused", Box::new(submit(1_024, 4_000))),
        ("`Submit`, 1 MiB, refused", Box::new(submit(1 << 20, 4_000))),
        ("`Submit`, 1 KiB, stored", Box::new(submit(1_024, 1))),
        ("`Submit`, 64 KiB, stored", Box::new(submit(64 << 10, 1))),
    ];
    for (name, request) in &mut rows {
        measure(relay, &mut socket, name, &mut |number| {
            Message::Binary(encode_request(Tag::new(number), &request(number)))
        })
        .await;
    }
}

async fn every_v1(relay: &Relay) {
    let mut socket = connect(relay, None).await;
    let handshake = v1_client::ClientHandshake {
        client_id: MailboxId::from_bytes([1; 32]),
        routing_token: None,
        suppress_presence: true,
        proof: HandshakeProof::Unsigned,
    };
    let tag = |number: u32| v1::Tag::new(&format!("22222222-2222-4222-8222-{number:012}"));
    let hello = v1_client::ClientRequest::Handshake(&handshake);
    let frame = v1_client::encode_request(&tag(0), hello, NOW);
    socket.send(Message::Binary(frame)).await.unwrap();
    answer(&mut socket).await;
    for (name, bytes) in [
        ("v1 `EncryptedUpdate`, 1 KiB, stored", 1_024),
        ("v1 `EncryptedUpdate`, 64 KiB, stored", 64 << 10),
    ] {
        measure(relay, &mut socket, name, &mut |number| {
            let mut body = vec![7; bytes];
            body[..4].copy_from_slice(&number.to_be_bytes());
            let submit = v1_client::ClientRequest::Submit {
                recipient: MailboxId::from_bytes(rand::random()),
                body: &body,
            };
            Message::Binary(v1_client::encode_request(&tag(number), submit, NOW))
        })
        .await;
    }
    // The first is refused by its recipient, after its numbers were read. Each device gets one message only,
    // because a full mailbox refuses more.
    let numbers = vec!["200"; 50_000].join(",");
    let body = vec!["200"; 1_024].join(",");
    let invalid =
        || format!(r#""type":"EncryptedUpdate","ciphertext":[{numbers}],"recipient_id":"nobody""#);
    let purge = || r#""type":"PurgeRequest","include_device_sync":true"#.to_owned();
    let own = "01".repeat(32);
    let device_sync = || {
        let device = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 32]>());
        format!(
            r#""type":"DeviceSyncMessage","identity_id":"{own}","target_device_id":"{device}","sender_device_id":"{own}","encrypted_payload":[{body}],"version":1"#
        )
    };
    let rows: [(&str, &dyn Fn() -> String); 3] = [
        ("v1 `EncryptedUpdate`, 200 kB, invalid", &invalid),
        ("v1 `PurgeRequest`, an empty mailbox", &purge),
        ("v1 `DeviceSyncMessage`, 1 KiB, stored", &device_sync),
    ];
    for (name, payload) in rows {
        measure(relay, &mut socket, name, &mut |number| {
            Message::Binary(v1_frame(tag(number).name(), &payload()))
        })
        .await;
    }
    v1_handshakes(relay).await;
}

fn v1_frame(name: &str, payload: &str) -> Bytes {
    let json = format!(
        r#"{{"version":1,"message_id":"{name}","timestamp":1795220095,"payload":{{{payload}}}}}"#
    );
    let mut frame = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(json.into_bytes());
    frame.into()
}

/// A connection each, with its upgrade and its end; the bytes are those of the handshake and about 200 of
/// the upgrade.
async fn v1_handshakes(relay: &Relay) {
    const UPGRADE_BYTES: usize = 200;
    let key = SigningKey::from_bytes(&[3; 32]);
    let public_key = key.verifying_key().to_bytes();
    for (name, is_valid) in [
        ("a connection and a v1 handshake, signed", true),
        ("a connection and a v1 handshake, badly signed", false),
    ] {
        let (cpu, memory) = (relay.cpu_seconds(), relay.resident_bytes());
        let (mut asked, mut bytes) = (0_u32, 0);
        while relay.cpu_seconds() - cpu < CPU_MIN {
            asked += 1;
            let nonce: [u8; 32] = rand::random();
            let timestamp_secs = Clock::system().wall().secs();
            let signature = key.sign(&proof::v1_handshake(&nonce, timestamp_secs));
            let handshake = v1_client::ClientHandshake {
                client_id: MailboxId::from_bytes(public_key),
                routing_token: None,
                suppress_presence: true,
                proof: HandshakeProof::Signed {
                    public_key,
                    nonce,
                    timestamp_secs,
                    signature: if is_valid {
                        signature.to_bytes()
                    } else {
                        [9; 64]
                    },
                },
            };
            let hello = v1_client::ClientRequest::Handshake(&handshake);
            let tag = v1::Tag::new("22222222-2222-4222-8222-222222222222");
            let frame = v1_client::encode_request(&tag, hello, NOW);
            bytes += frame.len() + HEADER_BYTES + UPGRADE_BYTES;
            let mut socket = connect(relay, None).await;
            socket.send(Message::Binary(frame)).await.unwrap();
            // An acknowledgement, or the end.
            socket.next().await.unwrap().unwrap();
        }
        row(relay, name, (asked, bytes), (cpu, memory));
    }
}

/// Sends as many of these as take long enough to be measured, and prints a row.
async fn measure(
    relay: &Relay,
    socket: &mut Socket,
    name: &str,
    frame: &mut dyn FnMut(u32) -> Message,
) {
    let (cpu, memory) = (relay.cpu_seconds(), relay.resident_bytes());
    let (mut asked, mut bytes) = (0_u32, 0);
    while relay.cpu_seconds() - cpu < CPU_MIN {
        let mut waiting = 0;
        let mut on_their_way = 0;
        // Large requests in small groups, or both sides would wait for each other to read.
        while waiting < IN_FLIGHT && on_their_way < 2 << 20 {
            asked += 1;
            let message = frame(asked);
            on_their_way += message.len() + HEADER_BYTES;
            socket.feed(message).await.unwrap();
            waiting += 1;
        }
        bytes += on_their_way;
        socket.flush().await.unwrap();
        for _ in 0..waiting {
            answer(socket).await;
        }
    }
    row(relay, name, (asked, bytes), (cpu, memory));
}

/// Prints what so many requests of so many bytes have cost since then.
fn row(relay: &Relay, name: &str, (asked, bytes): (u32, usize), (cpu, memory): (f64, u64)) {
    let cpu = relay.cpu_seconds() - cpu;
    let grown = relay.resident_bytes().saturating_sub(memory);
    let each = cpu / f64::from(asked);
    println!(
        "| {name} | {} | {:.1} | {:.1} | {:.1} |",
        bytes / asked as usize,
        each * 1e6,
        cpu * 1e9 / bytes as f64,
        grown as f64 / 1e6,
    );
}

async fn connect(relay: &Relay, subprotocol: Option<&'static str>) -> Socket {
    let mut upgrade = format!("ws://{}/", relay.clients)
        .into_client_request()
        .unwrap();
    if let Some(subprotocol) = subprotocol {
        let offer = HeaderValue::from_static(subprotocol);
        upgrade
            .headers_mut()
            .insert("sec-websocket-protocol", offer);
    }
    let connecting = tokio_tungstenite::connect_async_with_config(upgrade, None, true);
    let (socket, _) = connecting.await.unwrap();
    socket
}

async fn connect_v2(relay: &Relay) -> (Socket, Welcome) {
    let mut socket = connect(relay, Some(v2::SUBPROTOCOL)).await;
    let welcome = answer(&mut socket).await;
    match decode_server_frame(&welcome.into_data()) {
        Ok(ServerFrame::Known {
            answer: Answer::Welcome(welcome),
            ..
        }) => (socket, *welcome),
        other => panic!("{other:?}"),
    }
}

/// Opens a mailbox of a new key.
async fn open(socket: &mut Socket, welcome: &Welcome, origin: &str) -> MailboxId {
    let key = SigningKey::from_bytes(&rand::random());
    let mailbox = MailboxId::from_bytes(key.verifying_key().to_bytes());
    let signed = proof::v2_subscribe(&welcome.relay_id, &welcome.challenge, origin, &mailbox);
    let opening = Opening {
        mailbox,
        signature: Some(key.sign(&signed).to_bytes()),
        tells_senders: false,
        no_pin: false,
    };
    let subscribe = Request::Subscribe(Subscribe {
        origin: origin.into(),
        openings: vec![opening],
    });
    let frame = encode_request(Tag::new(1), &subscribe);
    socket.send(Message::Binary(frame)).await.unwrap();
    let opened = answer(socket).await.into_data();
    match decode_server_frame(&opened) {
        Ok(ServerFrame::Known {
            answer: Answer::Subscribed(opened),
            ..
        }) if opened.iter().all(Result::is_ok) => mailbox,
        other => panic!("{other:?}"),
    }
}

/// The next answer: anything but the relay's own pings and what opened mailboxes bring.
async fn answer(socket: &mut Socket) -> Message {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(frame) if is_delivery(&frame) => {}
            answer @ (Message::Binary(_) | Message::Pong(_)) => return answer,
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Whether it says that an opened mailbox is caught up, which nobody asked for.
fn is_delivery(frame: &Bytes) -> bool {
    matches!(
        decode_server_frame(frame),
        Ok(ServerFrame::Known {
            answers: None,
            answer: Answer::CaughtUp(_)
        })
    )
}
