//! What is the same in both protocols: refusals and recovery proofs, as values.
//!
//! All else that a protocol says is its own: [`super::v1::message`], [`super::v2::message`]. The codecs
//! turn bytes into these values and back. Nothing here knows a socket, a clock or a rule.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

/// A refusal as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One word from the table in `docs/errors.md`, lower case.
    pub code: &'static str,
    /// What is wrong and what to do.
    pub message: Cow<'static, str>,
    /// When to try again; `None` when an unchanged repeat cannot succeed.
    pub retry_after: Option<Duration>,
}

/// A frame from a relay that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFrame(pub &'static str);

/// A proof that is stored for the user who lost the key and knows its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryProof {
    /// The hash of the lost key.
    pub key_hash: [u8; 32],
    /// The proof; as opaque as a blob.
    pub proof: Bytes,
}

impl std::fmt::Debug for RecoveryProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecoveryProof({} bytes)", self.proof.len())
    }
}

/// Hashes in one query, at the most; those behind are left out.
pub const RECOVERY_HASHES_MAX: usize = 50;

/// A question for recovery proofs.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryQuery {
    /// The hashes asked for, each once, in the order of the frame; at most [`RECOVERY_HASHES_MAX`].
    pub key_hashes: Vec<[u8; 32]>,
}

impl std::fmt::Debug for RecoveryQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecoveryQuery({} hashes)", self.key_hashes.len())
    }
}
