//! The SQL of recovery proofs.
//!
//! The proof is sealed with its own authentication, so the row has no checksum beside it.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::columns::{fixed, hash, millis, timestamp, to_i64};
use crate::clock::Timestamp;
use crate::store::engine::{Asked, KnownProofs, Plan, SWEPT_PROOFS_MAX, Slot, Write};
use crate::store::model::{RecoveryPage, RecoveryProof, charged_bytes};

/// What a batch asks about recovery proofs. The rows are locked, because some of them may go.
pub(super) async fn known(
    connection: &mut PgConnection,
    asked: &Asked,
) -> sqlx::Result<KnownProofs> {
    let mut known = KnownProofs::default();
    let keys = &asked.proofs;
    if !keys.is_empty() {
        let rows = sqlx::query(
            "SELECT n, key_hash, owner, is_proven, expires_at, octet_length(proof) AS bytes FROM recovery \
             WHERE key_hash = ANY($1) ORDER BY n FOR UPDATE",
        )
        .bind(keys.as_slice())
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let (key_hash, slot) = slot(row)?;
            known.slots.entry(key_hash).or_default().push(slot);
        }
        let last = sqlx::query("SELECT n FROM recovery ORDER BY n DESC LIMIT 1")
            .fetch_optional(&mut *connection)
            .await?;
        let last: Option<i64> = last.map(|row| row.try_get("n")).transpose()?;
        known.next_number = last.unwrap_or(0) + 1;
    }
    if let Some(by) = asked.expired_proofs {
        let rows = sqlx::query(
            "SELECT n, key_hash, owner, is_proven, expires_at, octet_length(proof) AS bytes FROM recovery \
             WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE",
        )
        .bind(millis(by))
        .bind(to_i64(SWEPT_PROOFS_MAX as u64))
        .fetch_all(connection)
        .await?;
        for row in &rows {
            let (key_hash, slot) = slot(row)?;
            known.expired.push((key_hash, slot.number));
            if keys.binary_search(&key_hash).is_err() {
                known.slots.entry(key_hash).or_default().push(slot);
            }
        }
    }
    Ok(known)
}

fn slot(row: &PgRow) -> sqlx::Result<([u8; 32], Slot)> {
    let bytes: i32 = row.try_get("bytes")?;
    let slot = Slot {
        number: row.try_get("n")?,
        owner: hash(row, "owner")?,
        is_proven: row.try_get("is_proven")?,
        expires_at: timestamp(row, "expires_at")?,
        charged_bytes: charged_bytes(usize::try_from(bytes).unwrap_or(0)),
    };
    Ok((fixed(row, "key_hash")?, slot))
}

/// Writes what a plan does, deletes first: an owner has one row under each key. `false` when another
/// instance has changed the same keys meanwhile.
pub(super) async fn write(
    connection: &mut PgConnection,
    plan: &Plan,
    batch: &[&Write],
) -> sqlx::Result<bool> {
    let mut changed = 0;
    let gone = &plan.proofs.deletes;
    if !gone.is_empty() {
        let done = sqlx::query("DELETE FROM recovery WHERE n = ANY($1)")
            .bind(gone.as_slice())
            .execute(&mut *connection)
            .await?;
        changed += done.rows_affected();
    }
    let mut new = 0;
    for (number, proof) in plan.new_proofs(batch) {
        let done = sqlx::query(
            "INSERT INTO recovery (n, key_hash, owner, is_proven, stored_at, expires_at, proof) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        )
        .bind(number)
        .bind(proof.key_hash)
        .bind(proof.owner.as_bytes().as_slice())
        .bind(proof.is_proven)
        .bind(millis(proof.stored_at))
        .bind(millis(proof.expires_at))
        .bind(&*proof.sealed_proof)
        .execute(&mut *connection)
        .await?;
        changed += done.rows_affected();
        new += 1;
    }
    Ok(changed == gone.len() as u64 + new)
}

/// Reads what is known about these keys, the newest first, as much as fits.
pub(super) async fn read(
    connection: &mut PgConnection,
    key_hashes: &[[u8; 32]],
    bytes_max: u64,
    now: Timestamp,
) -> sqlx::Result<RecoveryPage> {
    let rows = sqlx::query(
        "WITH found AS MATERIALIZED (SELECT n, \
             sum(octet_length(proof)) OVER (ORDER BY n DESC) <= $2::bigint AS fits \
             FROM recovery WHERE key_hash = ANY($1) AND expires_at > $3) \
         SELECT r.n, r.key_hash, r.owner, r.is_proven, r.stored_at, r.expires_at, r.proof \
         FROM found LEFT JOIN recovery r ON r.n = CASE WHEN found.fits THEN found.n END \
         ORDER BY found.n DESC",
    )
    .bind(key_hashes)
    .bind(to_i64(bytes_max))
    .bind(millis(now))
    .fetch_all(connection)
    .await?;
    let mut page = RecoveryPage::default();
    for row in &rows {
        let Some(_) = row.try_get::<Option<i64>, _>("n")? else {
            page.more = true;
            break;
        };
        page.proofs.push(proof(row)?);
    }
    Ok(page)
}

fn proof(row: &PgRow) -> sqlx::Result<RecoveryProof> {
    let sealed_proof: &[u8] = row.try_get("proof")?;
    Ok(RecoveryProof {
        key_hash: fixed(row, "key_hash")?,
        owner: hash(row, "owner")?,
        is_proven: row.try_get("is_proven")?,
        sealed_proof: sealed_proof.to_vec().into(),
        stored_at: timestamp(row, "stored_at")?,
        expires_at: timestamp(row, "expires_at")?,
    })
}
