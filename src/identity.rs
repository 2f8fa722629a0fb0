//! Who this relay is: its key pair, whose public half is its `relay_id`, and what it signs.
//!
//! The key comes from the relay's secret (`docs/adr/0005`). Nothing else knows that: whoever has an
//! [`Identity`] can only ask for the id and for signatures.

use ed25519_dalek::{Signer as _, SigningKey};

/// The relay's key pair. Its `Debug` prints nothing of it.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    id: [u8; 32],
}

impl Identity {
    /// The key pair of this Ed25519 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let id = key.verifying_key().to_bytes();
        Self { key, id }
    }

    /// The public key, by which clients know the relay.
    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Signs these bytes, which begin with words that say what they are for.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_does_not_print_itself() {
        let printed = format!("{:?}", Identity::from_seed(&[0x42; 32]));
        assert_eq!(printed, "Identity(…)");
    }
}
