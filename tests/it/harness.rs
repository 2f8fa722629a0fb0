//! Starts the real server from a real `Config` on port 0, and talks to it as a stranger would: the
//! client here builds its frames with serde_json and shares no code with the relay's codec.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use vauchi_relay::clock::{Clock, ManualClock, Timestamp};
use vauchi_relay::config::Config;
use vauchi_relay::server::{self, Ending, Running};
use vauchi_relay::store::engine::Opened;

/// How long a test waits for what must come. Long, because the machine may be busy; a test that
/// passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test listens for what must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(150);

/// When the relay's clock begins: 2026-11-21, so that times look like times.
pub(crate) const BEGINNING: Timestamp = Timestamp::from_millis(1_795_220_095_000);

/// A relay in this process.
pub(crate) struct Relay {
    pub(crate) running: Running,
    pub(crate) config: Config,
    /// Moves the relay's clock, which otherwise stands still.
    pub(crate) time: ManualClock,
    /// When that began.
    began: Timestamp,
    pub(crate) folder: Option<tempfile::TempDir>,
}

/// No limit holds unless a test asks for it: all tests come from one address.
pub(crate) const LIMITS_OFF: [(&str, &str); 10] = [
    ("RELAY_RATE_LIMIT_PER_MIN", "0"),
    ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "0"),
    ("RELAY_MAILBOX_SHARE_PER_HOUR", "0"),
    ("RELAY_ADDRESS_SHARE_PER_DAY", "0"),
    ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "0"),
    ("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", "0"),
    ("RELAY_OPENINGS_PER_MIN", "0"),
    ("RELAY_FAILED_PROOFS_PER_MIN", "0"),
    ("RELAY_RECOVERY_RATE_LIMIT", "0"),
    ("RELAY_MIN_FREE_BYTES", "0"),
];

/// Settings for a test: ports of its own, a folder of its own, no rates and no limits per address
/// unless they are asked for.
pub(crate) fn settings(variables: &[(&str, &str)]) -> HashMap<String, String> {
    let mut settings: HashMap<String, String> = [
        ("RELAY_LISTEN_ADDR", "127.0.0.1:0"),
        ("RELAY_HTTP_ADDR", "127.0.0.1:0"),
    ]
    .into_iter()
    .chain(LIMITS_OFF)
    .chain(variables.iter().copied())
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    settings
        .entry("RELAY_STORAGE_BACKEND".to_owned())
        .or_insert_with(|| "sqlite".to_owned());
    settings
}

/// The configuration that these settings make.
pub(crate) fn config(settings: HashMap<String, String>) -> Config {
    let variables = settings
        .into_iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::from_vars(variables).unwrap().config
}

impl Relay {
    /// A relay on SQLite in a folder of its own, with these settings.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        Self::start_with(variables, |_| {}, |store| store).await
    }

    /// A relay whose configuration is changed by the test, beyond what settings can say.
    pub(crate) async fn configured(
        variables: &[(&str, &str)],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::start_with(variables, change, |store| store).await
    }

    /// A relay whose configuration and store are changed by the test.
    pub(crate) async fn start_with(
        variables: &[(&str, &str)],
        change: impl FnOnce(&mut Config),
        wrap: impl FnOnce(Opened) -> Opened,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(variables);
        settings
            .entry("RELAY_DATA_DIR".to_owned())
            .or_insert_with(|| folder.path().display().to_string());
        let mut config = config(settings);
        change(&mut config);
        Self::launch(config, Some(folder), BEGINNING, wrap).await
    }

    /// A relay whose clock starts at `now`, on the folder that these settings name.
    pub(crate) async fn start_at(now: Timestamp, variables: &[(&str, &str)]) -> Self {
        Self::launch(config(settings(variables)), None, now, |store| store).await
    }

    async fn launch(
        config: Config,
        folder: Option<tempfile::TempDir>,
        time_of_day: Timestamp,
        wrap: impl FnOnce(Opened) -> Opened,
    ) -> Self {
        let (clock, time) = Clock::manual(time_of_day);
        let running = server::start_with(&config, clock, wrap).await.unwrap();
        Self {
            running,
            config,
            time,
            began: time_of_day,
            folder,
        }
    }

    /// Drains the relay.
    pub(crate) async fn stop(self) -> Ending {
        tokio::time::timeout(PATIENCE, self.running.drain())
            .await
            .expect("the relay ends")
    }

    /// Drains the relay and starts another one on the same folder, at the same time of day.
    pub(crate) async fn restart(self) -> Self {
        self.restart_ahead(Duration::ZERO, |store| store).await
    }

    /// Drains the relay, does something, and starts another one on the same folder with another
    /// configuration.
    pub(crate) async fn restart_after(
        self,
        meanwhile: impl FnOnce(),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (mut config, folder) = (self.config, self.folder);
        let time_of_day = self.began.plus(self.time.elapsed());
        tokio::time::timeout(PATIENCE, self.running.drain())
            .await
            .expect("the relay ends");
        meanwhile();
        change(&mut config);
        Self::launch(config, folder, time_of_day, |store| store).await
    }

    /// Drains the relay and starts another one on the same folder, whose clock is `ahead` from the
    /// start on; its store is changed by the test.
    pub(crate) async fn restart_ahead(
        self,
        ahead: Duration,
        wrap: impl FnOnce(Opened) -> Opened,
    ) -> Self {
        let time_of_day = self.began.plus(self.time.elapsed() + ahead);
        self.restart_at(time_of_day, wrap).await
    }

    /// Drains the relay and starts another one on the same folder at this time of day; its store is
    /// changed by the test.
    pub(crate) async fn restart_at(
        self,
        time_of_day: Timestamp,
        wrap: impl FnOnce(Opened) -> Opened,
    ) -> Self {
        let (config, folder) = (self.config, self.folder);
        tokio::time::timeout(PATIENCE, self.running.drain())
            .await
            .expect("the relay ends");
        Self::launch(config, folder, time_of_day, wrap).await
    }

    /// A client that has opened the mailbox `id`.
    pub(crate) async fn client(&self, id: &str) -> Peer {
        let mut peer = Peer::connect(self.running.clients).await;
        peer.handshake(json!({ "client_id": id })).await;
        peer
    }

    /// A client that has opened the mailbox `id` and comes, as the proxy in front says, from
    /// `address`.
    pub(crate) async fn client_from(&self, address: &str, id: &str) -> Peer {
        let connecting = self.connect_from(address).await;
        let mut peer = connecting.expect("the relay lets it in");
        peer.handshake(json!({ "client_id": id })).await;
        peer
    }

    /// A connection that comes, as the proxy in front says, from `address`.
    pub(crate) async fn connect_from(
        &self,
        address: &str,
    ) -> Result<Peer, tokio_tungstenite::tungstenite::Error> {
        let headers = [("x-forwarded-for", address)];
        Peer::try_connect_with(self.running.clients, &headers).await
    }

    /// The value of a series of `/metrics`, with its labels if it has any; zero when it is absent.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (status, body) = http_get(self.running.operators, "/metrics", &[]).await;
        assert_eq!(status, 200, "{body}");
        value_of(&body, series).unwrap_or_default()
    }

    /// Waits until a series has a value.
    pub(crate) async fn metric_becomes(&self, series: &str, value: f64) {
        eventually(&format!("{series} = {value}"), async || {
            self.metric(series).await == value
        })
        .await;
    }
}

/// The value of a series in a scrape.
pub(crate) fn value_of(scrape: &str, series: &str) -> Option<f64> {
    scrape.lines().find_map(|line| {
        line.strip_prefix(series)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// Waits until `holds` says so.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "never: {what}"
    );
}

/// GETs a path: status and body.
pub(crate) async fn http_get(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    http(address, &(request + "\r\n")).await
}

/// Sends an HTTP request as it is: status and body.
pub(crate) async fn http(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut response))
        .await
        .expect("an answer")
        .unwrap();
    let response = String::from_utf8_lossy(&response).into_owned();
    let status = response
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_default();
    let body = response
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    (status, body)
}

/// A client of 64 hex digits, all made of this byte.
pub(crate) fn id(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// A v1 frame around this JSON.
pub(crate) fn frame(json: &Value) -> Vec<u8> {
    prefixed(json.to_string().as_bytes())
}

/// These bytes behind their length.
pub(crate) fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let mut frame = (bytes.len() as u32).to_be_bytes().to_vec();
    frame.extend(bytes);
    frame
}

/// An envelope around a payload.
pub(crate) fn envelope(message_id: &str, payload: Value) -> Value {
    json!({ "version": 1, "message_id": message_id, "timestamp": 1_795_220_095_u64, "payload": payload })
}

/// A submit of this blob.
pub(crate) fn update(message_id: &str, to: &str, blob: &[u8]) -> Value {
    envelope(
        message_id,
        json!({ "type": "EncryptedUpdate", "recipient_id": to, "ciphertext": blob }),
    )
}

/// What a client sees of the end of its connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Goodbye {
    Frame(u16, String),
    Bare,
}

/// A WebSocket client.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    sent: u64,
}

/// A delivered blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) id: String,
    pub(crate) blob: Vec<u8>,
}

fn parsed(frame: &[u8]) -> Value {
    let (prefix, json) = frame.split_at(4);
    let announced = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
    assert_eq!(announced, json.len());
    serde_json::from_slice(json).unwrap()
}

fn is_notice(frame: &Value) -> bool {
    frame["payload"].get("blob_id").is_some()
}

fn delivered(frame: &Value) -> Delivered {
    Delivered {
        id: frame["message_id"].as_str().unwrap().to_owned(),
        blob: serde_json::from_value(frame["payload"]["ciphertext"].clone()).unwrap(),
    }
}

impl Peer {
    /// Connected, and nothing said yet.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    /// As `connect`, for relays that may say no.
    pub(crate) async fn try_connect(
        address: SocketAddr,
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        Self::try_connect_with(address, &[]).await
    }

    /// As `try_connect`, with these headers in the request.
    pub(crate) async fn try_connect_with(
        address: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let mut request = format!("ws://{address}/").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        Self::upgraded(TcpStream::connect(address).await?, request).await
    }

    /// A WebSocket on this connection, for tests that choose its address or its buffers.
    pub(crate) async fn over(
        stream: TcpStream,
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        Self::over_with(stream, "relay", &[]).await
    }

    /// As `over`, with this host and these headers in the request.
    pub(crate) async fn over_with(
        stream: TcpStream,
        host: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let mut request = format!("ws://{host}/").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        Self::upgraded(stream, request).await
    }

    async fn upgraded(
        stream: TcpStream,
        request: tokio_tungstenite::tungstenite::handshake::client::Request,
    ) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let config = WebSocketConfig::default()
            .read_buffer_size(16 * 1024)
            .max_message_size(None)
            .max_frame_size(None);
        stream.set_nodelay(true).unwrap();
        let connecting = tokio_tungstenite::client_async_with_config(
            request,
            MaybeTlsStream::Plain(stream),
            Some(config),
        );
        let (socket, _) = tokio::time::timeout(PATIENCE, connecting)
            .await
            .expect("an answer")?;
        Ok(Self { socket, sent: 0 })
    }

    /// Writes these bytes as they are, beneath the WebSocket.
    pub(crate) async fn write_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.get_mut().write_all(bytes).await
    }

    /// Sends a handshake with these fields and expects the welcome.
    pub(crate) async fn handshake(&mut self, fields: Value) -> Value {
        self.say_hello(fields).await;
        let welcome = self.receive().await;
        assert_eq!(welcome["payload"]["type"], "HandshakeAck", "{welcome}");
        welcome
    }

    /// As `handshake`, for relays that may be killed in the middle.
    pub(crate) async fn try_handshake(&mut self, id: &str) -> bool {
        let payload = json!({ "type": "Handshake", "client_id": id });
        self.try_send(&envelope("11111111-1111-4111-8111-111111111111", payload))
            .await
            && self.next().await.is_ok()
    }

    /// As `send`, for relays that may be killed in the middle.
    pub(crate) async fn try_send(&mut self, json: &Value) -> bool {
        self.socket
            .send(Message::Binary(frame(json).into()))
            .await
            .is_ok()
    }

    /// Sends a handshake with these fields.
    pub(crate) async fn say_hello(&mut self, mut fields: Value) {
        fields["type"] = "Handshake".into();
        self.send(&envelope("11111111-1111-4111-8111-111111111111", fields))
            .await;
    }

    /// Sends this JSON as a frame.
    pub(crate) async fn send(&mut self, json: &Value) {
        self.send_bytes(frame(json)).await;
    }

    /// Sends these bytes as a binary message.
    pub(crate) async fn send_bytes(&mut self, bytes: Vec<u8>) {
        self.socket
            .send(Message::Binary(bytes.into()))
            .await
            .unwrap();
    }

    /// Submits a blob without waiting; returns the message id.
    pub(crate) async fn submit(&mut self, to: &str, blob: &[u8]) -> String {
        self.sent += 1;
        let message_id = format!("22222222-2222-4222-8222-{:012}", self.sent);
        self.send(&update(&message_id, to, blob)).await;
        message_id
    }

    /// Submits a blob and expects it to be stored.
    pub(crate) async fn store(&mut self, to: &str, blob: &[u8]) {
        let message_id = self.submit(to, blob).await;
        self.expect_stored(&message_id).await;
    }

    /// Expects the answer `Stored` to this request, next.
    pub(crate) async fn expect_stored(&mut self, message_id: &str) {
        let answer = self.receive().await;
        assert_eq!(answer["payload"]["status"], "Stored", "{answer}");
        assert_eq!(answer["payload"]["message_id"], message_id);
    }

    /// Expects a refusal of this request, next; returns its payload.
    pub(crate) async fn expect_refusal(&mut self, message_id: &str, code: &str) -> Value {
        let answer = self.receive().await;
        assert_eq!(answer["payload"]["status"], "Failed", "{answer}");
        assert_eq!(answer["payload"]["message_id"], message_id, "{answer}");
        assert_eq!(answer["payload"]["error"], code, "{answer}");
        answer["payload"].clone()
    }

    /// The next blob.
    pub(crate) async fn delivery(&mut self) -> Delivered {
        let delivery = self.receive().await;
        assert_eq!(delivery["payload"]["type"], "EncryptedUpdate", "{delivery}");
        delivered(&delivery)
    }

    /// Sends a blob to its own mailbox `own` and gets it back. The delivery may overtake `Stored`:
    /// what is durable may be read before its sender is told.
    pub(crate) async fn round_trip(&mut self, own: &str, blob: &[u8]) -> Delivered {
        let message_id = self.submit(own, blob).await;
        let frames = [self.receive().await, self.receive().await];
        let is_delivery = |frame: &Value| frame["payload"]["type"] == "EncryptedUpdate";
        let [answer, delivery] = match is_delivery(&frames[0]) {
            true => [&frames[1], &frames[0]],
            false => [&frames[0], &frames[1]],
        };
        assert_eq!(answer["payload"]["status"], "Stored", "{answer}");
        assert_eq!(answer["payload"]["message_id"], message_id);
        assert_eq!(delivered(delivery).blob, blob);
        delivered(delivery)
    }

    /// Acknowledges a blob; v1 has no answer to that.
    pub(crate) async fn acknowledge(&mut self, id: &str) {
        let payload =
            json!({ "type": "Acknowledgment", "message_id": id, "status": "ReceivedByRecipient" });
        self.send(&envelope("44444444-4444-4444-8444-444444444444", payload))
            .await;
    }

    /// The next frame that is no notice, its prefix checked. Notices come whenever they do.
    pub(crate) async fn receive(&mut self) -> Value {
        loop {
            let frame = self.receive_any().await;
            if !is_notice(&frame) {
                return frame;
            }
        }
    }

    /// The next frame, notices too, its prefix checked.
    pub(crate) async fn receive_any(&mut self) -> Value {
        match self.next().await {
            Ok(frame) => parsed(&frame),
            Err(goodbye) => panic!("closed: {goodbye:?}"),
        }
    }

    /// The next binary message, or how the connection ended.
    pub(crate) async fn next(&mut self) -> Result<Vec<u8>, Goodbye> {
        let waiting = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(frame))) => return Ok(frame.to_vec()),
                    Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                        return Err(Goodbye::Frame(code.into(), reason.to_string()));
                    }
                    Some(Ok(Message::Close(None)) | Err(_)) | None => return Err(Goodbye::Bare),
                    Some(Ok(_)) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("something from the relay")
    }

    /// Expects the connection to be closed with this code; whatever comes before is passed over.
    pub(crate) async fn expect_close(&mut self, code: u16) -> String {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(Goodbye::Frame(given, reason)) => {
                    assert_eq!(given, code, "{reason}");
                    return reason;
                }
                Err(Goodbye::Bare) => panic!("closed without a close frame"),
            }
        }
    }

    /// Expects nothing to come but notices.
    pub(crate) async fn expect_silence(&mut self) {
        let listening = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(frame))) if is_notice(&parsed(&frame)) => {}
                    Some(Ok(Message::Ping(_))) => {}
                    other => return other,
                }
            }
        };
        if let Ok(message) = tokio::time::timeout(SILENCE, listening).await {
            panic!("unexpected: {message:?}");
        }
    }

    /// Expects nothing to come, not even a notice.
    pub(crate) async fn expect_no_notice(&mut self) {
        if let Ok(message) = tokio::time::timeout(SILENCE, self.socket.next()).await {
            panic!("unexpected: {message:?}");
        }
    }

    /// Leaves politely and waits until the relay has, too.
    pub(crate) async fn leave(mut self) {
        self.socket.close(None).await.ok();
        while let Ok(Some(Ok(_))) = tokio::time::timeout(PATIENCE, self.socket.next()).await {}
    }
}
