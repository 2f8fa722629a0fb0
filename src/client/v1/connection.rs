//! The task that reads and writes the socket.
//!
//! Reading and writing go on at the same time: a relay that cannot get rid of its answers stops
//! reading, so a client that wrote everything before it read would wait for ever.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

use super::{Delivery, Options, fresh_tag};
use crate::client::ClientError;
use crate::client::dial::{connector, is_tls, reached, request, upgraded};
use crate::client::socket::{Socket, closed, lost, next_frame, next_message};
use crate::protocol::v1::Tag;
use crate::protocol::v1::client::{
    ClientRequest, ServerFrame, Status, decode_server_frame, encode_request,
};

/// Frames that wait to be written; whoever wants to add one more waits.
const OUTBOUND_MAX: usize = 64;

/// How long the end of a connection may take: until the relay has answered our goodbye, or until its
/// goodbye is read after a write has failed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the relay has for hanging up once both have said goodbye; nothing depends on it.
const HANG_UP_TIMEOUT: Duration = Duration::from_millis(250);

/// What the socket's read buffer takes at once; tungstenite's 128 KiB are too much for a program
/// that holds many clients.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// Room in the write buffer beside one whole message, for pongs and the goodbye.
const WRITE_BUFFER_SPARE_BYTES: usize = 64 << 10;

/// A connection with its handshake done.
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) relay_version: String,
    pub(super) features: Vec<String>,
}

/// Connects and shakes hands.
pub(super) async fn open(url: &str, options: &Options) -> Result<Opened, ClientError> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(READ_BUFFER_BYTES)
        .max_write_buffer_size(options.message_bytes_max + WRITE_BUFFER_SPARE_BYTES)
        .max_message_size(Some(options.message_bytes_max))
        .max_frame_size(Some(options.message_bytes_max));
    let connector = connector(is_tls(url), options.authorities.as_deref())?;
    let request = request(url)?;
    let stream = reached(&request, None).await?;
    let mut socket = upgraded(stream, request, config, &connector).await?;
    let handshake = options.handshake();
    let hello = ClientRequest::Handshake(&handshake);
    let frame = encode_request(&fresh_tag(), hello, options.clock.wall());
    socket.send(Message::Binary(frame)).await.map_err(lost)?;
    let (relay_version, features) = welcome(&mut socket).await?;
    Ok(Opened {
        socket,
        relay_version,
        features,
    })
}

/// Waits for the answer to the handshake.
async fn welcome(socket: &mut Socket) -> Result<(String, Vec<String>), ClientError> {
    let frame = next_frame(socket, "no answer to the handshake").await?;
    match decode_server_frame(&frame) {
        Ok(ServerFrame::HandshakeAck {
            server_version,
            features,
        }) => Ok((server_version, features)),
        Ok(ServerFrame::Acknowledgment {
            status:
                Status::Failed {
                    code,
                    message,
                    retry_after,
                },
            ..
        }) => Err(ClientError::Refused {
            code,
            message,
            retry_after,
        }),
        Ok(_) => Err(ClientError::Protocol(
            "the first answer is not to the handshake",
        )),
        Err(bad) => Err(ClientError::Protocol(bad.0)),
    }
}

/// What the client hands to the task.
pub(super) enum Outbound {
    Frame(Bytes),
    /// Ask the relay whether it is there.
    Ping,
    /// Say goodbye; nothing after it is sent.
    Close,
}

/// Two of the client's options.
pub(super) struct Bounds {
    pub(super) in_flight_max: usize,
    pub(super) ping_after: Duration,
}

/// The client's end of the task.
pub(super) struct Connection {
    outbound: mpsc::Sender<Outbound>,
    in_flight: Semaphore,
    shared: Arc<Shared>,
    /// Closed when the task ends.
    running: watch::Receiver<()>,
}

struct Shared {
    /// Who waits for which answer; `None` once no answer can come. Nothing awaits under this lock.
    waiting: Mutex<Option<HashMap<Tag, oneshot::Sender<Status>>>>,
    ended: OnceLock<ClientError>,
    /// How many of our pings were answered.
    pongs: watch::Sender<u64>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<Tag, oneshot::Sender<Status>>>> {
        // Only single map operations happen under the lock, so a poisoned one is whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: ClientError) {
        // The first reason stays.
        self.ended.get_or_init(|| why);
        // Drops the senders, which wakes all who wait.
        self.waiting().take();
    }

    /// Somebody has heard a pong.
    fn hear_pong(&self) {
        self.pongs
            .send_modify(|pongs| *pongs = pongs.wrapping_add(1));
    }
}

impl Connection {
    /// The client's end, and the task to run.
    pub(super) fn new(
        socket: Socket,
        bounds: Bounds,
        deliver: Option<mpsc::Sender<Delivery>>,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (outbound, to_write) = mpsc::channel(OUTBOUND_MAX);
        let (runs, running) = watch::channel(());
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            ended: OnceLock::new(),
            pongs: watch::Sender::default(),
        });
        let task_shared = Arc::clone(&shared);
        let to_ask = outbound.downgrade();
        let task = async move {
            let (sink, stream) = socket.split();
            let reader = Reader {
                stream,
                shared: &task_shared,
                deliver,
                silence: bounds.ping_after,
                to_ask,
            };
            let why = tokio::select! {
                why = reader.run() => why,
                why = write(sink, to_write) => why,
            };
            task_shared.end(why);
            drop(runs);
        };
        let connection = Self {
            outbound,
            in_flight: Semaphore::new(bounds.in_flight_max.max(1)),
            shared,
            running,
        };
        (connection, task)
    }

    /// Leave for one more request without an answer.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, ClientError> {
        self.in_flight.acquire().await.map_err(|_| self.ended())
    }

    /// Lets `tell` hear the answer to the request `tag`, until what this returns is dropped.
    pub(super) fn await_answer(
        &self,
        tag: &Tag,
        tell: oneshot::Sender<Status>,
    ) -> Result<Waiting<'_>, ClientError> {
        let mut waiting = self.shared.waiting();
        let Some(waiting) = waiting.as_mut() else {
            return Err(self.ended());
        };
        waiting.insert(tag.clone(), tell);
        Ok(Waiting {
            shared: &self.shared,
            tag: tag.clone(),
        })
    }

    /// Hands a frame to the writer; waits while too many are waiting there.
    pub(super) async fn send(&self, outbound: Outbound) -> Result<(), ClientError> {
        self.outbound.send(outbound).await.map_err(|_| self.ended())
    }

    /// Returns when the relay has answered a ping, so that all that it wrote before has been heard.
    pub(super) async fn ping(&self) -> Result<(), ClientError> {
        let mut pongs = self.shared.pongs.subscribe();
        self.send(Outbound::Ping).await?;
        let mut running = self.running.clone();
        tokio::select! {
            // The sender lives as long as we do, so it is a pong.
            _pong = pongs.changed() => Ok(()),
            _ended = running.changed() => Err(self.ended()),
        }
    }

    /// Why the connection has ended, if it has.
    pub(super) fn has_ended(&self) -> Option<ClientError> {
        self.shared.ended.get().cloned()
    }

    /// Why the connection has ended, for those who know that it has.
    pub(super) fn ended(&self) -> ClientError {
        self.has_ended()
            .unwrap_or_else(|| ClientError::Lost("the connection is being closed".to_owned()))
    }

    /// Returns when the task has ended.
    pub(super) async fn wait_for_end(&self) {
        let mut running = self.running.clone();
        // Nothing is ever sent, so this ends only when the task drops its end.
        while running.changed().await.is_ok() {}
    }
}

/// Someone waits for an answer; dropping it forgets that.
pub(super) struct Waiting<'a> {
    shared: &'a Shared,
    tag: Tag,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&self.tag);
        }
    }
}

struct Reader<'a> {
    stream: SplitStream<Socket>,
    shared: &'a Shared,
    deliver: Option<mpsc::Sender<Delivery>>,
    /// After so long the relay is asked whether it is there; after the same again it is not.
    silence: Duration,
    to_ask: mpsc::WeakSender<Outbound>,
}

impl Reader<'_> {
    /// Reads until the connection ends, and says why it did.
    async fn run(mut self) -> ClientError {
        loop {
            let ask = || ask_for_a_pong(&self.to_ask);
            let heard = next_message(&mut self.stream, self.silence, ask).await;
            match heard {
                Ok(Message::Binary(frame)) => match decode_server_frame(&frame) {
                    Ok(frame) => take(frame, self.shared, self.deliver.as_ref()).await,
                    Err(bad) => return ClientError::Protocol(bad.0),
                },
                Ok(Message::Close(frame)) => {
                    let why = closed(frame);
                    self.shared.end(why.clone());
                    // Reading on sends our half of the goodbye; then it is the relay's turn to hang up.
                    let hang_up = async { while let Some(Ok(_)) = self.stream.next().await {} };
                    tokio::time::timeout(HANG_UP_TIMEOUT, hang_up).await.ok();
                    return why;
                }
                Ok(Message::Pong(_)) => self.shared.hear_pong(),
                // Pings are answered by tungstenite with the next read.
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    }
}

/// Where frames wait to be written, nothing needs to be added: the relay answers none of them either.
fn ask_for_a_pong(to_ask: &mpsc::WeakSender<Outbound>) {
    if let Some(to_ask) = to_ask.upgrade() {
        to_ask.try_send(Outbound::Ping).ok();
    }
}

/// Hands a frame to whom it concerns.
async fn take(frame: ServerFrame, shared: &Shared, deliver: Option<&mpsc::Sender<Delivery>>) {
    match frame {
        ServerFrame::Acknowledgment {
            request,
            status: status @ (Status::Stored | Status::Failed { .. }),
        } => {
            let who = shared
                .waiting()
                .as_mut()
                .and_then(|all| all.remove(&request));
            if let Some(who) = who {
                // Whoever gave up waiting does not want it.
                who.send(status).ok();
            }
        }
        ServerFrame::Delivery {
            delivery: tag,
            body,
        } => {
            if let Some(deliver) = deliver {
                // Fails when the client closes; the relay keeps what was not acknowledged.
                deliver.send(Delivery { tag, body }).await.ok();
            }
        }
        ServerFrame::Acknowledgment { .. }
        | ServerFrame::HandshakeAck { .. }
        | ServerFrame::Other => {}
    }
}

/// Writes what the client hands over until it says goodbye or writing fails, and says which.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut to_write: mpsc::Receiver<Outbound>,
) -> ClientError {
    let why = match write_all(&mut sink, &mut to_write).await {
        Ok(()) => ClientError::Lost("the relay did not answer the close frame".to_owned()),
        Err(error) => lost(error),
    };
    // The reader may still find the relay's goodbye, which says more.
    tokio::time::sleep(GOODBYE_TIMEOUT).await;
    why
}

async fn write_all(
    sink: &mut SplitSink<Socket, Message>,
    to_write: &mut mpsc::Receiver<Outbound>,
) -> Result<(), SocketError> {
    while let Some(mut next) = to_write.recv().await {
        loop {
            match next {
                Outbound::Frame(frame) => sink.feed(Message::Binary(frame)).await?,
                Outbound::Ping => sink.feed(Message::Ping(Bytes::new())).await?,
                Outbound::Close => {
                    let goodbye = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "".into(),
                    };
                    return sink.send(Message::Close(Some(goodbye))).await;
                }
            }
            match to_write.try_recv() {
                Ok(another) => next = another,
                Err(_) => break,
            }
        }
        sink.flush().await?;
    }
    Ok(())
}
