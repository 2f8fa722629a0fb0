//! What a v1 session writes without being asked: blobs, messages for its device, notices.

use std::sync::Arc;

use bytes::Bytes;

use super::open::{Opened, ToDevice};
use crate::hub::{Fate, Notice};
use crate::protocol::v1::message::{Delivery, DeviceSyncDelivery, NoticeStatus};
use crate::protocol::v1::{self, Answer, Tag};
use crate::service::StoredBlob;
use crate::service::sealed::Sealed;
use crate::session::feed::delivered_bytes;
use crate::session::writer::{Delivered, Outgoing, Then, Writer};

impl Writer<'_> {
    pub(in crate::session) fn delivery_v1(&self, opened: &Opened, blob: StoredBlob) -> Outgoing {
        // Noted before it is written: the acknowledgement may be read before that is known here.
        let (id, bytes) = (blob.id, delivered_bytes(&blob));
        self.shared.state().delivered(opened.slot(id), bytes);
        let service = &self.parts.service;
        let (sender_id, body) = match service.unseal(&opened.mailbox, &blob.sealed) {
            Some(Sealed::SenderId(sender_id)) => (Some(sender_id), blob.body),
            Some(Sealed::Frame(frame)) => (None, frame),
            Some(Sealed::SenderDevice(_)) | None => (None, blob.body),
        };
        let sender_id = sender_id.filter(|_| service.v1_keeps_sender_id());
        let delivery = Delivery {
            id,
            mailbox_as_spelt: Arc::clone(&opened.mailbox_as_spelt),
            sender_id,
            body,
        };
        Outgoing {
            frame: self.say_v1(None, &Answer::Delivery(delivery)),
            then: Then::Delivered(Delivered {
                tell: opened.tells_senders.then_some(id),
                note: None,
            }),
        }
    }

    pub(in crate::session) fn device_sync_delivery_v1(
        &self,
        to: ToDevice<'_>,
        message: StoredBlob,
    ) -> Bytes {
        let ToDevice { opened, device } = to;
        let bytes = delivered_bytes(&message);
        let slot = opened.slot(message.id);
        self.shared.state().delivered(slot, bytes);
        let sender_device = match self.parts.service.unseal(&device.id, &message.sealed) {
            Some(Sealed::SenderDevice(sender)) => sender,
            Some(Sealed::SenderId(_) | Sealed::Frame(_)) | None => Box::default(),
        };
        let delivery = DeviceSyncDelivery {
            id: message.id,
            identity_as_spelt: Arc::clone(&device.client_as_spelt),
            target_as_spelt: Arc::clone(&device.id_as_spelt),
            sender_device,
            version: message.version.unwrap_or_default(),
            body: message.body,
        };
        self.say_v1(None, &Answer::DeviceSync(delivery))
    }

    pub(in crate::session) fn notice_v1(&self, notice: &Notice) -> Bytes {
        let status = match notice.fate {
            Fate::Delivered => NoticeStatus::Delivered,
            Fate::Acknowledged => NoticeStatus::ReceivedByRecipient,
        };
        let (tag, blob_id) = (Tag::new(&notice.name), notice.blob);
        self.say_v1(Some(&tag), &Answer::Notice { blob_id, status })
    }

    fn say_v1(&self, tag: Option<&Tag>, answer: &Answer) -> Bytes {
        v1::encode(tag, answer, self.parts.clock.told_now())
    }
}
