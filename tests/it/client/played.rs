//! The client library with relays that misbehave, played over a real socket.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};
use tokio_util::task::AbortOnDropHandle;
use vauchi_relay::client::{Client, ClientError, MailboxKey, Options, Receipts, RelaysInMemory};
use vauchi_relay::identity::Identity;
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::message::{GoAway, GoAwayReason, Introduce, Opened, Welcome};
use vauchi_relay::protocol::v2::{Answer, Incoming, Request as Asked};
use vauchi_relay::protocol::v2::{decode, encode};

use crate::client::v2::url;
use crate::harness::{PATIENCE, Relay};
use crate::v2::client::Guest;

/// A relay that lets everybody in, answers every opening when it is one that serves, and says its last
/// word: after the first answer, or at once.
struct Misbehaves {
    /// What it says of itself, with a challenge and without a proof.
    welcome: Welcome,
    /// What it signs with.
    identity: Identity,
    serves: bool,
    last_word: Bytes,
    /// All that its clients have said.
    heard: Arc<Mutex<Vec<Bytes>>>,
}

/// All but a last word.
async fn played(serves: bool, last_word: Bytes) -> Misbehaves {
    let identity = Identity::from_seed(&[7; 32]);
    let mut welcome = welcome().await;
    welcome.relay_id = *identity.id();
    Misbehaves {
        welcome,
        identity,
        serves,
        last_word,
        heard: Arc::default(),
    }
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
        self.until(&mut socket, |asked| self.introduced(asked))
            .await?;
        if self.serves {
            self.until(&mut socket, opened).await?;
        }
        say(&mut socket, self.last_word.clone()).await?;
        while let Some(Ok(message)) = socket.next().await {
            self.note(&message);
        }
        Some(())
    }

    /// Reads until there is something to answer.
    async fn until(
        &self,
        socket: &mut WebSocketStream<TcpStream>,
        answer: impl Fn(Asked) -> Option<Answer>,
    ) -> Option<()> {
        loop {
            let message = socket.next().await?.ok()?;
            self.note(&message);
            let Message::Binary(frame) = message else {
                continue;
            };
            let Incoming::Request { tag, request } = decode(&frame) else {
                continue;
            };
            if let Some(answer) = answer(request) {
                return say(socket, encode(tag, &answer)).await;
            }
        }
    }

    fn note(&self, message: &Message) {
        if let Message::Binary(frame) = message {
            self.heard.lock().unwrap().push(frame.clone());
        }
    }

    /// The claimed id, proved as well as this relay can.
    fn introduced(&self, asked: Asked) -> Option<Answer> {
        let Asked::Hello(Some(Introduce { nonce, origin })) = asked else {
            return None;
        };
        let mut welcome = self.welcome.clone();
        let (id, challenge) = (&welcome.relay_id, &welcome.challenge);
        let signed = proof::v2_welcome(id, &nonce, challenge, &origin);
        welcome.proof = Some(self.identity.sign(&signed));
        Some(Answer::Welcome(Box::new(welcome)))
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
fn opened(asked: Asked) -> Option<Answer> {
    let Asked::Subscribe(_) = asked else {
        return None;
    };
    let opened = Opened {
        pending: 0,
        blobs: 0,
        bytes: 0,
    };
    Some(Answer::Subscribed(vec![Ok(opened)]))
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
async fn end_of(client: &Client) -> ClientError {
    let end = async { while client.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the end");
    client.ended().unwrap()
}

#[tokio::test]
async fn a_relay_that_serves_and_breaks_the_protocol_each_time_is_as_bad_as_none() {
    let relay = played(true, Bytes::from_static(b"no frame")).await;
    let (address, _task) = relay.listen().await;
    let client = client_of(address);
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    let why = end_of(&client).await;
    assert!(matches!(why, ClientError::Protocol(_)), "{why:?}");
}

#[tokio::test]
async fn a_relay_that_only_sends_its_clients_away_is_given_up_however_long_they_shall_stay_away() {
    for reconnect_after in [Duration::ZERO, Duration::from_secs(3_600)] {
        let go_away = GoAway {
            reason: GoAwayReason::Overloaded,
            reconnect_after,
            alternates: Arc::new([]),
        };
        let relay = played(false, encode(None, &Answer::GoAway(go_away))).await;
        let (address, _task) = relay.listen().await;
        let why = end_of(&client_of(address)).await;
        assert!(matches!(why, ClientError::Closed { .. }), "{why:?}");
    }
}

/// Only this may have been heard by one who is not the relay that it claims to be.
fn is_only_a_hello(heard: &Mutex<Vec<Bytes>>) {
    let heard = heard.lock().unwrap();
    assert!(!heard.is_empty());
    for frame in heard.iter() {
        let said = decode(frame);
        let Incoming::Request { request, .. } = &said else {
            panic!("{said:?}")
        };
        assert!(matches!(request, Asked::Hello(Some(_))), "{said:?}");
    }
}

/// A client that has a mailbox to open and a blob to submit, and is told why it cannot.
/// A client does not believe it, and shows it nothing but that it is there.
async fn is_told_nothing(hostile: Misbehaves) {
    let heard = Arc::clone(&hostile.heard);
    let (address, _task) = hostile.listen().await;
    let why = refuses(Options::new([url(address)])).await;
    assert!(matches!(why, ClientError::NotProven(_)), "{why:?}");
    is_only_a_hello(&heard);
}

async fn refuses(options: Options) -> ClientError {
    let mut options = options;
    options.give_up_after = Some(Duration::from_millis(300));
    let client = Client::start(options).unwrap();
    let key = MailboxKey::random();
    let (opened, why) = tokio::join!(client.open(&key, Receipts::None), end_of(&client));
    opened.unwrap_err();
    why
}

/// Clients believed `relay_id`, and showed the secrets that belong to it.
#[tokio::test]
async fn a_relay_that_claims_the_id_of_another_is_told_nothing() {
    let true_relay = Relay::start(&[]).await;
    let mut hostile = played(true, Bytes::new()).await;
    hostile.welcome.relay_id = Guest::connect(&true_relay).await.welcome.relay_id;
    is_told_nothing(hostile).await;
}

#[tokio::test]
async fn a_relay_without_a_proof_is_told_nothing() {
    let mut hostile = played(true, Bytes::new()).await;
    // A key for which every signature of a certain kind is good.
    hostile.welcome.relay_id = [0; 32];
    is_told_nothing(hostile).await;
}

#[tokio::test]
async fn a_url_with_an_id_accepts_no_other_relay() {
    let relay = Relay::start(&[]).await;
    let id = Guest::connect(&relay).await.welcome.relay_id;
    let hex = |id: &[u8; 32]| {
        id.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let pinned = format!("{}#{}", url(relay.running.clients), hex(&id));
    let client = Client::connect(Options::new([pinned])).await.unwrap();
    assert_eq!(client.relay_id(), Some(id));

    let other = played(true, Bytes::new()).await;
    let heard = Arc::clone(&other.heard);
    let (address, _task) = other.listen().await;
    let pinned = format!("{}#{}", url(address), hex(&id));
    let why = refuses(Options::new([pinned])).await;
    let ClientError::WrongRelay { expected, .. } = why else {
        panic!("{why:?}")
    };
    assert_eq!(expected, id);
    is_only_a_hello(&heard);
}

/// Passes frames on to a relay, both ways, and names `host` in its own upgrade request, or itself.
async fn passes_on(
    relay: SocketAddr,
    host: Option<String>,
    heard: Arc<Mutex<Vec<Bytes>>>,
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let host = host.unwrap_or_else(|| address.to_string());
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let inside = accept(stream).await.unwrap();
            let mut upgrade = format!("ws://{host}/").into_client_request().unwrap();
            let offered = HeaderValue::from_static("vauchi.relay.v2");
            upgrade
                .headers_mut()
                .insert("sec-websocket-protocol", offered);
            let outside = TcpStream::connect(relay).await.unwrap();
            let (outside, _) = client_async(upgrade, outside).await.unwrap();
            let ((to_client, from_client), (to_relay, from_relay)) =
                (inside.split(), outside.split());
            let noted = from_client.inspect(|message| {
                if let Ok(Message::Binary(frame)) = message {
                    heard.lock().unwrap().push(frame.clone());
                }
            });
            // However it ends, the client comes again.
            tokio::select! {
                _ = noted.forward(to_relay) => {}
                _ = from_relay.forward(to_client) => {}
            }
        }
    });
    (address, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn who_passes_clients_on_to_a_relay_under_the_relay_s_name_is_told_nothing() {
    let relay = Relay::start(&[]).await;
    let heard = Arc::default();
    let name = relay.running.clients.to_string();
    let (address, _task) = passes_on(relay.running.clients, Some(name), Arc::clone(&heard)).await;
    let why = refuses(Options::new([url(address)])).await;
    assert!(
        matches!(&why, ClientError::Refused { code, .. } if code == "wrong_origin"),
        "{why:?}"
    );
    is_only_a_hello(&heard);
    assert_eq!(relay.metric("relay_pins").await, 0.0);
}

#[tokio::test]
async fn who_passes_clients_on_under_a_name_of_its_own_is_told_nothing_where_the_names_are_listed()
{
    let relay = Relay::start(&[("RELAY_PUBLIC_ORIGINS", "relay.example")]).await;
    let heard = Arc::default();
    let (address, _task) = passes_on(relay.running.clients, None, Arc::clone(&heard)).await;
    let why = refuses(Options::new([url(address)])).await;
    assert!(
        matches!(&why, ClientError::Refused { code, .. } if code == "wrong_origin"),
        "{why:?}"
    );
    is_only_a_hello(&heard);
}

/// The relay has no list of its names, and cannot tell such a passage from a proxy of its own. A client
/// that knows the relay can.
#[tokio::test]
async fn a_client_that_knows_a_relay_does_not_take_another_host_for_it() {
    let relay = Relay::start(&[]).await;
    let known: Arc<RelaysInMemory> = Arc::default();
    let with = |url: String| {
        let mut options = Options::new([url]);
        options.known_relays = Arc::clone(&known) as _;
        options
    };
    let client = Client::connect(with(url(relay.running.clients)))
        .await
        .unwrap();
    client.close().await.unwrap();
    let heard = Arc::default();
    let (address, _task) = passes_on(relay.running.clients, None, Arc::clone(&heard)).await;
    let why = refuses(with(url(address))).await;
    assert!(matches!(why, ClientError::KnownElsewhere { .. }), "{why:?}");
    is_only_a_hello(&heard);
}
