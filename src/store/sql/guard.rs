//! What a row's checksum column holds, and whether the row is what was written.
//!
//! The checksum covers mailbox, id and body: a repeat is compared with it. The guard covers all else
//! that decides something: who sees a row, until when it lives, whose it is. What follows from these (the
//! first 64 bits of hashes, the slot of the expiry) is covered by neither, because it can be made again:
//! the scrub compares it. Whether the sender was told of the delivery is not covered either: that mark
//! changes one page and is worth no more.

use super::columns::{Kind, Size, sql_version, timestamp_of, to_i64, version_of};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};
use crate::secrets::Secret;
use crate::store::engine::{Checksum, Header, NewRow};
use crate::store::model::{Envelope, OrderKey, StoredBlob};
use crate::store::plan::{owner_of, receipt_to, topic_of};

/// The guard of a row.
pub(in crate::store) type Guard = [u8; 8];

/// What the column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Checksums {
    pub(in crate::store) checksum: Checksum,
    /// Rows of the release 0.1 have none.
    guard: Option<Guard>,
}

/// What a guard covers beside the checksum, as the columns have it.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Guarded<'a> {
    pub(in crate::store) size: Size,
    pub(in crate::store) expires_at: i64,
    pub(in crate::store) stored_at: i64,
    pub(in crate::store) kind: Kind,
    pub(in crate::store) topic64: Option<i64>,
    pub(in crate::store) owner: Option<&'a [u8]>,
    pub(in crate::store) version: Option<i64>,
    pub(in crate::store) sealed: &'a [u8],
}

/// Of a row whose guard does not match: it leaves as damaged, not as expired.
const NEVER: Timestamp = Timestamp::from_millis(i64::MAX as u64);

impl Checksums {
    /// Of a row that is about to be written.
    pub(in crate::store) fn new(
        checksum: Checksum,
        guarded: &Guarded<'_>,
        secret: &Secret,
    ) -> Self {
        let guard = guarded.guard(&checksum, secret);
        Self {
            checksum,
            guard: Some(guard),
        }
    }

    /// Out of the bytes of the column. Damaged ones of another length read as zeros, which match nothing.
    pub(in crate::store) fn of(bytes: &[u8]) -> Self {
        match *bytes {
            [ref checksum @ .., a, b, c, d, e, f, g, h] if checksum.len() == 16 => Self {
                checksum: checksum.try_into().unwrap_or_default(),
                guard: Some([a, b, c, d, e, f, g, h]),
            },
            ref checksum => Self {
                checksum: checksum.try_into().unwrap_or_default(),
                guard: None,
            },
        }
    }

    /// As the column has it.
    pub(in crate::store) fn bytes(&self) -> Vec<u8> {
        let guard = self.guard.iter().flatten();
        self.checksum.iter().chain(guard).copied().collect()
    }

    /// Whether the row has a guard.
    pub(in crate::store) fn has_guard(&self) -> bool {
        self.guard.is_some()
    }

    /// Whether the guard matches; a row without one has nothing to compare.
    pub(in crate::store) fn matches(&self, guarded: &Guarded<'_>, secret: &Secret) -> bool {
        self.guard
            .is_none_or(|guard| guarded.is_guard(&guard, &self.checksum, secret))
    }
}

impl<'a> Guarded<'a> {
    /// Of a row that is inserted. `owner` is what [`owner_column`] says.
    pub(in crate::store) fn of(row: &NewRow<'a>, owner: Option<&'a [u8]>) -> Self {
        let envelope = row.envelope;
        let bytes = envelope.sealed.len() + envelope.body.len();
        Self {
            size: Size::new(bytes, envelope.class),
            expires_at: to_i64(row.expires_at.millis()),
            stored_at: to_i64(envelope.stored_at.millis()),
            kind: Kind::new(receipt_to(envelope).is_some(), row.is_delivered_told),
            topic64: topic_of(envelope).map(Topic::prefix64),
            owner,
            version: owner_of(envelope).map(|owned_by| sql_version(owned_by.version)),
            sealed: &envelope.sealed,
        }
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

/// What the column `owner` has: whose device sync message it is, or where its receipts go, sealed.
pub(in crate::store) fn owner_column(envelope: &Envelope, secret: &Secret) -> Option<Vec<u8>> {
    match owner_of(envelope) {
        Some(owned_by) => Some(owned_by.hash.as_bytes().to_vec()),
        None => receipt_to(envelope).map(|mailbox| secret.seal_receipt_to(&mailbox)),
    }
}

/// The header of a row.
pub(in crate::store) fn header(
    (mailbox, id): (MailboxHash, BlobId),
    (checksums, guarded): (Checksums, Guarded<'_>),
    secret: &Secret,
) -> Header {
    // A damaged row says nothing of when it expires: it leaves as damaged, not as expired.
    let expires_at = match checksums.matches(&guarded, secret) {
        true => timestamp_of(guarded.expires_at),
        false => NEVER,
    };
    let is_asking = guarded.kind.wants_receipts();
    let owner = guarded.owner.filter(|_| !is_asking);
    let receipt_to = guarded.owner.filter(|_| is_asking);
    Header {
        mailbox,
        id,
        class: guarded.size.class(),
        bytes: guarded.size.bytes(),
        checksum: checksums.checksum,
        expires_at,
        // If it reads as one.
        owner: owner
            .and_then(|bytes| bytes.try_into().ok())
            .map(MailboxHash::from_bytes),
        topic: guarded.topic64.map(Topic::from_prefix64),
        // If that can still be read.
        receipt_to: receipt_to.and_then(|sealed| secret.unseal_receipt_to(sealed).ok()),
        is_delivered_told: guarded.kind.is_delivered_told(),
    }
}

/// The blob of a row; `None` when it does not match its checksum or its guard.
pub(in crate::store) fn sound(
    (key, mailbox, id): (OrderKey, MailboxHash, BlobId),
    (checksums, guarded): (Checksums, Guarded<'_>),
    body: Vec<u8>,
    secret: &Secret,
) -> Option<StoredBlob> {
    let is_sound = secret.is_checksum(&checksums.checksum, (&mailbox, &id), &body)
        && checksums.matches(&guarded, secret);
    is_sound.then(|| StoredBlob {
        key,
        id,
        class: guarded.size.class(),
        version: guarded.version.map(version_of),
        wants_receipts: guarded.kind.wants_receipts(),
        is_delivered_told: guarded.kind.is_delivered_told(),
        stored_at: timestamp_of(guarded.stored_at),
        expires_at: timestamp_of(guarded.expires_at),
        sealed: guarded.sealed.to_vec().into(),
        body: body.into(),
    })
}
