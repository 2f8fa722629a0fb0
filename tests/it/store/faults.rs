//! A store that fails or stalls at its n-th call, seen through sockets: what was answered `Stored`
//! is never lost, what was refused has its second chance, and afterwards all goes on as before.

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use vauchi_relay::ids::MailboxId;
use vauchi_relay::secrets::{SECRET_FILE, Secret};
use vauchi_relay::store::model::{Tells, View};
use vauchi_relay::store::sqlite::DATABASE_FILE;

use crate::harness::{Delivered, PATIENCE, Peer, Relay, eventually, http_get, id, update};
use crate::store::faulty::{Call, Fault, Faults, Stall, faulty_relay};

const DAY: Duration = Duration::from_secs(86_400);

const SENDER: u8 = 1;
/// Its recipient is connected while blobs come.
const CONNECTED: u8 = 2;
/// Its recipient comes later.
const LATER: u8 = 3;
/// What it holds expires.
const EXPIRING: u8 = 4;
/// What they hold is purged.
const PURGED: [u8; 2] = [5, 6];

/// Blobs for each of the two mailboxes that are read.
const EACH: usize = 3;

thread_local! {
    /// Panics on this thread. The relay's tasks run on the thread of their test.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(panic);
        }));
    });
}

/// The fault of one life of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fail,
    FailCommit,
    Stall,
    StallCommit,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Fail, Self::FailCommit, Self::Stall, Self::StallCommit];

    fn fault(self, stall: &Stall) -> Fault {
        match self {
            Self::Fail => Fault::Fail,
            Self::FailCommit => Fault::FailCommit,
            Self::Stall => Fault::Stall(stall.clone()),
            Self::StallCommit => Fault::StallCommit(stall.clone()),
        }
    }

    fn fails(self) -> bool {
        matches!(self, Self::Fail | Self::FailCommit)
    }
}

/// A blob on its way: the name of its request, its mailbox, its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    name: String,
    to: u8,
    blob: Vec<u8>,
}

impl Sent {
    fn new(number: u8, to: u8) -> Self {
        Self {
            name: format!("blob {number}"),
            to,
            blob: vec![number; 40],
        }
    }

    fn frame(&self) -> Value {
        update(&self.name, &id(self.to), &self.blob)
    }
}

/// One relay that lives through a fixed small story while one call of its store is faulty.
struct Life {
    relay: Relay,
    faulty: Arc<Faults>,
    call: Call,
    nth: u64,
    kind: Kind,
    /// What was answered `Stored`, in the order in which it was.
    confirmed: Vec<Sent>,
    acknowledgements: u64,
}

impl Life {
    async fn begin(call: Call, nth: u64, kind: Kind) -> Self {
        count_panics();
        let stall = Stall::default();
        let mut faulty = None;
        let relay = Relay::start_with(
            &[
                ("RELAY_BLOB_TTL_DAYS", "1"),
                ("RELAY_CLEANUP_INTERVAL_SECS", "1"),
            ],
            |_| {},
            |opened| {
                let (faults, opened) = Faults::under(opened);
                // What comes for a connected recipient would be no page.
                faults.hide_hints();
                faults.on(call, nth, kind.fault(&stall));
                if call == Call::Page {
                    // A blob from memory is a page that is not read.
                    faults.hide_hints();
                }
                faulty = Some(faults);
                opened
            },
        )
        .await;
        // Whoever stalls the store, the relay is alive; and the stall ends one day.
        let operators = relay.running.operators;
        tokio::spawn(async move {
            stall.reached().await;
            let (status, _) = http_get(operators, "/health", &[]).await;
            assert_eq!(status, 200, "/health while the store stalls");
            stall.release();
        });
        Self {
            relay,
            faulty: faulty.unwrap(),
            call,
            nth,
            kind,
            confirmed: Vec::new(),
            acknowledgements: 0,
        }
    }

    /// Whether the n-th call of this kind answers an error.
    fn fails_at(&self, call: Call, number: u64) -> bool {
        self.call == call && self.nth == number && self.kind.fails()
    }

    /// Hands blobs in one behind the other without waiting; what is refused is sent again, the same
    /// frame, until it is stored.
    async fn send(&mut self, sender: &mut Peer, blobs: Vec<Sent>) {
        let mut left = blobs;
        let mut rounds = 0;
        while !left.is_empty() {
            for sent in &left {
                sender.send(&sent.frame()).await;
            }
            let mut refused = Vec::new();
            for sent in left {
                let answer = sender.receive().await["payload"].take();
                assert_eq!(answer["message_id"], sent.name.as_str(), "answers in order");
                if answer["status"] == "Stored" {
                    self.confirmed.push(sent);
                } else {
                    assert_eq!(answer["error"], "unavailable", "{answer}");
                    assert!(answer["retry_after_ms"].as_u64() > Some(0), "{answer}");
                    refused.push(sent);
                }
            }
            left = refused;
            rounds += 1;
            assert!(rounds <= 2, "only one call fails");
        }
    }

    /// What is confirmed for a mailbox, in order.
    fn confirmed_for(&self, to: u8) -> Vec<Vec<u8>> {
        let of = self.confirmed.iter().filter(|sent| sent.to == to);
        of.map(|sent| sent.blob.clone()).collect()
    }

    /// Takes `expected` from a mailbox, in this order and nothing else, and acknowledges the first
    /// `count`; what comes again because its acknowledgement failed is acknowledged again.
    async fn take(&mut self, mut peer: Peer, of: u8, expected: Vec<Vec<u8>>, count: usize) {
        let (mut expected, mut count) = (expected, count);
        loop {
            let delivered = deliveries(&mut peer, expected.len()).await;
            let blobs: Vec<_> = delivered.iter().map(|blob| blob.blob.clone()).collect();
            assert_eq!(blobs, expected, "mailbox {of}");
            let mut failed = None;
            for (place, blob) in delivered.iter().take(count).enumerate() {
                self.acknowledgements += 1;
                if self.fails_at(Call::Acknowledge, self.acknowledgements) {
                    failed = Some(place);
                }
                peer.acknowledge(&blob.id).await;
            }
            let lost = self.call == Call::Acknowledge
                && self.kind.fails()
                && self.acknowledgements >= self.nth;
            let gone = self.acknowledgements - u64::from(lost);
            self.relay
                .metric_becomes("relay_blobs_acknowledged_total", gone as f64)
                .await;
            peer.expect_silence().await;
            peer.leave().await;
            let Some(place) = failed else { return };
            let again = expected[place].clone();
            expected = [vec![again], expected.split_off(count)].concat();
            count = 1;
            peer = self.relay.client(&id(of)).await;
        }
    }

    /// `/ready`, three times: only the faulty look says no, and says why.
    async fn probe(&self) {
        for number in 1..=3 {
            let (status, body) = http_get(self.relay.running.operators, "/ready", &[]).await;
            if self.fails_at(Call::Probe, number) {
                assert_eq!(status, 503, "{body}");
                assert!(body.contains("storage is unavailable"), "{body}");
            } else {
                assert_eq!(status, 200, "{body}");
            }
        }
    }

    /// Purges the mailboxes that hold one blob each.
    async fn purge(&self) {
        let secret = Secret::load_or_create(&self.relay.config.data_dir.join(SECRET_FILE)).unwrap();
        let store = &self.relay.running.store;
        let mut calls = 0;
        for of in PURGED {
            let mailbox = secret.mailbox(&MailboxId::parse(&id(of)).unwrap());
            let mut purge = async || {
                calls += 1;
                let now = vauchi_relay::clock::Timestamp::from_millis(1_795_306_500_000);
                let purged = tokio::time::timeout(
                    PATIENCE,
                    store.purge(mailbox, View::V1, Tells::Nobody, now),
                );
                let purged = purged.await.expect("the purge ends");
                assert_eq!(purged.is_err(), self.fails_at(Call::Purge, calls));
                purged
            };
            let purged = match purge().await {
                Ok(purged) => purged,
                Err(_) => purge().await.unwrap(),
            };
            assert_eq!(purged.blobs, 1);
        }
    }

    async fn conserved(&self, stored: u64) {
        let usage = self.relay.running.store.usage();
        assert_eq!(usage.stored, stored, "{usage:?}");
        assert!(usage.is_conserved(), "{usage:?}");
    }
}

/// The next `count` blobs.
async fn deliveries(peer: &mut Peer, count: usize) -> Vec<Delivered> {
    let mut blobs = Vec::with_capacity(count);
    for _ in 0..count {
        blobs.push(peer.delivery().await);
    }
    blobs
}

/// The story.
async fn live_through(call: Call, nth: u64, kind: Kind) {
    let mut life = Life::begin(call, nth, kind).await;
    let mut sender = life.relay.client(&id(SENDER)).await;
    life.send(&mut sender, vec![Sent::new(1, EXPIRING)]).await;
    life.relay.time.advance(DAY + Duration::from_secs(1));

    // One recipient is connected while blobs come for two.
    let connected = life.relay.client(&id(CONNECTED)).await;
    let blobs = (0..2 * EACH as u8).map(|n| Sent::new(10 + n, [CONNECTED, LATER][n as usize % 2]));
    life.send(&mut sender, blobs.collect()).await;
    let expected = life.confirmed_for(CONNECTED);
    assert_eq!(expected.len(), EACH);
    life.take(connected, CONNECTED, expected, EACH).await;

    let purged = PURGED.map(|to| Sent::new(20 + to, to));
    life.send(&mut sender, purged.to_vec()).await;
    life.purge().await;
    life.probe().await;

    // The other comes later and acknowledges one.
    let expected = life.confirmed_for(LATER);
    assert_eq!(expected.len(), EACH);
    let later = life.relay.client(&id(LATER)).await;
    life.take(later, LATER, expected.clone(), 1).await;
    life.relay
        .metric_becomes("relay_blobs_expired_total", 1.0)
        .await;
    eventually("the faulty call comes", async || {
        life.faulty.calls(call) >= nth
    })
    .await;
    life.conserved(EACH as u64 - 1).await;

    // After a restart the rest is there, and repeats of all that was confirmed add nothing.
    sender.leave().await;
    life.relay = life.relay.restart().await;
    let mut sender = life.relay.client(&id(SENDER)).await;
    for sent in life.confirmed.iter().filter(|sent| sent.to != EXPIRING) {
        sender.send(&sent.frame()).await;
        sender.expect_stored(&sent.name).await;
    }
    life.conserved(EACH as u64 - 1).await;
    let mut later = life.relay.client(&id(LATER)).await;
    let rest = deliveries(&mut later, EACH - 1).await;
    let rest: Vec<_> = rest.into_iter().map(|blob| blob.blob).collect();
    assert_eq!(rest, expected[1..]);
    later.expect_silence().await;
    let mut connected = life.relay.client(&id(CONNECTED)).await;
    connected.expect_silence().await;
    assert_eq!(PANICS.get(), 0, "panics");
}

/// Lives through every fault of the first `bound` calls of this kind.
#[expect(
    clippy::print_stderr,
    reason = "the test runner shows it of a test that fails"
)]
async fn live_through_all(call: Call, bound: u64) {
    for nth in 1..=bound {
        let lives = Kind::ALL.map(|kind| async move {
            eprintln!("{call:?} {nth}: {kind:?}");
            let life = live_through(call, nth, kind);
            let in_time = tokio::time::timeout(4 * PATIENCE, life).await;
            assert!(in_time.is_ok(), "{call:?} {nth} {kind:?} hangs");
        });
        join_all(lives).await;
    }
}

#[tokio::test]
async fn any_append_may_fail_or_stall() {
    // 1 that expires, 6 that are read, 2 that are purged.
    live_through_all(Call::Append, 9).await;
}

#[tokio::test]
async fn any_acknowledgement_may_fail_or_stall() {
    live_through_all(Call::Acknowledge, EACH as u64 + 1).await;
}

#[tokio::test]
async fn any_page_may_fail_or_stall() {
    // The first four are certain: three openings, and a look after the first wake.
    live_through_all(Call::Page, 4).await;
}

#[tokio::test]
async fn any_step_of_the_sweep_may_fail_or_stall() {
    live_through_all(Call::Expire, 3).await;
}

#[tokio::test]
async fn any_purge_may_fail_or_stall() {
    live_through_all(Call::Purge, PURGED.len() as u64).await;
}

#[tokio::test]
async fn any_probe_may_fail_or_stall() {
    live_through_all(Call::Probe, 3).await;
}

#[tokio::test]
async fn while_everything_fails_everything_is_answered_and_afterwards_all_goes_on() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"before").await;
    let all = [Call::Append, Call::Acknowledge, Call::Page, Call::Probe];
    for call in all {
        faulty.on_every(call, Fault::Fail);
    }
    let sent: Vec<_> = (0..20).map(|number| Sent::new(number, 2)).collect();
    for blob in &sent {
        sender.send(&blob.frame()).await;
    }
    for blob in &sent {
        sender.expect_refusal(&blob.name, "unavailable").await;
    }
    for address in [relay.running.operators, relay.running.clients] {
        assert_eq!(http_get(address, "/ready", &[]).await.0, 503);
        assert_eq!(http_get(address, "/health", &[]).await.0, 200);
    }
    // The session is open, its mailbox is not read; that is a pause and not an end.
    let mut recipient = relay.client(&id(2)).await;
    recipient.expect_silence().await;

    all.into_iter().for_each(|call| faulty.mend(call));
    assert_eq!(recipient.delivery().await.blob, b"before");
    for blob in &sent {
        sender.send(&blob.frame()).await;
        sender.expect_stored(&blob.name).await;
        assert_eq!(recipient.delivery().await.blob, blob.blob);
    }
    assert_eq!(
        http_get(relay.running.operators, "/ready", &[]).await.0,
        200
    );
    assert!(relay.metric("relay_store_errors_total").await >= 20.0);
    assert_eq!(
        relay
            .metric("relay_refusals_total{code=\"unavailable\"}")
            .await,
        20.0
    );
}

#[tokio::test]
async fn senders_wait_for_a_stalled_store_and_are_confirmed_in_order_when_it_goes_on() {
    /// More than the answers that a session holds, so that its reading stops.
    const BLOBS: usize = 1_200;
    let stall = Stall::default();
    let (relay, faulty) = faulty_relay(&[("RELAY_MAILBOX_MAX_BLOBS", "0")]).await;
    let mut other = relay.client(&id(7)).await;
    other.store(&id(8), b"before").await;
    faulty.on_every(Call::Append, Fault::StallCommit(stall.clone()));

    let mut sender = relay.client(&id(1)).await;
    for _ in 0..BLOBS {
        sender.submit(&id(2), b"blob").await;
    }
    relay
        .metric_becomes("relay_answer_lane_full_total", 1.0)
        .await;
    assert!(faulty.calls(Call::Append) < 1 + BLOBS as u64, "it waits");
    sender.expect_silence().await;
    // Who reads does not notice, and the probes answer. An acknowledgement waits behind the blobs.
    let mut reader = relay.client(&id(8)).await;
    let before = reader.delivery().await;
    reader.acknowledge(&before.id).await;
    for path in ["/health", "/ready"] {
        assert_eq!(http_get(relay.running.clients, path, &[]).await.0, 200);
    }

    faulty.mend(Call::Append);
    stall.release();
    for number in 1..=BLOBS {
        let name = format!("22222222-2222-4222-8222-{number:012}");
        sender.expect_stored(&name).await;
    }
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
    assert_eq!(relay.running.store.usage().stored, BLOBS as u64);
}

#[tokio::test]
async fn a_blob_comes_again_when_its_acknowledgement_failed() {
    for fault in [Fault::Fail, Fault::FailCommit] {
        let (relay, faulty) = faulty_relay(&[]).await;
        relay.client(&id(1)).await.store(&id(2), b"twice").await;
        faulty.on(Call::Acknowledge, 1, fault.clone());
        let mut recipient = relay.client(&id(2)).await;
        let first = recipient.delivery().await;
        recipient.acknowledge(&first.id).await;
        eventually("it is tried", async || faulty.calls(Call::Acknowledge) == 1).await;
        recipient.leave().await;

        let mut recipient = relay.client(&id(2)).await;
        assert_eq!(recipient.delivery().await, first, "the same blob and id");
        recipient.acknowledge(&first.id).await;
        relay
            .metric_becomes("relay_blobs_acknowledged_total", 1.0)
            .await;
        recipient.leave().await;
        relay.client(&id(2)).await.expect_silence().await;
    }
}

#[tokio::test]
async fn an_acknowledgement_is_refused_while_storage_is_away_and_taken_afterwards() {
    let (relay, faulty) = faulty_relay(&[]).await;
    relay.client(&id(1)).await.store(&id(2), b"kept").await;
    let mut recipient = relay.client(&id(2)).await;
    let first = recipient.delivery().await;
    faulty.take_down();
    relay.client(&id(1)).await.submit(&id(3), b"lost").await;
    relay.metric_becomes("relay_store_up", 0.0).await;
    recipient.acknowledge(&first.id).await;
    let answer = recipient.receive().await["payload"].take();
    assert_eq!(answer["error"], "unavailable");
    faulty.bring_up();
    relay.metric_becomes("relay_store_up", 1.0).await;
    recipient.acknowledge(&first.id).await;
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 1.0)
        .await;
}

/// A connection to the database of a running relay that keeps it from writing.
async fn block_writes(relay: &Relay) -> SqliteConnection {
    let mut blocker = SqliteConnectOptions::new()
        .filename(relay.config.data_dir.join(DATABASE_FILE))
        .connect()
        .await
        .unwrap();
    run(&mut blocker, "BEGIN IMMEDIATE").await;
    blocker
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

#[tokio::test]
async fn senders_wait_while_the_database_is_locked_and_are_told_when_that_lasts() {
    let relay = Relay::start(&[]).await;
    let mut sender = relay.client(&id(1)).await;
    sender.store(&id(2), b"before").await;
    let mut blocker = block_writes(&relay).await;
    let names = [
        sender.submit(&id(2), b"1").await,
        sender.submit(&id(2), b"2").await,
    ];
    sender.expect_silence().await;
    let mut recipient = relay.client(&id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"before");
    recipient.expect_silence().await;
    assert_eq!(http_get(relay.running.clients, "/health", &[]).await.0, 200);
    run(&mut blocker, "ROLLBACK").await;
    for name in names {
        sender.expect_stored(&name).await;
    }
    assert_eq!(recipient.delivery().await.blob, b"1");
    assert_eq!(recipient.delivery().await.blob, b"2");

    // For longer than a commit waits for the lock: five seconds.
    run(&mut blocker, "BEGIN IMMEDIATE").await;
    let name = sender.submit(&id(2), b"3").await;
    sender.expect_refusal(&name, "unavailable").await;
    // By then nothing was written for five seconds, so a probe writes, too.
    let (status, body) = http_get(relay.running.operators, "/ready", &[]).await;
    assert_eq!(status, 503, "{body}");
    run(&mut blocker, "ROLLBACK").await;
    eventually("/ready says yes", async || {
        http_get(relay.running.operators, "/ready", &[]).await.0 == 200
    })
    .await;
    sender.send(&update(&name, &id(2), b"3")).await;
    sender.expect_stored(&name).await;
    assert_eq!(recipient.delivery().await.blob, b"3");
    recipient.expect_silence().await;
    assert!(relay.running.store.usage().is_conserved());
}
