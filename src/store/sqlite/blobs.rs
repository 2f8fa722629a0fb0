//! The SQL of blobs that come, and of those that change.

use rusqlite::{CachedStatement, Connection, ToSql, params, params_from_iter};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::columns::{expiry_slot, timestamp_of, to_i64};
use super::guard::{Checksums, GUARD_COLUMNS, Guarded, owner_column, read_guarded};
use super::rows::{Sql, for_each};
use crate::secrets::Secret;
use crate::store::engine::{NewRow, Plan, Write};
use crate::store::model::OrderKey;
use crate::store::plan::owner_of;

const INSERT_PLAIN: &str = "INSERT INTO blob (seq, mailbox64, id64, size, expires_slot, kind, \
     expires_at, stored_at, mailbox, id, checksum, sealed, body) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// The same for blobs that have a topic or ask for receipts, and for device sync messages, which alone
/// have an owner.
const INSERT_WHOLE: &str = "INSERT INTO blob (seq, mailbox64, id64, size, expires_slot, kind, \
     expires_at, stored_at, mailbox, id, checksum, sealed, body, topic64, owner64, owner, version) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const MARK_DELIVERED: &str = "UPDATE blob SET kind = 3 WHERE seq = ?";

/// Inserts the rows that the plan keeps.
pub(super) fn insert_blobs(
    connection: &Connection,
    fresh: &[Fresh<'_>],
    secret: &Secret,
) -> Sql<()> {
    if fresh.is_empty() {
        return Ok(());
    }
    let mut plain = connection.prepare_cached(INSERT_PLAIN)?;
    for fresh in fresh {
        insert(connection, &mut plain, fresh, secret)?;
    }
    Ok(())
}

fn insert(
    connection: &Connection,
    plain: &mut CachedStatement<'_>,
    Fresh { row, id64 }: &Fresh<'_>,
    secret: &Secret,
) -> Sql<()> {
    let envelope = row.envelope;
    let owner = owner_column(envelope, secret);
    let guarded = Guarded::of(row, owner.as_deref());
    let checksums = Checksums::new(*row.checksum, &guarded, secret);
    let checksums = checksums.bytes();
    let (mailbox64, slot) = (envelope.mailbox.prefix64(), expiry_slot(row.expires_at));
    let plainly: [&dyn ToSql; 13] = [
        &row.key.0,
        &mailbox64,
        id64,
        &guarded.size.0,
        &slot,
        &guarded.kind.0,
        &guarded.expires_at,
        &guarded.stored_at,
        &envelope.mailbox.as_bytes().as_slice(),
        &envelope.id.as_bytes().as_slice(),
        &checksums,
        &guarded.sealed,
        &&*envelope.body,
    ];
    if guarded.topic64.is_none() && owner.is_none() {
        return plain.execute(plainly.as_slice()).map(drop);
    }
    let owner64 = owner_of(envelope).map(|owned_by| owned_by.hash.prefix64());
    let more: [&dyn ToSql; 4] = [&guarded.topic64, &owner64, &owner, &guarded.version];
    let all = params_from_iter(plainly.iter().chain(&more));
    connection
        .prepare_cached(INSERT_WHOLE)?
        .execute(all)
        .map(drop)
}

/// A row that is inserted, with what more than one place needs to know of it.
pub(super) struct Fresh<'a> {
    pub(super) row: NewRow<'a>,
    pub(super) id64: i64,
}

impl<'a> Fresh<'a> {
    /// The rows that a plan inserts.
    pub(super) fn of(plan: &'a Plan, batch: &[&'a Write], secret: &Secret) -> Vec<Self> {
        let rows = plan.new_rows(batch);
        let fresh = rows.map(|row| Self {
            id64: secret.id64(&row.envelope.id),
            row,
        });
        fresh.collect()
    }
}

/// A row that lives longer: its key, its new expiry and its checksums with that.
pub(super) struct Extended {
    key: i64,
    expires_at: i64,
    checksums: Checksums,
}

/// Reads what the rows need that live longer. Before the transaction, because it is another connection.
pub(super) async fn read_extended(
    connection: &mut SqliteConnection,
    plan: &Plan,
    secret: &Secret,
) -> sqlx::Result<Vec<Extended>> {
    let mut extended = Vec::with_capacity(plan.extended.len());
    for (key, (_, expires_at)) in &plan.extended {
        let expires_at = to_i64(expires_at.millis());
        let checksums = checksums_with(connection, *key, expires_at, secret).await?;
        extended.extend(checksums.map(|checksums| Extended {
            key: key.0,
            expires_at,
            checksums,
        }));
    }
    Ok(extended)
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
    let (checksums, guarded) = read_guarded(&row, 0)?;
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
pub(super) fn change_blobs(connection: &Connection, extended: &[Extended], plan: &Plan) -> Sql<()> {
    for row in extended {
        let slot = expiry_slot(timestamp_of(row.expires_at));
        let sql = "UPDATE blob SET expires_at = ?, expires_slot = ?, checksum = ? WHERE seq = ?";
        let mut update = connection.prepare_cached(sql)?;
        update.execute(params![
            row.expires_at,
            slot,
            row.checksums.bytes(),
            row.key
        ])?;
    }
    let keys: Vec<_> = plan.delivered.keys().map(|key| key.0).collect();
    for_each(connection, MARK_DELIVERED, &keys)
}
