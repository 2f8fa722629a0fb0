//! What must be read before a batch can be folded.
//!
//! In this order, because each step names what the next one looks for: the working sets of the
//! mailboxes that the batch is about, the rows in question, the working sets of the mailboxes that
//! may get receipts for them, and what has expired where there may be no room.

use std::collections::{HashMap, HashSet};

use super::quota::{Held, Quota};
use super::receipt;
use super::{Known, owner_of, topic_of};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::secrets::Secret;
use crate::store::commit::{Cause, Write};
use crate::store::model::{Class, Envelope, OrderKey, charged_bytes};
use crate::store::sqlite::working_set::WorkingSets;

/// The keys of the rows that may be what the batch is about, to be read before it is folded.
pub(in crate::store) fn rows_to_read(
    batch: &[&Write],
    sets: &WorkingSets,
    secret: &Secret,
) -> Vec<i64> {
    let mut keys = Vec::new();
    let mut find = |mailbox: &MailboxHash, id: &BlobId| {
        if let Some(set) = sets.peek(mailbox.prefix64()) {
            keys.extend(set.find(secret.id64(id)));
        }
    };
    for write in batch {
        match write {
            Write::Append { envelope, .. } => find(&envelope.mailbox, &envelope.id),
            Write::Acknowledge { mailbox, ids, .. } | Write::Delivered { mailbox, ids, .. } => {
                ids.iter().for_each(|id| find(mailbox, id));
            }
            Write::Extend { mailbox, id, .. } | Write::Cancel { mailbox, id, .. } => {
                find(mailbox, id);
            }
            _ => {}
        }
    }
    for write in batch {
        if let Write::Remove { keys: rows, .. } = write {
            keys.extend(rows.iter().map(|key| key.0));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The rows that a reader found damaged: to be read once more before they leave.
pub(in crate::store) fn rows_to_examine(batch: &[&Write]) -> Vec<OrderKey> {
    let doubtful = batch.iter().filter_map(|write| match write {
        Write::Remove {
            keys,
            cause: Cause::Corrupt,
            ..
        } => Some(keys),
        _ => None,
    });
    doubtful.flatten().copied().collect()
}

/// The mailboxes whose working set must be in memory before the batch is folded.
pub(in crate::store) fn mailboxes_to_read(batch: &[&Write], sets: &mut WorkingSets) -> Vec<i64> {
    let mailboxes = batch.iter().filter_map(|write| match write {
        Write::Append { envelope, .. } => Some(envelope.mailbox.prefix64()),
        Write::Acknowledge { mailbox, ids, .. } | Write::Delivered { mailbox, ids, .. } => {
            (!ids.is_empty()).then(|| mailbox.prefix64())
        }
        Write::Extend { mailbox, .. } | Write::Cancel { mailbox, .. } => Some(mailbox.prefix64()),
        _ => None,
    });
    missing(mailboxes, sets)
}

/// The mailboxes that may get receipts and whose working set is not in memory.
pub(in crate::store) fn receipt_mailboxes_to_read(
    batch: &[&Write],
    known: &Known,
    sets: &mut WorkingSets,
) -> Vec<i64> {
    missing(receipt_mailboxes(batch, known), sets)
}

fn missing(mailboxes: impl Iterator<Item = i64>, sets: &mut WorkingSets) -> Vec<i64> {
    let mut missing: Vec<_> = mailboxes
        .filter(|mailbox64| sets.get(*mailbox64).is_none())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Where receipts may go, once for each row: those that are there, and those that the batch brings,
/// because these may leave within it.
fn receipt_mailboxes(batch: &[&Write], known: &Known) -> impl Iterator<Item = i64> {
    let of_rows = known.headers.values().filter_map(|row| row.receipt_to);
    let of_batch = appends(batch).filter_map(receipt_to);
    of_rows.chain(of_batch).map(|mailbox| mailbox.prefix64())
}

/// Where the receipts for this envelope go, if it asks for any.
pub(in crate::store) fn receipt_to(envelope: &Envelope) -> Option<MailboxHash> {
    let is_blob = envelope.class != Class::DeviceSync;
    envelope.receipt_to.filter(|_| is_blob)
}

fn appends<'a>(batch: &[&'a Write]) -> impl Iterator<Item = &'a Envelope> {
    relieving(batch).map(|(envelope, _)| envelope)
}

/// What comes, each with the time by which what has expired may make room for it.
fn relieving<'a>(batch: &[&'a Write]) -> impl Iterator<Item = (&'a Envelope, Timestamp)> {
    batch.iter().filter_map(|write| match write {
        Write::Append {
            envelope,
            expired_by,
            ..
        } => Some((envelope, *expired_by)),
        _ => None,
    })
}

/// The topics that the batch brings something of, with their mailboxes.
pub(in crate::store) fn topics_of(batch: &[&Write]) -> Vec<(i64, i64)> {
    let mut topics: Vec<_> = appends(batch)
        .filter_map(|envelope| {
            let topic = topic_of(envelope)?;
            Some((envelope.mailbox.prefix64(), topic.prefix64()))
        })
        .collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

/// The mailboxes that this batch would fill although something in them may have expired, each
/// with the time by which it must have.
pub(in crate::store) fn mailboxes_to_relieve(
    batch: &[&Write],
    known: &Known,
    sets: &WorkingSets,
    quota: &Quota,
) -> HashMap<i64, Timestamp> {
    // Of each row at most: that it was delivered, and what became of it.
    let mut receipts: HashMap<i64, Held> = HashMap::new();
    for mailbox64 in receipt_mailboxes(batch, known) {
        let held = receipts.entry(mailbox64).or_default();
        held.add(charged_bytes(receipt::BODY_BYTES));
        held.add(charged_bytes(receipt::BODY_BYTES));
    }
    let mut wanted: HashMap<_, (Held, u64)> = HashMap::new();
    let mut full = HashMap::new();
    for (envelope, expired_by) in relieving(batch) {
        if owner_of(envelope).is_some() {
            continue;
        }
        let mailbox64 = envelope.mailbox.prefix64();
        let Some(set) = sets.peek(mailbox64) else {
            continue;
        };
        let (held, last) = wanted
            .entry((mailbox64, envelope.class as u8))
            .or_insert_with(|| {
                let mut held = set.held(envelope.class);
                if envelope.class == Class::ProvenOnly {
                    let coming = receipts.get(&mailbox64).copied().unwrap_or_default();
                    held.blobs += coming.blobs;
                    held.bytes += coming.bytes;
                }
                (held, 0)
            });
        held.add(*last);
        *last = 0;
        let bytes = envelope.charged_bytes();
        let may_have_expired = set.earliest_expiry() <= expired_by;
        if may_have_expired && !quota.holder_admits(envelope.class, *held, bytes) {
            let latest = full.entry(mailbox64).or_insert(expired_by);
            *latest = expired_by.max(*latest);
        }
        *last = bytes;
    }
    full
}

/// The owners to whom the batch brings something.
pub(in crate::store) fn owners_of(batch: &[&Write]) -> HashSet<i64> {
    let owners = appends(batch).filter_map(owner_of);
    owners.map(|owner| owner.hash.prefix64()).collect()
}

/// The owners that this batch may fill although something of theirs may have expired, each with
/// the time by which it must have.
pub(in crate::store) fn owners_to_relieve(
    batch: &[&Write],
    sets: &WorkingSets,
    quota: &Quota,
) -> HashMap<i64, Timestamp> {
    let mut wanted: HashMap<_, Held> = HashMap::new();
    let mut full = HashMap::new();
    for (envelope, expired_by) in relieving(batch) {
        let Some(owner) = owner_of(envelope) else {
            continue;
        };
        let owner64 = owner.hash.prefix64();
        let owned = sets.owners.peek(owner64);
        let held = wanted.entry(owner64).or_insert(owned.held);
        let bytes = envelope.charged_bytes();
        let may_have_expired = owned.earliest_expiry <= expired_by;
        if may_have_expired && !quota.holder_admits(envelope.class, *held, bytes) {
            let latest = full.entry(owner64).or_insert(expired_by);
            *latest = expired_by.max(*latest);
        }
        held.add(bytes);
    }
    full
}
