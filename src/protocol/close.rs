//! How a connection ends: the close codes, the same for every version, and what a client reads with them.
//!
//! 1001, 1009 and 1013 are RFC 6455's and its registry's; 4000 to 4999 are for private use.

/// Why the relay closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The relay stops.
    GoingAway,
    /// A message is larger than the socket takes, so it can not even be refused.
    TooLarge,
    /// The client takes or sends too slowly, or the relay has no room for it now.
    TryLater,
    /// Bytes that are not this protocol.
    Protocol,
    /// The mailbox is not proven to be the client's.
    NotProven,
    /// A version or encryption that this relay does not offer.
    NotOffered,
    /// The first frame is late, or nothing came for too long.
    Silent,
    /// Too many proofs failed.
    TooManyFailedProofs,
}

impl Close {
    /// The code in the close frame.
    pub const fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::TooLarge => 1009,
            Self::TryLater => 1013,
            Self::Protocol => 4400,
            Self::NotProven => 4401,
            Self::NotOffered => 4406,
            Self::Silent => 4408,
            Self::TooManyFailedProofs => 4429,
        }
    }

    /// The text in the close frame; at most 123 bytes, the room that RFC 6455 leaves for it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::GoingAway => "the relay is going away; reconnect in a moment",
            Self::TooLarge => "the message is too large",
            Self::TryLater => "too slow or too busy; try again later",
            Self::Protocol => "this is not the relay's protocol",
            Self::NotProven => "the handshake does not prove that this mailbox is yours",
            Self::NotOffered => "this version or encryption is not offered here",
            Self::Silent => "nothing was heard for too long",
            Self::TooManyFailedProofs => "too many failed proofs; try again later",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_differ_and_reasons_fit_a_close_frame() {
        let all = [
            Close::GoingAway,
            Close::TooLarge,
            Close::TryLater,
            Close::Protocol,
            Close::NotProven,
            Close::NotOffered,
            Close::Silent,
            Close::TooManyFailedProofs,
        ];
        assert_eq!(
            all.map(Close::code),
            [1001, 1009, 1013, 4400, 4401, 4406, 4408, 4429]
        );
        for close in all {
            assert!((1..=123).contains(&close.reason().len()), "{close:?}");
        }
    }
}
