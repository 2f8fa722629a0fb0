//! Is this proof good? Remembers nothing: whether a nonce was seen before is somebody else's question.

use std::time::Duration;

use ed25519_dalek::{Signature, VerifyingKey};

use crate::clock::{Clock, Timestamp};
use crate::ids::MailboxId;
use crate::protocol::proof;
use crate::protocol::v1::message::{Handshake, HandshakeProof};

/// How far a client's clock may be from ours, to either side.
pub const SKEW_MAX: Duration = Duration::from_secs(60);

/// What is known of the client after its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// It said who it is and proved nothing.
    Unproven,
    /// It holds the key that `client_id` names.
    Proven,
}

/// Why a proof is not good. For our logs and tests; a client gets one text for all of them, so that
/// it cannot feel its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Some of the four fields are missing or have the wrong shape.
    #[error("the signature is incomplete")]
    Partial,
    /// The client's clock is too far from ours, or the handshake was recorded some time ago.
    #[error("the handshake's timestamp differs from the relay's clock by more than {} s", SKEW_MAX.as_secs())]
    Skewed,
    /// The signing key is not the one that `client_id` names.
    #[error("the public key differs from client_id")]
    ForeignKey,
    /// The key is no point of the curve, or one that lets anybody sign.
    #[error("the public key is invalid")]
    BadKey,
    /// The signature does not fit the key and the signed bytes.
    #[error("the signature is invalid")]
    BadSignature,
}

/// What time it is: two answers, while the wall clock has just been moved by more than a minute.
#[derive(Debug, Clone, Copy)]
pub struct TimeOfDay {
    /// As clients are told it, which is as it was going on.
    pub told: Timestamp,
    /// As the wall clock says now.
    pub wall: Timestamp,
}

impl TimeOfDay {
    /// What a clock says.
    pub fn of(clock: &Clock) -> Self {
        Self {
            told: clock.told_now(),
            wall: clock.wall(),
        }
    }

    /// Whether something was signed just now. Either clock may be the right one, but what is old by
    /// the one that was going on may have been used, and its nonce forgotten since.
    fn is_fresh(self, signed_secs: u64) -> bool {
        let is_near = |now: Timestamp| now.secs().abs_diff(signed_secs) <= SKEW_MAX.as_secs();
        is_near(self.told) || (is_near(self.wall) && signed_secs > self.told.secs())
    }
}

/// Checks who a client says it is.
pub fn verify_v1_handshake(handshake: &Handshake, now: TimeOfDay) -> Result<Verified, AuthError> {
    let (public_key, nonce, timestamp_secs, signature) = match &handshake.proof {
        HandshakeProof::Unsigned => return Ok(Verified::Unproven),
        HandshakeProof::Partial => return Err(AuthError::Partial),
        HandshakeProof::Signed {
            public_key,
            nonce,
            timestamp_secs,
            signature,
        } => (public_key, nonce, *timestamp_secs, signature),
    };
    if !now.is_fresh(timestamp_secs) {
        return Err(AuthError::Skewed);
    }
    if public_key != handshake.client_id.as_bytes() {
        return Err(AuthError::ForeignKey);
    }
    let key = VerifyingKey::from_bytes(public_key).map_err(|_| AuthError::BadKey)?;
    // `verify_strict` refuses weak keys as well, but does not say that it was the key.
    if key.is_weak() {
        return Err(AuthError::BadKey);
    }
    let signed = proof::v1_handshake(nonce, timestamp_secs);
    key.verify_strict(&signed, &Signature::from_bytes(signature))
        .map_err(|_| AuthError::BadSignature)?;
    Ok(Verified::Proven)
}

/// What a v2 client must have signed, besides the mailbox.
#[derive(Debug, Clone)]
pub struct Asked {
    /// This relay's public key.
    pub relay_id: [u8; 32],
    /// This connection's own.
    pub challenge: [u8; 32],
    /// The host that the client says to have dialled.
    pub origin: Box<str>,
}

/// Whether this opens a v2 mailbox; `None` stands for what is malformed.
pub fn verify_v2_opening(asked: &Asked, mailbox: &MailboxId, signature: Option<&[u8; 64]>) -> bool {
    let Some(signature) = signature else {
        return false;
    };
    let signed = proof::v2_subscribe(&asked.relay_id, &asked.challenge, &asked.origin, mailbox);
    // Any 32 bytes are a mailbox; those that are no point of the curve open to no signature.
    VerifyingKey::from_bytes(mailbox.as_bytes()).is_ok_and(|key| {
        // A key that is not spelt canonically would be a second name of the same mailbox.
        key.to_bytes() == *mailbox.as_bytes()
            && key
                .verify_strict(&signed, &Signature::from_bytes(signature))
                .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;
    use crate::ids::MailboxId;

    const NOW_SECS: u64 = 1_795_220_095;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    fn now() -> TimeOfDay {
        at(0, 0)
    }

    /// The two clocks, so many seconds from now.
    fn at(told: i64, wall: i64) -> TimeOfDay {
        let now = Timestamp::from_millis(NOW_SECS * 1000 + 999);
        TimeOfDay {
            told: now.moved(told * 1000),
            wall: now.moved(wall * 1000),
        }
    }

    /// Else a clock that is set back lets in who has recorded a handshake whose nonce is forgotten.
    #[test]
    fn a_clock_that_was_just_set_makes_no_old_signature_fresh() {
        let signed = signed_at(NOW_SECS);
        let refused = Err(AuthError::Skewed);
        let verify = |now| verify_v1_handshake(&signed, now);
        assert_eq!(verify(at(200, 0)), refused);
        assert_eq!(verify(at(61, 0)), refused);
        assert_eq!(verify(at(60, -3_600)), Ok(Verified::Proven));
        // Set forward: who signs by the right time comes in, whichever that is.
        assert_eq!(verify(at(0, 3_600)), Ok(Verified::Proven));
        assert_eq!(verify(at(-3_600, 0)), Ok(Verified::Proven));
        assert_eq!(verify(at(-3_600, 61)), refused);
    }

    fn handshake(client_id: [u8; 32], proof: HandshakeProof) -> Handshake {
        Handshake {
            client_id: MailboxId::from_bytes(client_id),
            device_id: None,
            routing_token: None,
            client_as_spelt: "".into(),
            device_as_spelt: None,
            mailbox_as_spelt: "".into(),
            suppress_presence: false,
            proof,
        }
    }

    fn signed_at(timestamp_secs: u64) -> Handshake {
        let nonce = [9; 32];
        let signature = key().sign(&proof::v1_handshake(&nonce, timestamp_secs));
        let public_key = key().verifying_key().to_bytes();
        let proof = HandshakeProof::Signed {
            public_key,
            nonce,
            timestamp_secs,
            signature: signature.to_bytes(),
        };
        handshake(public_key, proof)
    }

    #[test]
    fn a_good_signature_proves_and_none_proves_nothing() {
        assert_eq!(
            verify_v1_handshake(&signed_at(NOW_SECS), now()),
            Ok(Verified::Proven)
        );
        assert_eq!(
            verify_v1_handshake(&handshake([1; 32], HandshakeProof::Unsigned), now()),
            Ok(Verified::Unproven)
        );
    }

    #[test]
    fn half_a_signature_is_not_taken_as_none() {
        assert_eq!(
            verify_v1_handshake(&handshake([1; 32], HandshakeProof::Partial), now()),
            Err(AuthError::Partial)
        );
    }

    #[test]
    fn clocks_may_differ_by_sixty_seconds() {
        for secs in [NOW_SECS - 60, NOW_SECS + 60] {
            assert_eq!(
                verify_v1_handshake(&signed_at(secs), now()),
                Ok(Verified::Proven)
            );
        }
        for secs in [NOW_SECS - 61, NOW_SECS + 61, 0, u64::MAX] {
            assert_eq!(
                verify_v1_handshake(&signed_at(secs), now()),
                Err(AuthError::Skewed)
            );
        }
    }

    #[test]
    fn a_key_opens_only_its_own_id() {
        let mut foreign = signed_at(NOW_SECS);
        foreign.client_id = MailboxId::from_bytes([1; 32]);
        assert_eq!(
            verify_v1_handshake(&foreign, now()),
            Err(AuthError::ForeignKey)
        );
    }

    #[test]
    fn every_signed_byte_counts() {
        for broken in ["nonce", "time", "signature"] {
            let mut handshake = signed_at(NOW_SECS);
            if let HandshakeProof::Signed {
                nonce,
                timestamp_secs,
                signature,
                ..
            } = &mut handshake.proof
            {
                match broken {
                    "nonce" => nonce[31] ^= 1,
                    "time" => *timestamp_secs += 1,
                    _ => signature[0] ^= 1,
                }
            }
            assert_eq!(
                verify_v1_handshake(&handshake, now()),
                Err(AuthError::BadSignature),
                "{broken}"
            );
        }
    }

    #[test]
    fn a_key_for_which_anybody_can_sign_is_refused() {
        // The neutral element, and a point of order two; with such a key R = identity, S = 0 fits
        // every text.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut order_two = [0xff; 32];
        (order_two[0], order_two[31]) = (0xec, 0x7f);
        for weak in [neutral, order_two, [0; 32]] {
            let mut signature = [0; 64];
            signature[0] = 1;
            let proof = HandshakeProof::Signed {
                public_key: weak,
                nonce: [0; 32],
                timestamp_secs: NOW_SECS,
                signature,
            };
            assert_eq!(
                verify_v1_handshake(&handshake(weak, proof), now()),
                Err(AuthError::BadKey)
            );
        }
    }

    #[test]
    fn a_key_off_the_curve_is_refused() {
        let off = (0..=255)
            .map(|byte| [byte; 32])
            .find(|bytes| VerifyingKey::from_bytes(bytes).is_err())
            .unwrap();
        let HandshakeProof::Signed {
            nonce,
            timestamp_secs,
            signature,
            ..
        } = signed_at(NOW_SECS).proof
        else {
            panic!()
        };
        let proof = HandshakeProof::Signed {
            public_key: off,
            nonce,
            timestamp_secs,
            signature,
        };
        assert_eq!(
            verify_v1_handshake(&handshake(off, proof), now()),
            Err(AuthError::BadKey)
        );
    }
}
