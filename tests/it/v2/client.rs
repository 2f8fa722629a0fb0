//! A v2 client for tests: frames by the client's side of the codec, which the golden frames hold to
//! the schema.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::SinkExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::Refused;
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use vauchi_relay::protocol::v2::message::{
    BlobDelivery, Done, Opened, Opening, ReceiptDelivery, Submit, SubmitTerms, Subscribe, Welcome,
};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};

use crate::harness::{Goodbye, Peer, Relay};

pub(crate) const ORIGIN: &str = "relay.example.com";

const OFFER: (&str, &str) = ("sec-websocket-protocol", "other, vauchi.relay.v2");

/// A connection that speaks v2.
pub(crate) struct Guest {
    pub(crate) peer: Peer,
    pub(crate) welcome: Welcome,
    asked: u32,
}

/// A mailbox and what opens it.
#[derive(Clone)]
pub(crate) struct Owned {
    pub(crate) key: SigningKey,
    /// Whether v1 clients may go on to open it.
    pub(crate) no_pin: bool,
}

impl Owned {
    /// A mailbox that is pinned.
    pub(crate) fn key(byte: u8) -> Self {
        let no_pin = false;
        Self {
            no_pin,
            ..Self::from_seed([byte; 32])
        }
    }

    /// One to which nobody sends through v1, of a key that [`Owned::key`] does not make.
    pub(crate) fn v2_only(byte: u8) -> Self {
        let mut seed = [byte; 32];
        seed[31] = !byte;
        Self::from_seed(seed)
    }

    pub(crate) fn from_seed(seed: [u8; 32]) -> Self {
        Self {
            key: SigningKey::from_bytes(&seed),
            no_pin: true,
        }
    }

    pub(crate) fn id(&self) -> MailboxId {
        MailboxId::from_bytes(self.key.verifying_key().to_bytes())
    }

    pub(crate) fn signature(&self, welcome: &Welcome, origin: &str) -> [u8; 64] {
        let (relay, challenge) = (&welcome.relay_id, &welcome.challenge);
        let signed = proof::v2_subscribe(relay, challenge, origin, &self.id());
        self.key.sign(&signed).to_bytes()
    }

    /// What opens it on the connection with this welcome.
    pub(crate) fn opening(&self, welcome: &Welcome, tells_senders: bool) -> Opening {
        Opening {
            mailbox: self.id(),
            signature: Some(self.signature(welcome, ORIGIN)),
            tells_senders,
            no_pin: self.no_pin,
        }
    }
}

/// A submit of `body` under an id that begins with `number`.
pub(crate) fn submit(to: &MailboxId, number: u32, body: &[u8]) -> Submit {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    Submit {
        recipient: *to,
        id: BlobId::from_bytes(id),
        terms: SubmitTerms::default(),
        body: Bytes::copy_from_slice(body),
    }
}

/// The same on these terms.
pub(crate) fn on_terms(submit: Submit, change: impl FnOnce(&mut SubmitTerms)) -> Submit {
    let mut submit = submit;
    change(&mut submit.terms);
    submit
}

impl Guest {
    pub(crate) async fn connect(relay: &Relay) -> Self {
        Self::connect_to(relay.running.clients).await
    }

    pub(crate) async fn connect_to(address: SocketAddr) -> Self {
        Self::connect_with(address, &[OFFER]).await
    }

    /// One that comes, as the proxy in front says, from `address`.
    pub(crate) async fn connect_from(relay: &Relay, address: &str) -> Self {
        let headers = [OFFER, ("x-forwarded-for", address)];
        Self::connect_with(relay.running.clients, &headers).await
    }

    async fn connect_with(address: SocketAddr, headers: &[(&'static str, &str)]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let peer = Peer::over_with(stream, ORIGIN, headers).await;
        Self::welcomed(peer.unwrap()).await
    }

    /// One whose upgrade request names this host.
    pub(crate) async fn connect_as(relay: &Relay, host: &str) -> Self {
        let stream = TcpStream::connect(relay.running.clients).await.unwrap();
        let peer = Peer::over_with(stream, host, &[OFFER]).await;
        Self::welcomed(peer.unwrap()).await
    }

    /// One whose system holds about so many bytes in each direction: it takes little at a time.
    pub(crate) async fn with_small_buffers(relay: &Relay, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(bytes).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        let stream = socket.connect(relay.running.clients).await.unwrap();
        Self::welcomed(Peer::over_with(stream, ORIGIN, &[OFFER]).await.unwrap()).await
    }

    async fn welcomed(peer: Peer) -> Self {
        let mut guest = Self {
            peer,
            welcome: Welcome {
                relay_id: [0; 32],
                server_version: "".into(),
                challenge: [0; 32],
                limits: vauchi_relay::protocol::v2::message::Limits {
                    blob_bytes_max: 0,
                    submits_per_minute: 0,
                    ttl_default: Duration::ZERO,
                    ttl_max: Duration::ZERO,
                    mailboxes_max: 0,
                    window_default: (0, 0),
                    window_max: (0, 0),
                    mailbox_blobs_max: 0,
                    mailbox_bytes_max: 0,
                },
                keepalive: Duration::ZERO,
                features: Vec::new(),
                proof: None,
            },
            asked: 0,
        };
        match guest.receive_numbered().await {
            (None, Answer::Welcome(welcome)) => guest.welcome = *welcome,
            other => panic!("{other:?}"),
        }
        guest
    }

    /// Sends a request; returns its number.
    pub(crate) async fn ask(&mut self, request: Request) -> u32 {
        self.asked += 1;
        self.ask_as(self.asked, &request).await;
        self.asked
    }

    /// Sends a request under this number.
    pub(crate) async fn ask_as(&mut self, number: u32, request: &Request) {
        self.send(encode_request(Tag::new(number), request)).await;
    }

    /// Sends these bytes as one frame.
    pub(crate) async fn send(&mut self, frame: Bytes) {
        self.peer.socket.send(Message::Binary(frame)).await.unwrap();
    }

    /// What comes next, or how the connection ended.
    pub(crate) async fn next(&mut self) -> Result<Answer, Goodbye> {
        Ok(self.next_frame().await?.1)
    }

    /// The same, with the number of the request that it answers.
    pub(crate) async fn next_frame(&mut self) -> Result<(Option<u32>, Answer), Goodbye> {
        let frame = Bytes::from(self.peer.next().await?);
        match decode_server_frame(&frame).unwrap() {
            ServerFrame::Known { answers, answer } => Ok((answers.map(Tag::number), answer)),
            unknown @ ServerFrame::Unknown { .. } => panic!("{unknown:?}"),
        }
    }

    pub(crate) async fn receive(&mut self) -> Answer {
        self.next().await.unwrap()
    }

    pub(crate) async fn receive_numbered(&mut self) -> (Option<u32>, Answer) {
        self.next_frame().await.unwrap()
    }

    /// Asks, and expects the answer to be the next frame.
    pub(crate) async fn answer(&mut self, request: Request) -> Answer {
        let asked = self.ask(request).await;
        let (number, answer) = self.receive_numbered().await;
        assert_eq!(number, Some(asked), "{answer:?}");
        answer
    }

    pub(crate) async fn refusal(&mut self, request: Request) -> Refused {
        match self.answer(request).await {
            Answer::Refused(refused) => refused,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn done(&mut self, request: Request) -> Done {
        match self.answer(request).await {
            Answer::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    /// Whether it was a duplicate.
    pub(crate) async fn store(&mut self, submit: Submit) -> bool {
        match self.answer(Request::Submit(submit)).await {
            Answer::Stored { duplicate, .. } => duplicate,
            other => panic!("{other:?}"),
        }
    }

    /// What opens these mailboxes on this connection.
    pub(crate) fn subscribe_to(&self, owned: &[&Owned], tells_senders: bool) -> Subscribe {
        let opening = |owned: &&Owned| owned.opening(&self.welcome, tells_senders);
        let openings = owned.iter().map(opening);
        Subscribe {
            origin: ORIGIN.into(),
            openings: openings.collect(),
        }
    }

    pub(crate) async fn try_subscribe(
        &mut self,
        subscribe: Subscribe,
    ) -> Vec<Result<Opened, &'static str>> {
        match self.answer(Request::Subscribe(subscribe)).await {
            Answer::Subscribed(openings) => openings,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a mailbox whose senders are told; returns what waits in it.
    pub(crate) async fn open(&mut self, owned: &Owned) -> Opened {
        let subscribe = self.subscribe_to(&[owned], true);
        self.try_subscribe(subscribe).await[0].unwrap()
    }

    pub(crate) async fn blob(&mut self) -> BlobDelivery {
        match self.receive().await {
            Answer::Blob(blob) => blob,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn receipt(&mut self) -> ReceiptDelivery {
        match self.receive().await {
            Answer::Receipt(receipt) => receipt,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn caught_up(&mut self) -> Vec<MailboxId> {
        match self.receive().await {
            Answer::CaughtUp(mailboxes) => mailboxes,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a mailbox in which nothing waits.
    pub(crate) async fn open_empty(&mut self, owned: &Owned) {
        assert_eq!(self.open(owned).await.pending, 0);
        assert_eq!(self.caught_up().await, [owned.id()]);
    }

    pub(crate) async fn acknowledge(&mut self, mailbox: MailboxId, id: BlobId) {
        let request = Request::Acknowledge(vec![(mailbox, id)]);
        assert_eq!(self.done(request).await, Done::Acknowledged);
    }

    /// Expects that nothing is delivered: a ping is answered first.
    pub(crate) async fn expect_nothing(&mut self) {
        // Twice, with a moment between for what is under way.
        for _ in 0..2 {
            assert_eq!(self.done(Request::Ping).await, Done::Pong);
            tokio::time::sleep(crate::harness::SILENCE).await;
        }
    }
}
