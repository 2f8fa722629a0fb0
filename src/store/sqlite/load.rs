//! What the committer reads: at the start its counters and the departures, and before each batch
//! what the batch is about.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::departures::Departures;
use super::errors::classify;
use super::open::SqliteOptions;
use super::owners::Owned;
use super::pages::bad_rows;
use super::pins::read_pins;
use super::recovery::read_slots;
use super::rows::{self as rows, SELECT_OWNERS, SELECT_SETS};
use super::working_set::{
    ENTRY_BYTES, Entry, Size, WorkingSet, WorkingSets, expiry_slot, slot_start, to_i64, to_u64,
};
use crate::clock::Timestamp;
use crate::secrets::Secret;
use crate::store::commit::{CommitError, Write};
use crate::store::plan::needs;
use crate::store::plan::quota::{HeldInAll, Quota};
use crate::store::plan::{Header, Known};

/// Expired rows that a full mailbox loses at once.
const RELIEF_ROWS_MAX: i64 = 256;

/// The numbers that change with each transaction.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Totals {
    pub(in crate::store) next_key: i64,
    pub(in crate::store) held: HeldInAll,
    pub(in crate::store) commits: i64,
}

pub(in crate::store) async fn read_totals(
    connection: &mut SqliteConnection,
) -> sqlx::Result<Totals> {
    let row = sqlx::query(
        "SELECT blobs, device_sync, recovery_proofs, pins, bytes, receipts, commits, \
         max((SELECT value FROM meta WHERE name = 'high_water'), \
             (SELECT coalesce(max(seq), 0) FROM blob)) \
         FROM usage WHERE one = 1",
    )
    .fetch_one(connection)
    .await?;
    let last_key: i64 = row.try_get(7)?;
    Ok(Totals {
        held: HeldInAll {
            blobs: to_u64(row.try_get(0)?),
            device_sync: to_u64(row.try_get(1)?),
            recovery_proofs: to_u64(row.try_get(2)?),
            pins: to_u64(row.try_get(3)?),
            bytes: to_u64(row.try_get(4)?),
            receipts: to_u64(row.try_get(5)?),
        },
        commits: row.try_get(6)?,
        next_key: last_key + 1,
    })
}

/// The departures that are still remembered. Those whose time is over are among them: whether the
/// clock is right is not known at a start, and they are forgotten when it is.
pub(in crate::store) async fn read_departures(
    connection: &mut SqliteConnection,
    options: &SqliteOptions,
) -> sqlx::Result<Departures> {
    let mut departures = Departures::new(options.dedup, options.dedup_max);
    let ends = sqlx::query(
        "SELECT coalesce((SELECT min(n) FROM departed), 1), \
         coalesce((SELECT max(n) FROM departed), 0)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (first, last): (i64, i64) = (ends.try_get(0)?, ends.try_get(1)?);
    departures.set_table_from(first);
    // What is too much for memory is not read at all.
    let read_from = match options.dedup_max {
        0 => first,
        max => first.max(last - to_i64(max) + 1),
    };
    departures.skip_to(read_from);
    let mut table = sqlx::query(
        "SELECT n, left_at, mailbox64, id, checksum, expires_at FROM departed WHERE n >= ? ORDER BY n",
    )
    .bind(read_from)
    .fetch(connection);
    while let Some(row) = table.try_next().await? {
        let (number, departure) = rows::departure(&row)?;
        departures.load(number, departure);
    }
    Ok(departures)
}

/// Reads the working sets of these mailboxes, which are not in memory.
async fn read_sets(
    connection: &mut SqliteConnection,
    sets: &mut WorkingSets,
    missing: &[i64],
    batch: &[&Write],
) -> Result<(), CommitError> {
    let mut left = missing;
    while let Some((query, later)) = SELECT_SETS.cut_keys(left) {
        let mut read: HashMap<i64, WorkingSet> = left[..left.len() - later.len()]
            .iter()
            .map(|mailbox64| (*mailbox64, WorkingSet::default()))
            .collect();
        let mut entries = query.fetch(&mut *connection);
        let mut count = 0;
        while let Some(row) = entries.try_next().await.map_err(|e| classify(&e))? {
            let (mailbox64, entry) = set_entry(&row).map_err(|e| classify(&e))?;
            read.entry(mailbox64).or_default().insert(entry);
            count += 1;
            if can_be_split(batch) && is_too_wide(sets, count) {
                return Err(CommitError::TooWide);
            }
        }
        drop(entries);
        for (mailbox64, set) in read {
            sets.put(mailbox64, set);
        }
        left = later;
    }
    Ok(())
}

/// Whether the committer can make smaller batches of this one.
fn can_be_split(batch: &[&Write]) -> bool {
    match batch {
        [Write::Remove { keys, .. }] => keys.len() > 1,
        _ => batch.len() > 1,
    }
}

/// Whether what the batch needs at once goes beyond twice the bound of all working sets. The old
/// ones are only given up after the batch, hence twice.
fn is_too_wide(sets: &WorkingSets, entries: u64) -> bool {
    sets.bytes() + entries * ENTRY_BYTES > 2 * sets.bytes_max()
}

fn set_entry(row: &sqlx::sqlite::SqliteRow) -> sqlx::Result<(i64, Entry)> {
    let entry = Entry {
        key: row.try_get(0)?,
        id64: row.try_get(1)?,
        size: Size(row.try_get(2)?),
        expires_from: slot_start(row.try_get(3)?),
    };
    Ok((row.try_get(4)?, entry))
}

/// Reads what the owners have to whom the batch brings something and who are not in memory.
async fn read_owners(
    connection: &mut SqliteConnection,
    sets: &mut WorkingSets,
    batch: &[&Write],
) -> sqlx::Result<()> {
    let mut missing: Vec<_> = needs::owners_of(batch).into_iter().collect();
    missing.retain(|owner64| sets.owners.get(*owner64).is_none());
    let mut left = missing.as_slice();
    let mut read: HashMap<i64, Owned> = missing
        .iter()
        .map(|owner64| (*owner64, Owned::default()))
        .collect();
    while let Some((query, later)) = SELECT_OWNERS.cut_keys(left) {
        let mut entries = query.fetch(&mut *connection);
        while let Some(row) = entries.try_next().await? {
            let size = Size(row.try_get(1)?);
            let owned = read.entry(row.try_get(0)?).or_default();
            owned.add(size.charged_bytes(), slot_start(row.try_get(2)?));
        }
        left = later;
    }
    for (owner64, owned) in read {
        sets.owners.put(owner64, owned);
    }
    Ok(())
}

/// Reads what must be known to fold the batch.
pub(in crate::store) async fn read_known(
    connection: &mut SqliteConnection,
    sets: &mut WorkingSets,
    secret: &Secret,
    (quota, held): (&Quota, HeldInAll),
    batch: &[&Write],
) -> Result<Known, CommitError> {
    let missing = needs::mailboxes_to_read(batch, sets);
    read_sets(connection, sets, &missing, batch).await?;
    let rows = async {
        read_owners(connection, sets, batch).await?;
        read_rows(connection, sets, secret, (quota, held), batch).await
    };
    let mut known = rows.await.map_err(|error| classify(&error))?;
    let missing = needs::receipt_mailboxes_to_read(batch, &known, sets);
    read_sets(connection, sets, &missing, batch).await?;
    read_relief(connection, sets, (secret, quota), &mut known, batch)
        .await
        .map_err(|error| classify(&error))?;
    // What goes to make room is told, too.
    let missing = needs::receipt_mailboxes_to_read(batch, &known, sets);
    read_sets(connection, sets, &missing, batch).await?;
    Ok(known)
}

/// Reads the rows that the batch is about, and proofs and pins.
async fn read_rows(
    connection: &mut SqliteConnection,
    sets: &WorkingSets,
    secret: &Secret,
    (quota, held): (&Quota, HeldInAll),
    batch: &[&Write],
) -> sqlx::Result<Known> {
    let mut known = Known {
        proofs: read_slots(connection, batch).await?,
        pins: read_pins(connection, held, quota, batch).await?,
        ..Known::default()
    };
    let mut keys = needs::rows_to_read(batch, sets, secret);
    for (place, key) in rows::read_topics(connection, &needs::topics_of(batch)).await? {
        known.topics.entry(place).or_default().push(key);
        keys.push(key);
    }
    keys.sort_unstable();
    keys.dedup();
    let headers = rows::read_headers(connection, &keys, secret).await?;
    known.headers.extend(headers);
    let doubtful = needs::rows_to_examine(batch);
    let bad = bad_rows(connection, &doubtful, secret).await?;
    let sound = doubtful.iter().filter(|key| !bad.contains(key));
    known.sound.extend(sound.map(|key| key.0));
    Ok(known)
}

/// Reads what has expired of mailboxes and owners that the batch would fill.
async fn read_relief(
    connection: &mut SqliteConnection,
    sets: &mut WorkingSets,
    (secret, quota): (&Secret, &Quota),
    known: &mut Known,
    batch: &[&Write],
) -> sqlx::Result<()> {
    for (mailbox64, expired_by) in needs::mailboxes_to_relieve(batch, known, sets, quota) {
        let holder = (EXPIRED_OF_MAILBOX, mailbox64);
        let expired = read_expired(connection, holder, secret, expired_by).await?;
        if expired.keys.is_empty() {
            sets.set_earliest_expiry(mailbox64, expired.look_again_at(expired_by));
        } else {
            known.expired.insert(mailbox64, expired.keys);
        }
        known.headers.extend(expired.headers);
    }
    for (owner64, expired_by) in needs::owners_to_relieve(batch, sets, quota) {
        let holder = (EXPIRED_OF_OWNER, owner64);
        let expired = read_expired(connection, holder, secret, expired_by).await?;
        if expired.keys.is_empty() {
            let again = expired.look_again_at(expired_by);
            sets.owners.set_earliest_expiry(owner64, again);
        } else {
            known.expired_of_owners.insert(owner64, expired.keys);
        }
        known.headers.extend(expired.headers);
    }
    Ok(())
}

const EXPIRED_OF_MAILBOX: &str = "SELECT seq FROM blob INDEXED BY blob_by_mailbox \
     WHERE mailbox64 = ? AND expires_slot <= ? ORDER BY seq LIMIT ?";

const EXPIRED_OF_OWNER: &str = "SELECT seq FROM blob INDEXED BY blob_by_owner \
     WHERE owner64 = ? AND expires_slot <= ? ORDER BY seq LIMIT ?";

/// What has expired of a full mailbox or owner.
struct Expired {
    keys: Vec<i64>,
    headers: Vec<(i64, Header)>,
    /// Nothing else expires before this moment.
    earliest: Timestamp,
}

impl Expired {
    /// A second later at the soonest, so that a full mailbox is not searched at every append.
    fn look_again_at(&self, expired_by: Timestamp) -> Timestamp {
        self.earliest.max(expired_by.plus(Duration::from_secs(1)))
    }
}

/// Reads what has expired of one holder with `sql`, one of the two above.
async fn read_expired(
    connection: &mut SqliteConnection,
    (sql, holder64): (&'static str, i64),
    secret: &Secret,
    expired_by: Timestamp,
) -> sqlx::Result<Expired> {
    let slot = expiry_slot(expired_by);
    let found = sqlx::query(sql)
        .bind(holder64)
        .bind(slot)
        .bind(RELIEF_ROWS_MAX)
        .fetch_all(&mut *connection)
        .await?;
    let keys = found
        .iter()
        .map(|row| row.try_get(0))
        .collect::<sqlx::Result<Vec<i64>>>()?;
    let headers = rows::read_headers(connection, &keys, secret).await?;
    let is_all = to_i64(keys.len() as u64) < RELIEF_ROWS_MAX;
    let mut expired = Expired {
        keys: Vec::new(),
        headers: Vec::new(),
        earliest: if is_all {
            slot_start(slot + 1)
        } else {
            expired_by
        },
    };
    for (key, header) in &headers {
        if header.expires_at <= expired_by {
            expired.keys.push(*key);
        } else {
            expired.earliest = expired.earliest.min(header.expires_at);
        }
    }
    expired.headers = headers;
    Ok(expired)
}
