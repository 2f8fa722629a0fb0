//! Reading what a row's checksums cover.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::columns::{Kind, Size, fixed};
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use crate::store::engine::Header;
use crate::store::model::{OrderKey, StoredBlob};
use crate::store::sql::guard;
pub(super) use crate::store::sql::guard::{Checksums, Guarded, owner_column};

/// The columns of [`Guarded`] and of [`Checksums`], in the order of [`read_guarded`].
pub(super) const GUARD_COLUMNS: &str =
    "checksum, size, expires_at, stored_at, kind, topic64, owner, version, sealed";

/// What [`sound`] reads, from the first column on.
pub(super) const SOUND_COLUMNS: &str = "seq, mailbox, id, checksum, size, expires_at, stored_at, \
     kind, topic64, owner, version, sealed, body";

/// Reads [`GUARD_COLUMNS`] from column `first` on.
pub(super) fn read_guarded(
    row: &SqliteRow,
    first: usize,
) -> sqlx::Result<(Checksums, Guarded<'_>)> {
    let guarded = Guarded {
        size: Size(row.try_get(first + 1)?),
        expires_at: row.try_get(first + 2)?,
        stored_at: row.try_get(first + 3)?,
        kind: Kind(row.try_get(first + 4)?),
        topic64: row.try_get(first + 5)?,
        owner: row.try_get(first + 6)?,
        version: row.try_get(first + 7)?,
        sealed: row.try_get(first + 8)?,
    };
    Ok((Checksums::of(row.try_get(first)?), guarded))
}

/// The header of a row of mailbox, id and [`GUARD_COLUMNS`], from the second column on.
pub(super) fn header(row: &SqliteRow, secret: &Secret) -> sqlx::Result<Header> {
    Ok(guard::header(name(row)?, read_guarded(row, 3)?, secret))
}

/// A row of [`SOUND_COLUMNS`] and its mailbox; `None` when it does not match its checksum or its guard.
pub(super) fn sound(
    row: &SqliteRow,
    secret: &Secret,
) -> sqlx::Result<Option<(StoredBlob, MailboxHash)>> {
    let (mailbox, id) = name(row)?;
    let place = (OrderKey(row.try_get(0)?), mailbox, id);
    let sound = guard::sound(place, read_guarded(row, 3)?, row.try_get(12)?, secret);
    Ok(sound.map(|blob| (blob, mailbox)))
}

fn name(row: &SqliteRow) -> sqlx::Result<(MailboxHash, BlobId)> {
    let mailbox = MailboxHash::from_bytes(fixed(row, 1)?);
    Ok((mailbox, BlobId::from_bytes(fixed(row, 2)?)))
}
