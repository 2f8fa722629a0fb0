//! What a row's checksum column holds, and whether the row is what was written.
//!
//! The checksum covers mailbox, id and body: a repeat is compared with it. The guard covers all else that
//! decides something: who sees a row, until when it lives, whose it is. Whether the sender was told of the
//! delivery is covered by neither: that mark is worth no new checksum.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::columns::{Kind, Size, blob_id, fixed, hash, timestamp_of, version_of};
use crate::clock::Timestamp;
use crate::ids::{MailboxHash, Topic};
use crate::secrets::Secret;
use crate::store::engine::{Checksum, Header};
use crate::store::model::{OrderKey, StoredBlob};

/// The column: 16 bytes of checksum, 8 of guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checksums {
    pub(super) checksum: Checksum,
    guard: [u8; 8],
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

/// The columns of a row without its body.
pub(super) const HEADER_COLUMNS: &str = "b.pos, b.mailbox, b.id, b.checksum, b.size, b.expires_at, \
     b.stored_at, b.kind, b.topic64, b.owner, b.version, b.sealed";

/// Of a row whose guard does not match: it leaves as damaged, not as expired.
const NEVER: Timestamp = Timestamp::from_millis(i64::MAX as u64);

impl Checksums {
    /// Of a row that is about to be written.
    pub(super) fn new(checksum: Checksum, guarded: &Guarded<'_>, secret: &Secret) -> Self {
        let guard = guarded.guard(&checksum, secret);
        Self { checksum, guard }
    }

    fn read(row: &PgRow) -> sqlx::Result<Self> {
        let bytes: [u8; 24] = fixed(row, "checksum")?;
        let (checksum, guard) = bytes.split_at(16);
        Ok(Self {
            checksum: checksum.try_into().unwrap_or_default(),
            guard: guard.try_into().unwrap_or_default(),
        })
    }

    /// As the column has it.
    pub(super) fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.checksum);
        bytes[16..].copy_from_slice(&self.guard);
        bytes
    }

    /// Whether the guard matches.
    pub(super) fn matches(&self, guarded: &Guarded<'_>, secret: &Secret) -> bool {
        self.guard == guarded.guard(&self.checksum, secret)
    }
}

impl<'a> Guarded<'a> {
    /// Reads [`HEADER_COLUMNS`].
    pub(super) fn read(row: &'a PgRow) -> sqlx::Result<(Checksums, Self)> {
        let guarded = Self {
            size: Size(row.try_get("size")?),
            expires_at: row.try_get("expires_at")?,
            stored_at: row.try_get("stored_at")?,
            kind: Kind(row.try_get("kind")?),
            topic64: row.try_get("topic64")?,
            owner: row.try_get("owner")?,
            version: row.try_get("version")?,
            sealed: row
                .try_get::<Option<&[u8]>, _>("sealed")?
                .unwrap_or_default(),
        };
        Ok((Checksums::read(row)?, guarded))
    }

    fn guard(&self, checksum: &Checksum, secret: &Secret) -> [u8; 8] {
        // Numbers first, each of eight bytes and with a mark where it may be missing; then what is as long
        // as it is, behind its length. So no two rows have the same bytes.
        let numbers = [
            i64::from(self.size.0),
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
        let owner = self.owner.unwrap_or_default();
        secret.guard(checksum, &[&fixed, owner, self.sealed])
    }
}

/// The key in the column `pos`.
pub(super) fn key(row: &PgRow) -> sqlx::Result<OrderKey> {
    row.try_get("pos").map(OrderKey)
}

/// The header of a row of [`HEADER_COLUMNS`].
pub(super) fn header(row: &PgRow, secret: &Secret) -> sqlx::Result<Header> {
    let (checksums, guarded) = Guarded::read(row)?;
    let expires_at = match checksums.matches(&guarded, secret) {
        true => timestamp_of(guarded.expires_at),
        false => NEVER,
    };
    let is_asking = guarded.kind.wants_receipts();
    let owner = guarded.owner.filter(|_| !is_asking);
    let receipt_to = guarded.owner.filter(|_| is_asking);
    Ok(Header {
        mailbox: hash(row, "mailbox")?,
        id: blob_id(row, "id")?,
        class: guarded.size.class(),
        bytes: guarded.size.bytes(),
        checksum: checksums.checksum,
        expires_at,
        owner: owner
            .and_then(|bytes| bytes.try_into().ok())
            .map(MailboxHash::from_bytes),
        topic: guarded.topic64.map(Topic::from_prefix64),
        // If that can still be read.
        receipt_to: receipt_to.and_then(|sealed| secret.unseal_receipt_to(sealed).ok()),
        is_delivered_told: guarded.kind.is_delivered_told(),
    })
}

/// A row of [`HEADER_COLUMNS`] and its body, and its mailbox; `None` when it is not what was written.
pub(super) fn sound(
    row: &PgRow,
    secret: &Secret,
) -> sqlx::Result<Option<(StoredBlob, MailboxHash)>> {
    let (of, id) = (hash(row, "mailbox")?, blob_id(row, "id")?);
    let (checksums, guarded) = Guarded::read(row)?;
    let body: &[u8] = row.try_get("body")?;
    let is_sound = secret.checksum(&of, &id, body) == checksums.checksum
        && checksums.matches(&guarded, secret);
    if !is_sound {
        return Ok(None);
    }
    let blob = StoredBlob {
        key: key(row)?,
        id,
        class: guarded.size.class(),
        version: guarded.version.map(version_of),
        wants_receipts: guarded.kind.wants_receipts(),
        is_delivered_told: guarded.kind.is_delivered_told(),
        stored_at: timestamp_of(guarded.stored_at),
        expires_at: timestamp_of(guarded.expires_at),
        sealed: guarded.sealed.to_vec().into(),
        body: body.to_vec().into(),
    };
    Ok(Some((blob, of)))
}
