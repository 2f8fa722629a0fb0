//! What the committer's connection reads: at the start its counters, and for each batch what a fold asks.
//!
//! Most answers come from the caches: working sets, owners, departures and nonces. What is not in
//! them is read, and followed from then on.

use std::time::Duration;

use foldhash::HashMap;
use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::caches::Caches;
use super::columns::{Size, expiry_slot, slot_start, to_i64, to_u64};
use super::errors::classify;
use super::pages::look_at;
use super::pins::read_known_pins;
use super::recovery::read_known_proofs;
use super::rows::{self, SELECT_OWNERS};
use super::runs::{SELECT_SETS, entry as entry_of};
use super::tail::{self, Tail};
use super::working_set::{ENTRY_BYTES, Entry, WorkingSet, WorkingSets};
use crate::clock::Timestamp;
use crate::secrets::Secret;
use crate::store::engine::{
    Account, Asked, CommitError, Header, HeldInAll, Holder, Known, RELIEF_ROWS_MAX,
};
use crate::store::model::OrderKey;
use crate::store::sql::quarantine::Look;

/// The numbers that change with each transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) next_key: i64,
    pub(super) held: HeldInAll,
    pub(super) commits: i64,
}

pub(super) async fn read_totals(connection: &mut SqliteConnection) -> sqlx::Result<Totals> {
    let row = sqlx::query(
        "SELECT blobs, device_sync, recovery_proofs, pins, bytes, receipts, commits, \
         max(high_water, (SELECT coalesce(max(seq), 0) FROM blob)) \
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

/// Answers what a fold asks, but for what the writer itself knows.
pub(super) async fn answer(
    connection: &mut SqliteConnection,
    caches: &mut Caches,
    (tail, secret): (&Tail, &Secret),
    asked: &Asked,
) -> Result<Known, CommitError> {
    let mut known = Known::default();
    read_accounts(connection, (caches, tail), asked, &mut known).await?;
    known.departed = caches.departures.find_all(&asked.departed);
    caches.nonces.answer(&asked.nonces, &mut known.nonces);
    let read = read_rows(connection, caches, (tail, secret), asked, &mut known);
    read.await.map_err(|error| classify(&error))?;
    Ok(known)
}

/// What mailboxes and owners have; reads those that are not in memory.
async fn read_accounts(
    connection: &mut SqliteConnection,
    (caches, tail): (&mut Caches, &Tail),
    asked: &Asked,
    known: &mut Known,
) -> Result<(), CommitError> {
    let of_holders = asked.holders.iter().filter_map(|holder| match holder {
        Holder::Mailbox(mailbox) => Some(mailbox),
        Holder::Owner(_) => None,
    });
    let of_names = asked.names.iter().map(|(mailbox, _)| mailbox);
    let mut missing: Vec<_> = of_holders
        .chain(of_names)
        .map(|mailbox| mailbox.prefix64())
        .filter(|mailbox64| caches.sets.get(*mailbox64).is_none())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let sets = &mut caches.sets;
    read_sets(connection, (sets, tail), &missing, asked.is_smallest).await?;
    let owners = asked.holders.iter().filter_map(|holder| match holder {
        Holder::Owner(owner) => Some(owner.prefix64()),
        Holder::Mailbox(_) => None,
    });
    let mut missing: Vec<_> = owners.collect();
    missing.retain(|owner64| caches.sets.owners.get(*owner64).is_none());
    read_owners(connection, &mut caches.sets, &missing)
        .await
        .map_err(|error| classify(&error))?;
    for holder in &asked.holders {
        let account = match holder {
            Holder::Mailbox(mailbox) => {
                let set = caches.sets.peek(mailbox.prefix64());
                set.map(WorkingSet::account)
            }
            Holder::Owner(owner) => caches.sets.owners.get(owner.prefix64()),
        };
        known.accounts.insert(*holder, account.unwrap_or_default());
    }
    Ok(())
}

/// Reads the working sets of these mailboxes, which are not in memory.
async fn read_sets(
    connection: &mut SqliteConnection,
    (sets, tail): (&mut WorkingSets, &Tail),
    missing: &[i64],
    is_smallest: bool,
) -> Result<(), CommitError> {
    let mut left = missing;
    while let Some((query, later)) = SELECT_SETS.cut_keys(left) {
        let now = &left[..left.len() - later.len()];
        let empty = now
            .iter()
            .map(|mailbox64| (*mailbox64, WorkingSet::default()));
        let mut read: HashMap<i64, WorkingSet> = empty.collect();
        let mut count = 0;
        let mut take = |mailbox64: i64, entry: tail::Entry| {
            read.entry(mailbox64).or_default().insert(set_entry(entry));
            count += 1;
            match !is_smallest && is_too_wide(sets, count) {
                true => Err(CommitError::TooWide),
                false => Ok(()),
            }
        };
        let mut entries = query.fetch(&mut *connection);
        while let Some(row) = entries.try_next().await.map_err(|e| classify(&e))? {
            let entry = entry_of(&row).map_err(|e| classify(&e))?;
            take(row.try_get(4).map_err(|e| classify(&e))?, entry)?;
        }
        drop(entries);
        for (mailbox64, entry) in tail.entries_of(now).unsettled {
            take(mailbox64, entry)?;
        }
        for (mailbox64, set) in read {
            sets.put(mailbox64, set);
        }
        left = later;
    }
    Ok(())
}

/// Whether what the batch needs at once goes beyond twice the bound of all working sets. The old
/// ones are only given up before the next questions, hence twice.
fn is_too_wide(sets: &WorkingSets, entries: u64) -> bool {
    sets.bytes() + entries * ENTRY_BYTES > 2 * sets.bytes_max()
}

fn set_entry(entry: tail::Entry) -> Entry {
    Entry {
        key: entry.key,
        id64: entry.id64,
        size: entry.size,
        expires_from: slot_start(entry.slot),
    }
}

/// Reads what these owners have, who are not in memory.
async fn read_owners(
    connection: &mut SqliteConnection,
    sets: &mut WorkingSets,
    missing: &[i64],
) -> sqlx::Result<()> {
    let mut left = missing;
    let mut read: HashMap<i64, Account> = missing
        .iter()
        .map(|owner64| (*owner64, Account::default()))
        .collect();
    while let Some((query, later)) = SELECT_OWNERS.cut_keys(left) {
        let mut entries = query.fetch(&mut *connection);
        while let Some(row) = entries.try_next().await? {
            let size = Size(row.try_get(1)?);
            let account = read.entry(row.try_get(0)?).or_default();
            let expires_from = slot_start(row.try_get(2)?);
            account.add(size.class(), size.charged_bytes(), expires_from);
        }
        left = later;
    }
    for (owner64, account) in read {
        sets.owners.put(owner64, account);
    }
    Ok(())
}

/// Reads rows, proofs and pins.
async fn read_rows(
    connection: &mut SqliteConnection,
    caches: &mut Caches,
    (tail, secret): (&Tail, &Secret),
    asked: &Asked,
    known: &mut Known,
) -> sqlx::Result<()> {
    known.proofs = read_known_proofs(connection, asked).await?;
    known.pins = read_known_pins(connection, asked).await?;
    let mut keys: Vec<i64> = asked.keys.iter().map(|key| key.0).collect();
    for (mailbox, id) in &asked.names {
        let mailbox64 = mailbox.prefix64();
        let Some(set) = caches.sets.peek(mailbox64) else {
            continue;
        };
        for key in set.find(secret.id64(id)) {
            match tail.header(mailbox64, key) {
                Some(header) => drop(known.rows.insert(OrderKey(key), header)),
                None => keys.push(key),
            }
        }
    }
    keys.extend(rows::read_topics(connection, &asked.topics).await?);
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| !tail.is_gone(*key));
    let headers = rows::read_headers(connection, &keys, secret).await?;
    known.rows.extend(headers);
    let looks = look_at(connection, &asked.doubtful, secret).await?;
    let sound = looks.iter().filter(|(_, look)| *look != Look::Bad);
    known.sound.extend(sound.map(|(key, _)| *key));
    for (holder, expired_by) in &asked.expired {
        let expired = read_expired(connection, *holder, (tail, secret), *expired_by).await?;
        if expired.keys.is_empty() {
            caches.look_again(*holder, expired.look_again_at(*expired_by));
        }
        known.expired.insert(*holder, expired.keys);
        known.rows.extend(expired.headers);
    }
    Ok(())
}

const EXPIRED_OF_MAILBOX: &str = "SELECT e.seq FROM run CROSS JOIN entry AS e \
     WHERE e.run = run.run AND e.mailbox64 = ? AND e.expires_slot <= ? \
     ORDER BY run.last_seq, e.seq LIMIT ?";

const EXPIRED_OF_OWNER: &str = "SELECT seq FROM blob INDEXED BY blob_by_owner \
     WHERE owner64 = ? AND expires_slot <= ? ORDER BY seq LIMIT ?";

/// What has expired of a full mailbox or owner.
struct Expired {
    keys: Vec<OrderKey>,
    headers: Vec<(OrderKey, Header)>,
    /// Nothing else expires before this moment.
    earliest: Timestamp,
}

impl Expired {
    /// A second later at the soonest, so that a full mailbox is not searched at every append.
    fn look_again_at(&self, expired_by: Timestamp) -> Timestamp {
        self.earliest.max(expired_by.plus(Duration::from_secs(1)))
    }
}

/// Reads what has expired of one holder.
async fn read_expired(
    connection: &mut SqliteConnection,
    holder: Holder,
    (tail, secret): (&Tail, &Secret),
    expired_by: Timestamp,
) -> sqlx::Result<Expired> {
    let slot = expiry_slot(expired_by);
    let (sql, holder64) = match holder {
        Holder::Mailbox(mailbox) => (EXPIRED_OF_MAILBOX, mailbox.prefix64()),
        Holder::Owner(owner) => (EXPIRED_OF_OWNER, owner.prefix64()),
    };
    let found = sqlx::query(sql)
        .bind(holder64)
        .bind(slot)
        .bind(to_i64(RELIEF_ROWS_MAX as u64))
        .fetch_all(&mut *connection)
        .await?;
    let keys = found.iter().map(|row| row.try_get(0));
    let mut keys = keys.collect::<sqlx::Result<Vec<i64>>>()?;
    if let Holder::Mailbox(_) = holder {
        let unsettled = tail.entries_of(&[holder64]).unsettled.into_iter();
        let expired = unsettled.filter(|(_, entry)| entry.slot <= slot);
        keys.extend(expired.map(|(_, entry)| entry.key));
        keys.truncate(RELIEF_ROWS_MAX);
    }
    let headers = rows::read_headers(connection, &keys, secret).await?;
    let is_all = keys.len() < RELIEF_ROWS_MAX;
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
