//! How a connection ends: the close codes, the same for every version, and what a client reads with them.
//!
//! 1001, 1009 and 1013 are RFC 6455's and its registry's; 4000 to 4999 are for private use.

/// Why the relay closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The relay stops.
    Drain,
    /// A message is larger than the socket takes, so it cannot even be refused.
    TooLarge,
    /// The client takes or sends too slowly.
    Slow(&'static str),
    /// Bytes that are not this protocol.
    Protocol(&'static str),
    /// The mailbox is not proven to be the client's.
    NotProven,
    /// This id has proved itself before, and is opened only with a proof since.
    Pinned,
    /// The relay asks every client for a proof, and this one brought none.
    ProofRequired,
    /// A version or encryption that this relay does not offer.
    NotOffered,
    /// The first frame did not come in time.
    FirstFrameLate,
    /// Nothing was heard for too long.
    Silent,
    /// Too many proofs from the client's address were not good; this one was not looked at.
    TooManyFailedProofs,
    /// Too many mailboxes were opened from the client's address.
    TooManyOpenings,
    /// Too many frames that were refused or of no use.
    Flood,
}

impl Close {
    /// The code in the close frame.
    pub const fn code(self) -> u16 {
        match self {
            Self::Drain => 1001,
            Self::TooLarge => 1009,
            Self::Slow(_) => 1013,
            Self::Protocol(_) => 4400,
            Self::NotProven | Self::Pinned | Self::ProofRequired => 4401,
            Self::NotOffered => 4406,
            Self::FirstFrameLate | Self::Silent => 4408,
            Self::TooManyFailedProofs | Self::TooManyOpenings | Self::Flood => 4429,
        }
    }

    /// The text in the close frame; at most 123 bytes, the room that RFC 6455 leaves for it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Drain => "the relay is shutting down; reconnect in a moment",
            Self::TooLarge => "the message is too large (over twice RELAY_MAX_MESSAGE_SIZE)",
            Self::Slow(why) | Self::Protocol(why) => why,
            Self::NotProven => {
                "the handshake's signature is invalid, incomplete or too old; check the key and the clock"
            }
            Self::Pinned => {
                "this mailbox has been opened with its key before; it now requires that key"
            }
            Self::ProofRequired => {
                "this relay requires a signed handshake without routing_token (RELAY_V1_UNVERIFIED=deny)"
            }
            Self::NotOffered => "Noise is not supported; use plain protocol v1 over TLS",
            Self::FirstFrameLate => "the client did not send its first frame in time",
            Self::Silent => "the client sent nothing for too long",
            Self::TooManyFailedProofs => "too many failed proofs from your network; wait a minute",
            Self::TooManyOpenings => "too many mailboxes opened from your network; wait a minute",
            Self::Flood => {
                "too many refused, free or useless frames, after a minute of slow reading; send less"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_differ_and_reasons_fit_a_close_frame() {
        let all = [
            (Close::Drain, 1001),
            (Close::TooLarge, 1009),
            (Close::Slow("slow"), 1013),
            (Close::Protocol("wrong"), 4400),
            (Close::NotProven, 4401),
            (Close::NotOffered, 4406),
            (Close::FirstFrameLate, 4408),
            (Close::Silent, 4408),
            (Close::TooManyFailedProofs, 4429),
            (Close::TooManyOpenings, 4429),
            (Close::Flood, 4429),
        ];
        for (close, code) in all {
            assert_eq!(close.code(), code);
            assert!((1..=123).contains(&close.reason().len()), "{close:?}");
        }
    }
}
