//! The names of things: parsed once at the edge, and never printed.
//!
//! A mailbox id or a blob id in a log would tell who writes to whom, so the `Debug` of these types
//! shows no digit, and none of them has a `Display`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// A mailbox as clients name it: 32 bytes, 64 hexadecimal digits in protocol v1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MailboxId([u8; 32]);

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id must have 64 hexadecimal digits")]
pub struct InvalidId;

impl MailboxId {
    /// The mailbox named by these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A mailbox that nobody knows yet.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Parses 64 hexadecimal digits of either case.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        parse_hex(text).map(Self)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits in lower case, for the wire.
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

/// Parses exactly `N` bytes of hexadecimal digits of either case.
pub fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], InvalidId> {
    let bytes = HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .map_err(|_| InvalidId)?;
    bytes.try_into().map_err(|_| InvalidId)
}

/// A mailbox as the store knows it: the keyed hash of its id, so that a stolen database does not
/// list mailboxes. Made by `secrets::Secret::mailbox`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MailboxHash([u8; 32]);

impl MailboxHash {
    /// The mailbox with this hash.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 64 bits: short enough for an index, and uniform because the hash is keyed.
    pub fn prefix64(&self) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Which blobs of a mailbox replace each other: the first 64 bits of a keyed hash over the mailbox
/// and what its senders call the topic. Made by `secrets::Secret::topic`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(i64);

impl Topic {
    /// The topic with this prefix of a keyed hash.
    pub const fn from_prefix64(prefix64: i64) -> Self {
        Self(prefix64)
    }

    /// The 64 bits, as the index has them.
    pub const fn prefix64(self) -> i64 {
        self.0
    }
}

/// A blob within its mailbox: 16 bytes. (mailbox, id) is what makes a repeated submit a duplicate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; 16]);

impl BlobId {
    /// The blob with these 16 bytes as its id.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// One connection of this process; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The next unused one.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A random label that ties the log lines of one session together and says nothing about who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLabel(u32);

impl SessionLabel {
    /// A fresh random label.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for SessionLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for MailboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MailboxId(…)")
    }
}

impl fmt::Debug for MailboxHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MailboxHash(…)")
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Topic(…)")
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobId(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_64_hex_digits_of_either_case() {
        let lower = "ab".repeat(32);
        let parsed = MailboxId::parse(&lower.to_uppercase()).unwrap();
        assert_eq!(parsed, MailboxId::parse(&lower).unwrap());
        assert_eq!(parsed.to_hex(), lower);
        for wrong in [
            "",
            "ab",
            &"zz".repeat(32),
            &"ab".repeat(33),
            &"ab".repeat(31),
        ] {
            assert_eq!(MailboxId::parse(wrong), Err(InvalidId), "{wrong}");
        }
    }

    #[test]
    fn debug_prints_no_digit_of_an_id() {
        let printed = format!(
            "{:?} {:?} {:?} {:?}",
            MailboxId::from_bytes([0xAB; 32]),
            MailboxHash::from_bytes([0xAB; 32]),
            Topic::from_prefix64(0xABAB),
            BlobId::from_bytes([0xAB; 16])
        );
        assert!(!printed.to_lowercase().contains("ab"), "{printed}");
        assert!(!printed.contains(|c: char| c.is_ascii_digit()), "{printed}");
    }
}
