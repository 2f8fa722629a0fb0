//! Reading what a row's checksums cover.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::columns::{Kind, Size, blob_id, fixed, hash};
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::engine::Header;
use crate::store::model::{OrderKey, StoredBlob};
use crate::store::sql::guard;
pub(super) use crate::store::sql::guard::{Checksums, Guarded, owner_column};

/// The columns of a row without its body.
pub(super) const HEADER_COLUMNS: &str = "b.pos, b.mailbox, b.id, b.checksum, b.size, b.expires_at, \
     b.stored_at, b.kind, b.topic64, b.owner, b.version, b.sealed";

/// Reads what the checksums of a row of [`HEADER_COLUMNS`] cover.
pub(super) fn read_guarded(row: &PgRow) -> sqlx::Result<(Checksums, Guarded<'_>)> {
    let guarded = Guarded {
        size: Size(i64::from(row.try_get::<i32, _>("size")?)),
        expires_at: row.try_get("expires_at")?,
        stored_at: row.try_get("stored_at")?,
        kind: Kind(i64::from(row.try_get::<i16, _>("kind")?)),
        topic64: row.try_get("topic64")?,
        owner: row.try_get("owner")?,
        version: row.try_get("version")?,
        sealed: row
            .try_get::<Option<&[u8]>, _>("sealed")?
            .unwrap_or_default(),
    };
    // Here each row has a guard: of another length they are damaged, and zeros match nothing.
    let checksums = fixed::<24>(row, "checksum")?;
    Ok((Checksums::of(&checksums), guarded))
}

/// The key in the column `pos`.
pub(super) fn key(row: &PgRow) -> sqlx::Result<OrderKey> {
    row.try_get("pos").map(OrderKey)
}

/// The header of a row of [`HEADER_COLUMNS`].
pub(super) fn header(row: &PgRow, secret: &Secret) -> sqlx::Result<Header> {
    let name = (hash(row, "mailbox")?, blob_id(row, "id")?);
    Ok(guard::header(name, read_guarded(row)?, secret))
}

/// A row of [`HEADER_COLUMNS`] and its body, and its mailbox; `None` when it is not what was written.
pub(super) fn sound(
    row: &PgRow,
    secret: &Secret,
) -> sqlx::Result<Option<(StoredBlob, MailboxHash)>> {
    let mailbox = hash(row, "mailbox")?;
    let place = (key(row)?, mailbox, blob_id(row, "id")?);
    let sound = guard::sound(place, read_guarded(row)?, row.try_get("body")?, secret);
    Ok(sound.map(|blob| (blob, mailbox)))
}
