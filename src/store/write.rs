//! One thing to be written, and what became of it.

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::store::model::{
    Appended, Burnt, Envelope, Opener, OrderKey, RecoveryProof, RecoveryPut, Removed, Tells, View,
};

/// What a write costs in the queue beside its bytes: the item and its answer.
pub(super) const ITEM_BYTES: usize = 256;

/// The checksum of a row (`Secret::checksum`).
pub type Checksum = [u8; 16];

/// One thing to be written.
#[derive(Debug, Clone)]
pub enum Write {
    /// Take a blob into its mailbox.
    Append {
        /// The blob and where it goes.
        envelope: Envelope,
        /// What a repeat is compared with.
        checksum: Checksum,
        /// What had expired by then may be deleted to make room.
        expired_by: Timestamp,
    },
    /// Delete what the recipient has, of what it may see.
    Acknowledge {
        /// Of this mailbox.
        mailbox: MailboxHash,
        /// These.
        ids: Vec<BlobId>,
        /// Who has the mailbox open.
        by: Opener,
        /// When it was asked for.
        now: Timestamp,
    },
    /// Tell senders that their blobs were delivered.
    Delivered {
        /// Of this mailbox.
        mailbox: MailboxHash,
        /// These.
        ids: Vec<BlobId>,
        /// When it was asked for.
        now: Timestamp,
    },
    /// Let a blob live longer.
    Extend {
        /// Of this mailbox.
        mailbox: MailboxHash,
        /// This one.
        id: BlobId,
        /// Until then.
        expires_at: Timestamp,
        /// When it was asked for.
        now: Timestamp,
    },
    /// Delete a blob for its sender.
    Cancel {
        /// Of this mailbox.
        mailbox: MailboxHash,
        /// This one.
        id: BlobId,
        /// When it was asked for.
        now: Timestamp,
    },
    /// Delete these rows, each only if the cause fits it.
    Remove {
        /// By their keys.
        keys: Vec<OrderKey>,
        /// Why.
        cause: Cause,
        /// When it was asked for.
        now: Timestamp,
    },
    /// Keep a recovery proof.
    RecoveryPut {
        /// The proof and whose it is.
        proof: RecoveryProof,
        /// What had expired by then may be deleted to make room.
        expired_by: Timestamp,
    },
    /// Delete an owner's recovery proof.
    RecoveryRemove {
        /// Of this recovery key.
        key_hash: [u8; 32],
        /// Whose it is.
        owner: MailboxHash,
    },
    /// Delete some recovery proofs that have expired.
    ExpireProofs {
        /// By then.
        expired_by: Timestamp,
    },
    /// Mailboxes were opened with a proof: only a proof opens them from now on.
    Pin {
        /// Each once.
        mailboxes: Vec<MailboxHash>,
        /// Pins that were last used by then are over, and make room.
        over_by: Timestamp,
        /// When.
        now: Timestamp,
    },
    /// Mailboxes may be opened without a proof again.
    Unpin {
        /// Which ones.
        mailboxes: Vec<MailboxHash>,
    },
    /// A signed handshake is used: its nonce is good for no other.
    Burn {
        /// The nonce.
        nonce: [u8; 32],
        /// Nonces whose time was over by then may be forgotten.
        expired_by: Timestamp,
        /// When.
        now: Timestamp,
    },
    /// Write something, whatever it is: shows that storage takes writes.
    Trial,
}

/// Why rows are removed.
#[derive(Debug, Clone, Copy)]
pub enum Cause {
    /// The mailbox is purged of what `view` sees.
    Purged {
        /// This one.
        mailbox: MailboxHash,
        /// What goes.
        view: View,
        /// Who hears of it.
        tells: Tells,
    },
    /// The owner is purged of its device sync messages.
    OwnerPurged {
        /// Whose messages go.
        owner: MailboxHash,
    },
    /// Their time is over.
    Expired,
    /// Their checksum did not match; they are set aside, and not remembered as departed.
    Corrupt,
}

impl Write {
    /// How many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        ITEM_BYTES
            + match self {
                Self::Append { envelope, .. } => envelope.sealed.len() + envelope.body.len(),
                Self::Acknowledge { ids, .. } | Self::Delivered { ids, .. } => {
                    size_of_val(ids.as_slice())
                }
                Self::Remove { keys, .. } => size_of_val(keys.as_slice()),
                Self::RecoveryPut { proof, .. } => proof.sealed_proof.len(),
                Self::Pin { mailboxes, .. } | Self::Unpin { mailboxes } => {
                    size_of_val(mailboxes.as_slice())
                }
                Self::Extend { .. }
                | Self::Cancel { .. }
                | Self::RecoveryRemove { .. }
                | Self::ExpireProofs { .. }
                | Self::Burn { .. }
                | Self::Trial => 0,
            }
    }

    /// How many rows it may touch, at least one.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Acknowledge { ids, .. } | Self::Delivered { ids, .. } => ids.len().max(1),
            Self::Remove { keys, .. } => keys.len().max(1),
            Self::Pin { mailboxes, .. } | Self::Unpin { mailboxes } => mailboxes.len().max(1),
            _ => 1,
        }
    }

    /// When it was handed in, where that matters.
    pub(in crate::store) fn now(&self) -> Option<Timestamp> {
        match self {
            Self::Append { envelope, .. } => Some(envelope.stored_at),
            Self::RecoveryPut { proof, .. } => Some(proof.stored_at),
            Self::Acknowledge { now, .. }
            | Self::Delivered { now, .. }
            | Self::Extend { now, .. }
            | Self::Cancel { now, .. }
            | Self::Remove { now, .. }
            | Self::ExpireProofs { expired_by: now }
            | Self::Pin { now, .. }
            | Self::Burn { now, .. } => Some(*now),
            Self::RecoveryRemove { .. } | Self::Unpin { .. } | Self::Trial => None,
        }
    }

    /// By when what it finds expired may be deleted for good, where it may delete that.
    pub(in crate::store) fn expired_by(&self) -> Option<Timestamp> {
        match self {
            Self::Append { expired_by, .. }
            | Self::RecoveryPut { expired_by, .. }
            | Self::ExpireProofs { expired_by }
            | Self::Burn { expired_by, .. } => Some(*expired_by),
            Self::Remove {
                cause: Cause::Expired,
                now,
                ..
            } => Some(*now),
            _ => None,
        }
    }

    /// The mailboxes whose pins it is about.
    pub(in crate::store) fn pinned(&self) -> &[MailboxHash] {
        match self {
            Self::Pin { mailboxes, .. } | Self::Unpin { mailboxes } => mailboxes,
            _ => &[],
        }
    }

    /// What it is answered when there is no room for what it brings; `None` when it brings nothing.
    pub(super) fn without_room(&self) -> Option<Outcome> {
        match self {
            Self::Append { .. } => Some(Outcome::Appended(Appended::RelayFull)),
            Self::RecoveryPut { .. } => Some(Outcome::RecoveryPut(RecoveryPut::RelayFull)),
            _ => None,
        }
    }
}

/// What became of a [`Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum Outcome {
    /// Of an append.
    Appended(Appended),
    /// Of an acknowledgement or a removal.
    Removed(Removed),
    /// Of a recovery proof.
    RecoveryPut(RecoveryPut),
    /// Of pins: which of the mailboxes are pinned now. There was no room for the others.
    Pinned(Vec<bool>),
    /// Of a nonce.
    Burnt(Burnt),
    /// Of what always succeeds.
    Written,
}
