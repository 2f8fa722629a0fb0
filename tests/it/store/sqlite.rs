//! Opening a database: what goes wrong ends in one clear line, and a restart keeps everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use vauchi_relay::clock::{Clock, Timestamp};
use vauchi_relay::ids::{BlobId, MailboxHash, Topic};
use vauchi_relay::metrics::Metrics;
use vauchi_relay::secrets::Secret;
use vauchi_relay::store::model::{
    Appended, BacklogCursor, Class, Envelope, OrderKey, Owner, Page, PageBounds, ReceiptKind,
    StoredBlob, Tells, View,
};
use vauchi_relay::store::quota::Quota;
use vauchi_relay::store::sqlite::{self, DATABASE_FILE, OpenError, SqliteOptions};
use vauchi_relay::store::{Store, StoreError, StoreOptions};

const NOW: u64 = 1_800_000_000_000;
const HOUR: u64 = 3_600_000;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn options(data_dir: &Path) -> SqliteOptions {
    SqliteOptions {
        data_dir: data_dir.to_owned(),
        secret: Secret::from_bytes([7; 32]),
        free_bytes_min: 0,
        dedup: Duration::from_secs(3_600),
        dedup_max: 1_000_000,
        allow_network_fs: false,
        pace: Default::default(),
        metrics: Arc::new(Metrics::new()),
        clock: Clock::manual(at(NOW)).0,
    }
}

async fn open(data_dir: &Path) -> Store {
    open_with(options(data_dir), |_| {}).await
}

async fn open_with(options: SqliteOptions, change: impl FnOnce(&mut Quota)) -> Store {
    let mut quota = Quota {
        mailbox_blobs_max: 1_000,
        ..Quota::UNBOUNDED
    };
    change(&mut quota);
    let rules = StoreOptions {
        secret: options.secret.clone(),
        quota,
        dedup: options.dedup,
        receipt_ttl: Duration::from_secs(3_600),
        news: Arc::new(|_| {}),
        clock: options.clock.clone(),
        metrics: Arc::clone(&options.metrics),
    };
    Store::start(sqlite::open(options).await.unwrap(), rules)
}

/// The line of an open that must fail.
async fn line_of(options: SqliteOptions) -> (OpenError, String) {
    let error = sqlite::open(options).await.err().unwrap();
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    (error, line)
}

fn mailbox(number: u8) -> MailboxHash {
    MailboxHash::from_bytes([number; 32])
}

fn id(number: u32) -> BlobId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    BlobId::from_bytes(bytes)
}

fn envelope(to: u8, number: u32) -> Envelope {
    Envelope {
        mailbox: mailbox(to),
        id: id(number),
        class: Class::SeenByV1,
        owner: None,
        topic: None,
        receipt_to: None,
        stored_at: at(NOW),
        expires_at: at(NOW + HOUR),
        sealed: Bytes::new(),
        body: Bytes::from(format!("body {number}")),
    }
}

async fn append(store: &Store, envelope: Envelope) -> Appended {
    let expired_by = envelope.stored_at;
    let appended = store.append(envelope, expired_by).await;
    appended.unwrap().await.unwrap()
}

async fn acknowledge(store: &Store, of: u8, numbers: &[u32]) -> u64 {
    let ids = numbers.iter().copied().map(id).collect();
    let pending = store
        .acknowledge(mailbox(of), ids, crate::store::contract::SEEN, at(NOW))
        .await
        .unwrap();
    pending.await.unwrap().blobs
}

const ALL: PageBounds = PageBounds {
    blobs_max: 10_000,
    bytes_max: u64::MAX,
};

async fn page_after(store: &Store, of: u8, after: OrderKey, now: u64) -> Page {
    store
        .page(mailbox(of), View::Proven, after, ALL, at(now))
        .await
        .unwrap()
}

async fn blobs(store: &Store, of: u8) -> Vec<StoredBlob> {
    page_after(store, of, OrderKey::START, NOW).await.blobs
}

async fn direct(data_dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(data_dir.join(DATABASE_FILE))
        .connect()
        .await
        .unwrap()
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

/// A folder whose database had so many blobs in the mailbox 1, and was changed after the relay closed it.
async fn changed(blobs: u32, change: &'static str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for number in 1..=blobs {
        append(&store, envelope(1, number)).await;
    }
    store.close().await;
    let mut file = direct(folder.path()).await;
    run(&mut file, change).await;
    folder
}

async fn number(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

const STORED: Appended = Appended::Stored {
    expires_at: Timestamp::from_millis(NOW + HOUR),
};
const DUPLICATE: Appended = Appended::Duplicate {
    expires_at: Timestamp::from_millis(NOW + HOUR),
};

#[tokio::test]
async fn a_missing_data_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (error, line) = line_of(options(&folder.path().join("none"))).await;
    assert!(matches!(error, OpenError::DataDir { .. }));
    assert!(line.contains("No such file or directory") && line.contains("RELAY_DATA_DIR"));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (_, line) = line_of(options(&file)).await;
    assert!(line.contains("Not a directory"), "{line}");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_to_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(folder.path(), mode(0o555)).unwrap();
    if std::fs::write(folder.path().join("probe"), "").is_ok() {
        // The superuser may write everywhere, so there is nothing to see.
        return;
    }
    let (error, line) = line_of(options(folder.path())).await;
    assert!(matches!(error, OpenError::DataDir { .. }));
    assert!(line.contains("Permission denied"), "{line}");
    std::fs::set_permissions(folder.path(), mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_second_relay_in_the_same_directory_is_refused_until_the_first_has_closed() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let (error, line) = line_of(options(folder.path())).await;
    assert!(matches!(error, OpenError::InUse(_)));
    assert!(line.contains("another relay"), "{line}");
    first.close().await;
    open(folder.path()).await.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    let text = "not a database ".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let (error, line) = line_of(options(folder.path())).await;
    assert!(matches!(error, OpenError::Corrupt { .. }));
    assert!(line.contains("file is not a database"), "{line}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_database_that_another_process_writes_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.close().await;
    let mut other = direct(folder.path()).await;
    run(&mut other, "PRAGMA locking_mode = EXCLUSIVE").await;
    run(
        &mut other,
        "UPDATE meta SET value = value WHERE name = 'trial'",
    )
    .await;
    let (error, line) = line_of(options(folder.path())).await;
    assert!(matches!(error, OpenError::Locked { .. }), "{line}");
    assert!(line.contains("database is locked"), "{line}");
}

#[tokio::test]
async fn the_database_of_a_newer_relay_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.close().await;
    let mut newer = direct(folder.path()).await;
    run(
        &mut newer,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (77, 'future', TRUE, x'00', 0)",
    )
    .await;
    drop(newer);
    let (error, line) = line_of(options(folder.path())).await;
    assert!(matches!(error, OpenError::NewerSchema { found: 77, .. }));
    assert!(
        line.contains("newer relay") && line.contains("77"),
        "{line}"
    );
}

#[tokio::test]
async fn a_database_under_another_secret_is_refused_and_the_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.close().await;
    let other = SqliteOptions {
        secret: Secret::from_bytes([8; 32]),
        ..options(folder.path())
    };
    let (error, line) = line_of(other).await;
    assert!(matches!(error, OpenError::SecretMismatch { .. }));
    assert!(line.contains("relay.secret"), "{line}");
    open(folder.path()).await.close().await;
}

#[tokio::test]
async fn the_files_are_private_and_one_file_is_left_after_closing() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    append(&store, envelope(1, 1)).await;
    for name in ["relay.db", "relay.db-wal"] {
        let meta = std::fs::metadata(folder.path().join(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
    }
    store.close().await;
    assert!(!folder.path().join("relay.db-wal").exists());
    let refused = store.append(envelope(1, 2), at(NOW)).await;
    assert!(matches!(refused, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_restart_keeps_blobs_order_keys_departures_and_usage() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for number in 1..=3 {
        assert_eq!(append(&store, envelope(1, number)).await, STORED);
    }
    let before = blobs(&store, 1).await;
    assert_eq!(acknowledge(&store, 1, &[2, 3]).await, 2);
    store.close().await;

    let store = open(folder.path()).await;
    let usage = store.usage();
    assert_eq!((usage.stored, usage.stored_at_start), (1, 1));
    assert_eq!(usage.bytes, 256 + 6);
    assert!(usage.is_conserved());
    // A repeat of what is there, and of what left before the restart.
    assert_eq!(append(&store, envelope(1, 1)).await, DUPLICATE);
    assert_eq!(append(&store, envelope(1, 3)).await, DUPLICATE);
    let mut other = envelope(1, 3);
    other.body = Bytes::from_static(b"another");
    assert_eq!(append(&store, other).await, Appended::IdReused);
    // The key of the last blob is not used again although it left.
    append(&store, envelope(1, 4)).await;
    let after = blobs(&store, 1).await;
    assert_eq!(after[0].key, before[0].key);
    assert!(after[1].key > before[2].key);
    store.close().await;
}

#[tokio::test]
async fn order_keys_are_not_used_again_after_a_vacuum() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    append(&store, envelope(1, 1)).await;
    append(&store, envelope(1, 2)).await;
    let last = blobs(&store, 1).await[1].key;
    acknowledge(&store, 1, &[1, 2]).await;
    store.close().await;
    run(&mut direct(folder.path()).await, "VACUUM").await;
    let store = open(folder.path()).await;
    append(&store, envelope(1, 3)).await;
    assert!(blobs(&store, 1).await[0].key > last);
    store.close().await;
}

#[tokio::test]
async fn no_more_departures_are_remembered_than_the_bound_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let bounded = || SqliteOptions {
        dedup_max: 2,
        ..options(folder.path())
    };
    let store = open_with(bounded(), |_| {}).await;
    for number in 1..=4 {
        append(&store, envelope(1, number)).await;
        acknowledge(&store, 1, &[number]).await;
    }
    store.close().await;
    let store = open_with(bounded(), |_| {}).await;
    assert_eq!(append(&store, envelope(1, 4)).await, DUPLICATE);
    assert_eq!(append(&store, envelope(1, 3)).await, DUPLICATE);
    assert_eq!(append(&store, envelope(1, 2)).await, STORED);
    // The sweep takes the rest out of the table.
    while store.expire(100, at(NOW)).await.unwrap().more {}
    store.close().await;
    let mut file = direct(folder.path()).await;
    assert_eq!(
        number(&mut file, "SELECT count(*) FROM departures").await,
        2
    );
}

/// Once, one start with the clock ahead forgot them all.
#[tokio::test]
async fn a_start_with_the_clock_a_year_ahead_forgets_no_departure() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    append(&store, envelope(1, 1)).await;
    acknowledge(&store, 1, &[1]).await;
    store.close().await;
    let ahead = SqliteOptions {
        clock: Clock::manual(at(NOW + 365 * 24 * HOUR)).0,
        ..options(folder.path())
    };
    let store = open_with(ahead, |_| {}).await;
    assert_eq!(append(&store, envelope(1, 1)).await, DUPLICATE);
}

/// How many locks SQLite holds on a file.
#[cfg(target_os = "linux")]
fn locks_on(path: &Path) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", std::fs::metadata(path).unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let is_held = |line: &&str| line.contains(" POSIX ") && line.contains(&inode);
    locks.lines().filter(is_held).count()
}

/// Closing any handle of a file drops the locks of the whole process on it. Once, the look for damage
/// opened and closed the database, and other programs could then change its format under the relay.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_look_for_damage_keeps_the_locks_on_the_database() {
    let folder = changed(1, "UPDATE blob SET body = x'00' WHERE seq = 1").await;
    let store = open(folder.path()).await;
    let path = folder.path().join(DATABASE_FILE);
    let before = locks_on(&path);
    assert!(before > 0);
    assert!(blobs(&store, 1).await.is_empty());
    assert_eq!(locks_on(&path), before);
}

/// As the relay does in ten minutes.
async fn look_ten_times(store: &Store) {
    for _ in 0..10 {
        assert!(store.look_again(at(NOW)).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_corrupt_row_is_kept_for_ten_looks_then_set_aside_and_may_be_sent_again() {
    let folder = changed(3, "UPDATE blob SET body = x'00' WHERE seq = 2").await;
    let metrics = Arc::new(Metrics::new());
    let counted = SqliteOptions {
        metrics: Arc::clone(&metrics),
        ..options(folder.path())
    };
    let store = open_with(counted, |_| {}).await;
    let keys: Vec<_> = blobs(&store, 1).await.iter().map(|b| b.key.0).collect();
    assert_eq!(keys, [1, 3]);
    let quarantined = |metrics: &Metrics| metrics.values()["relay_blobs_quarantined"];
    for _ in 0..9 {
        assert!(store.look_again(at(NOW)).await.unwrap().is_empty());
        assert_eq!((store.usage().lost, store.usage().stored), (0, 3));
        assert_eq!(quarantined(&metrics), 1.0);
    }
    assert!(store.look_again(at(NOW)).await.unwrap().is_empty());
    assert_eq!(store.usage().lost, 1);
    // The next look finds that it is gone.
    assert!(store.look_again(at(NOW)).await.unwrap().is_empty());
    assert_eq!(quarantined(&metrics), 0.0);
    assert!(store.usage().is_conserved());
    assert!(metrics.render().contains("relay_blobs_lost_total 1"));
    assert_eq!(append(&store, envelope(1, 2)).await, STORED);
    assert_eq!(blobs(&store, 1).await.len(), 3);
    store.close().await;
    let mut file = direct(folder.path()).await;
    assert_eq!(number(&mut file, "SELECT count(*) FROM corrupt").await, 1);
}

#[tokio::test]
async fn rows_on_damaged_pages_stop_neither_their_neighbours_nor_the_sweep() {
    const PAGE_BYTES: usize = 8_192;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let large = |number: u32| {
        let mut large = envelope(1, number);
        large.body = vec![number as u8; 3 * PAGE_BYTES].into();
        large
    };
    for number in 1..=20 {
        append(&store, large(number)).await;
    }
    store.close().await;
    // A long body begins in its row and goes on in a chain of pages: the row ends with the number of
    // the first, and each begins with the number of the next.
    let path = folder.path().join(DATABASE_FILE);
    let mut file = std::fs::read(&path).unwrap();
    let in_chain = file
        .chunks_mut(PAGE_BYTES)
        .find(|page| page[4..].iter().all(|byte| *byte == 7));
    in_chain.unwrap()[..4].fill(0xFF);
    let in_row = file.chunks_mut(PAGE_BYTES).find_map(|page| {
        let is_leaf = page[0] == 0x0D;
        let run = page.windows(500).position(|run| run == [9; 500])?;
        is_leaf.then(|| page[run..].iter_mut().skip_while(|byte| **byte == 9))
    });
    in_row.unwrap().take(4).for_each(|byte| *byte = 0xFF);
    std::fs::write(&path, file).unwrap();

    let store = open(folder.path()).await;
    let shown: Vec<_> = blobs(&store, 1).await.iter().map(|b| b.id).collect();
    let sound: Vec<_> = (1..=20).filter(|n| ![7, 9].contains(n)).map(id).collect();
    assert_eq!(shown, sound);
    // The one can be set aside; the other cannot even be removed, so it stays where it is and is
    // passed over.
    look_ten_times(&store).await;
    assert_eq!((store.usage().stored, store.usage().lost), (19, 1));
    assert_eq!(append(&store, large(7)).await, STORED);
    let mut expired = 0;
    loop {
        let swept = store.expire(500, at(NOW + 2 * HOUR)).await.unwrap();
        expired += swept.blobs;
        if !swept.more {
            break;
        }
    }
    assert_eq!(expired, 19);
    assert_eq!((store.usage().stored, store.usage().lost), (1, 1));
    assert!(store.usage().is_conserved());
    assert_eq!(append(&store, envelope(2, 1)).await, STORED);
    store.close().await;
}

/// A look at everything that is stored; returns the rows that were mended.
async fn scrub(store: &Store) -> Vec<i64> {
    let (mut after, mut mended) = (OrderKey::START, Vec::new());
    loop {
        let scrub = store.scrub(after).await.unwrap();
        mended.extend(scrub.mended.iter().map(|(_, key)| key.0));
        match scrub.next {
            Some(next) => after = next,
            None => return mended,
        }
    }
}

/// Each column that decides something, changed behind the relay's back with its index entries, as a bit
/// on a page of the table would.
#[tokio::test]
async fn a_row_of_which_anything_is_wrong_is_kept_and_not_shown() {
    let changes = [
        // Seen by v1 where it was not.
        "UPDATE blob SET size = size - size % 4 WHERE seq = 2",
        "UPDATE blob SET expires_at = expires_at - 3000000, expires_slot = expires_slot - 5 WHERE seq = 2",
        "UPDATE blob SET stored_at = stored_at + 1 WHERE seq = 2",
        "UPDATE blob SET kind = 0 WHERE seq = 2",
        "UPDATE blob SET sealed = x'00' WHERE seq = 2",
        "UPDATE blob SET owner = zeroblob(length(owner)) WHERE seq = 2",
        "UPDATE blob SET topic64 = topic64 + 1 WHERE seq = 2",
        "UPDATE blob SET checksum = zeroblob(24) WHERE seq = 2",
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        for number in 1..=3 {
            let asking = Envelope {
                class: Class::ProvenOnly,
                receipt_to: Some(mailbox(9)),
                topic: Some(Topic::from_prefix64(i64::from(number))),
                sealed: Bytes::from_static(b"sealed"),
                ..envelope(1, number)
            };
            append(&store, asking).await;
        }
        store.close().await;
        let mut file = direct(folder.path()).await;
        run(&mut file, change).await;
        drop(file);
        let store = open(folder.path()).await;
        assert!(scrub(&store).await.is_empty());
        // Expired, or so it says: it is not deleted for that.
        let sweep = store.expire(500, at(NOW + HOUR / 2)).await.unwrap();
        assert_eq!(sweep.blobs, 0, "{change}");
        let keys: Vec<_> = blobs(&store, 1).await.iter().map(|b| b.key.0).collect();
        assert_eq!(keys, [1, 3], "{change}");
        let usage = store.usage();
        assert_eq!((usage.stored, usage.lost), (3, 0), "{change}");
        look_ten_times(&store).await;
        assert_eq!(store.usage().lost, 1, "{change}");
        store.close().await;
    }
}

/// What follows from other columns is not lost when it is wrong: it is written anew.
#[tokio::test]
async fn what_follows_from_a_row_is_mended() {
    let changes = [
        "UPDATE blob SET mailbox64 = mailbox64 + 1 WHERE seq = 2",
        "UPDATE blob SET id64 = id64 + 1 WHERE seq = 2",
        "UPDATE blob SET expires_slot = expires_slot - 100 WHERE seq = 2",
    ];
    for change in changes {
        let folder = changed(3, change).await;
        let store = open(folder.path()).await;
        assert_eq!(scrub(&store).await, [2], "{change}");
        assert!(scrub(&store).await.is_empty(), "{change}");
        assert_eq!(blobs(&store, 1).await.len(), 3, "{change}");
        acknowledge(&store, 1, &[1, 2, 3]).await;
        assert_eq!(store.usage().stored, 0, "{change}");
        store.close().await;
    }
}

/// An extended blob has another guard; a row of the release 0.1 has none, and may be extended, too.
#[tokio::test]
async fn an_extended_blob_still_matches_its_guard() {
    let as_in_0_1 = "UPDATE blob SET checksum = substr(checksum, 1, 16) WHERE seq = 1";
    let folder = changed(2, as_in_0_1).await;
    let store = open(folder.path()).await;
    for number in 1..=2 {
        let later = store.extend(mailbox(1), id(number), at(NOW + 5 * HOUR), at(NOW));
        later.await.unwrap().await.unwrap();
    }
    assert!(scrub(&store).await.is_empty());
    let expiries: Vec<_> = blobs(&store, 1)
        .await
        .iter()
        .map(|b| b.expires_at)
        .collect();
    assert_eq!(expiries, [at(NOW + 5 * HOUR); 2]);
    store.close().await;
}

/// The sender of a damaged blob hears of it, also when the pages of its body cannot be read at all.
#[tokio::test]
async fn a_corrupt_row_is_told_to_the_sender_who_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for (number, bytes) in [(1, 10), (2, 100_000)] {
        let asking = Envelope {
            receipt_to: Some(mailbox(9)),
            body: vec![b'x'; bytes].into(),
            ..envelope(1, number)
        };
        store.append(asking, at(NOW)).await.unwrap().await.unwrap();
    }
    store.close().await;
    drop(store);
    let mut file = direct(folder.path()).await;
    run(&mut file, "UPDATE blob SET body = x'00' WHERE seq = 1").await;
    run(&mut file, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    drop(file);
    let path = folder.path().join(DATABASE_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    // The first page of the body beyond its row: the page that it names as the next is none.
    let (pages, _) = bytes.as_chunks_mut::<8_192>();
    let first = pages.iter_mut().find(|page| page[4..] == [b'x'; 8_188]);
    first.unwrap()[..4].copy_from_slice(&[0xFF; 4]);
    std::fs::write(&path, bytes).unwrap();

    let store = open(folder.path()).await;
    assert!(blobs(&store, 1).await.is_empty());
    look_ten_times(&store).await;
    assert_eq!(store.usage().lost, 2);
    let bounds = PageBounds {
        blobs_max: 10,
        bytes_max: 1 << 30,
    };
    let page = store.page(mailbox(9), View::Proven, OrderKey::START, bounds, at(NOW));
    let told = page.await.unwrap().blobs;
    let kinds: Vec<_> = told.iter().map(|row| row.receipt().unwrap().kind).collect();
    assert_eq!(kinds, [ReceiptKind::Lost; 2]);
    store.close().await;
}

/// A database of the release before receipts opens, keeps what it has and counts on.
#[tokio::test]
async fn a_database_from_before_receipts_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store
        .append(envelope(1, 1), at(NOW))
        .await
        .unwrap()
        .await
        .unwrap();
    store.close().await;
    drop(store);
    let mut file = direct(folder.path()).await;
    run(&mut file, "ALTER TABLE usage DROP COLUMN receipts").await;
    run(&mut file, "DELETE FROM _sqlx_migrations WHERE version = 2").await;
    drop(file);
    let store = open(folder.path()).await;
    let asking = Envelope {
        receipt_to: Some(mailbox(9)),
        ..envelope(1, 2)
    };
    store.append(asking, at(NOW)).await.unwrap().await.unwrap();
    let cancelled = store.cancel(mailbox(1), envelope(1, 2).id, at(NOW)).await;
    cancelled.unwrap().await.unwrap();
    let usage = store.usage();
    assert_eq!((usage.stored, usage.receipts.stored), (1, 1));
    store.close().await;
}

#[tokio::test]
async fn a_corrupt_device_sync_message_is_lost_from_its_own_sum_and_quota() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let store = open_with(options, |quota| quota.device_sync_blobs_max = 2).await;
    let message = |number| Envelope {
        class: Class::DeviceSync,
        owner: Some(Owner {
            hash: mailbox(9),
            version: 1,
        }),
        ..envelope(1, number)
    };
    append(&store, message(1)).await;
    append(&store, message(2)).await;
    let full = append(&store, message(3)).await;
    assert_eq!(full, Appended::MailboxFull);
    let mut file = direct(folder.path()).await;
    run(&mut file, "UPDATE blob SET body = x'00' WHERE seq = 1").await;
    let page = store
        .device_sync_backlog(mailbox(1), BacklogCursor::START, ALL, at(NOW))
        .await
        .unwrap();
    assert_eq!(page.blobs.len(), 1);
    look_ten_times(&store).await;
    append(&store, message(1)).await;
    let usage = store.usage();
    assert_eq!((usage.device_sync.lost, usage.lost), (1, 0));
    assert_eq!((usage.device_sync.stored, usage.stored), (2, 0));
    assert!(usage.is_conserved());
    assert_eq!(
        number(&mut file, "SELECT count(owner) FROM corrupt").await,
        1
    );
    store.close().await;
}

#[tokio::test]
async fn a_page_over_many_hidden_and_expired_rows_is_bounded_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let store = open_with(options, |quota| quota.mailbox_blobs_max = 0).await;
    let mut pending = Vec::new();
    for number in 0..6_000 {
        let mut hidden = envelope(1, number);
        match number % 3 {
            0 => hidden.class = Class::ProvenOnly,
            1 => hidden.expires_at = at(NOW + 1),
            _ => hidden.expires_at = at(NOW + 900_000),
        }
        pending.push(store.append(hidden, at(NOW)).await.unwrap());
    }
    pending.push(store.append(envelope(1, 9_999), at(NOW)).await.unwrap());
    for stored in pending {
        stored.await.unwrap();
    }
    let (mut after, mut shown, mut pages) = (OrderKey::START, Vec::new(), 0);
    loop {
        let page = store
            .page(mailbox(1), View::V1, after, ALL, at(NOW + 900_000))
            .await
            .unwrap();
        shown.extend(page.blobs.iter().map(|blob| blob.id));
        pages += 1;
        assert!(!page.more.is_any() || page.next > after);
        after = page.next;
        if !page.more.is_any() {
            break;
        }
    }
    assert_eq!(shown, [id(9_999)]);
    assert!(pages > 1, "one call does not look through everything");

    // The sweep takes the expired ones in slices, and the purge the rest.
    let mut expired = 0;
    loop {
        let swept = store.expire(500, at(NOW + 900_000)).await.unwrap();
        assert!(swept.blobs <= 500);
        expired += swept.blobs;
        if !swept.more {
            break;
        }
    }
    assert_eq!(expired, 4_000);
    let purged = store
        .purge(mailbox(1), View::V1, Tells::Nobody, at(NOW))
        .await
        .unwrap();
    assert_eq!((purged.blobs, purged.receipts), (1, 0));
    let purged = store
        .purge(mailbox(1), View::Proven, Tells::Nobody, at(NOW))
        .await
        .unwrap();
    assert_eq!((purged.blobs, purged.receipts), (2_000, 0));
    assert_eq!((store.usage().stored, store.usage().bytes), (0, 0));
    assert!(store.usage().is_conserved());
    store.close().await;
}

#[tokio::test]
async fn space_is_given_back_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut pending = Vec::new();
    for number in 0..600 {
        let mut large = envelope(1, number);
        large.body = Bytes::from(vec![1; 64 << 10]);
        pending.push(store.append(large, at(NOW)).await.unwrap());
    }
    for stored in pending {
        stored.await.unwrap();
    }
    let path = folder.path().join(DATABASE_FILE);
    store
        .purge(mailbox(1), View::Proven, Tells::Nobody, at(NOW))
        .await
        .unwrap();
    while store.expire(1_000, at(NOW)).await.unwrap().more {}
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 12 << 20, "{size} bytes are left of 38 MB");
    store.close().await;
}

#[tokio::test]
async fn a_probe_reads_and_says_when_the_store_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.probe().await.unwrap();
    store.close().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(store.probe().await.is_err());
}

/// Not a test: prints how many blobs of 1 KiB a second are stored by 512 in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_stores_per_second() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let store = Arc::new(open(folder.path()).await);
    let begun = std::time::Instant::now();
    let senders: Vec<_> = (0..512u32)
        .map(|sender| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut stored = 0u64;
                while begun.elapsed() < Duration::from_secs(6) {
                    let mut blob = envelope(0, 0);
                    let number: u32 = rand::random::<u32>() % 10_000;
                    let key = [3; 32];
                    let hash = blake3::keyed_hash(&key, &number.to_be_bytes());
                    blob.mailbox = MailboxHash::from_bytes(*hash.as_bytes());
                    blob.id = BlobId::from_bytes(rand::random());
                    blob.body = Bytes::from(vec![sender as u8; 1_024]);
                    append(&store, blob).await;
                    stored += 1;
                }
                stored
            })
        })
        .collect();
    let mut total = 0;
    for sender in senders {
        total += sender.await.unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{:.0} stores/s", total as f64 / seconds);
    store.close().await;
}
