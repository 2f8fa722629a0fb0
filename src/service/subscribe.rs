//! Open a mailbox: from here on the session is told of what comes.

use std::net::IpAddr;
use std::sync::Arc;

use super::Service;
use super::charge::Client;
use crate::hub::{Joined, Wakes};
use crate::ids::{ConnectionId, MailboxHash, MailboxId};

/// An opened mailbox; closing it is dropping it.
#[derive(Debug)]
pub struct Subscription {
    /// The mailbox as the store knows it.
    pub mailbox: MailboxHash,
    /// Whom its requests are charged to.
    pub client: Client,
    _joined: Joined,
}

/// Why a proven handshake opens nothing all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceRefused {
    /// It was used before: somebody recorded it.
    Used,
    /// Too many are remembered; try again within two minutes.
    Full,
}

impl Service {
    /// Whether a v1 client may open a mailbox without a proof.
    pub fn v1_allows_unverified(&self) -> bool {
        self.parts.v1_allows_unverified
    }

    /// Whether v1 deliveries tell who says to have sent them.
    pub fn v1_keeps_sender_id(&self) -> bool {
        self.parts.v1_keeps_sender_id
    }

    /// Burns the nonce of a handshake whose signature is good.
    pub fn burn_nonce(&self, nonce: [u8; 32]) -> Result<(), NonceRefused> {
        self.nonces.burn(nonce, self.parts.clock.now())
    }

    /// Joins the hub for `mailbox`. The caller reads the mailbox only after this has returned, so
    /// nothing that is stored in between is missed.
    pub fn subscribe(
        &self,
        mailbox: &MailboxId,
        address: IpAddr,
        connection: ConnectionId,
        wakes: Arc<Wakes>,
    ) -> Subscription {
        let mailbox = self.parts.secret.mailbox(mailbox);
        let joined = self.parts.hub.join(mailbox, connection, wakes);
        Subscription {
            mailbox,
            client: self.client(&mailbox, address),
            _joined: joined,
        }
    }
}
