//! The client library against the real relay, over networks that fail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use vauchi_relay::client::{
    Blob, BlobSecret, Client, ClientError, Delivery, Event, MailboxKey, Options, ReceiptKind,
    Receipts, Submitted,
};
use vauchi_relay::server::Ending;
use vauchi_relay::store::model::ROW_OVERHEAD_BYTES;

use crate::harness::{PATIENCE, Relay, SILENCE, eventually};

pub(crate) fn url(address: SocketAddr) -> String {
    format!("ws://{address}")
}

pub(crate) async fn client(relay: &Relay) -> Client {
    client_with(relay, |_| {}).await
}

pub(crate) async fn client_with(relay: &Relay, change: impl FnOnce(&mut Options)) -> Client {
    let mut options = Options::new([url(relay.running.clients)]);
    change(&mut options);
    Client::connect(options).await.unwrap()
}

/// The next event that is no word of having caught up.
pub(crate) async fn next(client: &Client) -> Event {
    let next = async {
        loop {
            match client.next().await.expect("the client goes on") {
                Event::CaughtUp(_) => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(PATIENCE, next)
        .await
        .expect("an event")
}

pub(crate) async fn next_blob(client: &Client) -> Delivery {
    match next(client).await {
        Event::Blob(delivery) => delivery,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn expect_nothing(client: &Client) {
    let waited = tokio::time::timeout(SILENCE, next(client)).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn a_blob_goes_round_by_key_and_by_secret_and_is_gone_once_acknowledged() {
    let relay = Relay::start(&[]).await;
    for key in [MailboxKey::random(), MailboxKey::derived(&[7; 32], 1)] {
        let sender = client(&relay).await;
        let blob = Blob::new(key.mailbox(), "hello");
        let stored = sender.submit(&blob).await.unwrap();
        let Submitted::Stored { duplicate, .. } = stored else {
            panic!("{stored:?}")
        };
        assert!(!duplicate);
        let again = sender.submit(&blob).await.unwrap();
        assert!(matches!(
            again,
            Submitted::Stored {
                duplicate: true,
                ..
            }
        ));

        let recipient = client(&relay).await;
        let opened = recipient.open(&key, Receipts::None).await.unwrap();
        assert_eq!(opened.pending, 1);
        let delivery = next_blob(&recipient).await;
        assert_eq!(
            (delivery.body.as_ref(), delivery.item.id),
            (&b"hello"[..], blob.id())
        );
        recipient.acknowledge(delivery.item).await.unwrap();
        assert_eq!(relay.running.store.usage().stored, 0);
        expect_nothing(&recipient).await;
        recipient.close().await.unwrap();
        sender.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_relay_that_does_not_know_the_name_it_is_dialled_by_is_not_used() {
    let relay = Relay::start(&[("RELAY_PUBLIC_ORIGINS", "relay.example")]).await;
    // This relay is dialled by its address.
    let connecting = Client::connect(Options::new([url(relay.running.clients)]));
    let Err(ClientError::Refused { code, message, .. }) = connecting.await else {
        panic!("it connects")
    };
    assert_eq!(code, "wrong_origin");
    assert!(message.contains("RELAY_PUBLIC_ORIGINS"), "{message}");
}

#[tokio::test]
async fn blobs_are_padded_at_the_relay_and_plain_on_arrival_unless_v1_may_see_them() {
    let relay = Relay::start(&[]).await;
    let key = MailboxKey::random();
    let client = client(&relay).await;
    client.open(&key, Receipts::None).await.unwrap();
    let (small, large) = (
        Blob::new(key.mailbox(), "x"),
        Blob::new(key.mailbox(), vec![1; 70_000]),
    );
    let mut plain = Blob::new(key.mailbox(), "y");
    plain.terms.v1_ok = true;
    for (blob, bytes_at_rest) in [(small, 256), (large, 131_072), (plain, 1)] {
        client.submit(&blob).await.unwrap();
        let delivery = next_blob(&client).await;
        assert_eq!(delivery.body, blob.body);
        let charged = relay.running.store.usage().bytes;
        assert_eq!(charged, bytes_at_rest + ROW_OVERHEAD_BYTES);
        client.acknowledge(delivery.item).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_asks_for_receipts_gets_them_and_may_cancel_and_extend() {
    let relay = Relay::start(&[]).await;
    let (theirs, mine) = (MailboxKey::random(), MailboxKey::derived(&[2; 32], 1));
    let sender = client(&relay).await;
    sender.open(&mine, Receipts::None).await.unwrap();
    let mut blob = Blob::new(theirs.mailbox(), "one");
    blob.terms.receipt_to = Some(mine.mailbox());
    blob.terms.ttl = Some(Duration::from_secs(7_200));
    sender.submit(&blob).await.unwrap();
    let mut withdrawn = blob.clone();
    withdrawn.secret = BlobSecret::random();
    sender.submit(&withdrawn).await.unwrap();
    sender
        .extend(blob.mailbox, &blob.secret, Duration::from_secs(9_000))
        .await
        .unwrap();
    sender
        .cancel(withdrawn.mailbox, &withdrawn.secret)
        .await
        .unwrap();

    let expect = async |blob: &Blob, kind| match next(&sender).await {
        Event::Receipt(receipt) => {
            assert_eq!((receipt.blob, receipt.kind), (blob.id(), kind));
            sender.acknowledge(receipt.item).await.unwrap();
        }
        other => panic!("{other:?}"),
    };
    expect(&withdrawn, ReceiptKind::Removed).await;
    let recipient = client(&relay).await;
    recipient.open(&theirs, Receipts::All).await.unwrap();
    let delivery = next_blob(&recipient).await;
    assert_eq!(delivery.item.id, blob.id());
    expect(&blob, ReceiptKind::Delivered).await;
    recipient.acknowledge(delivery.item).await.unwrap();
    expect(&blob, ReceiptKind::Acknowledged).await;
    assert_eq!(relay.running.store.usage().stored, 0);
}

/// A TCP proxy that cuts each connection after a random number of bytes, one way or the other.
struct Cutter {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Cutter {
    async fn before(relay: SocketAddr, bytes_max: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            loop {
                let (inside, _) = listener.accept().await.unwrap();
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let outside = TcpStream::connect(relay).await.unwrap();
                    pass_some(inside, outside, bytes_max).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self {
            address,
            cuts,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

async fn pass_some(inside: TcpStream, outside: TcpStream, bytes_max: u64) {
    let (mut from_client, mut to_client) = inside.into_split();
    let (mut from_relay, mut to_relay) = outside.into_split();
    let up = pass(
        &mut from_client,
        &mut to_relay,
        rand::random_range(1..bytes_max),
    );
    let down = pass(
        &mut from_relay,
        &mut to_client,
        rand::random_range(1..bytes_max),
    );
    tokio::select! { () = up => {}, () = down => {} }
}

/// Passes on that many bytes.
async fn pass(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut bytes: u64,
) {
    let mut buffer = [0; 1_024];
    while bytes > 0 {
        let part = usize::try_from(bytes).unwrap().min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..part]).await else {
            return;
        };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        bytes -= read as u64;
    }
}

#[tokio::test]
async fn a_thousand_submits_through_random_cuts_arrive_exactly_once_each() {
    const BLOBS: usize = 1_000;
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "0")]).await;
    let cutter = Cutter::before(relay.running.clients, 40_000).await;
    let options = || {
        let mut options = Options::new([url(cutter.address)]);
        // The relay is well; only the network is not, so there is nothing to wait for.
        options.backoff_max = Duration::from_millis(20);
        options
    };
    let key = MailboxKey::random();
    let recipient = Client::start(options()).unwrap();
    let sender = Client::start(options()).unwrap();
    recipient.open(&key, Receipts::None).await.unwrap();
    let blobs: Vec<_> = (0..BLOBS)
        .map(|n| Blob::new(key.mailbox(), n.to_string()))
        .collect();
    let sending = join_all(blobs.iter().map(|blob| sender.submit(blob)));
    let receiving = async {
        let mut came: HashMap<String, u32> = HashMap::new();
        let mut acknowledging = Vec::new();
        while came.len() < BLOBS {
            let delivery = next_blob(&recipient).await;
            let text = String::from_utf8(delivery.body.to_vec()).unwrap();
            *came.entry(text).or_default() += 1;
            acknowledging.push(delivery.item);
            if acknowledging.len() == 32 || came.len() == BLOBS {
                let all = acknowledging
                    .drain(..)
                    .map(|item| recipient.acknowledge(item));
                for outcome in join_all(all).await {
                    outcome.unwrap();
                }
            }
        }
        came
    };
    let both = async { tokio::join!(sending, receiving) };
    let (stored, came) = tokio::time::timeout(2 * PATIENCE, both)
        .await
        .expect("it ends");
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    assert!(came.values().all(|times| *times == 1), "{came:?}");
    expect_nothing(&recipient).await;
    assert_eq!(relay.running.store.usage().stored, 0);
    let cuts = cutter.cuts.load(Ordering::Relaxed);
    assert!(cuts >= 10, "only {cuts} cuts");

    // What a client cannot see, a fresh one would.
    let later = client(&relay).await;
    let opened = later.open(&key, Receipts::None).await.unwrap();
    assert_eq!(opened.pending, 0);
}

#[tokio::test]
async fn a_client_that_is_told_to_go_goes_to_the_other_relay_that_it_knows() {
    let (first, second) = tokio::join!(
        Relay::start(&[("RELAY_DRAIN_TIMEOUT_SECS", "60")]),
        Relay::start(&[])
    );
    let urls = [url(first.running.clients), url(second.running.clients)];
    let client = Client::connect(Options::new(urls)).await.unwrap();
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    client
        .submit(&Blob::new(key.mailbox(), "at the first"))
        .await
        .unwrap();
    let delivery = next_blob(&client).await;
    let (store, shutdown) = (
        Arc::clone(&first.running.store),
        first.running.shutdown.clone(),
    );
    let stopping = tokio::spawn(first.stop());
    shutdown.draining().await;

    // What it has in hand it acknowledges where it is; what is new goes to the other.
    let sent = tokio::join!(client.acknowledge(delivery.item), async {
        client
            .submit(&Blob::new(key.mailbox(), "at the second"))
            .await
    });
    assert!(sent.0.is_ok() && sent.1.is_ok(), "{sent:?}");
    assert_eq!(store.usage().stored, 0);
    assert_eq!(next_blob(&client).await.body, "at the second");
    assert_eq!(second.running.store.usage().stored, 1);
    assert_eq!(stopping.await.unwrap(), Ending::Drained);
}

#[tokio::test]
async fn no_more_is_unanswered_than_allowed_and_waiting_costs_nothing_but_time() {
    let relay = Relay::start(&[]).await;
    let client = client_with(&relay, |options| {
        options.submits_max = 2;
        options.submit_bytes_max = 300;
        options.requests_max = 1;
        options.window_blobs = 1;
    })
    .await;
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    let submits =
        (0..20).map(async |n: u8| client.submit(&Blob::new(key.mailbox(), vec![n])).await);
    let outcomes = join_all(submits).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let first = next_blob(&client).await;
    // The window is one blob.
    expect_nothing(&client).await;
    client.acknowledge(first.item).await.unwrap();
    for _ in 1..20 {
        let delivery = next_blob(&client).await;
        client.acknowledge(delivery.item).await.unwrap();
    }
    assert_eq!(relay.running.store.usage().stored, 0);
}

#[tokio::test]
async fn a_client_may_start_before_its_relay_and_gives_up_when_it_shall() {
    let address = {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        taken.local_addr().unwrap()
    };
    let refused = Client::connect(Options::new([url(address)])).await.err();
    assert!(
        matches!(refused, Some(ClientError::Unreachable(_))),
        "{refused:?}"
    );
    let mut options = Options::new([url(address)]);
    options.give_up_after = Some(Duration::from_millis(300));
    let client = Client::start(options).unwrap();
    let key = MailboxKey::random();
    let submitted = client.submit(&Blob::new(key.mailbox(), "x")).await;
    assert!(
        matches!(submitted, Err(ClientError::Unreachable(_))),
        "{submitted:?}"
    );
    assert_eq!(client.next().await, None);

    let client = Client::start(Options::new([url(address)])).unwrap();
    assert!(!client.is_connected());
    let listen = address.to_string();
    let relay = Relay::start(&[("RELAY_LISTEN_ADDR", &listen)]).await;
    client.submit(&Blob::new(key.mailbox(), "x")).await.unwrap();
    eventually("stored", async || relay.running.store.usage().stored == 1).await;
}
