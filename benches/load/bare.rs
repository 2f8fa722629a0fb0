//! What SQLite alone does with this schema and these settings, without network, rules or look-ups.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _};

use crate::{BODY, MAILBOXES};

const COLUMNS: &str = "seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, mailbox, id, checksum, sealed, body";
const PLACES: &str = "(?,?,?,?,?,?,?,?,?,?,?,?,?)";

/// Rows a second in transactions of a hundred.
pub async fn bare_loop(span: Duration) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("bare.db"))
        .create_if_missing(true)
        .page_size(8_192)
        .auto_vacuum(sqlx::sqlite::SqliteAutoVacuum::Incremental)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full)
        .pragma("secure_delete", "FAST")
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "2000");
    let mut connection = sqlx::sqlite::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    connection
        .execute(include_str!("../../migrations/sqlite/0001_mailboxes.sql"))
        .await
        .unwrap();
    let insert = format!(
        "INSERT INTO blob ({COLUMNS}) VALUES {}",
        vec![PLACES; 100].join(",")
    );
    let (began, mut rows) = (Instant::now(), 0_i64);
    while began.elapsed() < span {
        let mut transaction = connection.begin().await.unwrap();
        let mut query = sqlx::query(sqlx::AssertSqlSafe(insert.clone()));
        for _ in 0..100 {
            rows += 1;
            let mailbox = rand::random::<u64>() as usize % MAILBOXES;
            let hash = *blake3::hash(&mailbox.to_be_bytes()).as_bytes();
            let body: [u8; BODY] = std::array::from_fn(|place| (place as i64 + rows) as u8);
            query = query
                .bind(rows)
                .bind(i64::from_be_bytes(hash[..8].try_into().unwrap()))
                .bind(rand::random::<i64>())
                .bind((BODY as i64 + 256) * 4)
                .bind(2_992_033 + rows / 10_000)
                .bind(0_i64)
                .bind(1_795_220_095_000_i64)
                .bind(1_795_220_095_000_i64)
                .bind(hash.to_vec())
                .bind(rand::random::<[u8; 16]>().to_vec())
                .bind(rand::random::<[u8; 16]>().to_vec())
                .bind(Vec::<u8>::new())
                .bind(body.to_vec());
        }
        query.execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
    rows as f64 / began.elapsed().as_secs_f64()
}
