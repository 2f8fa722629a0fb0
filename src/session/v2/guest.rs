//! What a v2 session knows of its client: who it is, and which mailboxes it has open.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::hub::Inbox;
use crate::ids::{ConnectionId, MailboxHash, MailboxId};
use crate::protocol::v2::message::{Limits, Welcome};
use crate::protocol::v2::{self, Answer};
use crate::service::Tells;
use crate::service::charge::Client;
use crate::service::refusal::Refusal;
use crate::session::mailboxes::{self, Mailboxes, Named};
use crate::session::{Parts, window};

/// The client of a v2 session.
pub(in crate::session) struct Guest {
    pub(super) connection: ConnectionId,
    pub(super) address: IpAddr,
    /// This connection's own; part of what keys sign.
    pub(super) challenge: [u8; 32],
    pub(super) inbox: Arc<Inbox>,
    pub(in crate::session) mailboxes: Arc<Mailboxes>,
    /// Whom requests are charged to, and the first mailbox that was opened: the client's name from
    /// then on. Nothing awaits inside.
    name: Mutex<(Client, Option<MailboxId>)>,
}

impl Guest {
    pub(in crate::session) fn new(address: IpAddr, inbox: Arc<Inbox>, parts: &Parts) -> Self {
        // Until it has opened a mailbox, a connection is a client of its own.
        let nobody = MailboxHash::from_bytes(rand::random());
        Self {
            connection: ConnectionId::next(),
            address,
            challenge: rand::random(),
            inbox,
            mailboxes: Arc::default(),
            name: Mutex::new((parts.service.client(&nobody, address), None)),
        }
    }

    /// Charges a request to the client.
    pub(super) fn charge(&self, parts: &Parts) -> Result<(), Refusal> {
        parts.service.charge(&self.client())
    }

    /// The relay speaks first.
    pub(in crate::session) fn first_frame(&self, parts: &Parts) -> Bytes {
        v2::encode(None, &self.welcome(parts))
    }

    pub(super) fn welcome(&self, parts: &Parts) -> Answer {
        let v2 = &parts.settings.v2;
        Answer::Welcome(Box::new(Welcome {
            relay_id: *parts.service.relay_id(),
            server_version: env!("CARGO_PKG_VERSION").into(),
            challenge: self.challenge,
            limits: Limits {
                blob_bytes_max: parts.settings.message_bytes_max as u64,
                submits_per_minute: v2.submits_per_minute,
                ttl_default: v2.ttl_max,
                ttl_max: v2.ttl_max,
                mailboxes_max: mailboxes::MAILBOXES_MAX as u32,
                window_default: (window::DEFAULT.blobs, window::DEFAULT.bytes),
                window_max: (window::MAX.blobs, window::MAX.bytes),
                mailbox_blobs_max: v2.mailbox_blobs_max,
                mailbox_bytes_max: v2.mailbox_bytes_max,
            },
            keepalive: parts.settings.keepalive,
            features: Vec::new(),
        }))
    }

    /// An open mailbox by the name that clients give it.
    pub(super) fn opened(&self, id: &MailboxId, parts: &Parts) -> Option<(MailboxHash, Named)> {
        let mailbox = parts.service.mailbox(id);
        Some((mailbox, self.mailboxes.named(&mailbox)?))
    }

    /// The first mailbox that is opened names the client from then on.
    pub(super) fn is_called(&self, id: MailboxId, client: Client) {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if name.1.is_none() {
            *name = (client, Some(id));
        }
    }

    /// Whom requests are charged to, and the first mailbox that was opened.
    pub(super) fn called(&self) -> (Client, Option<MailboxId>) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self) -> Client {
        self.called().0
    }
}

/// Whether senders hear of what becomes of this mailbox's blobs.
pub(super) fn tells(named: Named) -> Tells {
    match named.tells_senders {
        true => Tells::Senders,
        false => Tells::Nobody,
    }
}
