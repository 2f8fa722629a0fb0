//! A relay whose every step is played by a test.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{WebSocketStream, accept_async};

use super::MailboxId;
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::protocol::v1::message::{Delivery, Handshake};
use crate::protocol::v1::{self, Answer, Incoming, Request, Tag};

/// The relay's end of one connection, played by a test.
pub(crate) struct Relay(pub(crate) WebSocketStream<TcpStream>);

impl Relay {
    /// Says something that nobody asked for, and accepts handshakes.
    pub(crate) async fn send(&mut self, answer: Answer) {
        self.say(None, &answer).await;
    }

    pub(crate) async fn answer(&mut self, tag: &Tag, answer: Answer) {
        self.say(Some(tag), &answer).await;
    }

    async fn say(&mut self, tag: Option<&Tag>, answer: &Answer) {
        let frame = v1::encode(tag, answer, Timestamp::default());
        self.0.send(Message::Binary(frame)).await.unwrap();
    }

    pub(crate) async fn deliver(&mut self, id: u8) {
        let delivery = Delivery {
            id: BlobId::from_bytes([id; 16]),
            mailbox_as_spelt: MailboxId::from_bytes([0xAB; 32]).to_hex().into(),
            sender_id: None,
            body: Bytes::from(vec![id; 3]),
        };
        self.send(Answer::Delivery(delivery)).await;
    }

    /// The next frame; `None` when the client says goodbye.
    async fn incoming(&mut self) -> Option<Incoming> {
        loop {
            // A goodbye is answered by reading on, which then finds the end.
            if let Message::Binary(frame) = self.0.next().await?.unwrap() {
                return Some(v1::decode(&frame));
            }
        }
    }

    /// The next request; `None` when the client says goodbye.
    pub(crate) async fn request(&mut self) -> Option<(Tag, Request)> {
        match self.incoming().await? {
            Incoming::Request { tag, request } => Some((tag, request)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn handshake(&mut self) -> Handshake {
        match self.incoming().await.unwrap() {
            Incoming::Handshake(handshake) => *handshake,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason.to_owned().into(),
        };
        self.0.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

/// Accepts one connection and leaves the rest to the test.
pub(crate) async fn listen() -> (String, impl Future<Output = Relay>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let accept = async move {
        let (stream, _) = listener.accept().await.unwrap();
        Relay(accept_async(stream).await.unwrap())
    };
    (url, accept)
}
