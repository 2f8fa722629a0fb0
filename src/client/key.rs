//! What opens a mailbox: an Ed25519 key, random or derived from what several share. It does not print itself.

use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};

use crate::ids::MailboxId;
use crate::protocol::proof;
use crate::protocol::v2::message::Opening;

/// What opens a mailbox for reading. The mailbox is its public key; nothing is registered anywhere.
///
/// Relays never see it: each opening is a signature that is good for one relay, one connection and the host
/// that was dialled.
#[derive(Clone)]
pub struct MailboxKey {
    /// Boxed: half of a kilobyte with its expanded public key.
    key: Box<SigningKey>,
    pins: bool,
}

impl MailboxKey {
    /// A key pair from its private half (the seed of RFC 8032). Once opened, a relay lets nobody open the
    /// mailbox without the key, through v1 either: it is pinned.
    pub fn ed25519(private: [u8; 32]) -> Self {
        Self {
            key: Box::new(SigningKey::from_bytes(&private)),
            pins: true,
        }
    }

    /// One of many mailboxes that change, say, one for each day and contact: from a key that the readers
    /// share, or that one keeps. Made for senders that speak v2, so that it is not pinned
    /// ([`MailboxKey::not_pinned`]).
    ///
    /// Everybody who has `shared` can read the mailbox. Give others only [`MailboxKey::mailbox`].
    pub fn derived(shared: &[u8; 32], epoch: u64) -> Self {
        let extracted = hmac(&[0; 32], &[shared]);
        let info: [&[u8]; 2] = [b"vauchi.relay.v2 mailbox", &epoch.to_be_bytes()];
        let private = hmac(&extracted, &[info[0], info[1], &[1]]);
        Self::ed25519(private).not_pinned()
    }

    /// A fresh key pair.
    pub fn random() -> Self {
        Self::ed25519(rand::random())
    }

    /// The same key, for a mailbox that nobody sends to through v1 or with [`super::Terms::v1_ok`]. v1 clients
    /// see nothing else, so that a pin would protect nothing, and relays have few of them.
    #[must_use]
    pub fn not_pinned(self) -> Self {
        Self {
            pins: false,
            ..self
        }
    }

    /// The mailbox that this opens; whoever knows it may submit to it.
    pub fn mailbox(&self) -> MailboxId {
        MailboxId::from_bytes(self.key.verifying_key().to_bytes())
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
        let signed = proof::v2_subscribe(relay_id, challenge, origin, &mailbox);
        Opening {
            mailbox,
            signature: Some(self.key.sign(&signed).to_bytes()),
            tells_senders,
            no_pin: !self.pins,
        }
    }
}

/// A topic as this relay sees it. Another relay sees another one, so that neither can replace blobs at the
/// other.
pub(super) fn topic_at(relay_id: &[u8; 32], topic: &[u8; 32]) -> [u8; 32] {
    hmac(topic, &[b"vauchi.relay.v2 topic", relay_id])
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
            MailboxKey::derived(&[0x42; 32], 66),
            BlobSecret::from_bytes([0x42; 32])
        );
        assert_eq!(printed, "MailboxKey(…) MailboxKey(…) BlobSecret(…)");
    }
}
