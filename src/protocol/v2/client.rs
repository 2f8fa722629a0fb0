//! Protobuf after `proto/relay.proto`, the client's side: [`encode_request`] what a relay is asked,
//! [`decode_server_frame`] what it says. Both in the values that the relay's side has.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::code::word_of;
use super::message::{
    Answer, BlobDelivery, Done, FoundProof, GoAway, GoAwayReason, Introduce, Limits, Opened,
    Opening, PurgedMailbox, ReceiptDelivery, ReceiptKind, Request, Submit, Subscribe, Tag, Welcome,
    Withdrawal, WithdrawalKind,
};
use super::request::{blob_id, mailbox, mailboxes};
use super::schema::server_frame::Frame;
use super::schema::{self, client_frame, exactly, field, optional, seconds};
use super::wire::{MALFORMED, check_server_frame};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{BadFrame, Refused};

/// A frame from a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// One that this version knows.
    Known {
        /// The request that it answers; `None` when nobody asked.
        answers: Option<Tag>,
        /// What it says.
        answer: Answer,
    },
    /// One of a later version; a client passes over it.
    Unknown {
        /// The request that it answers; `None` when nobody asked.
        answers: Option<Tag>,
    },
}

/// Writes a request under a number, or one that shall not be answered.
pub fn encode_request(tag: Option<Tag>, request: &Request) -> Bytes {
    let frame = schema::ClientFrame {
        request: tag.map_or(0, Tag::number),
        frame: Some(spell(request)),
    };
    frame.encode_to_vec().into()
}

fn spell(request: &Request) -> client_frame::Frame {
    use client_frame::Frame;
    match request {
        Request::Hello(introduce) => Frame::Hello(spell_hello(introduce.as_ref())),
        Request::Submit(submit) => Frame::Submit(spell_submit(submit)),
        Request::Subscribe(subscribe) => Frame::Subscribe(spell_subscribe(subscribe)),
        Request::Unsubscribe(mailboxes) => Frame::Unsubscribe(schema::Unsubscribe {
            mailboxes: ids(mailboxes),
        }),
        Request::Window { blobs, bytes } => Frame::Window(schema::Window {
            blobs: *blobs,
            bytes: *bytes,
        }),
        Request::Acknowledge(items) => Frame::Acknowledge(schema::Acknowledge {
            items: items.iter().map(spell_item).collect(),
        }),
        Request::Withdraw(withdrawal) => spell_withdrawal(withdrawal),
        Request::Purge(mailboxes) => Frame::Purge(schema::Purge {
            mailboxes: ids(mailboxes),
        }),
        Request::Unpin(mailbox) => Frame::Unpin(schema::Unpin {
            mailbox: field(mailbox.as_bytes()),
        }),
        Request::RecoveryStore(proof) => Frame::RecoveryPut(schema::RecoveryPut {
            key_hash: field(&proof.key_hash),
            proof: proof.proof.clone(),
        }),
        Request::RecoveryQuery(query) => Frame::RecoveryGet(schema::RecoveryGet {
            key_hashes: query.key_hashes.iter().map(|hash| field(hash)).collect(),
        }),
        Request::Ping => Frame::Ping(schema::Ping {}),
    }
}

fn spell_hello(introduce: Option<&Introduce>) -> schema::Hello {
    let Some(Introduce { nonce, origin }) = introduce else {
        return schema::Hello::default();
    };
    schema::Hello {
        nonce: field(nonce),
        origin: origin.as_ref().to_owned(),
        ..schema::Hello::default()
    }
}

fn ids(mailboxes: &[MailboxId]) -> Vec<Bytes> {
    mailboxes.iter().map(|id| field(id.as_bytes())).collect()
}

fn spell_item((mailbox, id): &(MailboxId, BlobId)) -> schema::Item {
    schema::Item {
        mailbox: field(mailbox.as_bytes()),
        id: field(id.as_bytes()),
    }
}

fn spell_submit(submit: &Submit) -> schema::Submit {
    let terms = &submit.terms;
    let optional = |bytes: Option<&[u8; 32]>| bytes.map(|bytes| field(bytes)).unwrap_or_default();
    schema::Submit {
        id: field(submit.id.as_bytes()),
        mailbox: field(submit.recipient.as_bytes()),
        ttl_seconds: terms.ttl.map_or(0, at_least_a_second),
        topic: optional(terms.topic.as_ref()),
        receipt_to: optional(terms.receipt_to.as_ref().map(MailboxId::as_bytes)),
        live_only: terms.live_only,
        v1_ok: terms.v1_ok,
        relay: optional(terms.relay.as_ref()),
        blob: submit.body.clone(),
    }
}

fn spell_subscribe(subscribe: &Subscribe) -> schema::Subscribe {
    schema::Subscribe {
        origin: subscribe.origin.as_ref().to_owned(),
        openings: subscribe.openings.iter().map(spell_opening).collect(),
    }
}

fn spell_opening(opening: &Opening) -> schema::Opening {
    let receipts = if opening.tells_senders {
        schema::Receipts::All
    } else {
        schema::Receipts::None
    };
    schema::Opening {
        mailbox: field(opening.mailbox.as_bytes()),
        signature: opening
            .signature
            .map(|bytes| field(&bytes))
            .unwrap_or_default(),
        receipts: receipts.into(),
        no_pin: opening.no_pin,
    }
}

fn spell_withdrawal(withdrawal: &Withdrawal) -> client_frame::Frame {
    let mailbox = field(withdrawal.mailbox.as_bytes());
    let shown = field(&withdrawal.shown);
    match withdrawal.kind {
        WithdrawalKind::Extend(ttl) => client_frame::Frame::Extend(schema::Extend {
            mailbox,
            key: shown,
            ttl_seconds: at_least_a_second(ttl),
        }),
        WithdrawalKind::Cancel => client_frame::Frame::Cancel(schema::Cancel {
            mailbox,
            secret: shown,
        }),
    }
}

/// Zero would say "the default", which nobody means by a short time.
fn at_least_a_second(span: Duration) -> u32 {
    seconds(span).max(1)
}

/// Reads a frame from a relay.
pub fn decode_server_frame(frame: &Bytes) -> Result<ServerFrame, BadFrame> {
    check_server_frame(frame).map_err(BadFrame)?;
    let decoded = schema::ServerFrame::decode(frame.clone()).map_err(|_| BadFrame(MALFORMED))?;
    let answers = Tag::new(decoded.answers);
    let known = match decoded.frame {
        Some(frame) => read(frame).map_err(BadFrame)?,
        None => None,
    };
    Ok(match known {
        Some(answer) => ServerFrame::Known { answers, answer },
        None => ServerFrame::Unknown { answers },
    })
}

/// What the relay says; `None` for what a later version may mean by it.
fn read(frame: Frame) -> Result<Option<Answer>, &'static str> {
    Ok(Some(match frame {
        Frame::Welcome(welcome) => Answer::Welcome(Box::new(read_welcome(welcome)?)),
        Frame::Refused(refused) => Answer::Refused(read_refused(refused)),
        Frame::Stored(stored) => Answer::Stored {
            expires_at: Timestamp::from_millis(stored.expires_at),
            duplicate: stored.duplicate,
        },
        Frame::Handed(_) => Answer::Handed,
        Frame::Subscribed(subscribed) => {
            Answer::Subscribed(subscribed.openings.iter().map(read_opened).collect())
        }
        Frame::Windowed(schema::Windowed { blobs, bytes }) => Answer::Windowed { blobs, bytes },
        Frame::Unsubscribed(_) => Answer::Done(Done::Unsubscribed),
        Frame::Acknowledged(_) => Answer::Done(Done::Acknowledged),
        Frame::Extended(_) => Answer::Done(Done::Extended),
        Frame::Cancelled(_) => Answer::Done(Done::Cancelled),
        Frame::Unpinned(_) => Answer::Done(Done::Unpinned),
        Frame::Pong(_) => Answer::Done(Done::Pong),
        Frame::Purged(purged) => Answer::Purged(each(&purged.mailboxes, read_purged)?),
        Frame::RecoveryStored(stored) => Answer::RecoveryKept {
            expires_at: Timestamp::from_millis(stored.expires_at),
        },
        Frame::RecoveryProofs(found) => Answer::RecoveryFound {
            proofs: each(&found.proofs, read_proof)?,
            more: found.more,
        },
        Frame::Delivery(delivery) => Answer::Blob(read_delivery(delivery)?),
        Frame::Receipt(receipt) => return Ok(read_receipt(&receipt)?.map(Answer::Receipt)),
        Frame::CaughtUp(caught_up) => Answer::CaughtUp(mailboxes(&caught_up.mailboxes)?),
        Frame::GoAway(go_away) => Answer::GoAway(read_go_away(&go_away)),
    }))
}

fn each<A, B>(
    list: &[A],
    read: impl Fn(&A) -> Result<B, &'static str>,
) -> Result<Vec<B>, &'static str> {
    list.iter().map(read).collect()
}

fn read_welcome(welcome: schema::Welcome) -> Result<Welcome, &'static str> {
    let limits = welcome.limits.ok_or("the welcome has no limits")?;
    Ok(Welcome {
        relay_id: exactly(&welcome.relay_id, "a relay id must have 32 bytes")?,
        server_version: welcome.server_version.into(),
        challenge: exactly(&welcome.challenge, "a challenge must have 32 bytes")?,
        limits: read_limits(&limits),
        keepalive: Duration::from_secs(welcome.keepalive_seconds.into()),
        features: welcome.features.into_iter().map(Into::into).collect(),
        proof: optional(&welcome.proof, "a relay's proof must have 64 bytes")?,
    })
}

fn read_limits(limits: &schema::Limits) -> Limits {
    Limits {
        blob_bytes_max: limits.blob_bytes_max,
        submits_per_minute: limits.submits_per_minute,
        ttl_default: Duration::from_secs(limits.ttl_default_seconds.into()),
        ttl_max: Duration::from_secs(limits.ttl_max_seconds.into()),
        mailboxes_max: limits.mailboxes_max,
        window_default: (limits.window_blobs_default, limits.window_bytes_default),
        window_max: (limits.window_blobs_max, limits.window_bytes_max),
        mailbox_blobs_max: limits.mailbox_blobs_max.into(),
        mailbox_bytes_max: limits.mailbox_bytes_max,
    }
}

fn read_refused(refused: schema::Refused) -> Refused {
    Refused {
        code: word_of(refused.code),
        message: refused.message.into(),
        retry_after: (refused.retry_after_ms != 0)
            .then(|| Duration::from_millis(refused.retry_after_ms)),
    }
}

fn read_opened(opened: &schema::Opened) -> Result<Opened, &'static str> {
    if opened.code != schema::Code::Unspecified as i32 {
        return Err(word_of(opened.code));
    }
    Ok(Opened {
        pending: opened.pending,
        blobs: opened.blobs.into(),
        bytes: opened.bytes,
    })
}

fn read_purged(purged: &schema::PurgedMailbox) -> Result<PurgedMailbox, &'static str> {
    Ok(PurgedMailbox {
        mailbox: mailbox(&purged.mailbox)?,
        blobs: purged.blobs.into(),
        receipts: purged.receipts.into(),
    })
}

fn read_proof(found: &schema::RecoveryProof) -> Result<FoundProof, &'static str> {
    Ok(FoundProof {
        key_hash: exactly(&found.key_hash, "a key hash must have 32 bytes")?,
        proof: found.proof.clone(),
        stored_at: Timestamp::from_millis(found.stored_at),
    })
}

fn read_delivery(delivery: schema::Delivery) -> Result<BlobDelivery, &'static str> {
    Ok(BlobDelivery {
        id: blob_id(&delivery.id)?,
        mailbox: mailbox(&delivery.mailbox)?,
        stored_at: Timestamp::from_millis(delivery.stored_at),
        expires_at: (delivery.expires_at != 0).then(|| Timestamp::from_millis(delivery.expires_at)),
        redelivered: delivery.redelivered,
        body: delivery.blob,
    })
}

fn read_receipt(receipt: &schema::Receipt) -> Result<Option<ReceiptDelivery>, &'static str> {
    let kind = match receipt.kind() {
        schema::ReceiptKind::Delivered => ReceiptKind::Delivered,
        schema::ReceiptKind::Acknowledged => ReceiptKind::Acknowledged,
        schema::ReceiptKind::Expired => ReceiptKind::Expired,
        schema::ReceiptKind::Removed => ReceiptKind::Removed,
        schema::ReceiptKind::Lost => ReceiptKind::Lost,
        schema::ReceiptKind::Unspecified => return Ok(None),
    };
    Ok(Some(ReceiptDelivery {
        mailbox: mailbox(&receipt.mailbox)?,
        receipt_id: blob_id(&receipt.receipt_id)?,
        id: blob_id(&receipt.id)?,
        kind,
        at: Timestamp::from_millis(receipt.at),
    }))
}

fn read_go_away(go_away: &schema::GoAway) -> GoAway {
    GoAway {
        reason: match go_away.reason() {
            schema::GoAwayReason::Overloaded => GoAwayReason::Overloaded,
            // Whatever the reason is, a client goes.
            schema::GoAwayReason::Draining | schema::GoAwayReason::Unspecified => {
                GoAwayReason::Draining
            }
        },
        reconnect_after: Duration::from_millis(go_away.reconnect_after_ms),
        alternates: go_away.alternates.clone().into(),
    }
}
