//! What protocol v1 must give back beside the body: who says to have sent it, or a whole frame.
//!
//! It is sealed under a key from the recipient's *plain* mailbox id and the relay's secret, so the
//! database alone tells nobody who writes to whom, and only an opened mailbox unseals it.

use bytes::Bytes;

use super::Service;
use crate::ids::MailboxId;
use crate::secrets::Secret;

/// Kept with a blob, for its delivery. The first byte tells which; it is stored and never given
/// another meaning.
#[derive(Clone, PartialEq, Eq)]
pub enum Sealed {
    /// The `sender_id` of the submitting frame, as it stood there.
    SenderId(Box<str>),
    /// A whole frame that is delivered as the body: word that an account is no more.
    Frame(Bytes),
    /// The `sender_device_id` of a device-sync message, as it stood there.
    SenderDevice(Box<str>),
}

const SENDER_ID: u8 = 1;
const FRAME: u8 = 2;
const SENDER_DEVICE: u8 = 3;

impl Sealed {
    /// Sealed for this mailbox.
    pub(super) fn seal(&self, secret: &Secret, mailbox: &MailboxId) -> Bytes {
        let (kind, content) = match self {
            Self::SenderId(text) => (SENDER_ID, text.as_bytes()),
            Self::Frame(frame) => (FRAME, frame.as_ref()),
            Self::SenderDevice(text) => (SENDER_DEVICE, text.as_bytes()),
        };
        secret.seal(mailbox.as_bytes(), &[&[kind], content].concat())
    }

    fn unsealed(plain: &[u8]) -> Option<Self> {
        let (kind, content) = plain.split_first()?;
        let text = || std::str::from_utf8(content).ok().map(Box::from);
        match *kind {
            SENDER_ID => text().map(Self::SenderId),
            FRAME => Some(Self::Frame(Bytes::copy_from_slice(content))),
            SENDER_DEVICE => text().map(Self::SenderDevice),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Sealed {
    // Who sent what is nobody's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealed(…)")
    }
}

impl Service {
    /// What was kept beside a blob of this mailbox; `None` when nothing was, or when it does not
    /// open, which is logged: the blob itself is whole all the same.
    pub fn unseal(&self, mailbox: &MailboxId, sealed: &[u8]) -> Option<Sealed> {
        if sealed.is_empty() {
            return None;
        }
        let plain = self.parts.secret.unseal(mailbox.as_bytes(), sealed).ok();
        let given = plain.as_deref().and_then(Sealed::unsealed);
        if given.is_none() {
            tracing::warn!(
                "cannot decrypt the sender fields stored with a blob; delivering the blob without them"
            );
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_for_its_mailbox() {
        let secret = Secret::from_bytes([7; 32]);
        let mailbox = MailboxId::from_bytes([1; 32]);
        for kept in [
            Sealed::SenderId("a sender".into()),
            Sealed::Frame(Bytes::from_static(b"\0\0\0\x02{}")),
            Sealed::SenderDevice("".into()),
        ] {
            let sealed = kept.seal(&secret, &mailbox);
            let plain = secret.unseal(mailbox.as_bytes(), &sealed).unwrap();
            assert_eq!(Sealed::unsealed(&plain), Some(kept));
        }
        assert_eq!(Sealed::unsealed(&[]), None);
        assert_eq!(Sealed::unsealed(&[9, 1]), None);
    }
}
