//! What a v2 session knows of its client: who it is, and which mailboxes it has open.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::hub::Inbox;
use crate::ids::{ConnectionId, MailboxHash, MailboxId};
use crate::protocol::proof;
use crate::protocol::v2::message::{Introduce, Limits, Welcome};
use crate::protocol::v2::{self, Answer};
use crate::service::Tells;
use crate::service::charge::Client;
use crate::service::pins::PinShare;
use crate::service::refusal::Refusal;
use crate::session::mailboxes::{self, Mailboxes, Named};
use crate::session::{Parts, window};

/// The client of a v2 session.
pub(in crate::session) struct Guest {
    pub(super) connection: ConnectionId,
    pub(super) address: IpAddr,
    /// What the upgrade request named, if it named a host.
    host: Option<Box<str>>,
    /// This connection's own; part of what keys sign.
    pub(super) challenge: [u8; 32],
    has_said_hello: AtomicBool,
    pub(super) pin_share: PinShare,
    pub(super) inbox: Arc<Inbox>,
    pub(in crate::session) mailboxes: Arc<Mailboxes>,
    /// Whom requests are charged to, and the first mailbox that was opened: the client's name from
    /// then on. Nothing awaits inside.
    name: Mutex<(Client, Option<MailboxId>)>,
}

impl Guest {
    pub(in crate::session) fn new(
        (address, host): (IpAddr, Option<Box<str>>),
        inbox: Arc<Inbox>,
        parts: &Parts,
    ) -> Self {
        // Until it has opened a mailbox, a connection is a client of its own.
        let nobody = MailboxHash::from_bytes(rand::random());
        Self {
            connection: ConnectionId::next(),
            address,
            host,
            challenge: rand::random(),
            has_said_hello: AtomicBool::new(false),
            pin_share: PinShare::default(),
            inbox,
            mailboxes: Arc::default(),
            name: Mutex::new((parts.service.client(&nobody, address), None)),
        }
    }

    /// Charges a request to the client.
    pub(super) async fn charge(&self, parts: &Parts) -> Result<(), Refusal> {
        parts.service.charge(&self.client()).await
    }

    /// The relay speaks first.
    pub(in crate::session) fn first_frame(&self, parts: &Parts) -> Bytes {
        v2::encode(None, &self.welcome(None, parts))
    }

    /// Proves who we are to a client that has dialled us under a name of ours. Under another name somebody
    /// may sit between, and would pass the proof on.
    pub(super) fn introduce(
        &self,
        introduce: Option<&Introduce>,
        parts: &Parts,
    ) -> Result<Answer, Refusal> {
        let Some(Introduce { nonce, origin }) = introduce else {
            return Ok(self.welcome(None, parts));
        };
        self.is_dialled_as(origin, parts)?;
        let service = &parts.service;
        let signed = proof::v2_welcome(service.relay_id(), nonce, &self.challenge, origin);
        Ok(self.welcome(Some(service.sign(&signed)), parts))
    }

    /// Whether a client that dialled this host is in the right place: otherwise somebody may pass on what
    /// it signed for another.
    pub(super) fn is_dialled_as(&self, origin: &str, parts: &Parts) -> Result<(), Refusal> {
        let v2 = &parts.settings.v2;
        if v2.serves(origin, self.host.as_deref()) {
            return Ok(());
        }
        // With a list the operator has decided; without one, most likely the proxy changes the header.
        if v2.origins.is_empty() && !parts.has_told_of_origins.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "refused a v2 client that had connected under another host name than its upgrade request names: a proxy changes the Host header, or somebody passes clients on. Have the proxy pass Host unchanged, or list the relay's names in RELAY_PUBLIC_ORIGINS. This is logged once."
            );
        }
        Err(Refusal::WrongOrigin)
    }

    /// Whether this is the client's first question who we are: connecting has been paid for.
    pub(super) fn is_first_hello(&self) -> bool {
        !self.has_said_hello.swap(true, Ordering::Relaxed)
    }

    fn welcome(&self, proof: Option<[u8; 64]>, parts: &Parts) -> Answer {
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
            proof,
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
