//! What a row's checksum column holds, and whether the row is what was written.
//!
//! The checksum covers mailbox, id and body: a repeat is compared with it. The guard covers all else
//! that decides something: who sees a row, until when it lives, whose it is. What follows from these (the
//! first 64 bits of hashes, the slot of the expiry) is covered by neither, because it can be made again:
//! the scrub compares it. Whether the sender was told of the delivery is not covered either: that mark
//! changes one page and is worth no more.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::columns::{Kind, Size, fixed, timestamp_of, version_of};
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use crate::store::engine::Checksum;
use crate::store::model::{OrderKey, StoredBlob};

/// The guard of a row.
pub(super) type Guard = [u8; 8];

/// What the column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checksums {
    pub(super) checksum: Checksum,
    /// Rows of the release 0.1 have none.
    guard: Option<Guard>,
}

/// What a guard covers beside the checksum, as the columns have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guarded<'a> {
    pub(super) size: Size,
    pub(super) expires_at: i64,
    pub(super) stored_at: i64,
    pub(super) kind: Kind,
    pub(super) topic64: Option<i64>,
    pub(super) owner: Option<&'a [u8]>,
    pub(super) version: Option<i64>,
    pub(super) sealed: &'a [u8],
}

/// The columns of [`Guarded`] and of [`Checksums`], in the order of [`Guarded::read`].
pub(super) const GUARD_COLUMNS: &str =
    "checksum, size, expires_at, stored_at, kind, topic64, owner, version, sealed";

/// What [`sound`] reads, from the first column on.
pub(super) const SOUND_COLUMNS: &str = "seq, mailbox, id, checksum, size, expires_at, stored_at, \
     kind, topic64, owner, version, sealed, body";

impl Checksums {
    /// Of a row that is about to be written.
    pub(super) fn new(checksum: Checksum, guarded: &Guarded<'_>, secret: &Secret) -> Self {
        let guard = guarded.guard(&checksum, secret);
        Self {
            checksum,
            guard: Some(guard),
        }
    }

    /// In this column. A damaged one of another length reads as zeros, which match nothing.
    pub(super) fn read(row: &SqliteRow, column: usize) -> sqlx::Result<Self> {
        let bytes: &[u8] = row.try_get(column)?;
        Ok(match *bytes {
            [ref checksum @ .., a, b, c, d, e, f, g, h] if checksum.len() == 16 => Self {
                checksum: checksum.try_into().unwrap_or_default(),
                guard: Some([a, b, c, d, e, f, g, h]),
            },
            ref checksum => Self {
                checksum: checksum.try_into().unwrap_or_default(),
                guard: None,
            },
        })
    }

    /// As the column has it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let guard = self.guard.iter().flatten();
        self.checksum.iter().chain(guard).copied().collect()
    }

    /// Whether the row has a guard.
    pub(super) fn has_guard(&self) -> bool {
        self.guard.is_some()
    }

    /// Whether the guard matches; a row without one has nothing to compare.
    pub(super) fn matches(&self, guarded: &Guarded<'_>, secret: &Secret) -> bool {
        self.guard
            .is_none_or(|guard| guarded.is_guard(&guard, &self.checksum, secret))
    }
}

impl<'a> Guarded<'a> {
    /// Reads [`GUARD_COLUMNS`] from column `first` on.
    pub(super) fn read(row: &'a SqliteRow, first: usize) -> sqlx::Result<(Checksums, Self)> {
        let guarded = Self {
            size: Size(row.try_get(first + 1)?),
            expires_at: row.try_get(first + 2)?,
            stored_at: row.try_get(first + 3)?,
            kind: Kind::read(row, first + 4)?,
            topic64: row.try_get(first + 5)?,
            owner: row.try_get(first + 6)?,
            version: row.try_get(first + 7)?,
            sealed: row.try_get(first + 8)?,
        };
        Ok((Checksums::read(row, first)?, guarded))
    }

    fn guard(&self, checksum: &Checksum, secret: &Secret) -> Guard {
        let owner = self.owner.unwrap_or_default();
        secret.guard(checksum, &[&self.numbers(), owner, self.sealed])
    }

    fn is_guard(&self, guard: &Guard, checksum: &Checksum, secret: &Secret) -> bool {
        let owner = self.owner.unwrap_or_default();
        secret.is_guard(guard, checksum, &[&self.numbers(), owner, self.sealed])
    }

    fn numbers(&self) -> [u8; 72] {
        // Numbers first, each of eight bytes and with a mark where it may be missing; then what is as
        // long as it is, behind its length. So no two rows have the same bytes.
        let numbers = [
            self.size.0,
            self.expires_at,
            self.stored_at,
            i64::from(self.kind.wants_receipts()),
            i64::from(self.topic64.is_some()),
            self.topic64.unwrap_or_default(),
            i64::from(self.version.is_some()),
            self.version.unwrap_or_default(),
            self.owner.map_or(-1, |owner| owner.len() as i64),
        ];
        let mut fixed = [0; 72];
        for (to, number) in fixed.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_be_bytes());
        }
        fixed
    }
}

/// A row of [`SOUND_COLUMNS`] and its mailbox; `None` when it does not match its checksum or its guard.
pub(super) fn sound(
    row: &SqliteRow,
    secret: &Secret,
) -> sqlx::Result<Option<(StoredBlob, MailboxHash)>> {
    let of = MailboxHash::from_bytes(fixed(row, 1)?);
    let id = BlobId::from_bytes(fixed(row, 2)?);
    let (checksums, guarded) = Guarded::read(row, 3)?;
    let body: Vec<u8> = row.try_get(12)?;
    let is_sound = secret.is_checksum(&checksums.checksum, (&of, &id), &body)
        && checksums.matches(&guarded, secret);
    if !is_sound {
        return Ok(None);
    }
    let blob = StoredBlob {
        key: OrderKey(row.try_get(0)?),
        id,
        class: guarded.size.class(),
        version: guarded.version.map(version_of),
        wants_receipts: guarded.kind.wants_receipts(),
        is_delivered_told: guarded.kind.is_delivered_told(),
        stored_at: timestamp_of(guarded.stored_at),
        expires_at: timestamp_of(guarded.expires_at),
        sealed: guarded.sealed.to_vec().into(),
        body: body.into(),
    };
    Ok(Some((blob, of)))
}
