//! Transactions that fail, and those of which nobody knows.

use std::time::Duration;

use super::super::model::{Appended, Class, Envelope, Tells};
use super::super::sqlite_open::{DATABASE_FILE, open_writer, take_data_dir};
use super::*;
use crate::ids::{BlobId, MailboxHash};

async fn writer(folder: &std::path::Path, blobs_max: u64) -> SqliteWriter {
    let options = SqliteOptions {
        data_dir: folder.to_owned(),
        secret: Secret::from_bytes([7; 32]),
        quota: Quota {
            mailbox_blobs_max: blobs_max,
            ..Quota::UNBOUNDED
        },
        free_bytes_min: 0,
        dedup: Duration::from_secs(3600),
        dedup_max: 0,
        receipt_ttl: Duration::from_secs(3600),
        allow_network_fs: false,
        on_stored: Arc::new(|_| {}),
        metrics: Arc::new(Metrics::new()),
        now: Timestamp::from_millis(1),
    };
    let lock = Arc::new(take_data_dir(folder, false).unwrap());
    let path = folder.join(DATABASE_FILE);
    let connection = open_writer(&path, &options.secret).await.unwrap();
    let opened = SqliteWriter::new(&options, path, connection, lock).await;
    opened.unwrap().0
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
    }
}

fn acknowledge(id: u8) -> Write {
    Write::Acknowledge {
        mailbox: MailboxHash::from_bytes([1; 32]),
        ids: vec![BlobId::from_bytes([id; 16])],
        tells: Tells::Nobody,
        now: Timestamp::from_millis(5),
    }
}

fn is_stored(outcomes: &[Outcome]) -> bool {
    matches!(outcomes, [Outcome::Appended(Appended::Stored { .. })])
}

/// Runs a batch up to its COMMIT, whose end is then unknown.
async fn lose_the_end_of(writer: &mut SqliteWriter, batch: &[&Write], takes_place: bool) {
    let plan = writer.plan(batch).await.unwrap();
    if takes_place {
        let written = writer.write(batch, &plan, Chores::default()).await;
        assert!(written.is_ok());
    }
    let failure = Failure::At(sqlx::Error::WorkerCrashed);
    let error = writer.fail(plan, failure).await;
    assert!(matches!(error, CommitError::Unknown(_)));
}

#[tokio::test]
async fn a_commit_with_an_unknown_end_that_took_place_counts_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    assert!(is_stored(
        &writer.commit(&[&append(1, 1, 900)]).await.unwrap()
    ));
    let (second, gone) = (append(2, 2, 900), acknowledge(1));
    lose_the_end_of(&mut writer, &[&second, &gone], true).await;
    writer.reopen().await.unwrap();
    let settled = writer.settle(&[&second, &gone]).await.unwrap();
    assert!(settled.iter().all(Option::is_some));
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
    writer.reopen().await.unwrap();
    // A second time, as after a first attempt that was given up half-way.
    writer.reopen().await.unwrap();
    assert_eq!(writer.settle(&[&lost]).await.unwrap(), [None]);
    assert_eq!(writer.tally.usage().stored, 0);
    assert!(is_stored(&writer.commit(&[&lost]).await.unwrap()));
    assert_eq!(writer.totals.held.blobs, 1);
    writer.close().await;
}

#[tokio::test]
async fn without_a_connection_every_commit_asks_to_be_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.connection = None;
    let error = writer.commit(&[&append(1, 1, 900)]).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)));
    writer.reopen().await.unwrap();
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
    let connection = writer.connection.as_mut().unwrap();
    execute(connection, "PRAGMA max_page_count = 1")
        .await
        .unwrap();
    let mut large = append(2, 2, 900);
    if let Write::Append { envelope, .. } = &mut large {
        envelope.body = vec![1; 1 << 20].into();
    }
    for _ in 0..3 {
        let error = writer.commit(&[&large]).await.unwrap_err();
        assert!(matches!(error, CommitError::DiskFull(_)), "{error}");
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
    let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON departed \
                 BEGIN SELECT RAISE(ABORT, 'spoiled'); END";
    execute(writer.connection.as_mut().unwrap(), spoil)
        .await
        .unwrap();
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
    writer.sets.clear();
    let full = [Outcome::Appended(Appended::MailboxFull)];
    let third = |now| append(3, now, 900_000);
    assert_eq!(writer.commit(&[&third(4_000)]).await.unwrap(), full);
    let set = writer
        .sets
        .peek(MailboxHash::from_bytes([1; 32]).prefix64());
    assert_eq!(
        set.unwrap().earliest_expiry(),
        Timestamp::from_millis(5_000)
    );
    assert!(is_stored(&writer.commit(&[&third(5_000)]).await.unwrap()));
    assert_eq!(writer.tally.usage().expired, 1);
    writer.close().await;
}

#[tokio::test]
async fn a_batch_that_touches_too_much_is_split_and_a_single_write_never_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), 0).await;
    writer.commit(&[&append(1, 1, 900)]).await.unwrap();
    writer.sets = WorkingSets::new(0);
    let batch = [&append(2, 1, 900), &append(3, 1, 900)];
    let error = writer.commit(&batch).await.unwrap_err();
    assert!(matches!(error, CommitError::TooWide));
    assert!(is_stored(&writer.commit(&batch[..1]).await.unwrap()));
    writer.close().await;
}
