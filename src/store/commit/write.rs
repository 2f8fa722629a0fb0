//! One thing to be written, and what became of it.

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{
    Appended, Envelope, Opener, OrderKey, RecoveryProof, RecoveryPut, Removed, Tells, View,
};

/// What a write costs in the queue beside its bytes: the item and its answer.
const ITEM_BYTES: usize = 256;

/// The checksum of a row (`Secret::checksum`).
pub(in crate::store) type Checksum = [u8; 16];

/// One thing to be written.
#[derive(Debug, Clone)]
pub(in crate::store) enum Write {
    /// Take a blob into its mailbox.
    Append {
        envelope: Envelope,
        checksum: Checksum,
        /// By when what has expired may make room.
        expired_by: Timestamp,
    },
    /// Delete what the recipient has, of what it may see.
    Acknowledge {
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        by: Opener,
        now: Timestamp,
    },
    /// Tell senders that their blobs were delivered.
    Delivered {
        mailbox: MailboxHash,
        ids: Vec<BlobId>,
        now: Timestamp,
    },
    /// Let a blob live longer.
    Extend {
        mailbox: MailboxHash,
        id: BlobId,
        expires_at: Timestamp,
        now: Timestamp,
    },
    /// Delete a blob for its sender.
    Cancel {
        mailbox: MailboxHash,
        id: BlobId,
        now: Timestamp,
    },
    /// Delete these rows, each only if the cause fits it.
    Remove {
        keys: Vec<OrderKey>,
        cause: Cause,
        now: Timestamp,
    },
    /// Keep a recovery proof.
    RecoveryPut {
        proof: RecoveryProof,
        /// By when what has expired may make room.
        expired_by: Timestamp,
    },
    /// Delete an owner's recovery proof.
    RecoveryRemove {
        key_hash: [u8; 32],
        owner: MailboxHash,
    },
    /// A mailbox was opened with a proof: only a proof opens it from now on.
    Pin {
        mailbox: MailboxHash,
        now: Timestamp,
    },
    /// A mailbox may be opened without a proof again.
    Unpin { mailbox: MailboxHash },
    /// Do a slice of the engine's housekeeping.
    Tidy { expired_by: Timestamp },
    /// Write something, whatever it is: shows that storage takes writes.
    Trial,
    /// Tell which order key was the last before this place in the queue.
    Mark,
}

/// Why rows are removed.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum Cause {
    /// The mailbox is purged of what `view` sees.
    Purged {
        mailbox: MailboxHash,
        view: View,
        tells: Tells,
    },
    /// The owner is purged of its device sync messages.
    OwnerPurged { owner: MailboxHash },
    /// Their time is over.
    Expired,
    /// Their checksum did not match; they are set aside, and not remembered as departed.
    Corrupt,
}

impl Write {
    /// How many bytes it takes in memory.
    pub(in crate::store) fn bytes(&self) -> usize {
        ITEM_BYTES
            + match self {
                Self::Append { envelope, .. } => envelope.sealed.len() + envelope.body.len(),
                Self::Acknowledge { ids, .. } | Self::Delivered { ids, .. } => {
                    size_of_val(ids.as_slice())
                }
                Self::Remove { keys, .. } => size_of_val(keys.as_slice()),
                Self::RecoveryPut { proof, .. } => proof.sealed_proof.len(),
                _ => 0,
            }
    }

    /// How many rows it may touch, at least one.
    pub(in crate::store) fn rows(&self) -> usize {
        match self {
            Self::Acknowledge { ids, .. } | Self::Delivered { ids, .. } => ids.len().max(1),
            Self::Remove { keys, .. } => keys.len().max(1),
            _ => 1,
        }
    }

    /// What it is answered when there is no room for what it brings; `None` when it brings nothing.
    pub(in crate::store) fn without_room(&self) -> Option<Outcome> {
        match self {
            Self::Append { .. } => Some(Outcome::Appended(Appended::RelayFull)),
            Self::RecoveryPut { .. } => Some(Outcome::RecoveryPut(RecoveryPut::RelayFull)),
            _ => None,
        }
    }
}

/// What became of a [`Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Outcome {
    /// Of an append.
    Appended(Appended),
    /// Of an acknowledgement or a removal.
    Removed(Removed),
    /// Of a recovery proof.
    RecoveryPut(RecoveryPut),
    /// Of housekeeping: whether there is more to do.
    Tidied { more: bool },
    /// Of a trial, and of what always succeeds.
    Written,
    /// Of a mark: the last key before it.
    Marked(OrderKey),
}
