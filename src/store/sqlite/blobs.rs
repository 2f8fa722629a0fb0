//! The SQL of blobs that come, and of those that change.

use std::sync::LazyLock;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::columns::{Kind, Size, expiry_slot, sql_version, timestamp_of, to_i64};
use super::guard::{Checksums, GUARD_COLUMNS, Guarded};
use super::rows::{Query, Sized};
use crate::ids::Topic;
use crate::secrets::Secret;
use crate::store::engine::{NewRow, Plan, Write};
use crate::store::model::OrderKey;
use crate::store::plan::{owner_of, receipt_to, topic_of};

static INSERT_BLOBS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT OR ROLLBACK INTO blob (seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, \
         mailbox, id, checksum, sealed, body) VALUES ",
        "(?,?,?,?,?,0,?,?,?,?,?,?,?)",
        "",
    )
});

/// The same for blobs that have a topic or ask for receipts.
static INSERT_FOLLOWED: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT OR ROLLBACK INTO blob (seq, mailbox64, id64, size, expires_slot, expires_at, stored_at, \
         mailbox, id, checksum, sealed, body, kind, topic64, owner) VALUES ",
        "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "",
    )
});

/// The same for device sync messages, which alone have an owner.
static INSERT_DEVICE_SYNC: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "INSERT OR ROLLBACK INTO blob (seq, mailbox64, id64, size, expires_slot, kind, expires_at, stored_at, \
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
    let (owned_by, topic) = (owner_of(envelope), topic_of(envelope));
    let receipt_to = receipt_to(envelope);
    let owner = match (owned_by, receipt_to) {
        (Some(owned_by), _) => Some(owned_by.hash.as_bytes().to_vec()),
        (None, receipt_to) => receipt_to.map(|mailbox| secret.seal_receipt_to(&mailbox)),
    };
    let guarded = Guarded {
        size,
        expires_at: to_i64(row.expires_at.millis()),
        stored_at: to_i64(envelope.stored_at.millis()),
        kind: Kind::new(receipt_to.is_some(), row.is_delivered_told),
        topic64: topic.map(Topic::prefix64),
        owner: owner.as_deref(),
        version: owned_by.map(|owned_by| sql_version(owned_by.version)),
        sealed: &envelope.sealed,
    };
    let checksums = Checksums::new(*row.checksum, &guarded, secret);
    let (expires_at, stored_at) = (guarded.expires_at, guarded.stored_at);
    let (kind, topic64, version) = (guarded.kind, guarded.topic64, guarded.version);
    let query = query
        .bind(row.key.0)
        .bind(envelope.mailbox.prefix64())
        .bind(secret.id64(&envelope.id))
        .bind(size.0)
        .bind(expiry_slot(row.expires_at))
        .bind(expires_at)
        .bind(stored_at)
        .bind(envelope.mailbox.as_bytes().to_vec())
        .bind(envelope.id.as_bytes().to_vec())
        .bind(checksums.bytes())
        .bind(envelope.sealed.to_vec())
        .bind(envelope.body.to_vec());
    if let Some(owned_by) = owned_by {
        return query
            .bind(owned_by.hash.prefix64())
            .bind(owner)
            .bind(version);
    }
    if topic64.is_none() && receipt_to.is_none() {
        return query;
    }
    query.bind(kind.0).bind(topic64).bind(owner)
}

/// The checksums of this row with another expiry; `None` when it is gone, or is not what was written:
/// a new guard would hide that.
async fn checksums_with(
    connection: &mut SqliteConnection,
    key: OrderKey,
    expires_at: i64,
    secret: &Secret,
) -> sqlx::Result<Option<Checksums>> {
    let select = format!("SELECT {GUARD_COLUMNS} FROM blob WHERE seq = ?");
    let row = sqlx::query(AssertSqlSafe(select))
        .bind(key.0)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (checksums, guarded) = Guarded::read(&row, 0)?;
    if !checksums.has_guard() {
        return Ok(Some(checksums));
    }
    let later = Guarded {
        expires_at,
        ..guarded
    };
    let is_sound = checksums.matches(&guarded, secret);
    Ok(is_sound.then(|| Checksums::new(checksums.checksum, &later, secret)))
}

/// Changes the rows that live longer, or whose sender is told that they were delivered.
pub(super) async fn change_blobs(
    connection: &mut SqliteConnection,
    plan: &Plan,
    secret: &Secret,
) -> sqlx::Result<()> {
    for (key, (_, expires_at)) in &plan.extended {
        let expires_at = to_i64(expires_at.millis());
        let Some(checksums) = checksums_with(connection, *key, expires_at, secret).await? else {
            continue;
        };
        sqlx::query("UPDATE blob SET expires_at = ?, expires_slot = ?, checksum = ? WHERE seq = ?")
            .bind(expires_at)
            .bind(expiry_slot(timestamp_of(expires_at)))
            .bind(checksums.bytes())
            .bind(key.0)
            .execute(&mut *connection)
            .await?;
    }
    let keys: Vec<_> = plan.delivered.keys().map(|key| key.0).collect();
    let mut keys = keys.as_slice();
    while let Some((query, later)) = MARK_DELIVERED.cut_keys(keys) {
        query.execute(&mut *connection).await?;
        keys = later;
    }
    Ok(())
}
