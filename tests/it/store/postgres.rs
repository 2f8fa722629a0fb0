//! What holds on PostgreSQL beside the contract: the order of keys while transactions are open, several
//! relays that write, and a server that stops, crashes or runs out of sessions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};
use tempfile::TempDir;
use tokio::time::Instant;

use vauchi_relay::clock::Clock;
use vauchi_relay::config::Database;
use vauchi_relay::ids::Topic;
use vauchi_relay::metrics::Metrics;
use vauchi_relay::secrets::Secret;
use vauchi_relay::store::engine::{Asked, CommitError, Opened};
use vauchi_relay::store::model::{Appended, More, OrderKey, PageBounds, View};
use vauchi_relay::store::postgres::{self, OpenError, PostgresOptions};
use vauchi_relay::store::quota::Quota;
use vauchi_relay::store::{Store, StoreError, StoreOptions};

use crate::database::{self, Server};
use crate::store::contract::{
    EVERYTHING, HOUR, NOW, SEEN, blob, blob_of, expiring, id, mailbox, number,
};
use crate::store::proxy::{Cut, Proxy};

fn options(url: &str) -> PostgresOptions {
    PostgresOptions {
        database: Database::parse(url).unwrap(),
        secret: Secret::from_bytes([7; 32]),
        secret_file: "relay.secret".into(),
        dedup: HOUR,
        dedup_max: 1_000,
        metrics: Arc::new(Metrics::new()),
        clock: Clock::manual(NOW).0,
    }
}

async fn open(url: &str) -> Result<Opened, OpenError> {
    postgres::open(options(url)).await
}

async fn store(url: &str) -> Store {
    let options = options(url);
    let started = StoreOptions {
        secret: options.secret.clone(),
        quota: Quota::UNBOUNDED,
        dedup: options.dedup,
        receipt_ttl: 30 * HOUR,
        news: Arc::new(|_| ()),
        clock: options.clock.clone(),
        metrics: Arc::clone(&options.metrics),
    };
    Store::start(postgres::open(options).await.unwrap(), started)
}

/// A database of its own on the shared server.
struct Shared {
    folder: TempDir,
    url: String,
}

impl Shared {
    async fn new() -> Option<Self> {
        if !database::is_there() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let url = database::of_folder(folder.path()).await;
        Some(Self { folder, url })
    }

    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    async fn session(&self) -> PgConnection {
        assert!(Path::exists(self.folder.path()));
        database::shared().session(self.name()).await
    }
}

async fn ids(store: &Store, mailbox: u8) -> Vec<u32> {
    let page = store
        .page(
            self::mailbox(mailbox),
            View::Proven,
            OrderKey::START,
            EVERYTHING,
            NOW,
        )
        .await
        .unwrap();
    page.blobs.iter().map(|blob| number(blob.id)).collect()
}

async fn stores(store: &Store, mailbox: u8, id: u32) -> Result<Appended, StoreError> {
    store.append(blob(mailbox, id), NOW).await?.await
}

/// Something begins to write elsewhere on the server, and does not end.
async fn hold_open(session: &mut PgConnection) {
    session.execute("BEGIN").await.unwrap();
    let number = "SELECT pg_current_xact_id()::text";
    sqlx::query(number).fetch_one(session).await.unwrap();
}

#[tokio::test]
async fn a_reader_stops_before_the_keys_of_a_transaction_that_is_open_and_goes_on_when_it_ends() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    stores(&store, 1, 1).await.unwrap();
    assert_eq!(ids(&store, 1).await, [1]);
    let mut other = shared.session().await;
    hold_open(&mut other).await;
    stores(&store, 1, 2).await.unwrap();

    let page = |after| store.page(mailbox(1), View::Proven, after, EVERYTHING, NOW);
    let first = page(OrderKey::START).await.unwrap();
    assert_eq!((first.blobs.len(), first.more), (1, More::Yes));
    let second = page(first.next).await.unwrap();
    assert_eq!((second.blobs.len(), second.more), (0, More::Soon));
    assert_eq!(second.next, first.next, "the cursor waits, too");
    other.execute("COMMIT").await.unwrap();
    let third = page(first.next).await.unwrap();
    assert_eq!((third.blobs.len(), third.more), (1, More::No));
    // What is acknowledged, purged and counted meanwhile is what is committed, shown or not.
    hold_open(&mut other).await;
    stores(&store, 1, 3).await.unwrap();
    let acknowledged = store.acknowledge(mailbox(1), vec![id(3)], SEEN, NOW).await;
    assert_eq!(acknowledged.unwrap().await.unwrap().blobs, 1);
    stores(&store, 1, 4).await.unwrap();
    let tells = vauchi_relay::store::model::Tells::Nobody;
    let purged = store.purge(mailbox(1), View::Proven, tells, NOW).await;
    assert_eq!(purged.unwrap().blobs, 3);
    store.close().await;
}

/// Writers by hand, as several instances would be: each takes its number, inserts, and holds its transaction
/// open for a random time, so that they end in any order. Readers never see a key while a smaller one can still
/// appear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_passes_a_key_while_a_smaller_one_can_still_appear() {
    const WRITERS: u32 = 5;
    const EACH: u32 = 40;
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = Arc::new(store(&shared.url).await);
    // A row to copy: its checksum holds for its mailbox and its id, so every copy is looked at as it lies.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut session = shared.session().await;
        writers.spawn(async move {
            for round in 0..EACH {
                session.execute("BEGIN").await.unwrap();
                let begun = "SELECT (SELECT number FROM meta WHERE name = 'base') \
                             + pg_current_xact_id()::text::bigint * 65536 AS key";
                let row = sqlx::query(begun).fetch_one(&mut session).await.unwrap();
                let key: i64 = row.try_get("key").unwrap();
                let pause = u64::from(rand::random::<u8>() % 8);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                insert(&mut session, key, writer * 1_000 + round).await;
                let pause = u64::from(rand::random::<u8>() % 8);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let end = match rand::random::<u8>() {
                    0..=40 => "ROLLBACK",
                    _ => "COMMIT",
                };
                session.execute(end).await.unwrap();
            }
            session.close().await.unwrap();
        });
    }
    // Two readers at their own pace; each notes what it has been shown, in order.
    let mut readers = tokio::task::JoinSet::new();
    let is_over = tokio_util::sync::CancellationToken::new();
    for pace in [0, 3] {
        let (store, is_over) = (Arc::clone(&store), is_over.clone());
        readers.spawn(async move {
            let (mut after, mut seen) = (OrderKey::START, Vec::new());
            let bounds = PageBounds {
                blobs_max: 7,
                ..EVERYTHING
            };
            loop {
                let was_over = is_over.is_cancelled();
                let page = store.page(mailbox(1), View::Proven, after, bounds, NOW);
                let page = page.await.unwrap();
                seen.extend(page.blobs.iter().map(|blob| blob.key));
                after = page.next;
                if was_over && page.more == More::No {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(pace)).await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    is_over.cancel();
    let mut session = shared.session().await;
    let all = "SELECT pos FROM blob ORDER BY pos";
    let all = sqlx::query(all).fetch_all(&mut session).await.unwrap();
    let all: Vec<_> = all.iter().map(|row| OrderKey(row.get("pos"))).collect();
    assert!(all.len() > 100, "most of them were committed");
    while let Some(seen) = readers.join_next().await {
        assert_eq!(seen.unwrap(), all, "each once, in order, none passed over");
    }
    store.close().await;
}

/// Inserts a row as the engine does, through the engine's own statement: an envelope stored by a store
/// of its own would take its own number.
async fn insert(session: &mut PgConnection, key: i64, number: u32) {
    let envelope = blob(1, number);
    let secret = Secret::from_bytes([7; 32]);
    let checksum = secret.checksum(&envelope.mailbox, &envelope.id, &envelope.body);
    let (expires_at, stored_at) = (
        envelope.expires_at.millis() as i64,
        envelope.stored_at.millis() as i64,
    );
    let size = i64::try_from(envelope.body.len() * 4).unwrap();
    let mut numbers = [0; 72];
    let fields = [size, expires_at, stored_at, 0, 0, 0, 0, 0, -1];
    for (to, field) in numbers.chunks_exact_mut(8).zip(fields) {
        to.copy_from_slice(&field.to_be_bytes());
    }
    let guard = secret.guard(&checksum, &[&numbers, &[], &[]]);
    let sum = [checksum.as_slice(), &guard].concat();
    let hash = envelope.mailbox.as_bytes();
    let end = i64::from_be_bytes(*hash.last_chunk().unwrap());
    sqlx::query(
        "INSERT INTO blob (pos, mailbox64, mailbox_end64, expires_at, stored_at, size, expires_slot, kind, \
         from_instance, id, mailbox, checksum, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 9, $8, $9, $10, $11)",
    )
    .bind(key)
    .bind(envelope.mailbox.prefix64())
    .bind(end)
    .bind(expires_at)
    .bind(stored_at)
    .bind(i32::try_from(size).unwrap())
    .bind(i32::try_from(expires_at / 600_000).unwrap())
    .bind(sqlx::types::Uuid::from_bytes(*envelope.id.as_bytes()))
    .bind(hash.as_slice())
    .bind(sum)
    .bind(&*envelope.body)
    .execute(session)
    .await
    .unwrap();
}

#[tokio::test]
async fn several_relays_write_and_each_knows_what_all_have_stored() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let (first, second) = (store(&shared.url).await, store(&shared.url).await);
    stores(&first, 1, 1).await.unwrap();
    stores(&second, 1, 2).await.unwrap();
    assert!(matches!(
        stores(&second, 1, 1).await,
        Ok(Appended::Duplicate { .. })
    ));
    stores(&first, 1, 3).await.unwrap();
    for store in [&first, &second] {
        assert_eq!(ids(store, 1).await, [1, 2, 3]);
        // Heartbeats that are half a second apart tell what the others have stored.
        until(async || {
            store.watch().await;
            store.usage().stored == 3
        })
        .await;
        let usage = store.usage();
        assert_eq!(usage.stored_at_start + usage.created, 3, "it adds up");
    }
    let taken = second.acknowledge(mailbox(1), vec![id(1), id(3)], SEEN, NOW);
    assert_eq!(taken.await.unwrap().await.unwrap().blobs, 2);
    assert_eq!(ids(&first, 1).await, [2]);
    assert!(
        matches!(stores(&first, 1, 1).await, Ok(Appended::Duplicate { .. })),
        "it left at the other relay a moment ago"
    );
    first.close().await;
    second.close().await;
}

/// Blobs of their own, the same blobs and the same topic, acknowledged by whoever comes first: each reader sees
/// each blob once and in order, and what is kept adds up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_relays_that_write_at_once_lose_nothing_and_pass_over_nothing() {
    const EACH: u32 = 150;
    let Some(shared) = Shared::new().await else {
        return;
    };
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(Arc::new(store(&shared.url).await));
    }
    let writers = stores.iter().zip(0..).map(|(store, relay)| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let mut pending = Vec::new();
            for number in 0..EACH {
                // Every third is handed in at all relays, every fifth replaces the one before.
                let name = if number % 3 == 0 {
                    number
                } else {
                    number + 1_000 * (relay + 1)
                };
                let mut blob = blob(1, name);
                if number % 5 == 0 && number % 3 != 0 {
                    blob.mailbox = mailbox(2);
                    blob.topic = Some(Topic::from_prefix64(5));
                }
                pending.push(store.append(blob, NOW).await.unwrap());
                if number % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            for stored in pending {
                let stored = stored.await;
                let is_there = matches!(
                    stored,
                    Ok(Appended::Stored { .. } | Appended::Duplicate { .. })
                );
                assert!(is_there, "{stored:?}");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let of_its_own = (0..EACH).filter(|n| n % 3 != 0 && n % 5 != 0).count();
    let expected = 3 * of_its_own + (0..EACH).filter(|n| n % 3 == 0).count();
    let readers = stores.iter().map(|store| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let (mut after, mut seen) = (OrderKey::START, Vec::new());
            while seen.len() < expected {
                let page = store.page(mailbox(1), View::Proven, after, EVERYTHING, NOW);
                let page = page.await.unwrap();
                seen.extend(page.blobs.iter().map(|blob| number(blob.id)));
                after = page.next;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            seen
        })
    });
    let readers: Vec<_> = readers.collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut orders = Vec::new();
    for reader in readers {
        let seen = tokio::time::timeout(Duration::from_secs(60), reader).await;
        orders.push(seen.expect("no blob is passed over").unwrap());
    }
    assert!(
        orders.iter().all(|order| *order == orders[0]),
        "one order for all"
    );
    let held = ids(&stores[0], 2).await;
    assert_eq!(held.len(), 1, "one of a topic");
    let all: Vec<_> = orders[0].iter().map(|number| id(*number)).collect();
    let mut acknowledged = 0;
    let pending = stores
        .iter()
        .map(|store| store.acknowledge(mailbox(1), all.clone(), SEEN, NOW));
    for removed in futures_util::future::join_all(pending).await {
        acknowledged += removed.unwrap().await.unwrap().blobs;
    }
    assert_eq!(acknowledged, all.len() as u64, "each once");
    let mut session = shared.session().await;
    let sums = "SELECT sum(blobs)::bigint AS blobs, sum(departed)::bigint AS departed, \
                (SELECT count(*) FROM departed) AS remembered FROM usage";
    let row = sqlx::query(sums).fetch_one(&mut session).await.unwrap();
    assert_eq!(row.get::<i64, _>("blobs"), 1);
    assert_eq!(
        row.get::<i64, _>("departed"),
        row.get::<i64, _>("remembered")
    );
    for store in stores {
        store.close().await;
    }
}

#[tokio::test]
async fn a_relay_with_another_secret_is_refused_in_one_line() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let first = store(&shared.url).await;
    let mut other = options(&shared.url);
    other.secret = Secret::from_bytes([8; 32]);
    let line = postgres::open(other).await.err().unwrap().to_string();
    let why = "all relays of a database need the same secret: copy it from another relay";
    assert!(line.contains(why) && !line.contains('\n'), "{line}");
    first.close().await;
}

/// What has expired is deleted by one relay; when that is killed, another one takes over.
#[tokio::test]
async fn one_relay_does_the_chores_for_all() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let (first, second) = (store(&shared.url).await, store(&shared.url).await);
    for number in [1, 2] {
        let blob = first
            .append(expiring(blob(1, number), NOW.plus(HOUR)), NOW)
            .await
            .unwrap();
        blob.await.unwrap();
    }
    let later = NOW.plus(2 * HOUR);
    assert_eq!(second.expire(1, later).await.unwrap().blobs, 0);
    assert_eq!(second.expire_asking(later).await.unwrap(), 0);
    assert_eq!(first.expire(1, later).await.unwrap().blobs, 1);
    let mut session = shared.session().await;
    let kill = "SELECT pg_terminate_backend(backend, 5000) FROM lease";
    session.execute(kill).await.unwrap();
    until(async || second.expire(1, later).await.unwrap().blobs == 1).await;
    first.close().await;
    second.close().await;
}

/// The rows of relays that are gone come to an end, and nothing of what they stored is lost from the sums.
#[tokio::test]
async fn what_a_relay_has_stored_that_is_gone_is_still_counted() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    for number in 1..=3 {
        let store = store(&shared.url).await;
        stores(&store, 1, number).await.unwrap();
        store.close().await;
    }
    let last = store(&shared.url).await;
    last.expire(1, NOW).await.unwrap();
    let mut session = shared.session().await;
    let sums = "SELECT count(*) AS rows, sum(blobs)::bigint AS blobs FROM usage";
    let row = sqlx::query(sums).fetch_one(&mut session).await.unwrap();
    assert_eq!((row.get("rows"), row.get("blobs")), (1_i64, 3_i64));
    assert_eq!(last.usage().stored, 3);
    // Of one that was only stopped for a long time nothing is left, and it goes on.
    session.execute("DELETE FROM usage").await.unwrap();
    until(async || stores(&last, 1, 4).await.is_ok()).await;
    assert_eq!(ids(&last, 1).await, [1, 2, 3, 4]);
    last.close().await;
}

/// Of two relays that write at once: the same blob handed to both is stored once, and what was changed meanwhile has a batch folded again.
#[tokio::test]
async fn a_blob_that_another_instance_stores_meanwhile_is_a_duplicate() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    stores(&store, 1, 1).await.unwrap();
    // Another instance has inserted the same blob and not committed it yet: the insert waits for that.
    let mut other = shared.session().await;
    other.execute("BEGIN").await.unwrap();
    let key = "SELECT pg_current_xact_id()::text::bigint * 65536 AS key";
    let row = sqlx::query(key).fetch_one(&mut other).await.unwrap();
    insert(&mut other, row.get("key"), 2).await;
    let pending = store.append(blob(1, 2), NOW).await.unwrap();
    until_waiting(&shared).await;
    other.execute("COMMIT").await.unwrap();
    assert!(matches!(pending.await, Ok(Appended::Duplicate { .. })));
    assert_eq!(ids(&store, 1).await, [1, 2]);
    assert_eq!(store.usage().created, 1);
    store.close().await;
}

#[tokio::test]
async fn a_blob_that_another_instance_deletes_meanwhile_is_acknowledged_once() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    stores(&store, 1, 1).await.unwrap();
    let mut other = shared.session().await;
    other.execute("BEGIN").await.unwrap();
    other.execute("DELETE FROM blob").await.unwrap();
    let pending = store.acknowledge(mailbox(1), vec![id(1)], SEEN, NOW).await;
    until_waiting(&shared).await;
    other.execute("COMMIT").await.unwrap();
    assert_eq!(pending.unwrap().await.unwrap().blobs, 0);
    assert_eq!(store.usage().acknowledged, 0);
    store.close().await;
}

/// Waits until a session of the relay waits for a lock of another.
async fn until_waiting(shared: &Shared) {
    let mut session = shared.session().await;
    let waiting = "SELECT count(*) AS sessions FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'vauchi-relay' AND wait_event_type = 'Lock'";
    let begun = Instant::now();
    loop {
        let row = sqlx::query(waiting).fetch_one(&mut session).await.unwrap();
        if row.get::<i64, _>("sessions") > 0 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until(condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A dump that was restored on a fresh server counts transactions from the beginning again.
#[tokio::test]
async fn positions_go_on_after_the_server_s_numbers_have_begun_anew() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let first = store(&shared.url).await;
    stores(&first, 1, 1).await.unwrap();
    first.close().await;
    drop(first);
    // As if the row had come from a server that was far ahead.
    let mut session = shared.session().await;
    let ahead = "UPDATE blob SET pos = pos + 65536::bigint * 1000000000";
    session.execute(ahead).await.unwrap();
    let second = store(&shared.url).await;
    stores(&second, 1, 2).await.unwrap();
    assert_eq!(ids(&second, 1).await, [1, 2]);
    second.close().await;
}

#[tokio::test]
async fn a_blob_that_does_not_match_its_checksum_is_skipped_and_kept_and_lost_after_ten_looks() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    for id in 1..=3 {
        stores(&store, 1, id).await.unwrap();
    }
    let mut session = shared.session().await;
    let damage = "UPDATE blob SET body = body || '\\x00' WHERE id = \
                  '00000002-0000-0000-0000-000000000000'";
    session.execute(damage).await.unwrap();
    assert_eq!(ids(&store, 1).await, [1, 3]);
    for look in 1..=10 {
        assert_eq!(store.usage().lost, 0, "before look {look}");
        assert!(store.look_again(NOW).await.unwrap().is_empty());
    }
    let usage = store.usage();
    assert_eq!((usage.lost, usage.stored), (1, 2));
    let kept = "SELECT count(*) AS rows FROM corrupt";
    let kept = sqlx::query(kept).fetch_one(&mut session).await.unwrap();
    assert_eq!(kept.get::<i64, _>("rows"), 1);
    // Its sender may send it again.
    assert!(matches!(
        stores(&store, 1, 2).await,
        Ok(Appended::Stored { .. })
    ));
    store.close().await;
}

/// Statistics are stale or there are none, and still every statement finds its rows by an index: the table is
/// never read from one end to the other.
#[tokio::test]
async fn no_statement_reads_a_table_from_end_to_end() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    // Making an index reads its table, so that is not counted.
    store(&shared.url).await.close().await;
    let mut session = shared.session().await;
    let reset = "SELECT pg_stat_force_next_flush(), pg_stat_reset()";
    session.execute(reset).await.unwrap();
    let store = store(&shared.url).await;
    for id in 0..30 {
        stores(&store, 1, id).await.unwrap();
    }
    ids(&store, 1).await;
    let acknowledged = store.acknowledge(mailbox(1), vec![id(3)], SEEN, NOW).await;
    acknowledged.unwrap().await.unwrap();
    let expiring = expiring(blob(1, 99), NOW.plus(HOUR));
    let appended = store.append(expiring, NOW).await;
    appended.unwrap().await.unwrap();
    store.expire(256, NOW.plus(2 * HOUR)).await.unwrap();
    store.expire_asking(NOW.plus(2 * HOUR)).await.unwrap();
    let extended = store.extend(mailbox(1), id(4), NOW.plus(2000 * HOUR), NOW);
    extended.await.unwrap().await.unwrap();
    let held = store.holdings(vec![mailbox(1)], View::Proven, NOW).await;
    assert_eq!(held.unwrap()[0].blobs, 29);
    store.probe().await.unwrap();
    store.close().await;
    drop(store);
    // The sessions report when they end.
    let by_index = "SELECT coalesce(sum(idx_scan), 0)::bigint AS scans FROM pg_stat_user_tables \
                    WHERE relname = 'blob'";
    let begun = Instant::now();
    loop {
        let row = sqlx::query(by_index).fetch_one(&mut session).await.unwrap();
        let scans: i64 = row.get("scans");
        if scans > 60 {
            break;
        }
        let is_early = begun.elapsed() < Duration::from_secs(20);
        assert!(is_early, "only {scans} scans were reported");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let scans = "SELECT relname::text AS relname FROM pg_stat_user_tables WHERE seq_scan > 0 \
                 AND relname IN ('blob', 'departed', 'recovery', 'pin', 'nonce')";
    let rows = sqlx::query(scans).fetch_all(&mut session).await.unwrap();
    let scanned: Vec<String> = rows.iter().map(|row| row.get("relname")).collect();
    assert!(scanned.is_empty(), "{scanned:?}");
}

/// The engine alone, with a session that another session ends, before and in the middle of a transaction.
#[tokio::test]
async fn a_session_that_is_ended_is_a_transaction_that_did_not_happen() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let mut opened = open(&shared.url).await.unwrap();
    let asked = Asked {
        names: vec![(mailbox(1), id(1))],
        ..Asked::default()
    };
    opened.engine.known(&asked).await.unwrap();
    let mut session = shared.session().await;
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
               WHERE datname = current_database() AND state = 'idle in transaction'";
    sqlx::query(end).fetch_all(&mut session).await.unwrap();
    let known = opened.engine.known(&asked).await;
    assert!(matches!(known, Err(CommitError::Unknown(_))));
    let known = opened.engine.known(&asked).await;
    assert!(
        matches!(known, Err(CommitError::Unknown(_))),
        "until it is reopened"
    );
    opened.engine.reopen().await.unwrap();
    opened.engine.known(&asked).await.unwrap();
    opened.engine.close().await;
}

/// The answer to a COMMIT is lost on the wire: the number of the transaction tells what became of it, and the
/// sender hears the truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_settled_by_its_number() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let proxy = Proxy::before(database::shared().port).await;
    let url = format!("postgres://relay@{}/{}", proxy.address, shared.name());
    let store = store(&url).await;
    stores(&store, 1, 1).await.unwrap();

    proxy.cut(Cut::After);
    let stored = stores(&store, 1, 2).await;
    assert!(matches!(stored, Ok(Appended::Stored { .. })), "{stored:?}");
    assert!(proxy.has_cut());
    // What comes until it is settled is refused; this one is a repeat, then.
    until(async || stores(&store, 1, 2).await.is_ok()).await;
    proxy.cut(Cut::Before);
    stores(&store, 1, 3).await.unwrap_err();
    assert!(proxy.has_cut());
    assert_eq!(ids(&store, 1).await, [1, 2]);
    until(async || stores(&store, 1, 3).await.is_ok()).await;

    // Nothing comes back, and the connection stays: it is given up, and the same is found out.
    proxy.cut(Cut::Silent);
    let stored = stores(&store, 1, 4).await;
    assert!(matches!(stored, Ok(Appended::Stored { .. })), "{stored:?}");
    assert!(proxy.has_cut());
    assert_eq!(ids(&store, 1).await, [1, 2, 3, 4]);
    let usage = store.usage();
    assert_eq!((usage.created, usage.stored), (4, 4));
    assert!(usage.is_conserved());
    store.close().await;
}

/// Has every insert fail with this code, until the trigger is dropped.
async fn fail_inserts(session: &mut PgConnection, code: &str, when: &str) {
    let statements = format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF {when} THEN RAISE EXCEPTION 'a fault that a test asked for' USING ERRCODE = '{code}'; END IF; \
         RETURN NEW; END $$; \
         CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON blob FOR EACH ROW EXECUTE FUNCTION fail()"
    );
    session.execute(AssertSqlSafe(statements)).await.unwrap();
}

#[tokio::test]
async fn on_a_full_disk_new_blobs_are_refused_and_deletions_go_on() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    stores(&store, 1, 1).await.unwrap();
    let mut session = shared.session().await;
    fail_inserts(&mut session, "53100", "true").await;
    assert_eq!(stores(&store, 1, 2).await.unwrap(), Appended::RelayFull);
    assert!(!store.takes_blobs());
    let acknowledged = store.acknowledge(mailbox(1), vec![id(1)], SEEN, NOW).await;
    assert_eq!(acknowledged.unwrap().await.unwrap().blobs, 1);
    session.execute("DROP TRIGGER fail ON blob").await.unwrap();
    stores(&store, 1, 2).await.unwrap();
    assert!(store.takes_blobs());
    store.close().await;
}

#[tokio::test]
async fn a_batch_that_lost_a_race_is_folded_again() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    let mut session = shared.session().await;
    session.execute("CREATE SEQUENCE tries").await.unwrap();
    // As a deadlock with another instance would be, twice.
    fail_inserts(&mut session, "40P01", "nextval('tries') <= 2").await;
    let stored = stores(&store, 1, 1).await.unwrap();
    assert!(matches!(stored, Appended::Stored { .. }));
    assert_eq!(store.usage().created, 1);
    store.close().await;
}

#[tokio::test]
async fn of_several_writes_only_the_one_that_the_server_refuses_fails() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let store = store(&shared.url).await;
    let mut session = shared.session().await;
    let of_two = "NEW.id = '00000002-0000-0000-0000-000000000000'";
    fail_inserts(&mut session, "22000", of_two).await;
    let mut pending = Vec::new();
    for id in 1..=3 {
        pending.push(store.append(blob(1, id), NOW).await.unwrap());
    }
    let mut are_stored = Vec::new();
    for pending in pending {
        are_stored.push(pending.await.is_ok());
    }
    assert_eq!(are_stored, [true, false, true]);
    assert_eq!(ids(&store, 1).await, [1, 3]);
    store.close().await;
}

/// Nobody listens at the first host, and the second is a database that is set to read only.
#[tokio::test]
async fn of_several_hosts_the_first_that_takes_writes_is_used() {
    let Some(shared) = Shared::new().await else {
        return;
    };
    let (name, port) = (shared.name(), database::shared().port);
    let url = format!("postgres://relay@127.0.0.1:1,127.0.0.1:{port}/{name}");
    let mut opened = open(&url).await.unwrap();
    opened.engine.close().await;
    let mut session = shared.session().await;
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    session.execute(AssertSqlSafe(read_only)).await.unwrap();
    let line = open(&url).await.err().unwrap().to_string();
    let writes = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
    let end = format!("SET default_transaction_read_only = off; {writes}");
    session.execute(AssertSqlSafe(end)).await.unwrap();
    for words in ["127.0.0.1:1: ", "takes no writes", "RELAY_DATABASE_URL"] {
        assert!(line.contains(words), "{line}");
    }
    assert!(!line.contains('\n'), "{line}");
}

/// TLS with a certificate of its own, and a password that is changed while the relay runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_s_certificate_is_checked_and_the_password_is_read_anew() {
    if !database::is_there() {
        return;
    }
    let server = tokio::task::block_in_place(|| Server::start(&[]));
    server.make("relay").await;
    let folder = tempfile::tempdir().unwrap();
    let certificate = folder.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    server.put("server.crt", &made.cert.pem());
    server.put("server.key", &made.signing_key.serialize_pem());
    server.put(
        "pg_hba.conf",
        "hostssl all all 127.0.0.1/32 scram-sha-256\n",
    );
    let mut session = server.session("relay").await;
    for statement in [
        "ALTER ROLE relay PASSWORD 'first'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        session.execute(statement).await.unwrap();
    }
    let password = folder.path().join("password");
    std::fs::write(&password, "first\n").unwrap();
    let options = |parameters: &str| {
        let url = format!("{}?{parameters}", server.url("relay"));
        let mut options = options(&url);
        options.database.password_file = Some(password.clone());
        options
    };
    let trusted = format!("sslmode=verify-full&sslrootcert={}", certificate.display());
    let opened = async || postgres::open(options(&trusted)).await;
    let until_reloaded = async || match opened().await {
        Ok(mut opened) => {
            opened.engine.close().await;
            true
        }
        Err(_) => false,
    };
    until(until_reloaded).await;
    let unknown = postgres::open(options("sslmode=verify-full")).await;
    assert!(unknown.is_err(), "the system does not know this authority");
    let plain = postgres::open(options("sslmode=disable")).await;
    assert!(plain.is_err(), "the server wants TLS");

    let mut relay = opened().await.unwrap();
    session
        .execute("ALTER ROLE relay PASSWORD 'second'")
        .await
        .unwrap();
    relay.engine.reopen().await.unwrap_err();
    std::fs::write(&password, "second\n").unwrap();
    relay.engine.reopen().await.unwrap();
    relay.engine.close().await;
    std::fs::write(&password, "s3cret\n").unwrap();
    let line = opened().await.err().unwrap().to_string();
    assert!(line.contains("password authentication failed"), "{line}");
    assert!(!line.contains("s3cret"), "{line}");
}

/// Senders hand in one blob after the other while the server is stopped and started again, by a restart and by
/// a crash: whatever was answered `Stored` is there, in order of its sender, and the relay comes back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_a_server_that_stops_or_crashes_under_load() {
    const SENDERS: u8 = 4;
    if !database::is_there() {
        return;
    }
    let server = Server::start(&[]);
    server.make("relay").await;
    let store = Arc::new(store(&server.url("relay")).await);
    let is_over = tokio_util::sync::CancellationToken::new();
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (store, is_over) = (Arc::clone(&store), is_over.clone());
        senders.spawn(async move {
            let mut confirmed = Vec::new();
            let mut refused = 0_u32;
            for id in 0.. {
                if is_over.is_cancelled() {
                    break;
                }
                match store.append(blob_of(sender, id, 300), NOW).await {
                    Ok(pending) => match pending.await {
                        Ok(Appended::Stored { .. }) => confirmed.push(id),
                        Ok(other) => panic!("{other:?}"),
                        Err(_) => refused += 1,
                    },
                    Err(_) => {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
            (sender, confirmed, refused)
        });
    }
    for signal in ["INT", "QUIT"] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::task::block_in_place(|| server.stop(signal));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let why = store.probe().await.unwrap_err();
        assert!(matches!(why, StoreError::Unavailable(_)), "{why}");
        tokio::task::block_in_place(|| server.run());
        // As the server does every second.
        until(async || {
            store.watch().await;
            store.probe().await.is_ok()
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    is_over.cancel();
    while let Some(ended) = senders.join_next().await {
        let (sender, confirmed, refused) = ended.unwrap();
        assert!(!confirmed.is_empty() && refused > 0, "{sender}: {refused}");
        let mut there = Vec::new();
        let mut after = OrderKey::START;
        loop {
            let page = store.page(mailbox(sender), View::Proven, after, EVERYTHING, NOW);
            let page = page.await.unwrap();
            there.extend(page.blobs.iter().map(|blob| number(blob.id)));
            after = page.next;
            if !page.more.is_any() {
                break;
            }
        }
        // What was refused is not there, either: each answer is true.
        assert_eq!(there, confirmed, "sender {sender}");
    }
    store.close().await;
}
