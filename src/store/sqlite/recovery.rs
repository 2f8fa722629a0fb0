//! The SQL of recovery proofs.
//!
//! The proof is sealed with its own authentication, so the row has no checksum beside it.

use std::sync::LazyLock;

use rusqlite::{Connection, params};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::columns::{fixed, timestamp, to_i64, to_u64};
use super::rows::{Sized, Sql, for_each};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::engine::{Asked, KnownProofs, Plan, SWEPT_PROOFS_MAX, Slot, Write};
use crate::store::model::{RecoveryPage, RecoveryProof, charged_bytes};

static SELECT_SLOTS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT n, key_hash, owner, is_proven, expires_at, length(proof) FROM recovery \
         WHERE key_hash IN (",
        "?",
        ")",
    )
});

const DELETE_PROOF: &str = "DELETE FROM recovery WHERE n = ?";

const INSERT_PROOF: &str = "INSERT INTO recovery \
     (n, key_hash, owner, is_proven, stored_at, expires_at, proof) VALUES (?, ?, ?, ?, ?, ?, ?)";

/// What there is of some recovery keys: n and length of the proof, the newest first. The length of
/// a blob is read without the blob.
static SELECT_LENGTHS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT n, length(proof), expires_at FROM recovery WHERE key_hash IN (",
        "?",
        ")",
    )
});

static SELECT_PROOFS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT n, key_hash, owner, is_proven, stored_at, expires_at, proof FROM recovery \
         WHERE n IN (",
        "?",
        ")",
    )
});

/// What a batch asks about recovery proofs.
pub(super) async fn read_known_proofs(
    connection: &mut SqliteConnection,
    asked: &Asked,
) -> sqlx::Result<KnownProofs> {
    let mut known = KnownProofs::default();
    let keys = &asked.proofs;
    let mut left = keys.as_slice();
    while let Some((mut query, now, later)) = SELECT_SLOTS.cut(left) {
        for key_hash in now {
            query = query.bind(key_hash.to_vec());
        }
        for row in query.fetch_all(&mut *connection).await? {
            let (key_hash, slot) = slot(&row)?;
            known.slots.entry(key_hash).or_default().push(slot);
        }
        left = later;
    }
    if !keys.is_empty() {
        let last = sqlx::query("SELECT coalesce(max(n), 0) FROM recovery")
            .fetch_one(&mut *connection)
            .await?;
        known.next_number = last.try_get::<i64, _>(0)? + 1;
    }
    if let Some(now) = asked.expired_proofs {
        for (key_hash, slot) in read_expired(connection, now).await? {
            known.expired.push((key_hash, slot.number));
            if keys.binary_search(&key_hash).is_err() {
                known.slots.entry(key_hash).or_default().push(slot);
            }
        }
    }
    Ok(known)
}

async fn read_expired(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> sqlx::Result<Vec<([u8; 32], Slot)>> {
    let rows = sqlx::query(
        "SELECT n, key_hash, owner, is_proven, expires_at, length(proof) \
         FROM recovery INDEXED BY recovery_by_expiry WHERE expires_at <= ? \
         ORDER BY expires_at LIMIT ?",
    )
    .bind(to_i64(now.millis()))
    .bind(to_i64(SWEPT_PROOFS_MAX as u64))
    .fetch_all(connection)
    .await?;
    rows.iter().map(slot).collect()
}

fn slot(row: &SqliteRow) -> sqlx::Result<([u8; 32], Slot)> {
    let bytes: i64 = row.try_get(5)?;
    let slot = Slot {
        number: row.try_get(0)?,
        owner: MailboxHash::from_bytes(fixed(row, 2)?),
        is_proven: row.try_get(3)?,
        expires_at: timestamp(row, 4)?,
        charged_bytes: charged_bytes(usize::try_from(bytes).unwrap_or(0)),
    };
    Ok((fixed(row, 1)?, slot))
}

/// Writes what a plan does. The deletes come first: an owner has one row under each key.
pub(super) fn write_proofs(connection: &Connection, plan: &Plan, batch: &[&Write]) -> Sql<()> {
    for_each(connection, DELETE_PROOF, &plan.proofs.deletes)?;
    for (number, proof) in plan.new_proofs(batch) {
        connection.prepare_cached(INSERT_PROOF)?.execute(params![
            number,
            proof.key_hash,
            proof.owner.as_bytes(),
            proof.is_proven,
            to_i64(proof.stored_at.millis()),
            to_i64(proof.expires_at.millis()),
            &*proof.sealed_proof,
        ])?;
    }
    Ok(())
}

/// Reads what is known about these keys, the newest first, as much as fits.
pub(super) async fn read_proofs(
    pool: &SqlitePool,
    key_hashes: &[[u8; 32]],
    bytes_max: u64,
    now: Timestamp,
) -> sqlx::Result<RecoveryPage> {
    let mut found: Vec<(i64, u64)> = Vec::new();
    let mut left = key_hashes;
    while let Some((mut query, some, later)) = SELECT_LENGTHS.cut(left) {
        for key_hash in some {
            query = query.bind(key_hash.to_vec());
        }
        for row in query.fetch_all(pool).await? {
            if timestamp(&row, 2)? > now {
                found.push((row.try_get(0)?, to_u64(row.try_get(1)?)));
            }
        }
        left = later;
    }
    found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    let mut bytes: u64 = 0;
    let fitting = found.iter().take_while(|(_, proof_bytes)| {
        bytes = bytes.saturating_add(*proof_bytes);
        bytes <= bytes_max
    });
    let numbers: Vec<i64> = fitting.map(|(number, _)| *number).collect();
    let mut proofs = Vec::with_capacity(numbers.len());
    let mut left = numbers.as_slice();
    while let Some((query, later)) = SELECT_PROOFS.cut_keys(left) {
        for row in query.fetch_all(pool).await? {
            proofs.push((row.try_get::<i64, _>(0)?, proof(&row)?));
        }
        left = later;
    }
    proofs.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(RecoveryPage {
        proofs: proofs.into_iter().map(|(_, proof)| proof).collect(),
        more: numbers.len() < found.len(),
    })
}

fn proof(row: &SqliteRow) -> sqlx::Result<RecoveryProof> {
    let sealed_proof: Vec<u8> = row.try_get(6)?;
    Ok(RecoveryProof {
        key_hash: fixed(row, 1)?,
        owner: MailboxHash::from_bytes(fixed(row, 2)?),
        is_proven: row.try_get(3)?,
        stored_at: timestamp(row, 4)?,
        expires_at: timestamp(row, 5)?,
        sealed_proof: sealed_proof.into(),
    })
}
