//! The client library with relays that misbehave, played over a real socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};
use tokio_util::task::AbortOnDropHandle;
use vauchi_relay::client::{Client, ClientError, MailboxKey, Options, Receipts};
use vauchi_relay::protocol::v2::message::{GoAway, GoAwayReason, Opened, Welcome};
use vauchi_relay::protocol::v2::{Answer, Incoming, Request as Asked};
use vauchi_relay::protocol::v2::{decode, encode};

use crate::client::v2::url;
use crate::harness::{PATIENCE, Relay};
use crate::v2::client::Guest;

/// A relay that lets everybody in, answers every opening when it is one that serves, and says its last
/// word: after the first answer, or at once.
struct Misbehaves {
    welcome: Welcome,
    serves: bool,
    last_word: Bytes,
}

impl Misbehaves {
    async fn listen(self) -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever hangs up meanwhile comes again.
                self.one(stream).await;
            }
        });
        (address, AbortOnDropHandle::new(task))
    }

    async fn one(&self, stream: TcpStream) -> Option<()> {
        let mut socket = accept(stream).await?;
        let welcome = Answer::Welcome(Box::new(self.welcome.clone()));
        say(&mut socket, encode(None, &welcome)).await?;
        if self.serves {
            let answer = loop {
                let Message::Binary(frame) = socket.next().await?.ok()? else {
                    continue;
                };
                if let Some(answer) = opened(&frame) {
                    break answer;
                }
            };
            say(&mut socket, answer).await?;
        }
        say(&mut socket, self.last_word.clone()).await?;
        while let Some(Ok(_)) = socket.next().await {}
        Some(())
    }
}

async fn accept(stream: TcpStream) -> Option<WebSocketStream<TcpStream>> {
    #[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
    let offered = |_: &Request, mut response: Response| {
        let spoken = HeaderValue::from_static("vauchi.relay.v2");
        response
            .headers_mut()
            .insert("sec-websocket-protocol", spoken);
        Ok(response)
    };
    accept_hdr_async(stream, offered).await.ok()
}

async fn say(socket: &mut WebSocketStream<TcpStream>, frame: Bytes) -> Option<()> {
    socket.send(Message::Binary(frame)).await.ok()
}

/// The answer to an opening of one mailbox.
fn opened(frame: &Bytes) -> Option<Bytes> {
    let Incoming::Request { tag, request } = decode(frame) else {
        return None;
    };
    let Asked::Subscribe(_) = request else {
        return None;
    };
    let opened = Opened {
        pending: 0,
        blobs: 0,
        bytes: 0,
    };
    let openings = vec![Ok(opened)];
    Some(encode(tag, &Answer::Subscribed(openings)))
}

async fn welcome() -> Welcome {
    let like = Relay::start(&[]).await;
    Guest::connect(&like).await.welcome
}

/// A client of this relay alone that has little patience.
fn client_of(relay: SocketAddr) -> Client {
    let mut options = Options::new([url(relay)]);
    options.give_up_after = Some(Duration::from_millis(300));
    Client::start(options).unwrap()
}

/// Why the client ends.
async fn end_of(client: Client) -> ClientError {
    let end = async { while client.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the end");
    client.ended().unwrap()
}

#[tokio::test]
async fn a_relay_that_serves_and_breaks_the_protocol_each_time_is_as_bad_as_none() {
    let welcome = welcome().await;
    let (serves, last_word) = (true, Bytes::from_static(b"no frame"));
    let relay = Misbehaves {
        welcome,
        serves,
        last_word,
    };
    let (address, _task) = relay.listen().await;
    let client = client_of(address);
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    let why = end_of(client).await;
    assert!(matches!(why, ClientError::Protocol(_)), "{why:?}");
}

#[tokio::test]
async fn a_relay_that_only_sends_its_clients_away_is_given_up_however_long_they_shall_stay_away() {
    let welcome = welcome().await;
    for reconnect_after in [Duration::ZERO, Duration::from_secs(3_600)] {
        let go_away = GoAway {
            reason: GoAwayReason::Overloaded,
            reconnect_after,
            alternates: Arc::new([]),
        };
        let relay = Misbehaves {
            welcome: welcome.clone(),
            serves: false,
            last_word: encode(None, &Answer::GoAway(go_away)),
        };
        let (address, _task) = relay.listen().await;
        let why = end_of(client_of(address)).await;
        assert!(matches!(why, ClientError::Closed { .. }), "{why:?}");
    }
}
