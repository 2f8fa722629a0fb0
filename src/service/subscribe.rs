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

impl Service {
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
