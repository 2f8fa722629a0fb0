//! What each of a client's v2 frames asks: lengths and fields checked, nothing else.

use std::time::Duration;

use bytes::Bytes;

use super::message::{
    Introduce, Opening, Request, Submit, SubmitTerms, Subscribe, Withdrawal, WithdrawalKind,
};
use super::origin;
use super::schema::client_frame::Frame;
use super::schema::{self, exactly, optional};
use crate::ids::{BlobId, MailboxId};
use crate::protocol::message::{RecoveryProof, RecoveryQuery};

/// Bytes of a client's name.
const CLIENT_BYTES_MAX: usize = 255;

const MAILBOX: &str = "a mailbox must have 32 bytes";
const BLOB_ID: &str = "an id must have 16 bytes";
const SECRET: &str = "a secret must have 32 bytes";
const EXTEND_KEY: &str = "a key of Extend must have 32 bytes";
const KEY_HASH: &str = "a key hash must have 32 bytes";

/// Reads what is asked, or says what is wrong with it in words that quote nothing.
pub(super) fn read(frame: Frame) -> Result<Request, &'static str> {
    Ok(match frame {
        Frame::Hello(hello) => return read_hello(&hello),
        Frame::Submit(submit) => Request::Submit(read_submit(submit)?),
        Frame::Subscribe(subscribe) => Request::Subscribe(read_subscribe(&subscribe)?),
        Frame::Unsubscribe(unsubscribe) => Request::Unsubscribe(mailboxes(&unsubscribe.mailboxes)?),
        Frame::Window(window) => Request::Window {
            blobs: window.blobs,
            bytes: window.bytes,
        },
        Frame::Acknowledge(acknowledge) => Request::Acknowledge(
            acknowledge
                .items
                .iter()
                .map(read_item)
                .collect::<Result<_, _>>()?,
        ),
        Frame::Extend(extend) => Request::Withdraw(read_extend(&extend)?),
        Frame::Cancel(cancel) => Request::Withdraw(Withdrawal {
            mailbox: mailbox(&cancel.mailbox)?,
            shown: exactly(&cancel.secret, SECRET)?,
            kind: WithdrawalKind::Cancel,
        }),
        Frame::Purge(purge) => Request::Purge(mailboxes(&purge.mailboxes)?),
        Frame::Unpin(unpin) => Request::Unpin(mailbox(&unpin.mailbox)?),
        Frame::RecoveryPut(put) => Request::RecoveryStore(RecoveryProof {
            key_hash: exactly(&put.key_hash, KEY_HASH)?,
            proof: put.proof,
        }),
        Frame::RecoveryGet(get) => Request::RecoveryQuery(read_query(&get)?),
        Frame::Ping(_) => Request::Ping,
    })
}

/// Version 2.0 has no features to choose from.
fn read_hello(hello: &schema::Hello) -> Result<Request, &'static str> {
    if hello.client.len() > CLIENT_BYTES_MAX {
        return Err("client may have at most 255 bytes");
    }
    let Some(nonce) = optional(&hello.nonce, "a nonce must have 32 bytes")? else {
        return Ok(Request::Hello(None));
    };
    origin::check(&hello.origin)?;
    let origin = hello.origin.as_str().into();
    Ok(Request::Hello(Some(Introduce { nonce, origin })))
}

fn read_submit(submit: schema::Submit) -> Result<Submit, &'static str> {
    let terms = SubmitTerms {
        ttl: (submit.ttl_seconds != 0).then(|| Duration::from_secs(submit.ttl_seconds.into())),
        topic: optional(&submit.topic, "a topic must have 32 bytes")?,
        receipt_to: optional(&submit.receipt_to, MAILBOX)?.map(MailboxId::from_bytes),
        live_only: submit.live_only,
        v1_ok: submit.v1_ok,
        relay: optional(&submit.relay, "a relay id must have 32 bytes")?,
    };
    let is_to_be_kept = terms.ttl.is_some() || terms.topic.is_some() || terms.receipt_to.is_some();
    if terms.live_only && is_to_be_kept {
        return Err("live_only cannot be combined with ttl_seconds, topic or receipt_to");
    }
    Ok(Submit {
        recipient: mailbox(&submit.mailbox)?,
        id: blob_id(&submit.id)?,
        terms,
        body: submit.blob,
    })
}

fn read_subscribe(subscribe: &schema::Subscribe) -> Result<Subscribe, &'static str> {
    origin::check(&subscribe.origin)?;
    Ok(Subscribe {
        origin: subscribe.origin.as_str().into(),
        openings: subscribe
            .openings
            .iter()
            .map(read_opening)
            .collect::<Result<_, _>>()?,
    })
}

fn read_opening(opening: &schema::Opening) -> Result<Opening, &'static str> {
    Ok(Opening {
        mailbox: mailbox(&opening.mailbox)?,
        signature: exactly(&opening.signature, "").ok(),
        tells_senders: opening.receipts() == schema::Receipts::All,
        no_pin: opening.no_pin,
    })
}

fn read_item(item: &schema::Item) -> Result<(MailboxId, BlobId), &'static str> {
    Ok((mailbox(&item.mailbox)?, blob_id(&item.id)?))
}

fn read_extend(extend: &schema::Extend) -> Result<Withdrawal, &'static str> {
    if extend.ttl_seconds == 0 {
        return Err("Extend.ttl_seconds must be at least 1");
    }
    Ok(Withdrawal {
        mailbox: mailbox(&extend.mailbox)?,
        shown: exactly(&extend.key, EXTEND_KEY)?,
        kind: WithdrawalKind::Extend(Duration::from_secs(extend.ttl_seconds.into())),
    })
}

fn read_query(get: &schema::RecoveryGet) -> Result<RecoveryQuery, &'static str> {
    let mut key_hashes = Vec::with_capacity(get.key_hashes.len());
    for hash in &get.key_hashes {
        let hash = exactly(hash, KEY_HASH)?;
        if !key_hashes.contains(&hash) {
            key_hashes.push(hash);
        }
    }
    // More than may be asked for are refused before they are read.
    Ok(RecoveryQuery { key_hashes })
}

pub(super) fn mailbox(field: &Bytes) -> Result<MailboxId, &'static str> {
    exactly(field, MAILBOX).map(MailboxId::from_bytes)
}

pub(super) fn mailboxes(fields: &[Bytes]) -> Result<Vec<MailboxId>, &'static str> {
    fields.iter().map(mailbox).collect()
}

pub(super) fn blob_id(field: &Bytes) -> Result<BlobId, &'static str> {
    exactly(field, BLOB_ID).map(BlobId::from_bytes)
}
