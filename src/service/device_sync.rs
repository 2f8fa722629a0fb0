//! v1's device messages, expressed as mailboxes: one for each device of an identity.

use std::sync::Arc;

use bytes::Bytes;

use super::charge::Client;
use super::refusal::Refusal;
use super::sealed::Sealed;
use super::submit::Submitted;
use super::{BacklogCursor, Page, Service, StoreError};
use crate::hub::{Inbox, Joined};
use crate::ids::{BlobId, ConnectionId, MailboxHash, MailboxId};
use crate::service::deliver::PAGE;
use crate::store::model::{Class, Envelope, Owner};

/// A message from one device of an identity to another.
#[derive(Debug)]
pub struct DeviceMessage {
    /// Whose devices they are.
    pub identity: MailboxId,
    /// The device it is for.
    pub target_device: MailboxId,
    /// The device it is from, as it was spelt.
    pub sender_device: Box<str>,
    /// The sender's count; what waits comes in its order.
    pub version: u64,
    /// Its id.
    pub id: BlobId,
    /// The message.
    pub body: Bytes,
}

/// A device that receives; ends when it is dropped.
#[derive(Debug)]
pub struct DeviceSubscription {
    /// Where its messages wait.
    pub mailbox: MailboxHash,
    _joined: Joined,
}

impl Service {
    /// Joins the hub for a device. Its messages are read only after this has returned.
    pub fn subscribe_device(
        &self,
        identity: &MailboxId,
        device: &MailboxId,
        connection: ConnectionId,
        inbox: Arc<Inbox>,
    ) -> DeviceSubscription {
        let mailbox = self.parts.secret.device_mailbox(identity, device);
        let joined = self.parts.hub.join(mailbox, connection, inbox);
        DeviceSubscription {
            mailbox,
            _joined: joined,
        }
    }

    /// Puts a message for a device in the queue of the next commit.
    pub async fn submit_device_message(
        &self,
        client: &Client,
        message: DeviceMessage,
    ) -> Result<Submitted, Refusal> {
        let (secret, stored_at) = (&self.parts.secret, self.parts.clock.date());
        let kept = Sealed::SenderDevice(message.sender_device);
        let envelope = Envelope {
            mailbox: secret.device_mailbox(&message.identity, &message.target_device),
            id: message.id,
            class: Class::DeviceSync,
            owner: Some(Owner {
                hash: secret.mailbox(&message.identity),
                version: message.version,
            }),
            topic: None,
            receipt_to: None,
            stored_at,
            expires_at: stored_at.plus(self.parts.blob_ttl),
            sealed: kept.seal(secret, &message.target_device),
            body: message.body,
        };
        let room = self.charge_relay_room(client, &envelope)?;
        self.hand_in(envelope, room).await
    }

    /// What waited for a device when it connected, by version.
    pub async fn device_backlog(
        &self,
        mailbox: MailboxHash,
        after: BacklogCursor,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let now = self.parts.clock.now();
        let store = &self.parts.store;
        store.device_sync_backlog(mailbox, after, PAGE, now).await
    }

    /// Deletes what waits for any device of an identity; returns how many messages that were.
    pub async fn purge_devices(&self, identity: &MailboxId) -> Result<u64, Refusal> {
        let owner = self.parts.secret.mailbox(identity);
        let now = self.parts.clock.now();
        Ok(self.parts.store.purge_owner(owner, now).await?.blobs)
    }
}
