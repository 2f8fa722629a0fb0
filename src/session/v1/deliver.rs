//! What a v1 session writes without being asked: blobs, messages for its device, notices.

use std::sync::Arc;

use super::open::{Opened, ToDevice};
use crate::hub::{Fate, Notice};
use crate::protocol::v1::message::{Delivery, DeviceSyncDelivery, NoticeStatus};
use crate::protocol::v1::{self, Answer, Tag};
use crate::service::StoredBlob;
use crate::service::sealed::Sealed;
use crate::session::Ended;
use crate::session::feed::delivered_bytes;
use crate::session::writer::Writer;

impl Writer<'_> {
    pub(in crate::session) async fn deliver_v1(
        &mut self,
        opened: &Opened,
        blob: StoredBlob,
    ) -> Result<(), Ended> {
        // Noted before it is written: the acknowledgement may be read before this returns.
        let bytes = delivered_bytes(&blob);
        self.shared.state().delivered(opened.slot(blob.id), bytes);
        let service = &self.parts.service;
        let (sender_id, body) = match service.unseal(&opened.mailbox, &blob.sealed) {
            Some(Sealed::SenderId(sender_id)) => (Some(sender_id), blob.body),
            Some(Sealed::Frame(frame)) => (None, frame),
            Some(Sealed::SenderDevice(_)) | None => (None, blob.body),
        };
        let sender_id = sender_id.filter(|_| service.v1_keeps_sender_id());
        let delivery = Delivery {
            id: blob.id,
            mailbox_as_spelt: Arc::clone(&opened.mailbox_as_spelt),
            sender_id,
            body,
        };
        self.say_v1(None, &Answer::Delivery(delivery)).await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        if opened.tells_senders {
            self.parts.service.tell_delivered(&blob.id);
        }
        Ok(())
    }

    pub(in crate::session) async fn deliver_device_sync(
        &mut self,
        to: ToDevice<'_>,
        message: StoredBlob,
    ) -> Result<(), Ended> {
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
        self.say_v1(None, &Answer::DeviceSync(delivery)).await?;
        self.parts.metrics.device_sync_delivered_total.increment(1);
        Ok(())
    }

    pub(in crate::session) async fn notify(&mut self, notice: Notice) -> Result<(), Ended> {
        let status = match notice.fate {
            Fate::Delivered => NoticeStatus::Delivered,
            Fate::Acknowledged => NoticeStatus::ReceivedByRecipient,
        };
        let (tag, blob_id) = (Tag::new(&notice.name), notice.blob);
        let answer = Answer::Notice { blob_id, status };
        self.say_v1(Some(&tag), &answer).await
    }

    async fn say_v1(&mut self, tag: Option<&Tag>, answer: &Answer) -> Result<(), Ended> {
        self.write(v1::encode(tag, answer, self.parts.clock.told_now()))
            .await
    }
}
