//! The exact bytes that are signed or hashed to prove possession.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::ids::{BlobId, MailboxId};

/// What a v2 subscription by key signs: fixed words, who asks whom on which connection, the host
/// that the client dialled, and the mailbox, which is the public key.
pub fn v2_subscribe(
    relay_id: &[u8; 32],
    challenge: &[u8; 32],
    origin: &str,
    mailbox: &MailboxId,
) -> [u8; 153] {
    const WORDS: &[u8; 25] = b"vauchi.relay.v2 subscribe";
    let origin = origin_hash(origin);
    joined([WORDS, relay_id, challenge, &origin, mailbox.as_bytes()])
}

/// What a v2 relay signs for a client that asks who it is: fixed words, its own id, the client's nonce,
/// the connection's challenge, and the host that the client dialled.
pub fn v2_welcome(
    relay_id: &[u8; 32],
    nonce: &[u8; 32],
    challenge: &[u8; 32],
    origin: &str,
) -> [u8; 151] {
    const WORDS: &[u8; 23] = b"vauchi.relay.v2 welcome";
    joined([WORDS, relay_id, nonce, challenge, &origin_hash(origin)])
}

/// Whether a relay with this id has signed [`v2_welcome`].
pub fn v2_is_welcome(relay_id: &[u8; 32], signed: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(relay_id).is_ok_and(|key| {
        // A second spelling of a key would be a second name of the same relay.
        key.to_bytes() == *relay_id
            && key
                .verify_strict(signed, &Signature::from_bytes(signature))
                .is_ok()
    })
}

fn origin_hash(origin: &str) -> [u8; 32] {
    Sha256::digest(origin.as_bytes()).into()
}

/// The parts in a row; together they must have `N` bytes.
fn joined<const N: usize>(parts: [&[u8]; 5]) -> [u8; N] {
    let mut joined = [0; N];
    let mut rest = joined.as_mut_slice();
    for part in parts {
        let (here, later) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = later;
    }
    joined
}

/// What a sender shows to have a blob kept for longer. It follows from the secret that cancels the blob,
/// and not the other way round: a relay that is shown it cannot cancel the blob elsewhere.
pub fn v2_extend_key(secret: &[u8; 32]) -> [u8; 32] {
    let mut hasher = Sha256::new_with_prefix(b"vauchi.relay.v2 extend");
    hasher.update(secret);
    hasher.finalize().into()
}

/// The id of a v2 blob that who knows this secret may withdraw.
pub fn v2_blob_id(mailbox: &MailboxId, secret: &[u8; 32]) -> BlobId {
    v2_extendable_blob_id(mailbox, &v2_extend_key(secret))
}

/// The id of a v2 blob that who knows this key may have kept for longer.
pub fn v2_extendable_blob_id(mailbox: &MailboxId, extend_key: &[u8; 32]) -> BlobId {
    let mut hasher = Sha256::new_with_prefix(b"vauchi.relay.v2 blob");
    hasher.update(mailbox.as_bytes());
    hasher.update(extend_key);
    let hash: [u8; 32] = hasher.finalize().into();
    let [id @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = hash;
    BlobId::from_bytes(id)
}

/// What a v1 handshake signs: the nonce, then the client's time as 8 bytes, big-endian.
pub fn v1_handshake(nonce: &[u8; 32], timestamp_secs: u64) -> [u8; 40] {
    let mut signed = [0; 40];
    let (first, last) = signed.split_at_mut(nonce.len());
    first.copy_from_slice(nonce);
    last.copy_from_slice(&timestamp_secs.to_be_bytes());
    signed
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    #[test]
    fn only_the_relay_s_own_key_signs_its_welcome() {
        let signer = SigningKey::from_bytes(&[1; 32]);
        let (ours, theirs) = (signer.verifying_key().to_bytes(), [2; 32]);
        let said =
            |id, nonce, challenge, origin| v2_welcome(id, &[nonce; 32], &[challenge; 32], origin);
        let here = said(&ours, 3, 4, "relay.example");
        let signature = signer.sign(&here).to_bytes();
        assert!(v2_is_welcome(&ours, &here, &signature));
        assert!(!v2_is_welcome(&theirs, &here, &signature));
        for other in [
            said(&theirs, 3, 4, "relay.example"),
            said(&ours, 5, 4, "relay.example"),
            said(&ours, 3, 5, "relay.example"),
            said(&ours, 3, 4, "other.example"),
        ] {
            assert!(!v2_is_welcome(&ours, &other, &signature));
        }
        // The neutral element: a key for which anybody can sign everything.
        let (mut weak, mut by_anybody) = ([0; 32], [0; 64]);
        (weak[0], by_anybody[0]) = (1, 1);
        let here = said(&weak, 3, 4, "relay.example");
        assert!(!v2_is_welcome(&weak, &here, &by_anybody));
    }

    #[test]
    fn who_may_extend_a_blob_cannot_cancel_it() {
        let (mailbox, secret) = (MailboxId::from_bytes([1; 32]), [2; 32]);
        let key = v2_extend_key(&secret);
        assert!(v2_extendable_blob_id(&mailbox, &key) == v2_blob_id(&mailbox, &secret));
        assert!(v2_blob_id(&mailbox, &key) != v2_blob_id(&mailbox, &secret));
    }

    #[test]
    fn a_v1_handshake_signs_nonce_and_big_endian_time() {
        let signed = v1_handshake(&[7; 32], 0x0102_0304_0506_0708);
        assert_eq!(signed[..32], [7; 32]);
        assert_eq!(signed[32..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
