//! Mailboxes by number, under the names that each server knows them by.

use ed25519_dalek::SigningKey;
use vauchi_relay::ids::MailboxId;

#[derive(Clone)]
pub struct Mailbox {
    /// Redis, mosquitto and NATS make a name of it.
    pub number: usize,
    /// The relay's name.
    pub id: MailboxId,
    /// Opens it at the relay; `None` for those that only receive.
    pub key: Option<SigningKey>,
}

impl Mailbox {
    /// One that nobody opens. Its id looks as random as a key.
    pub fn offline(number: usize) -> Self {
        let hash = blake3::hash(&number.to_be_bytes());
        Self {
            number,
            id: MailboxId::from_bytes(*hash.as_bytes()),
            key: None,
        }
    }

    /// One that a recipient opens.
    pub fn owned(number: usize) -> Self {
        let key = SigningKey::from_bytes(blake3::hash(&number.to_le_bytes()).as_bytes());
        Self {
            number,
            id: MailboxId::from_bytes(key.verifying_key().to_bytes()),
            key: Some(key),
        }
    }
}

/// Blobs of one size: a stamp of eight bytes, by which a delivery is known again, and random bytes.
pub struct Bodies {
    fillers: Vec<Vec<u8>>,
}

impl Bodies {
    pub fn new(bytes: usize) -> Self {
        assert!(bytes >= 8);
        let filler = || (8..bytes).map(|_| rand::random()).collect();
        Self {
            fillers: (0..64).map(|_| filler()).collect(),
        }
    }

    pub fn stamped(&self, stamp: u64) -> Body<'_> {
        Body {
            stamp,
            filler: &self.fillers[stamp as usize % self.fillers.len()],
        }
    }
}

#[derive(Clone, Copy)]
pub struct Body<'a> {
    stamp: u64,
    filler: &'a [u8],
}

impl Body<'_> {
    pub fn len(&self) -> usize {
        8 + self.filler.len()
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.stamp.to_le_bytes());
        out.extend_from_slice(self.filler);
    }
}

/// The stamp of a delivered body.
pub fn stamp_of(body: &[u8]) -> Result<u64, String> {
    let stamp = body.first_chunk().ok_or("a body without a stamp")?;
    Ok(u64::from_le_bytes(*stamp))
}
