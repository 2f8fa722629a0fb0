//! The SQL of blobs: their headers, those that come, go and change.
//!
//! Each statement takes all of its rows at once, as arrays: a batch is a handful of round trips, however
//! large it is.

use std::sync::LazyLock;

use foldhash::{HashMap, HashMapExt as _};
use sqlx::Executor as _;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::Uuid;

use super::columns::{expiry_slot, millis, narrow, timestamp_of, uuid};
use super::errors::is_damage;
use super::guard::{
    Checksums, Guarded, HEADER_COLUMNS, header, key, owner_column, read_guarded, sound,
};
use crate::clock::Timestamp;
use crate::ids::{MailboxHash, Topic};
use crate::secrets::Secret;
use crate::store::engine::{Header, Name, NewRow, Plan, Write};
use crate::store::model::OrderKey;
use crate::store::plan::owner_of;
use crate::store::sql::quarantine::Look;

/// Rows that leave are locked as they are read, in the order of their keys, so that of two instances one
/// counts them and tells of them.
static SELECT_BY_NAME: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {HEADER_COLUMNS} FROM unnest($1::bigint[], $2::uuid[]) AS asked (mailbox64, id) \
         JOIN blob b ON b.mailbox64 = asked.mailbox64 AND b.id = asked.id \
         ORDER BY b.pos FOR NO KEY UPDATE OF b"
    )
});

static SELECT_BY_KEY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {HEADER_COLUMNS} FROM blob b WHERE b.pos = ANY($1) \
         ORDER BY b.pos FOR NO KEY UPDATE OF b"
    )
});

static SELECT_BY_TOPIC: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {HEADER_COLUMNS} FROM unnest($1::bigint[], $2::bigint[]) AS asked (mailbox64, topic64) \
         JOIN blob b ON b.mailbox64 = asked.mailbox64 AND b.topic64 = asked.topic64 \
         AND b.topic64 IS NOT NULL ORDER BY b.pos FOR NO KEY UPDATE OF b"
    )
});

static SELECT_SOUND: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {HEADER_COLUMNS}, b.body FROM blob b WHERE b.pos = $1"));

/// The rows of these names.
pub(super) async fn by_name(
    connection: &mut PgConnection,
    names: &[Name],
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (mailboxes, ids) = columns_of(names);
    let rows = sqlx::query(SELECT_BY_NAME.as_str())
        .bind(mailboxes)
        .bind(ids)
        .fetch_all(connection)
        .await?;
    headers(&rows, secret)
}

/// The rows of these keys.
pub(super) async fn by_key(
    connection: &mut PgConnection,
    keys: &[OrderKey],
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(SELECT_BY_KEY.as_str())
        .bind(numbers(keys.iter().copied()))
        .fetch_all(connection)
        .await?;
    headers(&rows, secret)
}

/// The rows of these topics.
pub(super) async fn by_topic(
    connection: &mut PgConnection,
    topics: &[(MailboxHash, Topic)],
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let (mailboxes, topics): (Vec<_>, Vec<_>) = topics
        .iter()
        .map(|(mailbox, topic)| (mailbox.prefix64(), topic.prefix64()))
        .unzip();
    let rows = sqlx::query(SELECT_BY_TOPIC.as_str())
        .bind(mailboxes)
        .bind(topics)
        .fetch_all(connection)
        .await?;
    headers(&rows, secret)
}

/// Names as two columns.
pub(super) fn columns_of(names: &[Name]) -> (Vec<i64>, Vec<Uuid>) {
    names
        .iter()
        .map(|(mailbox, id)| (mailbox.prefix64(), uuid(id)))
        .unzip()
}

/// The last 64 bits of a mailbox's hash: with the first ones as good as all of it.
fn end64(mailbox: &MailboxHash) -> i64 {
    let bytes = mailbox.as_bytes().last_chunk::<8>();
    bytes.map_or(0, |bytes| i64::from_be_bytes(*bytes))
}

/// Keys as a column.
pub(super) fn numbers(keys: impl Iterator<Item = OrderKey>) -> Vec<i64> {
    keys.map(|key| key.0).collect()
}

/// The headers of rows of [`HEADER_COLUMNS`].
pub(super) fn headers(rows: &[PgRow], secret: &Secret) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    let header = |row| Ok((key(row)?, header(row, secret)?));
    rows.iter().map(header).collect()
}

/// The rows that come, column by column.
#[derive(Default)]
struct Columns<'a> {
    keys: Vec<i64>,
    mailboxes64: Vec<i64>,
    ends64: Vec<i64>,
    expires_at: Vec<i64>,
    stored_at: Vec<i64>,
    topics64: Vec<Option<i64>>,
    owners64: Vec<Option<i64>>,
    versions: Vec<Option<i64>>,
    sizes: Vec<i32>,
    slots: Vec<i32>,
    kinds: Vec<i16>,
    ids: Vec<Uuid>,
    mailboxes: Vec<&'a [u8]>,
    checksums: Vec<Vec<u8>>,
    owners: Vec<Option<Vec<u8>>>,
    sealed: Vec<Option<&'a [u8]>>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn add(&mut self, row: &NewRow<'a>, secret: &Secret) {
        let envelope = row.envelope;
        let owner = owner_column(envelope, secret);
        let guarded = Guarded::of(row, owner.as_deref());
        let checksums = Checksums::new(*row.checksum, &guarded, secret);
        self.keys.push(row.key.0);
        self.mailboxes64.push(envelope.mailbox.prefix64());
        self.ends64.push(end64(&envelope.mailbox));
        self.expires_at.push(guarded.expires_at);
        self.stored_at.push(guarded.stored_at);
        self.topics64.push(guarded.topic64);
        self.owners64
            .push(owner_of(envelope).map(|owned_by| owned_by.hash.prefix64()));
        self.versions.push(guarded.version);
        self.sizes.push(narrow(guarded.size.0));
        self.slots.push(expiry_slot(row.expires_at));
        self.kinds.push(guarded.kind.0 as i16);
        self.ids.push(uuid(&envelope.id));
        self.mailboxes.push(envelope.mailbox.as_bytes());
        self.checksums.push(checksums.bytes());
        self.owners.push(owner);
        let sealed = &*envelope.sealed;
        self.sealed.push((!sealed.is_empty()).then_some(sealed));
        self.bodies.push(&envelope.body);
    }
}

/// Inserts the rows that the plan keeps. Tells how many there should be, and how many there are: fewer when
/// another instance has stored a blob of the same id, or of the same topic, meanwhile.
pub(super) async fn insert(
    connection: &mut PgConnection,
    plan: &Plan,
    batch: &[&Write],
    (instance, secret): (i16, &Secret),
) -> sqlx::Result<(u64, u64)> {
    let mut columns = Columns::default();
    for row in plan.new_rows(batch) {
        columns.add(&row, secret);
    }
    let wanted = columns.keys.len() as u64;
    if wanted == 0 {
        return Ok((0, 0));
    }
    let inserted = sqlx::query(
        "INSERT INTO blob (pos, mailbox64, mailbox_end64, expires_at, stored_at, topic64, owner64, version, size, \
         expires_slot, kind, from_instance, id, mailbox, checksum, owner, sealed, body) \
         SELECT pos, mailbox64, mailbox_end64, expires_at, stored_at, topic64, owner64, version, size, expires_slot, kind, \
         $18::smallint, id, mailbox, checksum, owner, sealed, body \
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
         $7::bigint[], $8::bigint[], $9::integer[], $10::integer[], $11::smallint[], $12::uuid[], \
         $13::bytea[], $14::bytea[], $15::bytea[], $16::bytea[], $17::bytea[]) \
         AS t (pos, mailbox64, mailbox_end64, expires_at, stored_at, topic64, owner64, version, size, expires_slot, kind, \
         id, mailbox, checksum, owner, sealed, body) \
         ON CONFLICT DO NOTHING",
    )
    .bind(columns.keys)
    .bind(columns.mailboxes64)
    .bind(columns.ends64)
    .bind(columns.expires_at)
    .bind(columns.stored_at)
    .bind(columns.topics64)
    .bind(columns.owners64)
    .bind(columns.versions)
    .bind(columns.sizes)
    .bind(columns.slots)
    .bind(columns.kinds)
    .bind(columns.ids)
    .bind(columns.mailboxes)
    .bind(columns.checksums)
    .bind(columns.owners)
    .bind(columns.sealed)
    .bind(columns.bodies)
    .bind(instance)
    .execute(connection)
    .await?;
    Ok((wanted, inserted.rows_affected()))
}

/// Deletes these rows; tells how many were there.
pub(super) async fn delete(connection: &mut PgConnection, keys: Vec<i64>) -> sqlx::Result<u64> {
    let deleted = sqlx::query("DELETE FROM blob WHERE pos = ANY($1)")
        .bind(keys)
        .execute(connection)
        .await?;
    Ok(deleted.rows_affected())
}

/// Changes the rows that live longer, or whose sender is told that they were delivered.
pub(super) async fn change(
    connection: &mut PgConnection,
    plan: &Plan,
    secret: &Secret,
) -> sqlx::Result<()> {
    if !plan.extended.is_empty() {
        extend(connection, plan, secret).await?;
    }
    if !plan.delivered.is_empty() {
        sqlx::query("UPDATE blob SET kind = 3 WHERE pos = ANY($1)")
            .bind(numbers(plan.delivered.keys().copied()))
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Rows that are not what was written are left as they are: a new guard would hide that.
async fn extend(connection: &mut PgConnection, plan: &Plan, secret: &Secret) -> sqlx::Result<()> {
    let rows = sqlx::query(SELECT_BY_KEY.as_str())
        .bind(numbers(plan.extended.keys().copied()))
        .fetch_all(&mut *connection)
        .await?;
    let (mut keys, mut times, mut slots, mut sums) = (vec![], vec![], vec![], vec![]);
    for row in &rows {
        let key = key(row)?;
        let Some((_, expires_at)) = plan.extended.get(&key) else {
            continue;
        };
        let (checksums, guarded) = read_guarded(row)?;
        if !checksums.matches(&guarded, secret) {
            continue;
        }
        let expires_at = millis(*expires_at);
        let later = Guarded {
            expires_at,
            ..guarded
        };
        keys.push(key.0);
        times.push(expires_at);
        slots.push(expiry_slot(timestamp_of(expires_at)));
        sums.push(Checksums::new(checksums.checksum, &later, secret).bytes());
    }
    sqlx::query(
        "UPDATE blob b SET expires_at = t.expires_at, expires_slot = t.slot, checksum = t.checksum \
         FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bytea[]) \
         AS t (pos, expires_at, slot, checksum) WHERE b.pos = t.pos",
    )
    .bind(keys)
    .bind(times)
    .bind(slots)
    .bind(sums)
    .execute(connection)
    .await
    .map(drop)
}

/// Corrupt rows that are kept, the newest ones: with bodies of 1 MiB this is 100 MiB.
const CORRUPT_ROWS_MAX: i64 = 100;

/// Copies rows to the corrupt ones, one whose body cannot be read without it.
pub(super) async fn set_aside(
    connection: &mut PgConnection,
    keys: &[OrderKey],
    now: Timestamp,
) -> sqlx::Result<()> {
    for key in keys {
        let copies = [
            "INSERT INTO corrupt SELECT pos, $2, expires_at, stored_at, size, kind, id, mailbox, checksum, \
             topic64, owner, version, sealed, body FROM blob WHERE pos = $1 ON CONFLICT DO NOTHING",
            "INSERT INTO corrupt SELECT pos, $2, expires_at, stored_at, size, kind, id, mailbox, checksum \
             FROM blob WHERE pos = $1 ON CONFLICT DO NOTHING",
        ];
        for copy in copies {
            connection.execute("SAVEPOINT one").await?;
            let copied = sqlx::query(copy)
                .bind(key.0)
                .bind(millis(now))
                .execute(&mut *connection)
                .await;
            match copied {
                Ok(_) => break,
                Err(error) if is_damage(&error) => {
                    connection.execute("ROLLBACK TO SAVEPOINT one").await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    sqlx::query(
        "DELETE FROM corrupt WHERE pos <= \
         (SELECT pos FROM corrupt ORDER BY pos DESC LIMIT 1 OFFSET $1)",
    )
    .bind(CORRUPT_ROWS_MAX)
    .execute(connection)
    .await
    .map(drop)
}

/// Looks at these rows, one by one, each in a transaction of its own or within a savepoint of the one that
/// is open.
pub(super) async fn look_at(
    connection: &mut PgConnection,
    keys: &[OrderKey],
    (secret, is_in_transaction): (&Secret, bool),
) -> sqlx::Result<HashMap<OrderKey, Look>> {
    let mut looks = HashMap::with_capacity(keys.len());
    for key in keys {
        if is_in_transaction {
            connection.execute("SAVEPOINT one").await?;
        }
        let read = sqlx::query(SELECT_SOUND.as_str())
            .bind(key.0)
            .fetch_optional(&mut *connection)
            .await;
        let look = read.and_then(|row| match row {
            None => Ok(Look::Gone),
            Some(row) => Ok(Look::of(sound(&row, secret)?)),
        });
        let look = match look {
            Ok(look) => look,
            Err(error) if is_damage(&error) => {
                if is_in_transaction {
                    connection.execute("ROLLBACK TO SAVEPOINT one").await?;
                }
                Look::Bad
            }
            Err(error) => return Err(error),
        };
        looks.insert(*key, look);
    }
    Ok(looks)
}
