//! The exact bytes that are signed or hashed to prove possession.

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
    let origin: [u8; 32] = Sha256::digest(origin.as_bytes()).into();
    let parts: [&[u8]; 5] = [WORDS, relay_id, challenge, &origin, mailbox.as_bytes()];
    let mut signed = [0; 153];
    let mut rest = signed.as_mut_slice();
    for part in parts {
        let (here, later) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = later;
    }
    signed
}

/// The v2 mailbox that this secret opens.
pub fn v2_secret_mailbox(secret: &[u8; 32]) -> MailboxId {
    let mut hasher = Sha256::new_with_prefix(b"vauchi.relay.v2 mailbox");
    hasher.update(secret);
    MailboxId::from_bytes(hasher.finalize().into())
}

/// The id of a v2 blob that who knows this secret may withdraw.
pub fn v2_blob_id(mailbox: &MailboxId, secret: &[u8; 32]) -> BlobId {
    let mut hasher = Sha256::new_with_prefix(b"vauchi.relay.v2 blob");
    hasher.update(mailbox.as_bytes());
    hasher.update(secret);
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
    use super::*;

    #[test]
    fn a_v1_handshake_signs_nonce_and_big_endian_time() {
        let signed = v1_handshake(&[7; 32], 0x0102_0304_0506_0708);
        assert_eq!(signed[..32], [7; 32]);
        assert_eq!(signed[32..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
