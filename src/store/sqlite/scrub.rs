//! The scrub: every row is compared, slowly, with its checksums, with what follows from it, and with its
//! entries in the indexes.
//!
//! A mailbox is read by its index: one wrong bit there and a blob is never found, whatever its own
//! checksum says. The table and its indexes lie on different pages, so each tells of the other. A reader
//! only finds rows that stand wrongly; the committer looks again, on its own connection, and mends
//! ([`mend`]): it builds the index anew from the table, in one transaction.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use futures_util::TryStreamExt as _;
use rusqlite::{Connection, params};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::columns::{expiry_slot, timestamp};
use super::errors::is_damage;
use super::guard::{SOUND_COLUMNS, sound};
use super::rows::{Sized, Sql};
use super::runs::{ENTRY_OF_ROW, IS_UNSETTLED};
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::model::{Class, OrderKey};

/// Rows of one slice, and bytes after which it ends.
const SLICE: (i64, u64) = (64, 1 << 20);

/// The table that finds the rows of a mailbox, as its index.
pub(super) const MAILBOXES: &str = "entry";

/// The indexes of `blob`, each with the condition that finds the entry of the row `b` in it. Where the
/// row is in none, the condition before it says so.
const INDEXES: [(&str, &str, &str); 5] = [
    (MAILBOXES, IS_UNSETTLED, ENTRY_OF_ROW),
    (
        "blob_by_expiry",
        "0",
        "i.expires_slot = b.expires_slot AND i.seq = b.seq",
    ),
    (
        "blob_by_topic",
        "b.topic64 IS NULL",
        "i.topic64 IS NOT NULL AND i.mailbox64 = b.mailbox64 AND i.topic64 = b.topic64 \
         AND i.seq = b.seq",
    ),
    (
        "blob_by_owner",
        "b.owner64 IS NULL",
        "i.owner64 IS NOT NULL AND i.owner64 = b.owner64 AND i.seq = b.seq AND i.size = b.size \
         AND i.expires_slot = b.expires_slot",
    ),
    (
        "blob_by_version",
        "b.version IS NULL",
        "i.version IS NOT NULL AND i.mailbox64 = b.mailbox64 AND i.version = b.version \
         AND i.seq = b.seq AND i.size = b.size AND i.expires_slot = b.expires_slot",
    ),
];

/// A row with what a check of it needs: the columns of [`sound`], what follows from them, and for each
/// index whether it has the row's entry.
static SELECT: LazyLock<String> = LazyLock::new(|| {
    let entries = INDEXES.map(|(index, is_in_none, entry)| {
        format!(
            "{is_in_none} OR EXISTS (SELECT 1 FROM {} WHERE {entry})",
            table_of(index)
        )
    });
    format!(
        "SELECT {SOUND_COLUMNS}, mailbox64, id64, expires_slot, owner64, {} FROM blob AS b NOT INDEXED",
        entries.join(", ")
    )
});

fn table_of(index: &str) -> String {
    match index {
        MAILBOXES => format!("{MAILBOXES} AS i"),
        index => format!("blob AS i INDEXED BY {index}"),
    }
}

static SELECT_SLICE: LazyLock<String> =
    LazyLock::new(|| format!("{} WHERE b.seq > ? ORDER BY b.seq LIMIT ?", *SELECT));

static SELECT_ONE: LazyLock<Sized> =
    LazyLock::new(|| Sized::new(&format!("{} WHERE b.seq IN (", *SELECT), "?", ")"));

/// How many columns [`SOUND_COLUMNS`] are.
const FOLLOWING: usize = 13;

/// What one slice found.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// Where the next one begins; `None` at the end of the table.
    pub(super) next: Option<OrderKey>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Rows that cannot be read or do not match their checksums.
    pub(super) doubtful: Vec<OrderKey>,
    /// Rows that stand wrongly.
    pub(super) misplaced: Vec<Misplaced>,
}

/// A sound row that an index does not have as it is, or of which something that follows is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misplaced {
    pub(super) key: OrderKey,
    pub(super) mailbox: MailboxHash,
    /// Indexes that do not have its entry, or cannot be read.
    pub(super) indexes: Vec<&'static str>,
    /// What should stand in the columns that follow from others, where something else does.
    pub(super) following: Option<Following>,
}

impl Misplaced {
    /// Whether this index is to be built anew for it.
    pub(super) fn is_in(&self, index: &str) -> bool {
        self.indexes.contains(&index) || self.following.is_some()
    }
}

/// Columns that follow from others: mailbox64, id64, expires_slot, owner64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Following(i64, i64, i64, Option<i64>);

/// What a look at one row comes to.
enum Checked {
    Right,
    Doubtful,
    Misplaced(Misplaced),
}

/// Checks the rows behind `after`.
pub(super) async fn check_slice(
    connection: &mut SqliteConnection,
    after: OrderKey,
    secret: &Secret,
) -> sqlx::Result<Slice> {
    match check_together(connection, after, secret).await {
        // One of them is on a damaged page: one by one.
        Err(error) if is_damage(&error) => check_one_by_one(connection, after, secret).await,
        checked => checked,
    }
}

async fn check_together(
    connection: &mut SqliteConnection,
    after: OrderKey,
    secret: &Secret,
) -> sqlx::Result<Slice> {
    let (rows_max, bytes_max) = SLICE;
    let mut rows = sqlx::query(SELECT_SLICE.as_str())
        .bind(after.0)
        .bind(rows_max)
        .fetch(connection);
    let mut slice = Slice::default();
    while let Some(row) = rows.try_next().await? {
        let key = OrderKey(row.try_get(0)?);
        slice.add(key, check(&row, secret)?, bytes_of(&row)?);
        if slice.bytes >= bytes_max {
            return Ok(slice);
        }
    }
    if slice.rows < rows_max as u64 {
        slice.next = None;
    }
    Ok(slice)
}

async fn check_one_by_one(
    connection: &mut SqliteConnection,
    after: OrderKey,
    secret: &Secret,
) -> sqlx::Result<Slice> {
    let keys = sqlx::query("SELECT seq FROM blob NOT INDEXED WHERE seq > ? ORDER BY seq LIMIT ?")
        .bind(after.0)
        .bind(SLICE.0)
        .fetch_all(&mut *connection)
        .await?;
    let mut slice = Slice::default();
    for row in &keys {
        let key = OrderKey(row.try_get(0)?);
        let checked = check_key(connection, key, secret).await?;
        slice.add(key, checked, 0);
    }
    if keys.len() < SLICE.0 as usize {
        slice.next = None;
    }
    Ok(slice)
}

impl Slice {
    fn add(&mut self, key: OrderKey, checked: Checked, bytes: u64) {
        self.next = Some(key);
        self.rows += 1;
        self.bytes += bytes;
        match checked {
            Checked::Right => {}
            Checked::Doubtful => self.doubtful.push(key),
            Checked::Misplaced(misplaced) => self.misplaced.push(misplaced),
        }
    }
}

/// Those of these rows that stand wrongly.
pub(super) async fn misplaced_of(
    connection: &mut SqliteConnection,
    keys: &[OrderKey],
    secret: &Secret,
) -> sqlx::Result<Vec<Misplaced>> {
    let mut found = Vec::new();
    for key in keys {
        if let Checked::Misplaced(misplaced) = check_key(connection, *key, secret).await? {
            found.push(misplaced);
        }
    }
    Ok(found)
}

/// Checks one row; one that is gone is right.
async fn check_key(
    connection: &mut SqliteConnection,
    key: OrderKey,
    secret: &Secret,
) -> sqlx::Result<Checked> {
    let Some((query, _)) = SELECT_ONE.cut_keys(&[key.0]) else {
        return Ok(Checked::Right);
    };
    let read = query.fetch_optional(&mut *connection).await;
    let checked = read.and_then(|row| match row {
        Some(row) => check(&row, secret),
        None => Ok(Checked::Right),
    });
    match checked {
        Err(error) if is_damage(&error) => unreadable(connection, key, secret).await,
        checked => checked,
    }
}

/// A row or an index is on a damaged page: which?
async fn unreadable(
    connection: &mut SqliteConnection,
    key: OrderKey,
    secret: &Secret,
) -> sqlx::Result<Checked> {
    let select = format!("SELECT {SOUND_COLUMNS} FROM blob AS b NOT INDEXED WHERE seq = ?");
    let row = sqlx::query(AssertSqlSafe(select))
        .bind(key.0)
        .fetch_optional(&mut *connection)
        .await;
    let mailbox = match row.and_then(|row| row.map_or(Ok(None), |row| sound(&row, secret))) {
        Ok(Some((_, mailbox))) => mailbox,
        Ok(None) => return Ok(Checked::Doubtful),
        Err(error) if is_damage(&error) => return Ok(Checked::Doubtful),
        Err(error) => return Err(error),
    };
    let mut indexes = Vec::new();
    for (index, _, entry) in INDEXES {
        let table = table_of(index);
        let select =
            format!("SELECT 1 FROM blob AS b NOT INDEXED, {table} WHERE b.seq = ? AND {entry}");
        let read = sqlx::query(AssertSqlSafe(select)).bind(key.0);
        match read.fetch_optional(&mut *connection).await {
            Ok(_) => {}
            Err(error) if is_damage(&error) => indexes.push(index),
            Err(error) => return Err(error),
        }
    }
    Ok(Checked::Misplaced(Misplaced {
        key,
        mailbox,
        indexes,
        following: None,
    }))
}

fn check(row: &SqliteRow, secret: &Secret) -> sqlx::Result<Checked> {
    let Some((blob, mailbox)) = sound(row, secret)? else {
        return Ok(Checked::Doubtful);
    };
    let owner: Option<&[u8]> = row.try_get(9)?;
    let owner = owner.and_then(|owner| owner.try_into().ok());
    let owner = owner.filter(|_| blob.class == Class::DeviceSync);
    let should = Following(
        mailbox.prefix64(),
        secret.id64(&blob.id),
        expiry_slot(timestamp(row, 5)?),
        owner.map(|owner| MailboxHash::from_bytes(owner).prefix64()),
    );
    let stands = Following(
        row.try_get(FOLLOWING)?,
        row.try_get(FOLLOWING + 1)?,
        row.try_get(FOLLOWING + 2)?,
        row.try_get(FOLLOWING + 3)?,
    );
    let mut indexes = Vec::new();
    for (place, (index, ..)) in INDEXES.iter().enumerate() {
        if !row.try_get::<bool, _>(FOLLOWING + 4 + place)? {
            indexes.push(*index);
        }
    }
    let following = (stands != should).then_some(should);
    if indexes.is_empty() && following.is_none() {
        return Ok(Checked::Right);
    }
    Ok(Checked::Misplaced(Misplaced {
        key: blob.key,
        mailbox,
        indexes,
        following,
    }))
}

fn bytes_of(row: &SqliteRow) -> sqlx::Result<u64> {
    let body: &[u8] = row.try_get(12)?;
    Ok(body.len() as u64)
}

/// Builds the indexes anew in which these rows stand wrongly, and writes anew what follows from other
/// columns. Within a transaction.
pub(super) fn mend(connection: &Connection, misplaced: &[Misplaced]) -> Sql<()> {
    let mut indexes: BTreeSet<_> = misplaced
        .iter()
        .flat_map(|row| &row.indexes)
        .copied()
        .collect();
    if misplaced.iter().any(|row| row.following.is_some()) {
        // Changing a row changes its entries, which must be where they are looked for.
        indexes.extend(INDEXES.map(|(index, ..)| index));
    }
    // The runs are built anew by who knows what is settled.
    for index in indexes.into_iter().filter(|index| *index != MAILBOXES) {
        connection.execute(&format!("REINDEX {index}"), ())?;
    }
    for row in misplaced {
        let Some(Following(mailbox64, id64, slot, owner64)) = row.following else {
            continue;
        };
        let sql =
            "UPDATE blob SET mailbox64 = ?, id64 = ?, expires_slot = ?, owner64 = ? WHERE seq = ?";
        connection.execute(sql, params![mailbox64, id64, slot, owner64, row.key.0])?;
    }
    Ok(())
}
