//! What one batch comes to: the rows that come, go and change, in one transaction.

use foldhash::HashMap;

use super::change::{Change, Happened};
use super::known::{Departed, Header};
use super::nonces::NoncePlan;
use super::pins::PinPlan;
use super::recovery::ProofPlan;
use super::{owner_of, receipt_to};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{Envelope, OrderKey, RecoveryProof, StoredBlob};
use crate::store::write::{Checksum, Outcome, Write};

/// A row that a plan inserts.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// Its place in the order.
    pub key: OrderKey,
    /// The last key of its mailbox before this one.
    pub previous: OrderKey,
    /// What was handed in.
    pub envelope: &'a Envelope,
    /// What a repeat is compared with.
    pub checksum: &'a Checksum,
    /// May be later than the envelope's: it was extended in the same batch.
    pub expires_at: Timestamp,
    /// Whether its sender has been told that it was delivered.
    pub is_delivered_told: bool,
}

impl NewRow<'_> {
    /// As it is kept, without its bytes.
    pub fn header(&self) -> Header {
        Header {
            expires_at: self.expires_at,
            is_delivered_told: self.is_delivered_told,
            ..Header::new(self.envelope, self.checksum)
        }
    }

    /// As it is read from the store.
    pub fn stored(&self) -> StoredBlob {
        let envelope = self.envelope;
        StoredBlob {
            key: self.key,
            id: envelope.id,
            class: envelope.class,
            version: owner_of(envelope).map(|owner| owner.version),
            wants_receipts: receipt_to(envelope).is_some(),
            is_delivered_told: self.is_delivered_told,
            stored_at: envelope.stored_at,
            expires_at: self.expires_at,
            sealed: envelope.sealed.clone(),
            body: envelope.body.clone(),
        }
    }
}

/// Where a row that is inserted comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// It is what this write of the batch brings.
    Write(usize),
    /// It is this one of the plan's receipts.
    Receipt(usize),
}

/// A row on its way in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Insert {
    pub(super) key: OrderKey,
    pub(super) previous: OrderKey,
    pub(super) source: Source,
    pub(super) expires_at: Timestamp,
    pub(super) is_delivered_told: bool,
}

/// A blob that left and is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Where it waited.
    pub mailbox: MailboxHash,
    /// Its id.
    pub id: BlobId,
    /// What is remembered of it.
    pub departed: Departed,
}

/// What is to be done in one transaction.
#[derive(Debug, Default)]
pub struct Plan {
    pub(super) inserts: Vec<Insert>,
    pub(super) receipts: Vec<(Envelope, Checksum)>,
    /// Rows that are deleted.
    pub deletes: Vec<(OrderKey, Header)>,
    /// Corrupt rows that are kept apart from now on.
    pub set_aside: Vec<(OrderKey, Header)>,
    /// Rows that live longer, with their mailboxes: until then.
    pub extended: HashMap<OrderKey, (MailboxHash, Timestamp)>,
    /// Rows whose sender is told that they were delivered, with their mailboxes.
    pub delivered: HashMap<OrderKey, MailboxHash>,
    /// To be remembered, in this order.
    pub departures: Vec<Departure>,
    /// What happens to recovery proofs.
    pub proofs: ProofPlan,
    /// What happens to pins.
    pub pins: PinPlan,
    /// What happens to nonces.
    pub nonces: NoncePlan,
    /// By how much what the relay holds changes.
    pub change: Change,
    /// The first key that is free afterwards.
    pub next_key: i64,
    /// Whether something must be written although there is nothing.
    pub is_trial: bool,
    /// The latest time that a write was handed in.
    pub now: Timestamp,
    /// What was over by then may be forgotten for good: the epoch when no write says so. Not `now`,
    /// because the clock may be wrong for a while.
    pub forget_by: Timestamp,
    /// One for each write.
    pub(in crate::store) outcomes: Vec<Outcome>,
    pub(in crate::store) happened: Happened,
}

impl Plan {
    /// The rows that are inserted, in the order of their keys. `batch` is what the plan was made of.
    pub fn new_rows<'a>(&'a self, batch: &[&'a Write]) -> impl Iterator<Item = NewRow<'a>> {
        self.inserts.iter().filter_map(|insert| {
            let (envelope, checksum) = match insert.source {
                Source::Receipt(index) => {
                    let (envelope, checksum) = self.receipts.get(index)?;
                    (envelope, checksum)
                }
                Source::Write(index) => match batch.get(index)? {
                    Write::Append {
                        envelope, checksum, ..
                    } => (envelope, checksum),
                    _ => return None,
                },
            };
            Some(NewRow {
                key: insert.key,
                previous: insert.previous,
                envelope,
                checksum,
                expires_at: insert.expires_at,
                is_delivered_told: insert.is_delivered_told,
            })
        })
    }

    /// The recovery proofs that are kept from now on, by number. `batch` is what the plan was made of.
    pub fn new_proofs(&self, batch: &[&Write]) -> impl Iterator<Item = (i64, RecoveryProof)> {
        let inserts = self.proofs.inserts.iter();
        inserts.filter_map(|(number, index, is_proven)| match batch.get(*index)? {
            Write::RecoveryPut { proof, .. } => Some((
                *number,
                RecoveryProof {
                    is_proven: *is_proven,
                    ..proof.clone()
                },
            )),
            _ => None,
        })
    }

    /// Whether it takes in what somebody handed in to be kept. Receipts of what leaves are none of it.
    pub fn brings_something(&self) -> bool {
        let is_handed_in = |insert: &Insert| matches!(insert.source, Source::Write(_));
        self.inserts.iter().any(is_handed_in) || !self.proofs.inserts.is_empty()
    }

    /// Bytes of the rows that are inserted. `batch` is what the plan was made of.
    pub fn bytes_that_come(&self, batch: &[&Write]) -> u64 {
        let rows = self.new_rows(batch);
        rows.map(|row| row.envelope.charged_bytes()).sum()
    }

    /// Whether there is nothing to commit: repeats, and acknowledgements of what is gone.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0 && self.change == Change::default() && !self.is_trial
    }

    /// How many rows of any table it changes.
    pub fn rows(&self) -> usize {
        self.inserts.len()
            + self.deletes.len()
            + self.set_aside.len()
            + self.extended.len()
            + self.delivered.len()
            + self.departures.len()
            + self.proofs.inserts.len()
            + self.proofs.deletes.len()
            + self.pins.changed.len()
            + self.nonces.burnt.len()
    }
}
