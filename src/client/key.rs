//! What opens a mailbox: an Ed25519 key or a secret. Neither prints itself.

use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};

use crate::ids::MailboxId;
use crate::protocol::proof;
use crate::protocol::v2::message::{Opening, OpeningProof};

/// What opens a mailbox for reading. The mailbox follows from it; nothing is registered anywhere.
#[derive(Clone)]
pub struct MailboxKey(Kind);

#[derive(Clone)]
enum Kind {
    /// Boxed: half of a kilobyte with its expanded public key.
    Ed25519(Box<SigningKey>),
    Secret {
        secret: [u8; 32],
        /// The only relay that may see it, where that is known from the beginning.
        relay: Option<[u8; 32]>,
    },
}

impl MailboxKey {
    /// A key pair: the mailbox is the public key, and each connection is signed for. Once opened, a
    /// relay lets nobody open the mailbox without the key, through v1 either.
    pub fn ed25519(private: [u8; 32]) -> Self {
        Self(Kind::Ed25519(Box::new(SigningKey::from_bytes(&private))))
    }

    /// A secret: the mailbox is its hash, and the relay is shown the secret. Cheap enough for hundreds
    /// of mailboxes. A relay that sees it could use it elsewhere, so have one for each relay
    /// ([`MailboxKey::derived`]); a client shows it to the first relay only. Going to another, it tells
    /// [`super::Event::Closed`].
    pub const fn secret(secret: [u8; 32]) -> Self {
        Self(Kind::Secret {
            secret,
            relay: None,
        })
    }

    /// A secret for one relay ([`super::Client::relay_id`]) and, say, one day, from a key that two share or
    /// that one keeps: `HKDF-SHA-256(shared, epoch || relay_id)`. A client shows it to no other relay.
    pub fn derived(shared: &[u8; 32], epoch: u64, relay_id: &[u8; 32]) -> Self {
        let extracted = hmac(&[0; 32], &[shared]);
        let info = epoch.to_be_bytes();
        Self(Kind::Secret {
            secret: hmac(&extracted, &[&info, relay_id, &[1]]),
            relay: Some(*relay_id),
        })
    }

    /// A fresh key pair.
    pub fn random() -> Self {
        Self::ed25519(rand::random())
    }

    /// The mailbox that this opens; whoever knows it may submit to it.
    pub fn mailbox(&self) -> MailboxId {
        match &self.0 {
            Kind::Ed25519(key) => MailboxId::from_bytes(key.verifying_key().to_bytes()),
            Kind::Secret { secret, .. } => proof::v2_secret_mailbox(secret),
        }
    }

    /// Whether the relay is shown what opens the mailbox.
    pub(super) const fn is_shown(&self) -> bool {
        matches!(self.0, Kind::Secret { .. })
    }

    /// The only relay that it may be shown to, if it was made for one.
    pub(super) const fn relay(&self) -> Option<[u8; 32]> {
        match self.0 {
            Kind::Secret { relay, .. } => relay,
            Kind::Ed25519(_) => None,
        }
    }

    /// The opening on the connection with this challenge, to a relay that was dialled as `origin`.
    pub(super) fn opening(
        &self,
        relay_id: &[u8; 32],
        challenge: &[u8; 32],
        origin: &str,
        tells_senders: bool,
    ) -> Opening {
        let mailbox = self.mailbox();
        Opening {
            mailbox,
            proof: match &self.0 {
                Kind::Ed25519(key) => {
                    let signed = proof::v2_subscribe(relay_id, challenge, origin, &mailbox);
                    OpeningProof::Signature(key.sign(&signed).to_bytes())
                }
                Kind::Secret { secret, .. } => OpeningProof::Secret(*secret),
            },
            tells_senders,
        }
    }
}

impl std::fmt::Debug for MailboxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MailboxKey(…)")
    }
}

/// What a blob's id is made from: who has it may cancel the blob, or have it kept for longer. The
/// recipient, who sees the id, cannot.
#[derive(Clone, PartialEq, Eq)]
pub struct BlobSecret([u8; 32]);

impl BlobSecret {
    /// A fresh one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// One that was kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for keeping.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for BlobSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlobSecret(…)")
    }
}

/// HMAC-SHA-256 (RFC 2104) of the parts, one after the other.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        Sha256::new_with_prefix(block)
    };
    let mut inner = padded(0x36);
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = padded(0x5c);
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_secrets_do_not_print_themselves() {
        let printed = format!(
            "{:?} {:?} {:?}",
            MailboxKey::ed25519([0x42; 32]),
            MailboxKey::derived(&[0x42; 32], 66, &[0x42; 32]),
            BlobSecret::from_bytes([0x42; 32])
        );
        assert_eq!(printed, "MailboxKey(…) MailboxKey(…) BlobSecret(…)");
    }
}
