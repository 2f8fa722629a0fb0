//! Open a mailbox: from here on the session is told of what comes.

use std::net::IpAddr;
use std::sync::Arc;

use super::Service;
use super::charge::Client;
use super::refusal::Refusal;
use crate::hub::{Joined, Wakes};
use crate::ids::{ConnectionId, MailboxHash, MailboxId};
use crate::store::model::{Holding, View};

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

    /// This relay's public key, part of what keys sign.
    pub fn relay_id(&self) -> &[u8; 32] {
        &self.relay_id
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

    /// Whether this id has proved itself, so that it is opened only with a proof.
    pub async fn is_pinned(&self, id: &MailboxId) -> Result<bool, Refusal> {
        let (store, mailbox) = (&self.parts.store, self.parts.secret.mailbox(id));
        let now = self.parts.clock.now();
        Ok(store.is_pinned(mailbox, self.parts.blob_ttl, now).await?)
    }

    /// Pins an id that was opened with a proof; from now on it is not opened without. An address
    /// that has brought too many new ids today gets no more pins, and is served all the same.
    pub async fn pin(&self, id: &MailboxId, address: IpAddr) -> Result<(), Refusal> {
        if !self.is_pinned(id).await? && self.charge_pin(address).is_err() {
            return Ok(());
        }
        let (store, mailbox) = (&self.parts.store, self.parts.secret.mailbox(id));
        Ok(store.pin(mailbox, self.parts.clock.now()).await?)
    }

    /// Takes the pin off: the id may be opened without a proof again.
    pub async fn unpin(&self, id: &MailboxId) -> Result<(), Refusal> {
        let mailbox = self.parts.secret.mailbox(id);
        Ok(self.parts.store.unpin(mailbox).await?)
    }

    /// Burns the nonce of a handshake whose signature is good.
    pub fn burn_nonce(&self, nonce: [u8; 32]) -> Result<(), NonceRefused> {
        let now = self.parts.clock.now();
        self.nonces.burn(nonce, self.expired_by(), now)
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
            joined,
        }
    }
}
