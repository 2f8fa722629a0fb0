//! What a v2 session writes without being asked: blobs, receipts, live blobs, word that all has come, and
//! that the relay goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::hub::LiveBlob;
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::v2::message::{
    BlobDelivery, GoAway, GoAwayReason, ReceiptDelivery, ReceiptKind,
};
use crate::protocol::v2::{self, Answer};
use crate::service::sealed::Sealed;
use crate::service::{self, Receipt, StoredBlob};
use crate::session::feed::delivered_bytes;
use crate::session::mailboxes::Named;
use crate::session::writer::{Delivered, Outgoing, Then, Writer};

/// A client that is told to go comes back after a fifth to all of this.
const RECONNECT_AFTER: Duration = Duration::from_secs(5);

impl Writer<'_> {
    /// `None` when the mailbox was closed in the meantime: nobody waits for it.
    pub(in crate::session) fn delivery_v2(
        &mut self,
        mailbox: MailboxHash,
        blob: StoredBlob,
    ) -> Option<Outgoing> {
        let named = self.mailboxes.named(&mailbox)?;
        let bytes = delivered_bytes(&blob);
        self.shared.state().delivered((mailbox, blob.id), bytes);
        let clock = &self.parts.clock;
        if let Some(receipt) = blob.receipt() {
            let answer = receipt_delivery(named, &blob, &receipt, clock.told(receipt.at));
            return Some(Outgoing {
                frame: v2::encode(None, &answer),
                then: Then::ReceiptDelivered,
            });
        }
        let (service, id) = (&self.parts.service, blob.id);
        let is_noted = named.tells_senders && blob.wants_receipts && !blob.is_delivered_told;
        let body = match service.unseal(&named.id, &blob.sealed) {
            Some(Sealed::Frame(frame)) => frame,
            Some(Sealed::SenderId(_) | Sealed::SenderDevice(_)) | None => blob.body,
        };
        let answer = Answer::Blob(BlobDelivery {
            id,
            mailbox: named.id,
            stored_at: clock.told(blob.stored_at),
            expires_at: Some(clock.told(blob.expires_at)),
            redelivered: service.is_redelivered(&mailbox, &id),
            body,
        });
        Some(Outgoing {
            frame: v2::encode(None, &answer),
            then: Then::Delivered(Delivered {
                tell: named.tells_senders.then_some(id),
                note: is_noted.then_some((mailbox, id)),
            }),
        })
    }

    /// A live blob is not in flight: a client that loses it loses nothing that the relay had promised.
    pub(in crate::session) fn live_delivery_v2(&self, blob: LiveBlob) -> Option<Outgoing> {
        let named = self.mailboxes.named(&blob.mailbox)?;
        let answer = Answer::Blob(BlobDelivery {
            id: blob.id,
            mailbox: named.id,
            stored_at: self.parts.clock.told(blob.handed_at),
            expires_at: None,
            redelivered: false,
            body: blob.body,
        });
        let (tell, note) = (None, None);
        Some(Outgoing {
            frame: v2::encode(None, &answer),
            then: Then::Delivered(Delivered { tell, note }),
        })
    }

    pub(in crate::session) fn go_away_v2(&mut self) -> Bytes {
        self.has_said_go_away = true;
        // Spread over some seconds, so that not all come back, here or elsewhere, at once.
        let reconnect_after = RECONNECT_AFTER.mul_f64(0.2 + 0.8 * rand::random::<f64>());
        let go_away = Answer::GoAway(GoAway {
            reason: GoAwayReason::Draining,
            reconnect_after,
            alternates: Arc::clone(&self.parts.settings.v2.alternates),
        });
        v2::encode(None, &go_away)
    }
}

pub(in crate::session) fn caught_up_v2(mailboxes: Vec<MailboxId>) -> Bytes {
    v2::encode(None, &Answer::CaughtUp(mailboxes))
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
