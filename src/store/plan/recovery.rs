//! Which recovery proofs make room for a new one, and what a batch does to them.
//!
//! The old key is lost when a proof is looked for, so the store does not choose between proofs: it
//! keeps one for each owner, [`RECOVERY_PROOFS_MAX`] for each recovery key. A stranger can so push
//! out other strangers, never somebody who proved who they are.

use foldhash::HashMap;

use super::quota::{HeldInAll, Quota};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::model::{RECOVERY_PROOFS_MAX, RecoveryProof, RecoveryPut};

/// A proof that is kept, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Larger for one that came later.
    pub number: i64,
    /// Whose it is.
    pub owner: MailboxHash,
    /// Whether its owner ever proved itself.
    pub is_proven: bool,
    /// From this moment on it is never shown.
    pub expires_at: Timestamp,
    /// What it counts against the relay's bound.
    pub charged_bytes: u64,
}

impl Slot {
    /// The slot of a proof that is kept under this number.
    pub fn new(number: i64, proof: &RecoveryProof) -> Self {
        Self {
            number,
            owner: proof.owner,
            is_proven: proof.is_proven,
            expires_at: proof.expires_at,
            charged_bytes: proof.charged_bytes(),
        }
    }

    /// The slot that `proof` takes; an owner that proved itself once has done so for good.
    fn of(number: i64, proof: &RecoveryProof, others: &[Self]) -> Self {
        let before = others.iter().find(|slot| slot.owner == proof.owner);
        Self {
            is_proven: proof.is_proven || before.is_some_and(|slot| slot.is_proven),
            ..Self::new(number, proof)
        }
    }
}

/// The numbers of the slots of one recovery key that go when `owner` stores a proof: its own
/// earlier one, what had expired by `expired_by`, and when all are taken the oldest of an owner that
/// never proved itself. `None` when all are taken by owners who did.
pub(super) fn make_room(
    slots: &[Slot],
    owner: &MailboxHash,
    expired_by: Timestamp,
) -> Option<Vec<i64>> {
    let (mut gone, kept): (Vec<&Slot>, Vec<&Slot>) = slots
        .iter()
        .partition(|slot| slot.owner == *owner || slot.expires_at <= expired_by);
    if kept.len() >= RECOVERY_PROOFS_MAX {
        let strangers = kept.into_iter().filter(|slot| !slot.is_proven);
        gone.push(strangers.min_by_key(|slot| slot.number)?);
    }
    Some(gone.into_iter().map(|slot| slot.number).collect())
}

/// Expired proofs that one write deletes.
pub const SWEPT_PROOFS_MAX: usize = 256;

/// What an engine answers about recovery proofs.
#[derive(Debug, Default, Clone)]
pub struct KnownProofs {
    /// All slots of each recovery key that the batch is about, and what a sweep is about.
    pub slots: HashMap<[u8; 32], Vec<Slot>>,
    /// Some that have expired, for a sweep: recovery key and number.
    pub expired: Vec<([u8; 32], i64)>,
    /// The first number that is free.
    pub next_number: i64,
}

/// What a transaction does to recovery proofs.
#[derive(Debug, Default)]
pub struct ProofPlan {
    /// By number: which write of the batch is kept, and whether its owner ever proved itself
    /// ([`super::Plan::new_proofs`]).
    pub(super) inserts: Vec<(i64, usize, bool)>,
    /// By number.
    pub deletes: Vec<i64>,
    /// How many were stored.
    pub(super) vouchers: u64,
}

impl ProofPlan {
    /// Takes a proof in, if there is room in the relay and under its key.
    pub(super) fn put(
        &mut self,
        known: &mut KnownProofs,
        held: &mut HeldInAll,
        (index, proof, expired_by): (usize, &RecoveryProof, Timestamp),
        quota: &Quota,
    ) -> RecoveryPut {
        let slots = known.slots.entry(proof.key_hash).or_default();
        let Some(gone) = make_room(slots, &proof.owner, expired_by) else {
            return RecoveryPut::Full;
        };
        let slot = Slot::of(known.next_number, proof, slots);
        let given_back: u64 = slots
            .iter()
            .filter(|slot| gone.contains(&slot.number))
            .map(|slot| slot.charged_bytes)
            .sum();
        let bytes = held.bytes.saturating_sub(given_back);
        if !quota.relay_admits(bytes, slot.charged_bytes) {
            return RecoveryPut::RelayFull;
        }
        for number in gone {
            self.delete(known, held, &proof.key_hash, number);
        }
        let slots = known.slots.entry(proof.key_hash).or_default();
        slots.push(slot);
        self.inserts.push((slot.number, index, slot.is_proven));
        self.vouchers += 1;
        held.recovery_proofs += 1;
        held.bytes += slot.charged_bytes;
        known.next_number += 1;
        RecoveryPut::Stored
    }

    /// Deletes an owner's proof; tells how many that were.
    pub(super) fn remove(
        &mut self,
        known: &mut KnownProofs,
        held: &mut HeldInAll,
        key_hash: &[u8; 32],
        owner: &MailboxHash,
    ) -> u64 {
        let slots = known.slots.get(key_hash).map_or(&[][..], Vec::as_slice);
        let Some(slot) = slots.iter().find(|slot| slot.owner == *owner) else {
            return 0;
        };
        self.delete(known, held, key_hash, slot.number);
        1
    }

    /// Deletes what has expired of what was read for that; tells how many that were.
    pub(super) fn sweep(&mut self, known: &mut KnownProofs, held: &mut HeldInAll) -> u64 {
        let before = held.recovery_proofs;
        for (key_hash, number) in std::mem::take(&mut known.expired) {
            self.delete(known, held, &key_hash, number);
        }
        before.saturating_sub(held.recovery_proofs)
    }

    fn delete(
        &mut self,
        known: &mut KnownProofs,
        held: &mut HeldInAll,
        key_hash: &[u8; 32],
        number: i64,
    ) {
        let Some(slots) = known.slots.get_mut(key_hash) else {
            return;
        };
        let Some(place) = slots.iter().position(|slot| slot.number == number) else {
            return;
        };
        let slot = slots.swap_remove(place);
        held.recovery_proofs = held.recovery_proofs.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(slot.charged_bytes);
        // Came in this very batch: it is not written at all.
        let before = self.inserts.len();
        self.inserts.retain(|(inserted, ..)| *inserted != number);
        if self.inserts.len() == before {
            self.deletes.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: i64, is_proven: bool, expires_at: u64) -> Slot {
        Slot {
            number,
            owner: owner(number),
            is_proven,
            expires_at: Timestamp::from_millis(expires_at),
            charged_bytes: 300,
        }
    }

    fn owner(number: i64) -> MailboxHash {
        MailboxHash::from_bytes([number as u8; 32])
    }

    fn gone(slots: &[Slot], new: i64) -> Option<Vec<i64>> {
        make_room(slots, &owner(new), Timestamp::from_millis(10))
    }

    #[test]
    fn there_is_room_for_eight_owners_and_each_has_one() {
        let seven: Vec<_> = (1..=7).map(|number| slot(number, false, 99)).collect();
        assert_eq!(gone(&seven, 8), Some(vec![]));
        assert_eq!(gone(&seven, 3), Some(vec![3]));
    }

    #[test]
    fn the_oldest_stranger_goes_and_nobody_who_proved_themselves() {
        let mut eight: Vec<_> = (1..=8).map(|number| slot(number, number < 4, 99)).collect();
        eight.reverse();
        assert_eq!(gone(&eight, 9), Some(vec![4]));
        assert_eq!(gone(&eight, 2), Some(vec![2]), "its own is enough");
        let proven: Vec<_> = (1..=8).map(|number| slot(number, true, 99)).collect();
        assert_eq!(gone(&proven, 9), None);
        assert_eq!(gone(&proven, 8), Some(vec![8]));
    }

    #[test]
    fn what_has_expired_goes_before_anybody() {
        let mut eight: Vec<_> = (1..=8).map(|number| slot(number, true, 99)).collect();
        eight[4].expires_at = Timestamp::from_millis(10);
        assert_eq!(gone(&eight, 9), Some(vec![5]));
    }
}
