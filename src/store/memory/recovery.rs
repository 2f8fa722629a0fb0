//! The recovery proofs of the memory engine.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::model::{RECOVERY_KEYS_MAX, RecoveryPage, RecoveryProof, RecoveryPut};
use crate::store::plan::quota::{HeldInAll, Quota};
use crate::store::plan::recovery::{Slot, make_room};

/// All proofs, by recovery key and by expiry.
#[derive(Default)]
pub(in crate::store) struct Proofs {
    by_key: HashMap<[u8; 32], Vec<(Slot, RecoveryProof)>>,
    expiries: BTreeSet<(Timestamp, i64, [u8; 32])>,
    last_number: i64,
}

impl Proofs {
    /// Takes a proof in, if there is room in the relay, which holds `held`, and under its key.
    pub(in crate::store) fn put(
        &mut self,
        proof: &RecoveryProof,
        expired_by: Timestamp,
        quota: &Quota,
        held: &mut HeldInAll,
    ) -> RecoveryPut {
        let slots: Vec<Slot> = self.slots(&proof.key_hash).collect();
        let Some(gone) = make_room(&slots, &proof.owner, expired_by) else {
            return RecoveryPut::Full;
        };
        let given_back: u64 = slots
            .iter()
            .filter(|slot| gone.contains(&slot.number))
            .map(|slot| slot.charged_bytes)
            .sum();
        if !quota.relay_admits(held.bytes.saturating_sub(given_back), proof.charged_bytes()) {
            return RecoveryPut::RelayFull;
        }
        for number in gone {
            self.delete(&proof.key_hash, number, held);
        }
        self.last_number += 1;
        let slot = Slot::of(self.last_number, proof, &slots);
        // A copy: the bytes may be a small part of a large read buffer that they would keep alive.
        let kept = RecoveryProof {
            is_proven: slot.is_proven,
            sealed_proof: Bytes::copy_from_slice(&proof.sealed_proof),
            ..proof.clone()
        };
        self.expiries
            .insert((slot.expires_at, slot.number, proof.key_hash));
        let under_key = self.by_key.entry(proof.key_hash).or_default();
        under_key.push((slot, kept));
        held.recovery_proofs += 1;
        held.bytes += slot.charged_bytes;
        RecoveryPut::Stored
    }

    /// What is known about these keys, the newest first, as much as fits.
    pub(in crate::store) fn get(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> RecoveryPage {
        let keys: BTreeSet<_> = key_hashes.iter().take(RECOVERY_KEYS_MAX).collect();
        let mut found: Vec<_> = keys
            .into_iter()
            .filter_map(|key_hash| self.by_key.get(key_hash))
            .flatten()
            .filter(|(slot, _)| slot.expires_at > now)
            .collect();
        found.sort_unstable_by_key(|(slot, _)| Reverse(slot.number));
        let mut bytes: u64 = 0;
        let fitting = found.iter().take_while(|(_, proof)| {
            bytes = bytes.saturating_add(proof.sealed_proof.len() as u64);
            bytes <= bytes_max
        });
        let proofs: Vec<_> = fitting.map(|(_, proof)| proof.clone()).collect();
        RecoveryPage {
            more: proofs.len() < found.len(),
            proofs,
        }
    }

    /// Deletes an owner's proof; tells how many that were.
    pub(in crate::store) fn remove(
        &mut self,
        key_hash: &[u8; 32],
        owner: &MailboxHash,
        held: &mut HeldInAll,
    ) -> u64 {
        let theirs = self.slots(key_hash).find(|slot| slot.owner == *owner);
        let Some(slot) = theirs else {
            return 0;
        };
        self.delete(key_hash, slot.number, held);
        1
    }

    /// Deletes up to `limit` that have expired; tells how many.
    pub(in crate::store) fn sweep(
        &mut self,
        limit: usize,
        now: Timestamp,
        held: &mut HeldInAll,
    ) -> usize {
        let mut swept = 0;
        while swept < limit
            && let Some(&(expires_at, number, key_hash)) = self.expiries.first()
            && expires_at <= now
        {
            self.delete(&key_hash, number, held);
            swept += 1;
        }
        swept
    }

    fn slots(&self, key_hash: &[u8; 32]) -> impl Iterator<Item = Slot> {
        let under_key = self.by_key.get(key_hash);
        under_key.into_iter().flatten().map(|(slot, _)| *slot)
    }

    fn delete(&mut self, key_hash: &[u8; 32], number: i64, held: &mut HeldInAll) {
        let Some(under_key) = self.by_key.get_mut(key_hash) else {
            return;
        };
        let Some(place) = under_key.iter().position(|(slot, _)| slot.number == number) else {
            return;
        };
        let (slot, _) = under_key.swap_remove(place);
        if under_key.is_empty() {
            self.by_key.remove(key_hash);
        }
        self.expiries.remove(&(slot.expires_at, number, *key_hash));
        held.recovery_proofs = held.recovery_proofs.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(slot.charged_bytes);
    }
}
