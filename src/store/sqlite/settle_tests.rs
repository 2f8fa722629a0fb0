//! A relay that is killed between any two steps of settling, and what its files hold then.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::*;
use sqlx::ConnectOptions as _;

use crate::clock::{Clock, Timestamp};
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::engine::Opened;
use crate::store::model::{Class, Envelope, Opener, PageBounds, Tells, View};
use crate::store::quota::Quota;
use crate::store::sqlite::{self, SqliteOptions};
use crate::store::{Store, StoreOptions};

const PACE: Pace = Pace {
    rows: 8,
    step: 4,
    tick: Duration::ZERO,
};

/// Nothing is settled by itself.
const NEVER: Pace = Pace {
    rows: usize::MAX / 8,
    step: 4,
    tick: Duration::from_secs(3_600),
};

const MAILBOXES: u8 = 5;

fn options(folder: &Path, pace: Pace) -> SqliteOptions {
    SqliteOptions {
        data_dir: folder.to_owned(),
        secret: Secret::from_bytes([7; 32]),
        free_bytes_min: 0,
        dedup: Duration::from_secs(3_600),
        dedup_max: 0,
        allow_network_fs: true,
        pace,
        metrics: Arc::new(Metrics::new()),
        clock: Clock::manual(at(1)).0,
    }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn mailbox(number: u32) -> MailboxHash {
    MailboxHash::from_bytes([(number % u32::from(MAILBOXES)) as u8; 32])
}

fn id(number: u32) -> BlobId {
    BlobId::from_bytes(u128::from(number).to_be_bytes())
}

fn envelope(number: u32) -> Envelope {
    Envelope {
        mailbox: mailbox(number),
        id: id(number),
        class: Class::ProvenOnly,
        owner: None,
        topic: None,
        receipt_to: None,
        stored_at: at(1),
        expires_at: at(900_000),
        sealed: bytes::Bytes::new(),
        body: number.to_be_bytes().to_vec().into(),
    }
}

async fn store(folder: &Path, pace: Pace) -> Store {
    let options = options(folder, pace);
    let store_options = StoreOptions {
        secret: options.secret.clone(),
        quota: Quota::UNBOUNDED,
        dedup: options.dedup,
        receipt_ttl: Duration::from_secs(3_600),
        news: Arc::new(|_| ()),
        clock: options.clock.clone(),
        metrics: Arc::clone(&options.metrics),
    };
    Store::start(sqlite::open(options).await.unwrap(), store_options)
}

async fn acknowledge(store: &Store, number: u32) {
    let by = Opener {
        view: View::Proven,
        tells: Tells::Nobody,
    };
    let acknowledging = store.acknowledge(mailbox(number), vec![id(number)], by, at(2));
    assert_eq!(acknowledging.await.unwrap().await.unwrap().blobs, 1);
}

/// What waits, by number, in the order of its mailbox.
async fn waiting(store: &Store) -> BTreeMap<u8, Vec<u32>> {
    let bounds = PageBounds {
        blobs_max: 1_000,
        bytes_max: 1 << 30,
    };
    let mut waiting = BTreeMap::new();
    for number in 0..MAILBOXES {
        let mailbox = MailboxHash::from_bytes([number; 32]);
        let page = store.page(mailbox, View::Proven, OrderKey::START, bounds, at(3));
        let blobs = page.await.unwrap().blobs;
        let numbers = blobs.iter().map(|blob| {
            let body: [u8; 4] = blob.body[..].try_into().unwrap();
            u32::from_be_bytes(body)
        });
        waiting.insert(number, numbers.collect());
    }
    waiting
}

fn expected(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<u8, Vec<u32>> {
    let mut expected: BTreeMap<u8, Vec<u32>> = (0..MAILBOXES)
        .map(|mailbox| (mailbox, Vec::new()))
        .collect();
    for number in numbers {
        let mailbox = (number % u32::from(MAILBOXES)) as u8;
        expected.entry(mailbox).or_default().push(number);
    }
    expected
}

/// A copy of the files as they are, which is what a killed process leaves.
fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// How many steps of settling there were, after which the copy was taken.
async fn settled_in_part(folder: &Path, steps: usize) -> bool {
    let Opened { mut engine, .. } = sqlite::open(options(folder, PACE)).await.unwrap();
    for _ in 0..steps {
        if engine.tidy(true).await.unwrap() != Some(Duration::ZERO) {
            return false;
        }
    }
    let copied = tempfile::tempdir().unwrap();
    copy(folder, copied.path());
    // As a killed process: nothing is closed.
    std::mem::forget(engine);
    let store = store(copied.path(), NEVER).await;
    let left = expected((0..60).filter(|number| number % 3 != 0));
    assert_eq!(waiting(&store).await, left, "after {steps} steps");
    assert_eq!(store.usage().stored, 40);
    acknowledge(&store, 1).await;
    acknowledge(&store, 58).await;
    store.close().await;
    let store = self::store(copied.path(), PACE).await;
    let still = (0..60).filter(|number| number % 3 != 0 && ![1, 58].contains(number));
    assert_eq!(waiting(&store).await, expected(still));
    store.close().await;
    assert_eq!(
        rows(copied.path()).await,
        (38, 38, 0),
        "after {steps} steps"
    );
    true
}

/// Rows, entries of runs, and numbers of `gone` in a database that is closed.
async fn rows(folder: &Path) -> (i64, i64, i64) {
    let path = folder.join(sqlite::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = options.connect().await.unwrap();
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM blob), \
         (SELECT count(*) FROM run JOIN entry ON entry.run = run.run), \
         (SELECT count(*) FROM gone)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    (row.get(0), row.get(1), row.get(2))
}

/// Blobs of which every third was acknowledged, and nothing is settled.
async fn unsettled(folder: &Path) {
    let store = store(folder, NEVER).await;
    for number in 0..60 {
        let pending = store.append(envelope(number), at(1)).await.unwrap();
        pending.await.unwrap();
    }
    for number in (0..60).step_by(3) {
        acknowledge(&store, number).await;
    }
    let copied = tempfile::tempdir().unwrap();
    copy(folder, copied.path());
    // A close would settle all.
    store.close().await;
    for file in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    copy(copied.path(), folder);
}

#[tokio::test]
async fn a_kill_between_any_two_steps_loses_nothing_and_brings_nothing_back() {
    let begun = tempfile::tempdir().unwrap();
    unsettled(begun.path()).await;
    for steps in 0..200 {
        let folder = tempfile::tempdir().unwrap();
        copy(begun.path(), folder.path());
        if !settled_in_part(folder.path(), steps).await {
            assert!(steps > 10, "nothing was settled");
            return;
        }
    }
    panic!("it never ends");
}

#[tokio::test]
async fn many_runs_become_few() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let store = store(folder.path(), NEVER).await;
        for number in round * 10..round * 10 + 10 {
            let pending = store.append(envelope(number), at(1)).await.unwrap();
            pending.await.unwrap();
        }
        // Each close writes a run.
        store.close().await;
    }
    let Opened { mut engine, .. } = sqlite::open(options(folder.path(), PACE)).await.unwrap();
    while engine.tidy(true).await.unwrap().is_some() {}
    engine.close().await;
    drop(engine);
    let runs = {
        let path = folder.path().join(sqlite::DATABASE_FILE);
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.unwrap();
        Runs::read(&mut connection).await.unwrap().0.len()
    };
    assert!(runs < MERGE_RUNS, "{runs}");
    assert_eq!(rows(folder.path()).await, (200, 200, 0));
    let store = store(folder.path(), PACE).await;
    assert_eq!(waiting(&store).await, expected(0..200));
    store.close().await;
}

#[tokio::test]
async fn runs_that_cannot_be_written_are_built_anew() {
    let folder = tempfile::tempdir().unwrap();
    unsettled(folder.path()).await;
    {
        let path = folder.path().join(sqlite::DATABASE_FILE);
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.unwrap();
        let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON entry WHEN NEW.run > 2 \
                     BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
        sqlx::query(spoil).execute(&mut connection).await.unwrap();
    }
    let store = store(folder.path(), PACE).await;
    let left = expected((0..60).filter(|number| number % 3 != 0));
    assert_eq!(waiting(&store).await, left);
    acknowledge(&store, 1).await;
    let pending = store.append(envelope(61), at(1)).await.unwrap();
    pending.await.unwrap();
    let still = (0..60).filter(|number| number % 3 != 0 && *number != 1);
    assert_eq!(waiting(&store).await, expected(still.chain([61])));
    store.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_deleted_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    unsettled(folder.path()).await;
    {
        let path = folder.path().join(sqlite::DATABASE_FILE);
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.unwrap();
        // The first one that was acknowledged.
        let spoil = "CREATE TRIGGER spoil BEFORE DELETE ON blob WHEN OLD.seq = 1 \
                     BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
        sqlx::query(spoil).execute(&mut connection).await.unwrap();
    }
    let store = store(folder.path(), PACE).await;
    let left = expected((0..60).filter(|number| number % 3 != 0));
    assert_eq!(waiting(&store).await, left);
    store.close().await;
    // The row, and the one number that names it.
    assert_eq!(rows(folder.path()).await, (41, 40, 1));
    let store = self::store(folder.path(), NEVER).await;
    assert_eq!(waiting(&store).await, left);
    store.close().await;
}
