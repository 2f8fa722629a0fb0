//! Protobuf after `proto/relay.proto`, the relay's side: [`decode`] what clients send, [`encode`] what
//! they get.
//!
//! A frame is one binary WebSocket message. A blob is not copied out of the frame it came in, unless
//! that is mostly something else, and is copied once into the frame it leaves in. Fields that we do
//! not know are skipped.
//!
//! - [`message`]: what the two say to each other, as values
//! - `request`: what each of a client's frames asks; `wire`: a look at a frame before it costs
//!   anything; `code`: the words for refusals; `schema`: the types made from the schema
//! - `origin`: the host that a client dialled, spelt in one way only
//! - [`client`]: the client's side

pub mod client;
mod code;
pub mod message;
mod origin;
#[cfg(test)]
mod property_tests;
mod request;
#[cfg(test)]
mod rules_tests;
mod schema;
mod wire;

use bytes::Bytes;
use prost::Message as _;

use self::code::{code_of, words};
pub use self::message::{Answer, Incoming, Request, Tag};
use self::message::{
    BlobDelivery, Done, FoundProof, GoAway, GoAwayReason, Limits, Opened, PurgedMailbox,
    ReceiptDelivery, ReceiptKind, Welcome,
};
use self::schema::server_frame::Frame;
use self::schema::{count, field, millis, seconds};
use self::wire::{Fault, MALFORMED, Outline, request_of};
use super::message::Refused;
use crate::clock::Timestamp;
use crate::ids::MailboxId;

/// The name of the WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "vauchi.relay.v2";

/// The origin that a client signs that upgraded its connection with this `Host`; `None` where no client could.
pub fn origin_of_host(host: &str) -> Option<Box<str>> {
    origin::of_host(host)
}

/// What stands around the blob in the largest submit: tags, lengths, ids; 256 bytes would do.
pub const FRAME_BYTES_AROUND_A_BLOB: usize = 1024;

/// Reads one frame from a client. Never fails: what cannot be read is a value too.
///
/// A request without a number that needs an answer is [`Incoming::Garbage`].
pub fn decode(frame: &Bytes) -> Incoming {
    let outline = match Outline::of(frame) {
        Ok(outline) => outline,
        Err(why) => return Incoming::Garbage { why },
    };
    let tag = Tag::new(outline.request);
    if tag.is_none() && !outline.may_be_unanswered() {
        return Incoming::Garbage {
            why: "request number 0 is allowed for Acknowledge and Unsubscribe only",
        };
    }
    match outline.check_lists() {
        Ok(()) => {}
        Err(Fault::Refused(why)) => return Incoming::Invalid { tag, why },
        Err(Fault::Malformed) => return Incoming::Garbage { why: MALFORMED },
    }
    let Ok(decoded) = schema::ClientFrame::decode(frame.clone()) else {
        return Incoming::Garbage { why: MALFORMED };
    };
    match decoded.frame.map(request::read) {
        Some(Ok(mut request)) => {
            take_out_of_padding(&mut request, frame.len());
            Incoming::Request { tag, request }
        }
        Some(Err(why)) => Incoming::Invalid { tag, why },
        None => Incoming::Unsupported { tag },
    }
}

/// A blob keeps the frame alive that it came in. With a megabyte of fields around it that we do not
/// know, a blob of one byte would count as one byte in every queue and take a megabyte.
fn take_out_of_padding(request: &mut Request, frame_bytes: usize) {
    if let Request::Submit(submit) = request
        && frame_bytes > submit.body.len() + FRAME_BYTES_AROUND_A_BLOB
    {
        submit.body = Bytes::copy_from_slice(&submit.body);
    }
}

/// The number of a frame that is too large to be read whole; `None` when it does not begin with one.
pub fn tag_of(frame: &[u8]) -> Option<Tag> {
    request_of(frame).and_then(Tag::new)
}

/// Every word that a [`Refused`] can carry.
pub fn codes() -> impl Iterator<Item = &'static str> {
    words()
}

/// Writes one frame to a client: the answer to the request of this number, or what nobody asked for.
pub fn encode(answers: Option<Tag>, answer: &Answer) -> Bytes {
    let frame = schema::ServerFrame {
        answers: answers.map_or(0, Tag::number),
        frame: Some(spell(answer)),
    };
    frame.encode_to_vec().into()
}

/// How many of `proofs`, from the first on, fit into one answer of at most `frame_bytes_max`.
pub fn proofs_that_fit(proofs: &[FoundProof], frame_bytes_max: usize) -> usize {
    // The number, the kind with its length, `more`.
    let mut left = frame_bytes_max.saturating_sub(32);
    proofs
        .iter()
        .take_while(|proof| {
            // Key hash 34, time 11, three keys with lengths of up to 5 bytes.
            match left.checked_sub(64 + proof.proof.len()) {
                Some(rest) => {
                    left = rest;
                    true
                }
                None => false,
            }
        })
        .count()
}

/// The answer in the schema's types.
fn spell(answer: &Answer) -> Frame {
    match answer {
        Answer::Welcome(welcome) => spell_welcome(welcome),
        Answer::Refused(refused) => spell_refused(refused),
        Answer::Stored {
            expires_at,
            duplicate,
        } => Frame::Stored(schema::Stored {
            expires_at: expires_at.millis(),
            duplicate: *duplicate,
        }),
        Answer::Handed => Frame::Handed(schema::Handed {}),
        Answer::Subscribed(openings) => Frame::Subscribed(schema::Subscribed {
            openings: openings.iter().map(spell_opened).collect(),
        }),
        Answer::Windowed { blobs, bytes } => Frame::Windowed(schema::Windowed {
            blobs: *blobs,
            bytes: *bytes,
        }),
        Answer::Done(done) => spell_done(*done),
        Answer::Purged(mailboxes) => Frame::Purged(schema::Purged {
            mailboxes: mailboxes.iter().map(spell_purged).collect(),
        }),
        Answer::RecoveryKept { expires_at } => Frame::RecoveryStored(schema::RecoveryStored {
            expires_at: expires_at.millis(),
        }),
        Answer::RecoveryFound { proofs, more } => Frame::RecoveryProofs(schema::RecoveryProofs {
            proofs: proofs.iter().map(spell_proof).collect(),
            more: *more,
        }),
        Answer::Blob(delivery) => spell_delivery(delivery),
        Answer::Receipt(receipt) => spell_receipt(receipt),
        Answer::CaughtUp(mailboxes) => spell_caught_up(mailboxes),
        Answer::GoAway(go_away) => spell_go_away(go_away),
    }
}

fn spell_welcome(welcome: &Welcome) -> Frame {
    Frame::Welcome(schema::Welcome {
        relay_id: field(&welcome.relay_id),
        server_version: welcome.server_version.clone().into_owned(),
        challenge: field(&welcome.challenge),
        limits: Some(spell_limits(&welcome.limits)),
        keepalive_seconds: seconds(welcome.keepalive),
        features: welcome
            .features
            .iter()
            .map(|name| name.clone().into_owned())
            .collect(),
        proof: welcome.proof.map(|proof| field(&proof)).unwrap_or_default(),
    })
}

fn spell_limits(limits: &Limits) -> schema::Limits {
    schema::Limits {
        blob_bytes_max: limits.blob_bytes_max,
        submits_per_minute: limits.submits_per_minute,
        ttl_default_seconds: seconds(limits.ttl_default),
        ttl_max_seconds: seconds(limits.ttl_max),
        mailboxes_max: limits.mailboxes_max,
        window_blobs_default: limits.window_default.0,
        window_bytes_default: limits.window_default.1,
        window_blobs_max: limits.window_max.0,
        window_bytes_max: limits.window_max.1,
        mailbox_blobs_max: count(limits.mailbox_blobs_max),
        mailbox_bytes_max: limits.mailbox_bytes_max,
    }
}

fn spell_refused(refused: &Refused) -> Frame {
    Frame::Refused(schema::Refused {
        code: code_of(refused.code).unwrap_or_default().into(),
        message: refused.message.clone().into_owned(),
        // Zero would say never, so a wait of less than a millisecond is one.
        retry_after_ms: refused.retry_after.map_or(0, |wait| millis(wait).max(1)),
    })
}

fn spell_opened(opening: &Result<Opened, &'static str>) -> schema::Opened {
    match opening {
        Ok(opened) => schema::Opened {
            code: schema::Code::Unspecified.into(),
            pending: opened.pending,
            blobs: count(opened.blobs),
            bytes: opened.bytes,
        },
        Err(word) => schema::Opened {
            // Never the number that means open, even for a word without a number.
            code: code_of(word).unwrap_or(schema::Code::Unavailable).into(),
            ..schema::Opened::default()
        },
    }
}

fn spell_done(done: Done) -> Frame {
    match done {
        Done::Unsubscribed => Frame::Unsubscribed(schema::Unsubscribed {}),
        Done::Acknowledged => Frame::Acknowledged(schema::Acknowledged {}),
        Done::Extended => Frame::Extended(schema::Extended {}),
        Done::Cancelled => Frame::Cancelled(schema::Cancelled {}),
        Done::Unpinned => Frame::Unpinned(schema::Unpinned {}),
        Done::Pong => Frame::Pong(schema::Pong {}),
    }
}

fn spell_purged(purged: &PurgedMailbox) -> schema::PurgedMailbox {
    schema::PurgedMailbox {
        mailbox: field(purged.mailbox.as_bytes()),
        blobs: count(purged.blobs),
        receipts: count(purged.receipts),
    }
}

fn spell_proof(found: &FoundProof) -> schema::RecoveryProof {
    schema::RecoveryProof {
        key_hash: field(&found.key_hash),
        proof: found.proof.clone(),
        stored_at: found.stored_at.millis(),
    }
}

fn spell_delivery(delivery: &BlobDelivery) -> Frame {
    Frame::Delivery(schema::Delivery {
        id: field(delivery.id.as_bytes()),
        mailbox: field(delivery.mailbox.as_bytes()),
        stored_at: delivery.stored_at.millis(),
        expires_at: delivery.expires_at.map_or(0, Timestamp::millis),
        redelivered: delivery.redelivered,
        blob: delivery.body.clone(),
    })
}

fn spell_receipt(receipt: &ReceiptDelivery) -> Frame {
    let kind = match receipt.kind {
        ReceiptKind::Delivered => schema::ReceiptKind::Delivered,
        ReceiptKind::Acknowledged => schema::ReceiptKind::Acknowledged,
        ReceiptKind::Expired => schema::ReceiptKind::Expired,
        ReceiptKind::Removed => schema::ReceiptKind::Removed,
        ReceiptKind::Lost => schema::ReceiptKind::Lost,
    };
    Frame::Receipt(schema::Receipt {
        mailbox: field(receipt.mailbox.as_bytes()),
        receipt_id: field(receipt.receipt_id.as_bytes()),
        id: field(receipt.id.as_bytes()),
        kind: kind.into(),
        at: receipt.at.millis(),
    })
}

fn spell_caught_up(mailboxes: &[MailboxId]) -> Frame {
    Frame::CaughtUp(schema::CaughtUp {
        mailboxes: mailboxes.iter().map(|id| field(id.as_bytes())).collect(),
    })
}

fn spell_go_away(go_away: &GoAway) -> Frame {
    let reason = match go_away.reason {
        GoAwayReason::Draining => schema::GoAwayReason::Draining,
        GoAwayReason::Overloaded => schema::GoAwayReason::Overloaded,
    };
    Frame::GoAway(schema::GoAway {
        reason: reason.into(),
        reconnect_after_ms: millis(go_away.reconnect_after),
        alternates: go_away.alternates.to_vec(),
    })
}
