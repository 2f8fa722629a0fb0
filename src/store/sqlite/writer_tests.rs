//! Transactions that fail, and those of which nobody knows.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Row as _};

use super::*;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Appended, Burnt, Class, Envelope, Opener, OrderKey, Tells, View};
use crate::store::plan::known::Learnt;
use crate::store::plan::{Folded, Rules, fold};
use crate::store::quota::Quota;
use crate::store::sqlite::open::{DATABASE_FILE, open_maker, reader_options, take_data_dir};
use crate::store::tally::Tally;
use crate::store::write::{Cause, Outcome};

/// A writer and what the committer does with it.
struct Bench {
    writer: SqliteWriter,
    rules: Rules,
    tally: Tally,
    /// A store has readers: without one, closing the writer would delete the log.
    _reader: SqliteConnection,
}

impl Bench {
    async fn plan(&mut self, batch: &[&Write]) -> Result<Box<Plan>, CommitError> {
        let mut learnt = Learnt::default();
        let mut asked = Asked::about(batch);
        loop {
            let answer = self.writer.known(&asked).await?;
            learnt.learn(asked, answer);
            match fold(batch, &self.rules, &learnt) {
                Folded::Plan(plan) => return Ok(plan),
                Folded::Asks(more) => asked = *more,
            }
        }
    }

    async fn commit(&mut self, batch: &[&Write]) -> Result<Vec<Outcome>, CommitError> {
        let plan = self.plan(batch).await?;
        self.writer.commit(batch, &plan).await?;
        self.tally.count(&plan);
        Ok(plan.outcomes)
    }

    fn connection(&self) -> &Connection {
        &self.writer.connections.as_ref().unwrap().writes
    }

    fn count(&self, sql: &str) -> i64 {
        let count = self.connection().query_row(sql, (), |row| row.get(0));
        count.unwrap()
    }

    async fn close(&mut self) {
        self.writer.close().await;
    }
}

async fn writer(folder: &std::path::Path, blobs_max: u64) -> Bench {
    let secret = Secret::from_bytes([7; 32]);
    let metrics = Arc::new(Metrics::new());
    let options = SqliteOptions {
        data_dir: folder.to_owned(),
        secret: secret.clone(),
        free_bytes_min: 0,
        dedup: Duration::from_secs(3600),
        dedup_max: 0,
        allow_network_fs: false,
        pace: Default::default(),
        metrics: Arc::clone(&metrics),
        clock: crate::clock::Clock::manual(Timestamp::from_millis(1)).0,
    };
    let lock = take_data_dir(folder, false).unwrap();
    let path = folder.join(DATABASE_FILE);
    open_maker(&path, &secret).await.unwrap();
    let connections = Connections::open(&path).await.unwrap();
    let mut reader = reader_options(&path).connect().await.unwrap();
    let read = sqlx::query("SELECT 1 FROM blob").execute(&mut reader);
    read.await.unwrap();
    let files = Arc::new(crate::store::sqlite::files::Files::of(folder, &lock).unwrap());
    let log = Log::of(&path, lock.database().unwrap());
    let writer = SqliteWriter::new(
        &options,
        path,
        connections,
        Arc::default(),
        (files, log, lock),
    )
    .await
    .unwrap();
    Bench {
        _reader: reader,
        tally: Tally::new(writer.held(), metrics),
        writer,
        rules: Rules {
            secret,
            quota: Quota {
                mailbox_blobs_max: blobs_max,
                ..Quota::UNBOUNDED
            },
            dedup: Duration::from_secs(3600),
            receipt_ttl: Duration::from_secs(3600),
            clock: crate::clock::Clock::manual(Timestamp::default()).0,
        },
    }
}

fn append(id: u8, now: u64, expires_at: u64) -> Write {
    Write::Append {
        envelope: Envelope {
            mailbox: MailboxHash::from_bytes([1; 32]),
            id: BlobId::from_bytes([id; 16]),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: Timestamp::from_millis(now),
            expires_at: Timestamp::from_millis(expires_at),
            sealed: bytes::Bytes::new(),
            body: bytes::Bytes::from_static(b"body"),
        },
        checksum: [id; 16],
        expired_by: Timestamp::from_millis(now),
    }
}

fn acknowledge(id: u8) -> Write {
    Write::Acknowledge {
        mailbox: MailboxHash::from_bytes([1; 32]),
        ids: vec![BlobId::from_bytes([id; 16])],
        by: Opener {
            view: View::Proven,
            tells: Tells::Nobody,
        },
        now: Timestamp::from_millis(5),
    }
}

fn is_stored(outcomes: &[Outcome]) -> bool {
    matches!(outcomes, [Outcome::Appended(Appended::Stored { .. })])
}

/// Runs a batch up to its COMMIT, whose end is then unknown.
async fn lose_the_end_of(bench: &mut Bench, batch: &[&Write], takes_place: bool) -> Box<Plan> {
    let plan = bench.plan(batch).await.unwrap();
    let writer = &mut bench.writer;
    if takes_place {
        let leaving = writer.settling.leaving(&plan);
        let over = Over::default();
        let fresh = Fresh::of(&plan, batch, &writer.secret.clone());
        let writing = Writing {
            plan: &plan,
            fresh: &fresh,
            leaving: &leaving,
            over: &over,
            trim_to: None,
        };
        let written = writer.write(batch, &writing).await;
        assert!(written.is_ok());
    }
    let (error, is_unsettled) = writer.fail(Failure::At(Fault::closed()));
    assert!(matches!(error, CommitError::Unknown(_)) && is_unsettled);
    writer.unsettled = Some(plan.departures.clone());
    plan
}

#[tokio::test]
async fn a_commit_with_an_unknown_end_that_took_place_counts_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    assert!(is_stored(
        &writer.commit(&[&append(1, 1, 900)]).await.unwrap()
    ));
    let (second, gone) = (append(2, 2, 900), acknowledge(1));
    let plan = lose_the_end_of(&mut writer, &[&second, &gone], true).await;
    assert_eq!(writer.writer.reopen().await.unwrap(), TookPlace::Yes);
    writer.tally.count(&plan);
    let usage = writer.tally.usage();
    assert_eq!((usage.created, usage.acknowledged, usage.stored), (2, 1, 1));
    assert!(usage.is_conserved());
    // Both are known as what they are: one is stored, one has left.
    for id in [1, 2] {
        let outcomes = writer.commit(&[&append(id, 3, 900)]).await.unwrap();
        let [Outcome::Appended(Appended::Duplicate { .. })] = outcomes[..] else {
            panic!("{outcomes:?}");
        };
    }
    assert!(is_stored(
        &writer.commit(&[&append(3, 3, 900)]).await.unwrap()
    ));
    writer.close().await;
}

#[tokio::test]
async fn a_commit_with_an_unknown_end_that_did_not_take_place_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    let lost = append(1, 1, 900);
    lose_the_end_of(&mut writer, &[&lost], false).await;
    assert_eq!(writer.writer.reopen().await.unwrap(), TookPlace::No);
    // A second time, as after a first attempt that was given up half-way.
    assert_eq!(writer.writer.reopen().await.unwrap(), TookPlace::No);
    assert_eq!(writer.tally.usage().stored, 0);
    assert!(is_stored(&writer.commit(&[&lost]).await.unwrap()));
    assert_eq!(writer.writer.totals.held.blobs, 1);
    writer.close().await;
}

#[tokio::test]
async fn without_a_connection_every_commit_asks_to_be_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    // Left open, as the readers of a store are: the log goes with the last connection.
    std::mem::forget(writer.writer.connections.take());
    let error = writer.commit(&[&append(1, 1, 900)]).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)));
    writer.writer.reopen().await.unwrap();
    assert!(is_stored(
        &writer.commit(&[&append(1, 1, 900)]).await.unwrap()
    ));
    writer.close().await;
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_deletions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&append(1, 1, 900)]).await.unwrap();
    run_through(writer.connection(), "PRAGMA max_page_count = 1").unwrap();
    let mut large = append(2, 2, 900);
    if let Write::Append { envelope, .. } = &mut large {
        envelope.body = vec![1; 1 << 20].into();
    }
    let error = writer.commit(&[&large]).await.unwrap_err();
    assert!(matches!(error, CommitError::DiskFull(_)), "{error}");
    // Until there is a reserve again; nothing is even tried.
    let refused = writer.commit(&[&large]).await;
    match refused {
        Ok(outcomes) => assert_eq!(outcomes, [Outcome::Appended(Appended::RelayFull)]),
        // A second has passed, the reserve is back, and the database is as full as it was.
        Err(error) => assert!(matches!(error, CommitError::DiskFull(_)), "{error}"),
    }
    writer.commit(&[&acknowledge(1)]).await.unwrap();
    assert!(writer.tally.usage().is_conserved());
    assert_eq!(writer.tally.usage().stored, 0);
    writer.close().await;
}

#[tokio::test]
async fn a_failed_transaction_leaves_neither_rows_nor_memories() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON departures \
                 BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
    execute(writer.connection(), spoil).unwrap();
    writer.commit(&[&append(1, 1, 900)]).await.unwrap();
    let error = writer
        .commit(&[&append(2, 2, 900), &acknowledge(1)])
        .await
        .unwrap_err();
    assert!(matches!(&error, CommitError::Rejected(words) if words == "spoiled"));
    assert!(is_stored(
        &writer.commit(&[&append(2, 2, 900)]).await.unwrap()
    ));
    let usage = writer.tally.usage();
    assert_eq!((usage.created, usage.acknowledged, usage.stored), (2, 0, 2));
    writer.close().await;
}

#[tokio::test]
async fn a_full_mailbox_loses_its_expired_rows_and_is_searched_once_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 2).await;
    writer.commit(&[&append(1, 1, 5_000)]).await.unwrap();
    writer.commit(&[&append(2, 1, 900_000)]).await.unwrap();
    // Read from the database the set knows no more than the slot of the earliest expiry.
    writer.writer.caches.sets.clear();
    let full = [Outcome::Appended(Appended::MailboxFull)];
    let third = |now| append(3, now, 900_000);
    assert_eq!(writer.commit(&[&third(4_000)]).await.unwrap(), full);
    let sets = &writer.writer.caches.sets;
    let set = sets.peek(MailboxHash::from_bytes([1; 32]).prefix64());
    let earliest = set.unwrap().account().earliest_expiry;
    assert_eq!(earliest, Timestamp::from_millis(5_000));
    assert!(is_stored(&writer.commit(&[&third(5_000)]).await.unwrap()));
    assert_eq!(writer.tally.usage().expired, 1);
    writer.close().await;
}

#[tokio::test]
async fn a_batch_that_touches_too_much_is_split_and_a_single_write_never_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&append(1, 1, 900)]).await.unwrap();
    writer.writer.caches.sets = WorkingSets::new(0);
    let batch = [&append(2, 1, 900), &append(3, 1, 900)];
    let error = writer.commit(&batch).await.unwrap_err();
    assert!(matches!(error, CommitError::TooWide));
    assert!(is_stored(&writer.commit(&batch[..1]).await.unwrap()));
    writer.close().await;
}

fn asking(mut write: Write) -> Write {
    if let Write::Append { envelope, .. } = &mut write {
        envelope.receipt_to = Some(MailboxHash::from_bytes([9; 32]));
    }
    write
}

fn cancel(id: u8) -> Write {
    Write::Cancel {
        mailbox: MailboxHash::from_bytes([1; 32]),
        id: BlobId::from_bytes([id; 16]),
        now: Timestamp::from_millis(5),
    }
}

fn rows_of(bench: &Bench, class: Class) -> i64 {
    let class = class as u8;
    bench.count(&format!(
        "SELECT count(*) FROM blob WHERE size & 3 = {class}"
    ))
}

/// What is written after the receipt fails: no receipt without its event.
#[tokio::test]
async fn a_failed_event_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&asking(append(1, 1, 900))]).await.unwrap();
    let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON gone \
                 BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
    execute(writer.connection(), spoil).unwrap();
    let error = writer.commit(&[&cancel(1)]).await.unwrap_err();
    assert!(matches!(error, CommitError::Rejected(_)));
    assert_eq!(rows_of(&writer, Class::Receipt), 0);
    assert_eq!(rows_of(&writer, Class::SeenByV1), 1);
    let usage = writer.tally.usage();
    assert_eq!((usage.cancelled, usage.receipts.created), (0, 0));
    let mend = "DROP TRIGGER spoil";
    execute(writer.connection(), mend).unwrap();
    writer.commit(&[&cancel(1)]).await.unwrap();
    assert_eq!(rows_of(&writer, Class::Receipt), 1);
    writer.close().await;
}

/// The receipt cannot be written: no event without it, and nothing is left of either in memory.
#[tokio::test]
async fn an_event_whose_receipt_fails_does_not_happen() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&asking(append(1, 1, 900))]).await.unwrap();
    let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON blob WHEN NEW.size & 3 = 2 \
                 BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
    execute(writer.connection(), spoil).unwrap();
    for _ in 0..2 {
        let error = writer.commit(&[&cancel(1)]).await.unwrap_err();
        assert!(matches!(error, CommitError::Rejected(_)));
        assert_eq!(rows_of(&writer, Class::SeenByV1), 1);
    }
    let mend = "DROP TRIGGER spoil";
    execute(writer.connection(), mend).unwrap();
    writer.commit(&[&cancel(1)]).await.unwrap();
    let usage = writer.tally.usage();
    assert_eq!((usage.cancelled, usage.receipts.created), (1, 1));
    assert!(usage.is_conserved());
    writer.close().await;
}

#[tokio::test]
async fn a_receipt_of_a_commit_with_an_unknown_end_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&asking(append(1, 1, 900))]).await.unwrap();
    let gone = cancel(1);
    let plan = lose_the_end_of(&mut writer, &[&gone], true).await;
    assert_eq!(writer.writer.reopen().await.unwrap(), TookPlace::Yes);
    writer.tally.count(&plan);
    let news: Vec<_> = plan.new_rows(&[&gone]).collect();
    assert_eq!(news[0].envelope.mailbox, MailboxHash::from_bytes([9; 32]));
    assert_eq!(rows_of(&writer, Class::Receipt), 1);
    assert_eq!(writer.tally.usage().receipts.stored, 1);
    writer.close().await;
}

/// A used nonce is used after a restart, and its row goes when its time is over.
#[tokio::test]
async fn nonces_outlive_the_process_and_not_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let burn = |number: u8, now: u64| Write::Burn {
        nonce: [number; 32],
        expired_by: Timestamp::from_millis(now),
        now: Timestamp::from_millis(now),
    };
    let mut bench = writer(folder.path(), 0).await;
    let first = [Outcome::Burnt(Burnt::First)];
    assert_eq!(bench.commit(&[&burn(1, 1_000)]).await.unwrap(), first);
    assert_eq!(bench.commit(&[&burn(2, 1_500)]).await.unwrap(), first);
    bench.close().await;
    drop(bench);
    let mut bench = writer(folder.path(), 0).await;
    let used = [Outcome::Burnt(Burnt::Used)];
    assert_eq!(bench.commit(&[&burn(1, 2_000)]).await.unwrap(), used);
    let over = 1_000 + 182_000;
    assert_eq!(bench.commit(&[&burn(1, over)]).await.unwrap(), first);
    let nonces = "SELECT count(*) FROM nonce";
    assert_eq!(bench.count(nonces), 2);
    let later = Timestamp::from_millis(1_500 + 182_000);
    assert!(!bench.writer.upkeep(later).await.unwrap());
    assert_eq!(bench.count(nonces), 1);
    assert_eq!(bench.commit(&[&burn(1, over + 9)]).await.unwrap(), used);
    bench.close().await;
}

/// The sets of the mailboxes that receipts go to may be many: a removal goes on in pieces.
#[tokio::test]
async fn a_removal_whose_receipts_touch_too_much_is_split() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    for id in 1..=2 {
        writer.commit(&[&asking(append(id, 1, 900))]).await.unwrap();
        writer
            .commit(&[&asking(append(id + 2, 1, 900))])
            .await
            .unwrap();
        writer.commit(&[&cancel(id + 2)]).await.unwrap();
    }
    writer.writer.caches.sets = WorkingSets::new(0);
    let remove = |keys: &[i64]| Write::Remove {
        keys: keys.iter().copied().map(OrderKey).collect(),
        cause: Cause::Expired,
        now: Timestamp::from_millis(901),
    };
    let error = writer.commit(&[&remove(&[1, 4])]).await.unwrap_err();
    assert!(matches!(error, CommitError::TooWide));
    writer.commit(&[&remove(&[1])]).await.unwrap();
    writer.close().await;
}

/// Each of them must find its rows without reading others.
#[tokio::test]
async fn topics_and_holdings_are_found_in_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    let connection = &mut writer.writer.connections.as_mut().unwrap().reads;
    for (sql, expected) in [
        (
            crate::store::sqlite::rows::SELECT_TOPICS.text(10),
            "SEARCH blob USING COVERING INDEX blob_by_topic (mailbox64=? AND topic64=?)",
        ),
        (
            crate::store::sqlite::runs::SELECT_HOLDINGS.text(10),
            "SEARCH e USING PRIMARY KEY (run=? AND mailbox64=?)",
        ),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::query(explain).fetch_all(&mut *connection).await;
        let lines = rows
            .unwrap()
            .iter()
            .map(|row| row.get::<String, _>("detail"))
            .collect::<Vec<_>>();
        assert!(lines.iter().any(|line| line == expected), "{lines:?}");
        assert!(!lines.iter().any(|line| line == "SCAN blob"), "{lines:?}");
    }
    writer.close().await;
}
