//! What a v2 session writes without being asked: blobs, receipts, live blobs, word that all has come, and
//! that the relay goes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::clock::Timestamp;
use crate::hub::LiveBlob;
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::v2::message::{
    BlobDelivery, GoAway, GoAwayReason, ReceiptDelivery, ReceiptKind,
};
use crate::protocol::v2::{self, Answer};
use crate::service::sealed::Sealed;
use crate::service::{self, Receipt, StoredBlob};
use crate::session::Ended;
use crate::session::feed::delivered_bytes;
use crate::session::mailboxes::Named;
use crate::session::writer::Writer;

/// A client that is told to go comes back after a fifth to all of this.
const RECONNECT_AFTER: Duration = Duration::from_secs(5);

impl Writer<'_> {
    pub(in crate::session) async fn deliver_v2(
        &mut self,
        mailbox: MailboxHash,
        blob: StoredBlob,
    ) -> Result<(), Ended> {
        // Closed in the meantime: nobody waits for it.
        let Some(named) = self.mailboxes.named(&mailbox) else {
            return Ok(());
        };
        let bytes = delivered_bytes(&blob);
        self.shared.state().delivered((mailbox, blob.id), bytes);
        if let Some(receipt) = blob.receipt() {
            let at = self.parts.clock.told(receipt.at);
            self.say_v2(&receipt_delivery(named, &blob, &receipt, at))
                .await?;
            self.parts.metrics.receipts_delivered_total.increment(1);
            return Ok(());
        }
        let (service, id) = (&self.parts.service, blob.id);
        let redelivered = service.is_redelivered(&mailbox, &id);
        let body = match service.unseal(&named.id, &blob.sealed) {
            Some(Sealed::Frame(frame)) => frame,
            Some(Sealed::SenderId(_) | Sealed::SenderDevice(_)) | None => blob.body,
        };
        let clock = &self.parts.clock;
        self.say_v2(&Answer::Blob(BlobDelivery {
            id,
            mailbox: named.id,
            stored_at: clock.told(blob.stored_at),
            expires_at: Some(clock.told(blob.expires_at)),
            redelivered,
            body,
        }))
        .await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        let service = &self.parts.service;
        if named.tells_senders {
            service.tell_delivered(&id);
        }
        if named.tells_senders && blob.wants_receipts && !blob.is_delivered_told {
            let service = Arc::clone(service);
            let noting = async move { service.note_delivered(mailbox, id).await };
            let mut noting = noting.boxed();
            // Takes its place among the writes at once, before the client's acknowledgement does.
            if (&mut noting).now_or_never().is_none() {
                self.noting = Some(noting);
            }
        }
        Ok(())
    }

    /// A live blob is not in flight: a client that loses it loses nothing that the relay had promised.
    pub(in crate::session) async fn deliver_live(&mut self, blob: LiveBlob) -> Result<(), Ended> {
        let Some(named) = self.mailboxes.named(&blob.mailbox) else {
            return Ok(());
        };
        self.say_v2(&Answer::Blob(BlobDelivery {
            id: blob.id,
            mailbox: named.id,
            stored_at: self.parts.clock.told(blob.handed_at),
            expires_at: None,
            redelivered: false,
            body: blob.body,
        }))
        .await?;
        self.parts.metrics.blobs_delivered_total.increment(1);
        Ok(())
    }

    pub(in crate::session) async fn say_caught_up(
        &mut self,
        mailboxes: Vec<MailboxId>,
    ) -> Result<(), Ended> {
        self.say_v2(&Answer::CaughtUp(mailboxes)).await
    }

    pub(in crate::session) async fn say_go_away(&mut self) -> Result<(), Ended> {
        self.has_said_go_away = true;
        // Spread over some seconds, so that not all come back, here or elsewhere, at once.
        let reconnect_after = RECONNECT_AFTER.mul_f64(0.2 + 0.8 * rand::random::<f64>());
        self.say_v2(&Answer::GoAway(GoAway {
            reason: GoAwayReason::Draining,
            reconnect_after,
            alternates: Arc::clone(&self.parts.settings.v2.alternates),
        }))
        .await
    }

    async fn say_v2(&mut self, answer: &Answer) -> Result<(), Ended> {
        self.write(v2::encode(None, answer)).await
    }
}

fn receipt_delivery(named: Named, blob: &StoredBlob, receipt: &Receipt, at: Timestamp) -> Answer {
    let kind = match receipt.kind {
        service::ReceiptKind::Delivered => ReceiptKind::Delivered,
        service::ReceiptKind::Acknowledged => ReceiptKind::Acknowledged,
        service::ReceiptKind::Expired => ReceiptKind::Expired,
        service::ReceiptKind::Removed => ReceiptKind::Removed,
        service::ReceiptKind::Lost => ReceiptKind::Lost,
    };
    Answer::Receipt(ReceiptDelivery {
        mailbox: named.id,
        receipt_id: blob.id,
        id: receipt.id,
        kind,
        at,
    })
}
