//! Open a mailbox: from here on the session is told of what comes.

use std::net::IpAddr;
use std::sync::Arc;

use super::Service;
use super::charge::Client;
use super::refusal::Refusal;
use crate::hub::{Inbox, Joined};
use crate::ids::{ConnectionId, MailboxHash, MailboxId};
use crate::store::model::{Burnt, Holding, View};

pub use crate::commons::NonceRefused;

/// An opened mailbox; closing it is dropping it.
#[derive(Debug)]
pub struct Subscription {
    /// The mailbox as the store knows it.
    pub mailbox: MailboxHash,
    /// Whom its requests are charged to.
    pub client: Client,
    /// Keeps the hub's wakes coming.
    pub joined: Joined,
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

    /// This relay's public key, part of what keys sign.
    pub fn relay_id(&self) -> &[u8; 32] {
        self.identity.id()
    }

    /// Signs as this relay.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.identity.sign(bytes)
    }

    /// A mailbox as the store knows it.
    pub fn mailbox(&self, id: &MailboxId) -> MailboxHash {
        self.parts.secret.mailbox(id)
    }

    /// What each of these mailboxes holds for one who proved possession, in the order asked.
    pub async fn holdings(&self, mailboxes: Vec<MailboxHash>) -> Result<Vec<Holding>, Refusal> {
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        Ok(store.holdings(mailboxes, View::Proven, now).await?)
    }

    /// Burns the nonce of a handshake whose signature is good: durable, so that it opens nothing
    /// after a restart either. While nothing can be written, as on a full disk, it is burnt in memory:
    /// whoever proves itself can still fetch and acknowledge, which makes room.
    pub async fn burn_nonce(&self, nonce: [u8; 32]) -> Result<(), NonceRefused> {
        let (expired_by, now) = (self.expired_by(), self.parts.clock.date());
        self.parts.commons.burn(nonce, expired_by, now).await?;
        match self.parts.store.burn(nonce, expired_by, now).await {
            Ok(Burnt::First) => Ok(()),
            Ok(Burnt::Used) => Err(NonceRefused::Used),
            Ok(Burnt::Full) => Err(NonceRefused::Full),
            Err(error) => {
                tracing::warn!(
                    "cannot save the nonce of a handshake, keeping it in memory only: {error}"
                );
                Ok(())
            }
        }
    }

    /// Joins the hub for `mailbox`. The caller reads the mailbox only after this has returned, so
    /// nothing that is stored in between is missed.
    pub fn subscribe(
        &self,
        mailbox: &MailboxId,
        address: IpAddr,
        connection: ConnectionId,
        inbox: Arc<Inbox>,
    ) -> Subscription {
        let mailbox = self.parts.secret.mailbox(mailbox);
        let joined = self.parts.hub.join(mailbox, connection, inbox);
        Subscription {
            mailbox,
            client: self.client(&mailbox, address),
            joined,
        }
    }
}
