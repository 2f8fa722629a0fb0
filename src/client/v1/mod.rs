//! Protocol v1: one connection that says who it is and has one mailbox. It ends when it is lost.
//!
//! ```no_run
//! use bytes::Bytes;
//! use vauchi_relay::client::MailboxId;
//! use vauchi_relay::client::v1::{Client, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mine = MailboxId::parse(&"ab".repeat(32))?;
//! let client = Client::connect("ws://127.0.0.1:8080", Options::unsigned(mine)).await?;
//!
//! // When this returns `Ok`, the relay has written the blob to its disk.
//! let theirs = MailboxId::parse(&"cd".repeat(32))?;
//! client.submit(theirs, Bytes::from_static(b"encrypted by you")).await?;
//!
//! while let Some(delivery) = client.next_delivery().await {
//!     // Keep the blob first: acknowledging deletes it at the relay.
//!     println!("{} bytes", delivery.body.len());
//!     client.acknowledge(&delivery).await?;
//! }
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! All methods take `&self`, so several tasks may share a client; submits that run at the same time
//! are pipelined over the one connection.
//!
//! Inside: `options` say who connects and within which bounds; `connection` is the task that owns the
//! socket.

mod connection;
mod options;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::connection::{Bounds, Connection, Outbound};
pub use self::options::Options;
use super::ClientError;
use crate::clock::Clock;
use crate::ids::MailboxId;
use crate::protocol::v1::Tag;
use crate::protocol::v1::client::{ClientRequest, Status, encode_request};

/// One connection to a relay. Dropping it ends the connection without a goodbye; [`Client::close`]
/// sees to it that everything handed over has left.
pub struct Client {
    connection: Connection,
    deliveries: Mutex<mpsc::Receiver<Delivery>>,
    clock: Clock,
    answer_timeout: std::time::Duration,
    message_bytes_max: usize,
    relay_version: String,
    features: Vec<String>,
    /// Reads and writes the socket; ends with the client.
    _task: AbortOnDropHandle<()>,
}

/// The relay keeps the blob; it survives a crash of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The name under which the blob was submitted.
    pub message_id: String,
}

/// A blob from the client's mailbox.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    tag: Tag,
    /// The blob.
    pub body: Bytes,
}

impl Delivery {
    /// The relay's name for the blob, the same each time it is delivered. A UUID with our relay, but
    /// anything that a relay likes; do not use it as a file name unseen.
    pub fn id(&self) -> &str {
        self.tag.name()
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes)", self.body.len())
    }
}

impl Client {
    /// Connects to `url` (`ws://host:port` or `wss://host`) and opens the mailbox that the options name. Returns when
    /// the relay has accepted the handshake.
    pub async fn connect(url: &str, options: Options) -> Result<Self, ClientError> {
        let opening = connection::open(url, &options);
        let opened = tokio::time::timeout(options.connect_timeout, opening)
            .await
            .map_err(|_| ClientError::Timeout)??;
        let (deliver, deliveries) = mpsc::channel(options.deliveries_max.max(1));
        let deliver = options.keeps_deliveries.then_some(deliver);
        let bounds = Bounds {
            in_flight_max: options.in_flight_max,
            ping_after: options.ping_after,
        };
        let (connection, run) = Connection::new(opened.socket, bounds, deliver);
        Ok(Self {
            connection,
            deliveries: Mutex::new(deliveries),
            clock: options.clock,
            answer_timeout: options.answer_timeout,
            message_bytes_max: options.message_bytes_max,
            relay_version: opened.relay_version,
            features: opened.features,
            _task: AbortOnDropHandle::new(tokio::spawn(run)),
        })
    }

    /// The relay's version, as it says.
    pub fn relay_version(&self) -> &str {
        &self.relay_version
    }

    /// What the relay says that it serves.
    pub fn features(&self) -> &[String] {
        &self.features
    }

    /// Hands in a blob for `mailbox` and waits until the relay has stored or refused it. Waits first
    /// while [`Options::in_flight_max`] submits have no answer yet.
    ///
    /// After [`ClientError::Timeout`], [`ClientError::Lost`] or [`ClientError::Closed`] the blob may
    /// or may not be stored.
    pub async fn submit(&self, mailbox: MailboxId, body: Bytes) -> Result<Stored, ClientError> {
        self.submit_within(mailbox, body, self.answer_timeout).await
    }

    /// [`Client::submit`] that may take so long instead of [`Options::answer_timeout`]: a large blob on a
    /// slow line takes its time.
    pub async fn submit_within(
        &self,
        mailbox: MailboxId,
        body: Bytes,
        within: std::time::Duration,
    ) -> Result<Stored, ClientError> {
        let answer = self.submit_unanswered(mailbox, &body);
        tokio::time::timeout(within, answer)
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    async fn submit_unanswered(
        &self,
        recipient: MailboxId,
        body: &[u8],
    ) -> Result<Stored, ClientError> {
        let _permit = self.connection.permit().await?;
        let tag = fresh_tag();
        let request = ClientRequest::Submit { recipient, body };
        let frame = encode_request(&tag, request, self.clock.wall());
        if frame.len() > self.message_bytes_max {
            return Err(ClientError::TooLarge {
                bytes: frame.len(),
                bytes_max: self.message_bytes_max,
            });
        }
        let (tell, told) = oneshot::channel();
        let _waiting = self.connection.await_answer(&tag, tell)?;
        self.connection.send(Outbound::Frame(frame)).await?;
        match told.await.map_err(|_| self.connection.ended())? {
            Status::Failed {
                code,
                message,
                retry_after,
            } => Err(ClientError::Refused {
                code,
                message,
                retry_after,
            }),
            // Only these two kinds are handed to who waits; see `connection`.
            Status::Stored | Status::Delivered | Status::ReceivedByRecipient => Ok(Stored {
                message_id: tag.name().into(),
            }),
        }
    }

    /// The next blob, waiting until there is one. `None` when the connection has ended, after all that
    /// came before; [`Client::ended`] says why.
    ///
    /// At most [`Options::deliveries_max`] blobs wait here. Beyond that nothing more is read from the
    /// relay, answers included: a client that submits must take its deliveries too, or say with
    /// [`Options::keeps_deliveries`] that it wants none.
    pub async fn next_delivery(&self) -> Option<Delivery> {
        self.deliveries.lock().await.recv().await
    }

    /// Waits until the relay has answered a ping. All that it wrote before has been heard then, however
    /// long it took on the line. Protocol v1 does not say that a mailbox is empty; a mailbox from which
    /// nothing came for a while counts as empty when a ping is answered and still nothing came.
    pub async fn ping(&self) -> Result<(), ClientError> {
        self.connection.ping().await
    }

    /// Tells the relay that the blob has arrived; the relay then deletes it. There is no answer;
    /// [`Client::close`] makes sure that it leaves.
    pub async fn acknowledge(&self, delivery: &Delivery) -> Result<(), ClientError> {
        let request = ClientRequest::Acknowledge {
            delivery: &delivery.tag,
        };
        let frame = encode_request(&fresh_tag(), request, self.clock.wall());
        self.connection.send(Outbound::Frame(frame)).await
    }

    /// Why the connection has ended; `None` while it has not.
    pub fn ended(&self) -> Option<ClientError> {
        self.connection.has_ended()
    }

    /// Sends what is left, says goodbye and waits for the relay's. An error when the connection had
    /// ended for another reason before.
    pub async fn close(self) -> Result<(), ClientError> {
        // Who closes wants no more deliveries; a full buffer must not keep the goodbye from being read.
        self.deliveries.lock().await.close();
        if self.connection.send(Outbound::Close).await.is_ok() {
            self.connection.wait_for_end().await;
        }
        match self.connection.ended() {
            // 1000 is what the relay echoes to our own goodbye.
            ClientError::Closed { code: 1000, .. } => Ok(()),
            error => Err(error),
        }
    }
}

/// A name that no other request has.
fn fresh_tag() -> Tag {
    Tag::new(&uuid::Uuid::new_v4().to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{SinkExt, StreamExt, future::join_all};
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::protocol::Message;

    use super::*;
    use crate::client::played_relay::{Relay, listen};
    use crate::clock::Timestamp;
    use crate::ids::BlobId;
    use crate::protocol::message::Refused;
    use crate::protocol::v1::message::Delivery as Delivered;
    use crate::protocol::v1::{self, Answer, Request};

    fn mine() -> MailboxId {
        MailboxId::from_bytes([0xAB; 32])
    }

    /// A client and the relay's end, with the handshake done.
    async fn connected(options: Options) -> (Client, Relay) {
        let (url, accept) = listen().await;
        let relay = async {
            let mut relay = accept.await;
            relay.handshake().await;
            relay.send(Answer::HandshakeAccepted).await;
            relay
        };
        let (client, relay) = tokio::join!(Client::connect(&url, options), relay);
        (client.unwrap(), relay)
    }

    #[cfg(feature = "server")]
    #[tokio::test]
    async fn a_signed_handshake_is_one_that_the_relay_can_verify() {
        use crate::auth::{TimeOfDay, Verified, verify_v1_handshake};

        let (url, accept) = listen().await;
        let options = Options::signed(ed25519_dalek::SigningKey::from_bytes(&[3; 32]));
        let now = options.clock.wall();
        let relay = async {
            let mut relay = accept.await;
            let handshake = relay.handshake().await;
            relay.send(Answer::HandshakeAccepted).await;
            handshake
        };
        let (client, handshake) = tokio::join!(Client::connect(&url, options), relay);
        let now = TimeOfDay {
            told: now,
            wall: now,
        };
        assert_eq!(verify_v1_handshake(&handshake, now), Ok(Verified::Proven));
        let client = client.unwrap();
        assert_eq!(client.relay_version(), env!("CARGO_PKG_VERSION"));
        assert_eq!(client.features(), v1::FEATURES);
    }

    #[tokio::test]
    async fn answers_find_their_submits_in_any_order() {
        let (client, mut relay) = connected(Options::unsigned(mine())).await;
        let submit = |n: u8| client.submit(mine(), Bytes::from(vec![n]));
        let answer = async {
            let mut tags = Vec::new();
            for _ in 0..3 {
                let (tag, request) = relay.request().await.unwrap();
                let Request::Submit(submit) = request else {
                    panic!("{request:?}")
                };
                tags.push((submit.body[0], tag));
            }
            for (n, tag) in tags.into_iter().rev() {
                let refused = Refused {
                    code: "quota",
                    message: "full".into(),
                    retry_after: Some(Duration::from_secs(7)),
                };
                let answer = match n {
                    2 => Answer::Refused(refused),
                    _ => Answer::Stored,
                };
                relay.answer(&tag, answer).await;
            }
        };
        let (answers, ()) = tokio::join!(join_all((1..=3).map(submit)), answer);
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
        assert_eq!(
            answers[1],
            Err(ClientError::Refused {
                code: "quota".to_owned(),
                message: "full".to_owned(),
                retry_after: Some(Duration::from_secs(7)),
            })
        );
    }

    #[tokio::test]
    async fn a_delivery_is_acknowledged_under_its_own_id_before_the_goodbye() {
        let (client, mut relay) = connected(Options::unsigned(mine())).await;
        relay.deliver(5).await;
        let delivery = client.next_delivery().await.unwrap();
        assert_eq!(delivery.body, [5; 3][..]);
        assert_eq!(delivery.id(), "05050505-0505-0505-0505-050505050505");
        client.acknowledge(&delivery).await.unwrap();
        let heard = async {
            let acknowledged = relay.request().await.unwrap().1;
            (acknowledged, relay.request().await)
        };
        let (closed, (acknowledged, after)) = tokio::join!(client.close(), heard);
        let id = BlobId::from_bytes([5; 16]);
        assert_eq!(acknowledged, Request::Acknowledge(id));
        assert_eq!((after, closed), (None, Ok(())));
    }

    #[tokio::test]
    async fn a_close_code_reaches_everyone_who_waits() {
        let (client, mut relay) = connected(Options::unsigned(mine())).await;
        relay.deliver(1).await;
        let goodbye = async {
            relay.request().await.unwrap();
            relay.close(1013, "too slow").await;
        };
        let (stored, ()) = tokio::join!(client.submit(mine(), Bytes::new()), goodbye);
        let closed = ClientError::Closed {
            code: 1013,
            reason: "too slow".to_owned(),
        };
        assert_eq!(stored, Err(closed.clone()));
        assert!(client.next_delivery().await.is_some());
        assert_eq!(client.next_delivery().await, None);
        assert_eq!(client.ended(), Some(closed.clone()));
        assert_eq!(
            client.submit(mine(), Bytes::new()).await,
            Err(closed.clone())
        );
        assert_eq!(client.close().await, Err(closed));
    }

    #[tokio::test]
    async fn a_refused_handshake_says_why() {
        let (url, accept) = listen().await;
        let relay = async {
            let mut relay = accept.await;
            relay.handshake().await;
            relay.close(4401, "not yours").await;
        };
        let (client, ()) = tokio::join!(Client::connect(&url, Options::unsigned(mine())), relay);
        let closed = ClientError::Closed {
            code: 4401,
            reason: "not yours".to_owned(),
        };
        assert_eq!(client.err(), Some(closed));
    }

    #[tokio::test]
    async fn a_client_that_wants_no_deliveries_is_not_held_up_by_them() {
        let mut options = Options::unsigned(mine());
        options.keeps_deliveries = false;
        options.deliveries_max = 1;
        let (client, mut relay) = connected(options).await;
        for n in 0..10 {
            relay.deliver(n).await;
        }
        let answer = async {
            let (tag, _) = relay.request().await.unwrap();
            relay.answer(&tag, Answer::Stored).await;
        };
        let (stored, ()) = tokio::join!(client.submit(mine(), Bytes::new()), answer);
        assert!(stored.is_ok(), "{stored:?}");
        assert_eq!(client.next_delivery().await, None);
    }

    #[tokio::test]
    async fn both_sides_may_send_large_frames_at_once() {
        let mut options = Options::unsigned(mine());
        options.keeps_deliveries = false;
        let (client, relay) = connected(options).await;
        let (mut sink, mut stream) = relay.0.split();
        let body = Bytes::from(vec![200; 250_000]);
        let delivery = v1::encode(
            None,
            &Answer::Delivery(Delivered {
                id: BlobId::from_bytes([1; 16]),
                mailbox_as_spelt: mine().to_hex().into(),
                sender_id: None,
                body: body.clone(),
            }),
            Timestamp::default(),
        );
        let submits = join_all((0..8).map(|_| client.submit(mine(), body.clone())));
        let play = async {
            // Writes all of its own before it reads anything.
            for _ in 0..8 {
                sink.send(Message::Binary(delivery.clone())).await.unwrap();
            }
            for _ in 0..8 {
                let frame = stream.next().await.unwrap().unwrap().into_data();
                let tag = v1::tag_of(&frame).unwrap();
                let answer = v1::encode(Some(&tag), &Answer::Stored, Timestamp::default());
                sink.send(Message::Binary(answer)).await.unwrap();
            }
        };
        let (stored, ()) = tokio::join!(submits, play);
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    }

    #[tokio::test]
    async fn a_ping_is_answered_while_nothing_is_sent() {
        let (_client, mut relay) = connected(Options::unsigned(mine())).await;
        relay
            .0
            .send(Message::Ping(Bytes::from_static(b"?")))
            .await
            .unwrap();
        let pong = relay.0.next().await.unwrap().unwrap();
        assert_eq!(pong, Message::Pong(Bytes::from_static(b"?")));
    }

    #[tokio::test]
    async fn too_large_a_blob_is_refused_before_it_is_sent() {
        let mut options = Options::unsigned(mine());
        options.message_bytes_max = 1_000;
        let (client, _relay) = connected(options).await;
        let stored = client.submit(mine(), Bytes::from(vec![0; 1_000])).await;
        assert!(
            matches!(stored, Err(ClientError::TooLarge { .. })),
            "{stored:?}"
        );
    }

    #[tokio::test]
    async fn a_silent_relay_is_a_timeout() {
        let (url, accept) = listen().await;
        let mut options = Options::unsigned(mine());
        options.connect_timeout = Duration::from_millis(50);
        let (client, _relay) = tokio::join!(Client::connect(&url, options), accept);
        assert_eq!(client.err(), Some(ClientError::Timeout));

        let mut options = Options::unsigned(mine());
        options.answer_timeout = Duration::from_millis(50);
        let (client, _relay) = connected(options).await;
        let stored = client.submit(mine(), Bytes::new()).await;
        assert_eq!(stored, Err(ClientError::Timeout));
    }

    #[tokio::test]
    async fn a_relay_that_is_not_there_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        drop(listener);
        let connect = |url: String| async move {
            let client = Client::connect(&url, Options::unsigned(mine())).await;
            client.err().unwrap()
        };
        assert!(matches!(connect(url).await, ClientError::Unreachable(_)));
        for url in ["", "127.0.0.1:8080", "http://x", "ws://"] {
            let error = connect(url.to_owned()).await;
            assert!(matches!(error, ClientError::Url(_)), "{url}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_relay_that_falls_silent_is_asked_and_then_the_connection_is_lost() {
        let mut options = Options::unsigned(mine());
        options.ping_after = Duration::from_millis(50);
        let (client, mut relay) = connected(options).await;
        // Answers by reading on, as often as it is asked.
        for _ in 0..3 {
            let asked = relay.0.next().await.unwrap().unwrap();
            assert!(asked.is_ping(), "{asked:?}");
        }
        assert_eq!(client.ended(), None);
        // From here on nobody is there, and nobody says so.
        let end = tokio::time::timeout(Duration::from_secs(20), client.next_delivery());
        assert_eq!(end.await, Ok(None));
        let why = client.ended().unwrap();
        assert!(
            matches!(&why, ClientError::Lost(why) if why.contains("sent nothing")),
            "{why}"
        );
    }

    #[tokio::test]
    async fn a_pong_comes_behind_what_was_delivered_before() {
        let (client, mut relay) = connected(Options::unsigned(mine())).await;
        relay.deliver(1).await;
        let answer = async { while let Some(Ok(_)) = relay.0.next().await {} };
        tokio::select! {
            () = answer => panic!("the client has left"),
            pong = client.ping() => pong.unwrap(),
        }
        let delivered = tokio::time::timeout(Duration::ZERO, client.next_delivery());
        assert!(delivered.await.unwrap().is_some());
        drop(relay);
        let why = client.ping().await.unwrap_err();
        assert!(matches!(why, ClientError::Lost(_)), "{why:?}");
    }
}
