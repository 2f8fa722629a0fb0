//! The rows of `usage`: what is kept, as the sum over all instances, and the number of this one's commits.
//!
//! Each transaction moves its own instance's row by deltas and counts itself there. The count is compared as
//! it is moved: a transaction that finds another count than it expects has not been the only one to write
//! under this number, and is refused.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::Uuid;

use super::columns::count;
use crate::store::engine::{Change, HeldInAll};

/// What all instances keep, and what counts beside it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sums {
    pub(super) held: HeldInAll,
    /// Departures that are remembered.
    pub(super) departed: u64,
    /// Nonces that are remembered.
    pub(super) nonces: u64,
}

/// By how much a transaction moves the sums.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) change: Change,
    pub(super) departed: i64,
    pub(super) nonces: i64,
}

/// The sums, in SQL.
pub(super) const SUMS: &str = "coalesce(sum(blobs), 0)::bigint AS blobs, \
     coalesce(sum(device_sync), 0)::bigint AS device_sync, \
     coalesce(sum(receipts), 0)::bigint AS receipts, \
     coalesce(sum(recovery_proofs), 0)::bigint AS recovery_proofs, \
     coalesce(sum(pins), 0)::bigint AS pins, \
     coalesce(sum(bytes), 0)::bigint AS bytes, \
     coalesce(sum(departed), 0)::bigint AS departed, \
     coalesce(sum(nonces), 0)::bigint AS nonces";

impl Sums {
    /// Reads [`SUMS`].
    pub(super) fn read(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            held: HeldInAll {
                blobs: count(row, "blobs")?,
                device_sync: count(row, "device_sync")?,
                receipts: count(row, "receipts")?,
                recovery_proofs: count(row, "recovery_proofs")?,
                pins: count(row, "pins")?,
                bytes: count(row, "bytes")?,
            },
            departed: count(row, "departed")?,
            nonces: count(row, "nonces")?,
        })
    }
}

/// Makes the row of this instance, if there is none.
pub(super) async fn enter(connection: &mut PgConnection, instance: i32) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO usage (instance) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(instance)
        .execute(connection)
        .await
        .map(drop)
}

/// How many transactions this instance has committed. Waits until none of it is left that has not ended.
pub(super) async fn lock_commits(
    connection: &mut PgConnection,
    instance: i32,
) -> sqlx::Result<i64> {
    let row = sqlx::query("SELECT commits FROM usage WHERE instance = $1 FOR UPDATE")
        .bind(instance)
        .fetch_one(connection)
        .await?;
    row.try_get("commits")
}

/// How a transaction's own row was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// As it should.
    Yes,
    /// One of the blobs that come has left another instance meanwhile.
    Raced,
    /// Somebody else writes under this instance's number.
    NotAlone,
}

/// Moves the sums in the last statement of a transaction, the one that makes the number of commits `commits`.
/// `came` are the names of rows that the transaction has inserted and that it did not know to have left
/// before. From here on only COMMIT follows, which must not be cancelled by a time-out: while it waits for a
/// standby, that would confirm what no standby has.
pub(super) async fn advance(
    connection: &mut PgConnection,
    (instance, delta, commits): (i32, &Delta, i64),
    (mailboxes, ids): (Vec<i64>, Vec<Uuid>),
) -> sqlx::Result<Moved> {
    let change = delta.change;
    let row = sqlx::query(
        "UPDATE usage SET commits = $2, blobs = blobs + $3, device_sync = device_sync + $4, \
         receipts = receipts + $5, recovery_proofs = recovery_proofs + $6, pins = pins + $7, \
         bytes = bytes + $8, departed = departed + $9, nonces = nonces + $10 \
         WHERE instance = $1 AND commits = $2 - 1 \
         RETURNING (SELECT count(*) FROM unnest($11::bigint[], $12::uuid[]) AS came (mailbox64, id) \
             JOIN departed d ON d.mailbox64 = came.mailbox64 AND d.id = came.id) AS left_meanwhile, \
             set_config('statement_timeout', '0', true) AS no_time_out",
    )
    .bind(instance)
    .bind(commits)
    .bind(change.blobs)
    .bind(change.device_sync)
    .bind(change.receipts)
    .bind(change.recovery_proofs)
    .bind(change.pins)
    .bind(change.bytes)
    .bind(delta.departed)
    .bind(delta.nonces)
    .bind(mailboxes)
    .bind(ids)
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        None => Moved::NotAlone,
        Some(row) if row.try_get::<i64, _>("left_meanwhile")? > 0 => Moved::Raced,
        Some(_) => Moved::Yes,
    })
}
