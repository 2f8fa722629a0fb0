//! A client of either protocol, as cheap as it can be: the machine's cores are the relay's, too.

#![allow(dead_code, reason = "each measurement uses its part")]

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::v1::client as v1_client;
use vauchi_relay::protocol::v1::message::HandshakeProof;
use vauchi_relay::protocol::v2::client as v2_client;
use vauchi_relay::protocol::v2::message::{Introduce, Opening, Submit, SubmitTerms, Subscribe};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};
use vauchi_relay::protocol::{proof, v1, v2};

const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);

/// What a connection speaks.
#[derive(Clone, Copy)]
pub enum Version {
    V1,
    V2,
}

impl std::fmt::Display for Version {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// What the relay said.
pub enum Heard {
    Stored,
    Blob(Arrived),
    Other,
}

/// How a blob that came is acknowledged.
pub enum Arrived {
    Named(v1::Tag),
    In(MailboxId, BlobId),
}

pub struct Peer {
    version: Version,
    number: usize,
    asked: u32,
    /// The host that it dialled.
    origin: Box<str>,
    /// The relay's id and the connection's challenge.
    welcome: ([u8; 32], [u8; 32]),
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Peer {
    /// Connects and exchanges greetings. A v1 peer has its own mailbox open then; a v2 peer has none.
    pub async fn connect(version: Version, address: SocketAddr, number: usize) -> Self {
        Self::connect_from(version, address, number, None).await
    }

    /// The same; `from` is the address that it comes from, as a proxy would say it.
    pub async fn connect_from(
        version: Version,
        address: SocketAddr,
        number: usize,
        from: Option<IpAddr>,
    ) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(4_096)
            .write_buffer_size(4_096);
        let mut upgrade = format!("ws://{address}/").into_client_request().unwrap();
        if let Version::V2 = version {
            let offer = HeaderValue::from_static(v2::SUBPROTOCOL);
            upgrade
                .headers_mut()
                .insert("sec-websocket-protocol", offer);
        }
        if let Some(from) = from {
            let from = HeaderValue::from_str(&from.to_string()).unwrap();
            upgrade.headers_mut().insert("x-forwarded-for", from);
        }
        let connecting = tokio_tungstenite::connect_async_with_config(upgrade, Some(config), true);
        let (socket, _) = connecting.await.unwrap();
        let mut peer = Self {
            version,
            number,
            asked: 0,
            origin: address.to_string().into(),
            welcome: ([0; 32], [0; 32]),
            socket,
        };
        if let Version::V1 = version {
            let handshake = v1_client::ClientHandshake {
                client_id: peer.mailbox(),
                routing_token: None,
                // v2 has no notices; receipts are asked for.
                suppress_presence: true,
                proof: HandshakeProof::Unsigned,
            };
            let hello = v1_client::ClientRequest::Handshake(&handshake);
            let frame = v1_client::encode_request(&peer.name(), hello, NOW);
            peer.socket.send(Message::Binary(frame)).await.unwrap();
        }
        match version {
            Version::V1 => drop(peer.frame().await),
            Version::V2 => peer.meet().await,
        }
        peer
    }

    /// Has the relay prove who it is, as clients do.
    async fn meet(&mut self) {
        let introduce = Introduce {
            nonce: rand::random(),
            origin: self.origin.clone(),
        };
        self.ask(&Request::Hello(Some(introduce))).await;
        self.flush().await;
        loop {
            if let Answer::Welcome(welcome) = self.v2_frame().await
                && welcome.proof.is_some()
            {
                self.welcome = (welcome.relay_id, welcome.challenge);
                return;
            }
        }
    }

    /// The mailbox that is this peer's own.
    pub fn mailbox(&self) -> MailboxId {
        match self.version {
            Version::V1 => numbered(self.number + (1 << 40)),
            Version::V2 => mailbox_of(&self.key(0)),
        }
    }

    /// Opens this many mailboxes, the peer's own first. A v1 peer has opened its own already.
    pub async fn open(&mut self, mailboxes: usize) {
        let Version::V2 = self.version else { return };
        let subscribe = self.subscribe(mailboxes);
        self.ask(&Request::Subscribe(subscribe)).await;
        self.socket.flush().await.unwrap();
        let mut open = false;
        while !open {
            open = matches!(self.v2_frame().await, Answer::Subscribed(_));
        }
    }

    /// Writes a submit into the socket's buffer.
    pub async fn submit(&mut self, to: MailboxId, body: &Bytes) {
        match self.version {
            Version::V1 => {
                let submit = v1_client::ClientRequest::Submit {
                    recipient: to,
                    body,
                };
                let frame = v1_client::encode_request(&self.name(), submit, NOW);
                self.socket.feed(Message::Binary(frame)).await.unwrap();
            }
            Version::V2 => {
                let submit = Submit {
                    recipient: to,
                    id: BlobId::from_bytes(rand::random()),
                    terms: SubmitTerms::default(),
                    body: body.clone(),
                };
                self.ask(&Request::Submit(submit)).await;
            }
        }
    }

    /// Writes an acknowledgement into the socket's buffer.
    pub async fn acknowledge(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Named(delivery) => {
                let delivery = &delivery;
                let acknowledge = v1_client::ClientRequest::Acknowledge { delivery };
                let frame = v1_client::encode_request(&self.name(), acknowledge, NOW);
                self.socket.feed(Message::Binary(frame)).await.unwrap();
            }
            Arrived::In(mailbox, id) => {
                let items = vec![(mailbox, id)];
                self.ask(&Request::Acknowledge(items)).await;
            }
        }
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        self.socket.close(None).await.unwrap();
        // Until the relay has said goodbye, too; what else comes is of no interest.
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    pub async fn flush(&mut self) {
        self.socket.flush().await.unwrap();
    }

    pub async fn next(&mut self) -> Heard {
        if let Version::V2 = self.version {
            return match self.v2_frame().await {
                Answer::Stored { .. } => Heard::Stored,
                Answer::Blob(blob) => Heard::Blob(Arrived::In(blob.mailbox, blob.id)),
                Answer::Refused(refused) => panic!("{refused:?}"),
                _ => Heard::Other,
            };
        }
        use v1_client::{ServerFrame, Status};
        match v1_client::decode_server_frame(&self.frame().await).unwrap() {
            ServerFrame::Acknowledgment {
                status: Status::Stored,
                ..
            } => Heard::Stored,
            ServerFrame::Delivery { delivery, .. } => Heard::Blob(Arrived::Named(delivery)),
            ServerFrame::Acknowledgment { status, .. } => panic!("{status:?}"),
            _ => Heard::Other,
        }
    }

    async fn v2_frame(&mut self) -> Answer {
        match v2_client::decode_server_frame(&self.frame().await).unwrap() {
            v2_client::ServerFrame::Known { answer, .. } => answer,
            v2_client::ServerFrame::Unknown { .. } => panic!("the relay is newer than this"),
        }
    }

    async fn frame(&mut self) -> Bytes {
        loop {
            if let Message::Binary(frame) = self.socket.next().await.unwrap().unwrap() {
                return frame;
            }
        }
    }

    async fn ask(&mut self, request: &Request) {
        self.asked += 1;
        let frame = v2_client::encode_request(Tag::new(self.asked), request);
        self.socket.feed(Message::Binary(frame)).await.unwrap();
    }

    /// The name of a v1 request.
    fn name(&mut self) -> v1::Tag {
        self.asked += 1;
        let (number, asked) = (self.number, self.asked);
        v1::Tag::new(&format!("22222222-2222-4222-{number:04}-{asked:012}"))
    }

    fn key(&self, which: usize) -> SigningKey {
        let mut seed = [0x5e; 32];
        seed[..8].copy_from_slice(&self.number.to_be_bytes());
        seed[8..16].copy_from_slice(&which.to_be_bytes());
        SigningKey::from_bytes(&seed)
    }

    fn subscribe(&self, mailboxes: usize) -> Subscribe {
        let opening = |which| {
            let key = self.key(which);
            let mailbox = mailbox_of(&key);
            let (relay_id, challenge) = &self.welcome;
            let signed = proof::v2_subscribe(relay_id, challenge, &self.origin, &mailbox);
            Opening {
                mailbox,
                signature: Some(key.sign(&signed).to_bytes()),
                tells_senders: false,
                no_pin: true,
            }
        };
        Subscribe {
            origin: self.origin.clone(),
            openings: (0..mailboxes).map(opening).collect(),
        }
    }
}

fn mailbox_of(key: &SigningKey) -> MailboxId {
    MailboxId::from_bytes(key.verifying_key().to_bytes())
}

/// The mailbox with this number.
pub fn numbered(number: usize) -> MailboxId {
    let mut id = [0; 32];
    id[24..].copy_from_slice(&number.to_be_bytes());
    MailboxId::from_bytes(id)
}
