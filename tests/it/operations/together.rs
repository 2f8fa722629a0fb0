//! Several relays on one PostgreSQL: whoever connects to any of them reaches everybody, and one that is killed or
//! cut off costs nobody a blob.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use sqlx::Row as _;
use tempfile::TempDir;
use vauchi_relay::clock::Clock;
use vauchi_relay::ids::BlobId;
use vauchi_relay::metrics::Metrics;
use vauchi_relay::protocol::v2::message::ReceiptKind;
use vauchi_relay::protocol::v2::{Answer, Request};
use vauchi_relay::secrets::Secret;
use vauchi_relay::server;
use vauchi_relay::store::model::{Appended, Class, Envelope};
use vauchi_relay::store::postgres::{self, PostgresOptions};
use vauchi_relay::store::quota::Quota;
use vauchi_relay::store::{Store, StoreOptions};

use crate::database;
use crate::harness::{
    BEGINNING, PATIENCE, Peer, Relay, config, eventually, http_get, id, settings, value_of,
};
use crate::process::{Process, command};
use crate::v1::identity::signed;
use crate::v2::client::{Guest, Owned, on_terms, submit};

/// A database, a folder with the secret, and relays that use both.
struct Together {
    relays: Vec<Relay>,
    folder: TempDir,
    url: String,
}

impl Together {
    /// So many relays that know of each other.
    async fn start(count: usize) -> Option<Self> {
        if !database::is_there() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let url = database::of_folder(folder.path()).await;
        let mut together = Self {
            relays: Vec::new(),
            folder,
            url,
        };
        for _ in 0..count {
            let relay = Relay::start_at(BEGINNING, &together.variables()).await;
            together.relays.push(relay);
        }
        for relay in &together.relays {
            relay.metric_becomes("relay_instances", count as f64).await;
        }
        Some(together)
    }

    fn variables(&self) -> [(&str, &str); 3] {
        [
            ("RELAY_STORAGE_BACKEND", "postgres"),
            ("RELAY_DATABASE_URL", &self.url),
            ("RELAY_DATA_DIR", self.folder.path().to_str().unwrap()),
        ]
    }

    async fn session(&self) -> sqlx::postgres::PgConnection {
        let name = self.url.rsplit('/').next().unwrap();
        database::shared().session(name).await
    }

    /// Ends the sessions on which the relays hear each other; returns how many that were.
    async fn deafen(&self) -> i64 {
        let deafen = "SELECT count(pg_terminate_backend(pid, 5000)) AS sessions FROM pg_stat_activity \
                      WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        let row = sqlx::query(deafen)
            .fetch_one(&mut self.session().await)
            .await;
        row.unwrap().get("sessions")
    }

    fn secret(&self) -> Secret {
        Secret::load(&self.folder.path().join("relay.secret")).unwrap()
    }

    /// A relay that says nothing to the others: one that is killed between each commit and its word.
    async fn mute_store(&self) -> Store {
        let metrics = std::sync::Arc::new(Metrics::new());
        let clock = Clock::manual(BEGINNING).0;
        let opened = postgres::open(PostgresOptions {
            database: vauchi_relay::config::Database::parse(&self.url).unwrap(),
            secret: self.secret(),
            secret_file: "relay.secret".into(),
            dedup: Duration::from_secs(3_600),
            dedup_max: 0,
            metrics: metrics.clone(),
            clock: clock.clone(),
        });
        let options = StoreOptions {
            secret: self.secret(),
            quota: Quota::UNBOUNDED,
            dedup: Duration::from_secs(3_600),
            receipt_ttl: Duration::from_secs(3_600),
            news: std::sync::Arc::new(|_| ()),
            clock,
            metrics,
        };
        Store::start(opened.await.unwrap(), options)
    }
}

async fn notice(peer: &mut Peer, status: &str, blob: &str) {
    let notice = peer.receive_any().await;
    assert_eq!(notice["payload"]["status"], status, "{notice}");
    assert_eq!(notice["payload"]["blob_id"], blob, "{notice}");
}

#[tokio::test]
async fn a_v1_blob_is_delivered_live_at_another_relay_and_its_sender_hears_of_it() {
    let Some(together) = Together::start(2).await else {
        return;
    };
    let [here, there] = &together.relays[..] else {
        unreachable!()
    };
    let mut sender = here.client(&id(1)).await;
    let mut recipient = there.client(&id(2)).await;
    for blob in [&b"one"[..], b"two", b"three"] {
        let begun = Instant::now();
        let message = sender.submit(&id(2), blob).await;
        // The notice may come before the answer.
        let answer = sender.receive().await;
        assert_eq!(answer["payload"]["status"], "Stored", "{message} {answer}");
        let delivered = recipient.delivery().await;
        assert_eq!(delivered.blob, blob);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
        notice(&mut sender, "Delivered", &delivered.id).await;
        recipient.acknowledge(&delivered.id).await;
        notice(&mut sender, "ReceivedByRecipient", &delivered.id).await;
    }
    assert!(there.metric("relay_notifications_received_total").await >= 3.0);
    let mut session = together.session().await;
    eventually("all are deleted", async || {
        let rows = sqlx::query("SELECT count(*) AS rows FROM blob");
        let row = rows.fetch_one(&mut session).await.unwrap();
        row.get::<i64, _>("rows") == 0
    })
    .await;
    let mut elsewhere = here.client(&id(2)).await;
    elsewhere.expect_silence().await;
}

/// The sender's mailbox is open at several relays; whichever of them accepted the blob, all connections hear.
#[tokio::test]
async fn a_sender_that_has_moved_to_another_relay_hears_of_its_blob() {
    let Some(together) = Together::start(3).await else {
        return;
    };
    let [first, second, third] = &together.relays[..] else {
        unreachable!()
    };
    let mut sender = first.client(&id(1)).await;
    let message = sender.submit(&id(2), b"x").await;
    sender.expect_stored(&message).await;
    sender.leave().await;
    let mut sender = second.client(&id(1)).await;
    let mut recipient = third.client(&id(2)).await;
    let delivered = recipient.delivery().await;
    notice(&mut sender, "Delivered", &delivered.id).await;
    recipient.acknowledge(&delivered.id).await;
    notice(&mut sender, "ReceivedByRecipient", &delivered.id).await;
    sender.expect_no_notice().await;
}

#[tokio::test]
async fn a_v2_blob_is_delivered_live_at_another_relay_and_its_receipts_come_back() {
    let Some(together) = Together::start(3).await else {
        return;
    };
    let (owned, own) = (Owned::key(1), Owned::v2_only(2));
    let mut owner = Guest::connect(&together.relays[0]).await;
    owner.open_empty(&owned).await;
    let mut sender = Guest::connect(&together.relays[1]).await;
    sender.open_empty(&own).await;
    for number in 0..4 {
        let blob = submit(&owned.id(), number, b"x");
        let blob = on_terms(blob, |terms| terms.receipt_to = Some(own.id()));
        let repeat = blob.clone();
        // It leaves before it hears of the blob, and is connected elsewhere, too.
        let mut third = Guest::connect(&together.relays[2]).await;
        third.open_empty(&own).await;
        assert!(!third.store(blob).await);
        third.peer.leave().await;
        let blob = owner.blob().await;
        let receipt = sender.receipt().await;
        assert_eq!(
            (receipt.kind, receipt.id),
            (ReceiptKind::Delivered, blob.id)
        );
        sender.acknowledge(own.id(), receipt.receipt_id).await;
        owner.acknowledge(owned.id(), blob.id).await;
        let receipt = sender.receipt().await;
        let expected = (ReceiptKind::Acknowledged, blob.id);
        assert_eq!((receipt.kind, receipt.id), expected);
        sender.acknowledge(own.id(), receipt.receipt_id).await;
        assert!(sender.store(repeat).await, "it left a moment ago");
    }
    owner.expect_nothing().await;
    sender.expect_nothing().await;
}

/// What expires is deleted by one relay, and the receipt finds its owner at another one.
#[tokio::test]
async fn a_sender_at_another_relay_hears_that_its_blob_has_expired() {
    let Some(together) = Together::start(2).await else {
        return;
    };
    let (owned, own) = (Owned::v2_only(1), Owned::v2_only(2));
    let mut sender = Guest::connect(&together.relays[1]).await;
    sender.open_empty(&own).await;
    let blob = on_terms(submit(&owned.id(), 1, b"x"), |terms| {
        terms.receipt_to = Some(own.id());
    });
    let blob_id = blob.id;
    sender.store(blob).await;
    let now = BEGINNING.plus(Duration::from_secs(365 * 86_400));
    for relay in &together.relays {
        relay.running.store.expire_asking(now).await.unwrap();
        relay.running.store.expire(100, now).await.unwrap();
    }
    let receipt = sender.receipt().await;
    assert_eq!((receipt.kind, receipt.id), (ReceiptKind::Expired, blob_id));
}

#[tokio::test]
async fn a_handshake_that_was_recorded_at_one_relay_opens_nothing_at_another() {
    let Some(together) = Together::start(2).await else {
        return;
    };
    let (key, secs) = (SigningKey::from_bytes(&[3; 32]), BEGINNING.millis() / 1_000);
    let open = async |relay: usize, nonce| {
        let mut peer = Peer::connect(together.relays[relay].running.clients).await;
        peer.say_hello(signed(&key, nonce, secs)).await;
        peer.next().await.is_ok()
    };
    assert!(open(0, [1; 32]).await);
    assert!(!open(1, [1; 32]).await);
    assert!(open(1, [2; 32]).await);
    assert!(!open(0, [2; 32]).await);
    // While no nonce can be saved, the relays still tell each other which are used.
    let mut session = together.session().await;
    let refuse = "ALTER TABLE nonce ADD CONSTRAINT no_more CHECK (burnt_at < 0) NOT VALID";
    sqlx::query(refuse).execute(&mut session).await.unwrap();
    assert!(open(0, [3; 32]).await);
    assert!(!open(1, [3; 32]).await);
}

#[tokio::test]
async fn a_live_blob_reaches_its_taker_at_another_relay_or_is_refused() {
    let Some(together) = Together::start(3).await else {
        return;
    };
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&together.relays[0]).await;
    let live = |number, bytes| {
        let live = submit(&owned.id(), number, &vec![7; bytes]);
        Request::Submit(on_terms(live, |terms| terms.live_only = true))
    };
    assert_eq!(sender.refusal(live(1, 10)).await.code, "not_connected");
    let mut owner = Guest::connect(&together.relays[1]).await;
    owner.open_empty(&owned).await;
    let mut second = Guest::connect(&together.relays[2]).await;
    second.open_empty(&owned).await;
    for (number, bytes) in [(2, 10), (3, 100_000)] {
        assert!(matches!(
            sender.answer(live(number, bytes)).await,
            Answer::Handed
        ));
        for taker in [&mut owner, &mut second] {
            assert_eq!(taker.blob().await.body.len(), bytes);
        }
    }
    // One that is handed out here goes to the others as well.
    let mut near = Guest::connect(&together.relays[0]).await;
    near.open_empty(&owned).await;
    assert!(matches!(sender.answer(live(4, 5)).await, Answer::Handed));
    for taker in [&mut owner, &mut second, &mut near] {
        assert_eq!(taker.blob().await.body.len(), 5);
    }
    let mut session = together.session().await;
    eventually("nothing of it stays", async || {
        let rows = sqlx::query("SELECT count(*) AS rows FROM live");
        let row = rows.fetch_one(&mut session).await.unwrap();
        row.get::<i64, _>("rows") == 0
    })
    .await;
}

/// No word ever comes of what this relay stores: the others find it all the same.
#[tokio::test]
async fn a_blob_of_which_no_word_came_is_delivered_within_seconds() {
    let Some(together) = Together::start(2).await else {
        return;
    };
    let owned = Owned::v2_only(1);
    let mut owner = Guest::connect(&together.relays[0]).await;
    owner.open_empty(&owned).await;
    let mute = together.mute_store().await;
    for number in 1..=3_u8 {
        let envelope = Envelope {
            mailbox: together.secret().mailbox(&owned.id()),
            id: BlobId::from_bytes([number; 16]),
            class: Class::ProvenOnly,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: BEGINNING,
            expires_at: BEGINNING.plus(Duration::from_secs(3_600)),
            sealed: Default::default(),
            body: vec![number].into(),
        };
        let stored = mute.append(envelope, BEGINNING).await.unwrap().await;
        assert!(matches!(stored, Ok(Appended::Stored { .. })), "{stored:?}");
        assert_eq!(owner.blob().await.body[..], [number]);
    }
    let repaired = together.relays[0].metric("relay_notifications_repaired_total");
    assert!(repaired.await >= 3.0);
    mute.close().await;
}

#[tokio::test]
async fn relays_that_become_deaf_lose_no_blob_and_hear_again() {
    let Some(together) = Together::start(2).await else {
        return;
    };
    let mut sender = together.relays[0].client(&id(1)).await;
    let mut recipient = together.relays[1].client(&id(2)).await;
    for number in 0..20_u8 {
        if number % 5 == 0 {
            assert!(together.deafen().await >= 1);
        }
        sender.store(&id(2), &[number]).await;
        assert_eq!(recipient.delivery().await.blob, [number]);
    }
    let there = &together.relays[1];
    eventually("it has noticed", async || {
        there.metric("relay_notification_reconnects_total").await >= 1.0
    })
    .await;
    eventually("it hears again", async || {
        let before = there.metric("relay_notifications_received_total").await;
        sender.store(&id(2), b"again").await;
        recipient.delivery().await;
        there.metric("relay_notifications_received_total").await > before
    })
    .await;
}

async fn spawn(together: &Together) -> Process {
    let mut command = command(together.folder.path());
    command.envs(together.variables());
    Process::spawn(&mut command).await
}

async fn instances_become(relay: &Process, count: f64) {
    eventually("it knows how many there are", async || {
        let (status, scrape) = http_get(relay.operators, "/metrics", &[]).await;
        assert_eq!(status, 200);
        value_of(&scrape, "relay_instances") == Some(count)
    })
    .await;
}

/// Whatever it had confirmed is delivered by the others.
#[tokio::test]
async fn a_relay_that_is_killed_costs_no_blob_and_the_others_go_on() {
    let Some(mut together) = Together::start(0).await else {
        return;
    };
    let (first, second) = (spawn(&together).await, spawn(&together).await);
    let third = spawn(&together).await;
    let mut recipient = Peer::connect(second.clients).await;
    recipient.handshake(json!({ "client_id": id(2) })).await;
    let mut sender = Peer::connect(first.clients).await;
    sender.handshake(json!({ "client_id": id(1) })).await;
    let mut confirmed = 0_u32;
    for number in 0..50_u32 {
        sender.store(&id(2), &number.to_be_bytes()).await;
        confirmed += 1;
    }
    instances_become(&second, 3.0).await;
    first.kill().await;
    let mut sender = Peer::connect(third.clients).await;
    sender.handshake(json!({ "client_id": id(1) })).await;
    for number in confirmed..confirmed + 10 {
        sender.store(&id(2), &number.to_be_bytes()).await;
    }
    for number in 0..confirmed + 10 {
        let delivered = recipient.delivery().await;
        assert_eq!(delivered.blob, number.to_be_bytes());
        recipient.acknowledge(&delivered.id).await;
    }
    instances_become(&second, 2.0).await;
    // It starts again beside them.
    together
        .relays
        .push(Relay::start_at(BEGINNING, &together.variables()).await);
    let again = &together.relays[0];
    again.metric_becomes("relay_instances", 3.0).await;
}

/// What `/cluster` answers.
async fn cluster(operators: SocketAddr) -> Value {
    let (status, body) = http_get(operators, "/cluster", &[]).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The numbers of the relays in that answer that `is` true of.
fn numbers(cluster: &Value, is: impl Fn(&Value) -> bool) -> Vec<i64> {
    let relays = cluster["relays"].as_array().unwrap().iter();
    let chosen = relays.filter(|relay| is(relay));
    chosen
        .map(|relay| relay["number"].as_i64().unwrap())
        .collect()
}

#[tokio::test]
async fn the_relays_of_a_database_are_told_and_one_that_is_killed_becomes_stale_and_gone() {
    let Some(together) = Together::start(0).await else {
        return;
    };
    let (first, second) = (spawn(&together).await, spawn(&together).await);
    let mut client = Peer::connect(first.clients).await;
    client.handshake(json!({ "client_id": id(1) })).await;
    eventually("both tell of themselves and of the client", async || {
        let told = cluster(second.operators).await;
        let ready = numbers(&told, |relay| relay["state"] == "ready");
        let visited = numbers(&told, |relay| relay["connections"] == 1);
        ready.len() == 2 && visited.len() == 1
    })
    .await;
    let (here, there) = (
        cluster(first.operators).await,
        cluster(second.operators).await,
    );
    assert_eq!(here["store"], "shared");
    let this_one = |told: &Value| numbers(told, |relay| relay["this_one"] == true);
    let ([first_number], [second_number]) = (&this_one(&here)[..], &this_one(&there)[..]) else {
        panic!("{here} {there}")
    };
    assert_ne!(first_number, second_number);
    assert_eq!(numbers(&here, |_| true), numbers(&there, |_| true));
    let is_new = |relay: &Value| relay["version"] == env!("CARGO_PKG_VERSION");
    assert_eq!(numbers(&here, is_new).len(), 2, "{here}");
    // The first one does the chores, unless it was held up for seconds.
    let numbers_told = [*first_number, *second_number].map(Value::from);
    assert!(numbers_told.contains(&here["chores"]["relay"]), "{here}");
    let epoch = here["chores"]["epoch"].as_i64().unwrap();

    first.kill().await;
    for state in ["stale", "gone"] {
        eventually(state, async || {
            let told = cluster(second.operators).await;
            numbers(&told, |relay| relay["state"] == state) == [*first_number]
        })
        .await;
    }
    let told = cluster(second.operators).await;
    let silent = told["relays"][0]["heartbeat_seconds_ago"].as_f64().unwrap();
    assert!(silent >= 15.0, "{told}");
    let others = numbers(&told, |relay| relay["state"] == "ready");
    assert_eq!(others, [*second_number], "{told}");
    assert_eq!(told["chores"]["relay"], *second_number, "{told}");
    let has_moved = here["chores"]["relay"] == *first_number;
    let expected = epoch + i64::from(has_moved);
    let epoch = told["chores"]["epoch"].as_i64().unwrap();
    assert!(epoch >= expected, "{told}");

    // One that says good-bye is told until it has gone, and not afterwards.
    let mut command = command(together.folder.path());
    command.envs(together.variables());
    let third = Process::spawn(command.env("RELAY_DRAIN_DELAY_SECS", "60")).await;
    third.signal("TERM").await;
    eventually("it drains", async || {
        let told = cluster(second.operators).await;
        numbers(&told, |relay| relay["state"] == "draining").len() == 1
    })
    .await;
    third.signal("TERM").await;
    third.ended().await;
    let left = cluster(second.operators).await;
    assert_eq!(numbers(&left, |_| true).len(), 2, "{left}");
}

#[tokio::test]
async fn while_the_database_is_away_nobody_tells_who_uses_it() {
    let Some(together) = Together::start(1).await else {
        return;
    };
    let operators = together.relays[0].running.operators;
    cluster(operators).await;
    let mut session = together.session().await;
    let away = "ALTER TABLE instance RENAME TO instance_away";
    sqlx::query(away).execute(&mut session).await.unwrap();
    let (status, body) = http_get(operators, "/cluster", &[]).await;
    assert_eq!(status, 503, "{body}");
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(told["store"], "shared", "{body}");
    assert!(body.contains("the database does not answer"), "{body}");
    assert!(
        !body.contains("127.0.0.1") && !body.contains("instance"),
        "{body}"
    );
    let back = "ALTER TABLE instance_away RENAME TO instance";
    sqlx::query(back).execute(&mut session).await.unwrap();
    cluster(operators).await;
}

/// Somebody else's transaction, which the relay's role could not even see in `pg_stat_activity`.
#[tokio::test]
async fn a_long_transaction_is_seen_to_hold_deliveries_back_until_it_ends() {
    let Some(together) = Together::start(1).await else {
        return;
    };
    let relay = &together.relays[0];
    let held_back = || relay.metric("relay_deliveries_held_back_seconds");
    let mut session = together.session().await;
    let begin = "BEGIN; SELECT pg_current_xact_id()";
    sqlx::raw_sql(begin).execute(&mut session).await.unwrap();
    eventually("it has been open for seconds", async || {
        held_back().await >= 3.0
    })
    .await;
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut session)
        .await
        .unwrap();
    eventually("nothing holds deliveries back", async || {
        held_back().await < 2.0
    })
    .await;
}

#[tokio::test]
async fn a_relay_with_a_store_of_its_own_is_alone() {
    let relay = Relay::start(&[]).await;
    let mut client = relay.client(&id(1)).await;
    client.expect_silence().await;
    let told = cluster(relay.running.operators).await;
    assert_eq!(told["store"], "alone");
    assert_eq!(told["chores"], json!(null));
    let [own] = &told["relays"].as_array().unwrap()[..] else {
        panic!("{told}")
    };
    for (field, expected) in [
        ("number", json!(null)),
        ("this_one", json!(true)),
        ("state", json!("ready")),
        ("connections", json!(1)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(own[field], expected, "{told}");
    }
}

#[tokio::test]
async fn a_relay_with_another_secret_does_not_start_beside_the_others() {
    let Some(together) = Together::start(1).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut variables = together.variables();
    variables[2].1 = folder.path().to_str().unwrap();
    let config = config(settings(&variables));
    let starting = server::start(&config, Clock::manual(BEGINNING).0);
    let started = tokio::time::timeout(PATIENCE, starting).await.unwrap();
    let line = started.err().unwrap().to_string();
    assert!(
        line.contains("all relays of a database need the same secret"),
        "{line}"
    );
}
