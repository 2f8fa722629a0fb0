//! The SQL of blobs that come, and of those that change.

use std::sync::LazyLock;

use sqlx::sqlite::SqliteConnection;

use super::columns::{Kind, Size, expiry_slot, sql_version, to_i64};
use super::rows::{Query, Sized};
use crate::ids::Topic;
use crate::secrets::Secret;
use crate::store::engine::{NewRow, Plan, Write};
use crate::store::plan::{owner_of, receipt_to, topic_of};

static INSERT_BLOBS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT INTO blob (seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, \
         mailbox, id, checksum, sealed, body) VALUES ",
        "(?,?,?,?,?,0,?,?,?,?,?,?,?)",
        "",
    )
});

/// The same for blobs that have a topic or ask for receipts.
static INSERT_FOLLOWED: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT INTO blob (seq, mailbox64, id64, size, expires_slot, expires_at, stored_at, \
         mailbox, id, checksum, sealed, body, kind, topic64, owner) VALUES ",
        "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "",
    )
});

/// The same for device sync messages, which alone have an owner.
static INSERT_DEVICE_SYNC: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT INTO blob (seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, \
         mailbox, id, checksum, sealed, body, owner64, owner, version) VALUES ",
        "(?,?,?,?,?,0,?,?,?,?,?,?,?,?,?,?)",
        "",
    )
});

static MARK_DELIVERED: LazyLock<Sized> =
    LazyLock::new(|| Sized::new("UPDATE blob SET kind = 3 WHERE seq IN (", "?", ")"));

/// Inserts the rows that the plan keeps.
pub(super) async fn insert_blobs(
    connection: &mut SqliteConnection,
    plan: &Plan,
    batch: &[&Write],
    secret: &Secret,
) -> sqlx::Result<()> {
    let (mut plain, mut followed, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    for row in plan.new_rows(batch) {
        let envelope = row.envelope;
        if owner_of(envelope).is_some() {
            synced.push(row);
        } else if topic_of(envelope).is_some() || receipt_to(envelope).is_some() {
            followed.push(row);
        } else {
            plain.push(row);
        }
    }
    insert(connection, &INSERT_BLOBS, &plain, secret).await?;
    insert(connection, &INSERT_FOLLOWED, &followed, secret).await?;
    insert(connection, &INSERT_DEVICE_SYNC, &synced, secret).await
}

async fn insert(
    connection: &mut SqliteConnection,
    statement: &'static Sized,
    mut rows: &[NewRow<'_>],
    secret: &Secret,
) -> sqlx::Result<()> {
    while let Some((mut query, now, later)) = statement.cut(rows) {
        for row in now {
            query = bind_blob(query, row, secret);
        }
        query.execute(&mut *connection).await?;
        rows = later;
    }
    Ok(())
}

fn bind_blob(query: Query, row: &NewRow<'_>, secret: &Secret) -> Query {
    let envelope = row.envelope;
    let size = Size::new(envelope.sealed.len() + envelope.body.len(), envelope.class);
    let query = query
        .bind(row.key.0)
        .bind(envelope.mailbox.prefix64())
        .bind(secret.id64(&envelope.id))
        .bind(size.0)
        .bind(expiry_slot(row.expires_at))
        .bind(to_i64(row.expires_at.millis()))
        .bind(to_i64(envelope.stored_at.millis()))
        .bind(envelope.mailbox.as_bytes().to_vec())
        .bind(envelope.id.as_bytes().to_vec())
        .bind(row.checksum.to_vec())
        .bind(envelope.sealed.to_vec())
        .bind(envelope.body.to_vec());
    if let Some(owner) = owner_of(envelope) {
        return query
            .bind(owner.hash.prefix64())
            .bind(owner.hash.as_bytes().to_vec())
            .bind(sql_version(owner.version));
    }
    let (topic, receipt_to) = (topic_of(envelope), receipt_to(envelope));
    if topic.is_none() && receipt_to.is_none() {
        return query;
    }
    query
        .bind(Kind::new(receipt_to.is_some(), row.is_delivered_told).0)
        .bind(topic.map(Topic::prefix64))
        .bind(receipt_to.map(|mailbox| secret.seal_receipt_to(&mailbox)))
}

/// Changes the rows that live longer, or whose sender is told that they were delivered.
pub(super) async fn change_blobs(
    connection: &mut SqliteConnection,
    plan: &Plan,
) -> sqlx::Result<()> {
    for (key, expires_at) in &plan.extended {
        sqlx::query("UPDATE blob SET expires_at = ?, expires_slot = ? WHERE seq = ?")
            .bind(to_i64(expires_at.millis()))
            .bind(expiry_slot(*expires_at))
            .bind(key.0)
            .execute(&mut *connection)
            .await?;
    }
    let keys: Vec<_> = plan.delivered.iter().map(|key| key.0).collect();
    let mut keys = keys.as_slice();
    while let Some((query, later)) = MARK_DELIVERED.cut_keys(keys) {
        query.execute(&mut *connection).await?;
        keys = later;
    }
    Ok(())
}
