//! The client library where something is in the way: refusals, sizes, a reader that does not read,
//! relays that fall silent, relays that are not the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt as _;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_util::task::AbortOnDropHandle;
use vauchi_relay::client::{
    Blob, Client, ClientError, MailboxId, MailboxKey, Options, Receipts, Submitted, v1,
};
use vauchi_relay::protocol::v2;

use crate::client::v2::{client, client_with, next_blob, url};
use crate::harness::{PATIENCE, Relay, eventually};
use crate::v2::client::Guest;

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("{what}: it does not come"))
}

#[tokio::test]
async fn answers_come_while_nobody_takes_what_is_delivered() {
    let relay = Relay::start(&[]).await;
    let client = client_with(&relay, |options| options.window_bytes = 256).await;
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    for n in 0..5u8 {
        let blob = Blob::new(key.mailbox(), vec![n; 1_000]);
        let stored = in_time("stored", client.submit(&blob)).await;
        assert!(matches!(stored, Ok(Submitted::Stored { .. })), "{stored:?}");
    }
    for n in 0..5u8 {
        let delivery = next_blob(&client).await;
        assert_eq!(delivery.body, vec![n; 1_000]);
        client.acknowledge(delivery.item).await.unwrap();
    }
}

#[tokio::test]
async fn too_fast_is_the_library_s_trouble_and_not_the_caller_s_unless_it_wants_to() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "60")]).await;
    let key = MailboxKey::random();
    let blobs: Vec<_> = (0..62)
        .map(|n: u32| Blob::new(key.mailbox(), n.to_string()))
        .collect();
    let sender = client(&relay).await;
    let time_passes = async {
        let refused = "relay_refusals_total{code=\"rate_limited\"}";
        eventually("refused", async || relay.metric(refused).await >= 2.0).await;
        relay.time.advance(Duration::from_secs(60));
    };
    let all = join_all(blobs.iter().map(|blob| sender.submit(blob)));
    let (stored, ()) = in_time("all", async { tokio::join!(all, time_passes) }).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    assert_eq!(relay.running.store.usage().stored, 62);

    let impatient = client_with(&relay, |options| options.repeat_for = Duration::ZERO).await;
    impatient.open(&key, Receipts::None).await.unwrap();
    let stored = join_all(blobs.iter().map(|blob| impatient.submit(blob))).await;
    let refused = stored.iter().find_map(|stored| stored.as_ref().err());
    assert!(
        refused.is_some_and(|why| why.retry_after().is_some()),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_blob_that_no_frame_can_carry_is_told_to_its_sender_and_the_others_go() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "2048")]).await;
    // Asked before the client knows what the relay takes.
    let client = Client::start(Options::new([url(relay.running.clients)])).unwrap();
    let to = MailboxKey::random().mailbox();
    let (large, small) = (Blob::new(to, vec![0; 20_000]), Blob::new(to, "small"));
    let both = async { tokio::join!(client.submit(&large), client.submit(&small)) };
    let (large, small) = in_time("an answer", both).await;
    let is_told = matches!(
        large,
        Err(ClientError::TooLarge {
            bytes: 20_000,
            bytes_max: 2_048
        })
    );
    assert!(is_told && small.is_ok(), "{large:?} {small:?}");
}

#[tokio::test]
async fn padding_goes_no_further_than_the_relay_takes_though_it_was_not_known_yet() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "100000")]).await;
    let client = Client::start(Options::new([url(relay.running.clients)])).unwrap();
    let blob = Blob::new(MailboxKey::random().mailbox(), vec![0; 90_000]);
    in_time("stored", client.submit(&blob)).await.unwrap();
}

#[tokio::test]
async fn a_relay_whose_blobs_are_too_large_for_the_client_is_named_so() {
    let relay = Relay::start(&[]).await;
    let mut options = Options::new([url(relay.running.clients)]);
    options.message_bytes_max = 100_000;
    let refused = Client::connect(options).await.err();
    let is_named = matches!(refused, Some(ClientError::BlobsTooLarge { .. }));
    assert!(is_named, "{refused:?}");
}

#[tokio::test]
async fn a_blob_comes_again_to_a_mailbox_that_is_opened_again() {
    let relay = Relay::start(&[]).await;
    let client = client(&relay).await;
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    client.submit(&Blob::new(key.mailbox(), "x")).await.unwrap();
    let before = next_blob(&client).await;
    client.unsubscribe(&[key.mailbox()]).await.unwrap();
    client.open(&key, Receipts::None).await.unwrap();
    let again = next_blob(&client).await;
    assert_eq!(again.item, before.item);

    // One that was kept is remembered: it is deleted when the relay brings it again.
    client.unsubscribe(&[key.mailbox()]).await.unwrap();
    let closed = client.acknowledge(again.item).await;
    assert_eq!(closed.err(), Some(ClientError::NotOpen));
    client.open(&key, Receipts::None).await.unwrap();
    eventually("deleted", async || relay.running.store.usage().stored == 0).await;
}

#[tokio::test]
async fn mailboxes_are_opened_at_the_relay_that_takes_over() {
    let (first, second) = tokio::join!(Relay::start(&[]), Relay::start(&[]));
    let urls = [url(first.running.clients), url(second.running.clients)];
    let client = Client::connect(Options::new(urls)).await.unwrap();
    let at_first = client.relay_id();
    let keys = [MailboxKey::derived(&[3; 32], 1), MailboxKey::random()];
    for key in &keys {
        client.open(key, Receipts::None).await.unwrap();
    }
    first.stop().await;
    for key in &keys {
        client.submit(&Blob::new(key.mailbox(), "x")).await.unwrap();
        assert_eq!(next_blob(&client).await.body, "x");
    }
    assert!(client.relay_id() != at_first);
}

/// Passes connections on. The first falls silent when it is told to, as a network does that has lost a
/// route: nothing arrives and nothing is closed.
struct Passage {
    address: SocketAddr,
    silence: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Passage {
    async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silence = Arc::new(Notify::new());
        let told = Arc::clone(&silence);
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut inside, _) = listener.accept().await.unwrap();
                let mut outside = TcpStream::connect(relay).await.unwrap();
                let (told, is_first) = (Arc::clone(&told), open.is_empty());
                open.push(AbortOnDropHandle::new(tokio::spawn(async move {
                    let both = copy_bidirectional(&mut inside, &mut outside);
                    tokio::select! {
                        _ = both => {}
                        () = told.notified(), if is_first => std::future::pending().await,
                    }
                })));
            }
        });
        Self {
            address,
            silence,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

#[tokio::test]
async fn a_relay_that_falls_silent_is_asked_and_then_left() {
    let relay = Relay::start(&[]).await;
    let passage = Passage::to(relay.running.clients).await;
    let mut options = Options::new([url(passage.address)]);
    options.ping_after = Duration::from_millis(300);
    let client = Client::connect(options).await.unwrap();
    let to = MailboxKey::random().mailbox();
    client.submit(&Blob::new(to, "before")).await.unwrap();
    // Quiet for long, and still there: the relay says so when it is asked. Were its answers not heard,
    // each time would have taken a connection; a busy machine may cost one.
    let heard = "relay_messages_received_total";
    eventually("asked", async || relay.metric(heard).await >= 5.0).await;
    assert!(relay.metric("relay_connections_total").await <= 2.0);
    passage.silence.notify_one();
    in_time("stored", client.submit(&Blob::new(to, "after")))
        .await
        .unwrap();
}

/// A relay that lets everybody in, welcomes, and hangs up.
async fn hangs_up(like: &Relay) -> (SocketAddr, AbortOnDropHandle<()>) {
    let welcome = Guest::connect(like).await.welcome;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let frame = v2::encode(None, &v2::Answer::Welcome(Box::new(welcome)));
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            #[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
            let offered = |_: &Request, mut response: Response| {
                let spoken = HeaderValue::from_static("vauchi.relay.v2");
                response
                    .headers_mut()
                    .insert("sec-websocket-protocol", spoken);
                Ok(response)
            };
            let upgraded = tokio_tungstenite::accept_hdr_async(stream, offered).await;
            if let Ok(mut socket) = upgraded {
                socket.send(Message::Binary(frame.clone())).await.ok();
                socket.close(None).await.ok();
            }
        }
    });
    (address, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn a_relay_that_lets_in_and_hangs_up_is_as_bad_as_none() {
    let relay = Relay::start(&[]).await;
    let (bad, _task) = hangs_up(&relay).await;
    let client = Client::start(Options::new([url(bad), url(relay.running.clients)])).unwrap();
    let blob = Blob::new(MailboxKey::random().mailbox(), "x");
    in_time("stored elsewhere", client.submit(&blob))
        .await
        .unwrap();

    let mut options = Options::new([url(bad)]);
    options.give_up_after = Some(Duration::from_millis(300));
    let alone = Client::start(options).unwrap();
    let given_up = in_time("the end", alone.submit(&blob)).await;
    let is_why = matches!(
        given_up,
        Err(ClientError::Closed { .. } | ClientError::Lost(_))
    );
    assert!(is_why, "{given_up:?}");
}

#[tokio::test]
async fn patience_ends_when_the_caller_s_does_and_trouble_can_be_seen() {
    let address = {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        taken.local_addr().unwrap()
    };
    let client = Client::start(Options::new([url(address)])).unwrap();
    let blob = Blob::new(MailboxKey::random().mailbox(), "x");
    let late = client.submit_within(&blob, Duration::from_millis(50)).await;
    assert_eq!(late, Err(ClientError::Timeout));
    eventually("trouble", async || {
        matches!(client.trouble(), Some(ClientError::Unreachable(_)))
    })
    .await;
    let listen = address.to_string();
    let relay = Relay::start(&[("RELAY_LISTEN_ADDR", &listen)]).await;
    // What was given up is not handed in behind the caller's back.
    client.submit(&Blob::new(blob.mailbox, "y")).await.unwrap();
    assert_eq!(client.trouble(), None);
    assert_eq!(relay.running.store.usage().stored, 1);
}

#[test]
fn who_waits_is_told_when_the_client_s_runtime_ends() {
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let client = theirs.block_on(async { Client::start(Options::new(["ws://127.0.0.1:9"])) });
    let client = client.unwrap();
    theirs.shutdown_timeout(PATIENCE);
    let ours = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let blob = Blob::new(MailboxKey::random().mailbox(), "x");
    let told = ours
        .unwrap()
        .block_on(in_time("the end", client.submit(&blob)));
    assert_eq!(told, Err(ClientError::Finished));
}

/// What a hotel's portal or a page for maintenance says to everything, until somebody has paid or is done.
#[tokio::test]
async fn what_has_not_shown_to_be_the_relay_keeps_a_client_away_for_a_minute_at_most() {
    for (asked, wait) in [
        ("Retry-After: 7\r\n", Some(7)),
        ("Retry-After: 86400\r\n", Some(60)),
        ("Retry-After: 99999999999999999999999\r\n", Some(60)),
        ("Retry-After: Fri, 31 Dec 2027 23:59:59 GMT\r\n", Some(60)),
        ("", None),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer =
            format!("HTTP/1.1 503 Service Unavailable\r\n{asked}Content-Length: 0\r\n\r\n");
        let portal = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                assert!(length > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let connect = async {
            let v2 = Client::connect(Options::new([url(address)])).await;
            let unsigned = v1::Options::unsigned(MailboxId::from_bytes([1; 32]));
            let v1 = v1::Client::connect(&url(address), unsigned).await;
            [v2.err().unwrap(), v1.err().unwrap()]
        };
        let errors = tokio::select! {
            () = portal => unreachable!(),
            errors = connect => errors,
        };
        for error in errors {
            let told = error.retry_after().map(|after| after.as_secs());
            assert_eq!(told, wait, "{asked:?}: {error:?}");
        }
    }
}
