//! Recovery proofs: put, get, take back.
//!
//! They exist because the old key is lost, so the relay does not choose between them: each id has
//! one proof under a hash, none touches another's, and whoever asks gets all, the newest first.

use std::time::Duration;

use bytes::Bytes;

use super::Service;
use super::charge::Client;
use super::refusal::Refusal;
use crate::clock::Timestamp;
use crate::ids::MailboxId;
use crate::store::model::{RecoveryProof, RecoveryPut, charged_bytes};

/// How long a proof is kept.
const TTL: Duration = Duration::from_secs(90 * 86_400);

/// The largest proof.
const PROOF_BYTES_MAX: usize = 64 * 1024;

/// A proof as clients see it.
#[derive(Debug)]
pub struct Proof {
    /// The hash of the lost key, as the client gave it.
    pub key_hash: [u8; 32],
    /// As opaque as a blob.
    pub proof: Bytes,
}

/// What is kept under some hashes.
#[derive(Debug)]
pub struct Found {
    /// Each with the time when it was stored, the newest first.
    pub proofs: Vec<(Proof, Timestamp)>,
    /// Whether older ones were left out because they did not fit.
    pub more: bool,
}

impl Service {
    /// Keeps a proof of `owner` under `key_hash`, in place of an older one of the same owner.
    /// Tells when it expires. The request itself has been charged ([`Service::charge_recovery`]).
    pub async fn put_recovery(
        &self,
        client: &Client,
        owner: &MailboxId,
        is_proven: bool,
        Proof { key_hash, proof }: Proof,
    ) -> Result<Timestamp, Refusal> {
        if proof.len() > PROOF_BYTES_MAX {
            return Err(Refusal::Invalid("a recovery proof may have at most 64 KiB"));
        }
        let room = self.charge_recovery_room(client, &key_hash, charged_bytes(proof.len()))?;
        let (secret, stored_at) = (&self.parts.secret, self.parts.clock.date());
        let expires_at = stored_at.plus(TTL);
        let kept = RecoveryProof {
            key_hash: secret.recovery_key(&key_hash),
            // Else anybody who knows an id could replace what its holder stored.
            owner: match is_proven {
                true => secret.mailbox(owner),
                false => secret.claimant(owner),
            },
            is_proven,
            sealed_proof: secret.seal(&key_hash, &proof),
            stored_at,
            expires_at,
        };
        let refused = match self.parts.store.recovery_put(kept, self.expired_by()).await {
            Ok(RecoveryPut::Stored) => return Ok(expires_at),
            Ok(RecoveryPut::Full) => Refusal::MailboxFull,
            Ok(RecoveryPut::RelayFull) => Refusal::RelayFull,
            Err(error) => error.into(),
        };
        room.give_back();
        Err(refused)
    }

    /// Every proof that is kept under these hashes, the newest of each first, as far as they fit
    /// into `bytes_max`.
    pub async fn get_recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
    ) -> Result<Found, Refusal> {
        let secret = &self.parts.secret;
        let hashed: Vec<_> = key_hashes
            .iter()
            .map(|hash| secret.recovery_key(hash))
            .collect();
        let now = self.parts.clock.now();
        let page = self
            .parts
            .store
            .recovery_get(hashed.clone(), bytes_max, now)
            .await?;
        let plain = |kept: RecoveryProof| {
            let place = hashed.iter().position(|hash| *hash == kept.key_hash)?;
            let key_hash = key_hashes[place];
            // A proof that does not open is a damaged row; the others are whole.
            let proof = secret.unseal(&key_hash, &kept.sealed_proof).ok()?.into();
            Some((Proof { key_hash, proof }, kept.stored_at))
        };
        Ok(Found {
            proofs: page.proofs.into_iter().filter_map(plain).collect(),
            more: page.more,
        })
    }

    /// Takes back the owner's own proof under `key_hash`; returns how many that were. Whoever proved
    /// itself also takes back what was stored in its name without a proof.
    pub async fn remove_recovery(
        &self,
        owner: &MailboxId,
        is_proven: bool,
        key_hash: &[u8; 32],
    ) -> Result<u64, Refusal> {
        let (secret, store) = (&self.parts.secret, &self.parts.store);
        let key_hash = secret.recovery_key(key_hash);
        let claimed = store
            .recovery_remove(key_hash, secret.claimant(owner))
            .await?;
        let proven = match is_proven {
            true => {
                store
                    .recovery_remove(key_hash, secret.mailbox(owner))
                    .await?
            }
            false => 0,
        };
        Ok(claimed + proven)
    }
}
