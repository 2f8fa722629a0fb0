//! What the frames in `proto/golden` say, as values.
//!
//! The secrets, keys and signatures are real, so that the frames are test vectors for client authors, too;
//! `proto/README.md` tells how they are made.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::identity::Identity;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use vauchi_relay::protocol::proof::{v2_blob_id, v2_extend_key, v2_subscribe, v2_welcome};
use vauchi_relay::protocol::v2::message::{
    BlobDelivery, Done, FoundProof, GoAway, GoAwayReason, Introduce, Limits, Opened, Opening,
    PurgedMailbox, ReceiptDelivery, ReceiptKind, Submit, SubmitTerms, Subscribe, Welcome,
    Withdrawal, WithdrawalKind,
};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};

const RELAY_SEED: [u8; 32] = [0x22; 32];
const CHALLENGE: [u8; 32] = [0x33; 32];
const ORIGIN: &str = "relay.example:8443";
const NONCE: [u8; 32] = [0xaa; 32];
const SHARED_KEY: [u8; 32] = [0x44; 32];
const EPOCH: u64 = 20_000;
const KEY_SEED: [u8; 32] = [0x55; 32];
const BLOB_SECRET: [u8; 32] = [0x66; 32];
const KEY_HASH: [u8; 32] = [0x77; 32];
const RECEIPT_ID: BlobId = BlobId::from_bytes([0x88; 16]);
const TOPIC: [u8; 32] = [0x99; 32];
pub(crate) const TAG: Option<Tag> = Tag::new(300);
const STORED_AT: Timestamp = Timestamp::from_millis(1_795_220_095_000);
const EXPIRES_AT: Timestamp = Timestamp::from_millis(1_802_996_095_000);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

fn relay() -> Identity {
    Identity::from_seed(&RELAY_SEED)
}

/// The key of a mailbox that two share, as `docs/write-a-client.md` derives it.
fn derived_key() -> SigningKey {
    let salt = hmac(&[0; 32], &[&SHARED_KEY]);
    let words = b"vauchi.relay.v2 mailbox";
    SigningKey::from_bytes(&hmac(&salt, &[words, &EPOCH.to_be_bytes(), &[1]]))
}

/// HMAC-SHA-256 of the parts, one after the other.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let block = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        block.to_vec()
    };
    let inner = Sha256::digest([block(0x36), parts.concat()].concat());
    Sha256::digest([block(0x5c), inner.to_vec()].concat()).into()
}

pub(crate) fn derived() -> MailboxId {
    MailboxId::from_bytes(derived_key().verifying_key().to_bytes())
}

/// What opens the derived mailbox.
pub(crate) fn derived_opening(tells_senders: bool) -> Opening {
    opening(&derived_key(), tells_senders, true)
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&KEY_SEED)
}

fn by_key() -> MailboxId {
    MailboxId::from_bytes(key().verifying_key().to_bytes())
}

pub(crate) fn blob_id() -> BlobId {
    v2_blob_id(&derived(), &BLOB_SECRET)
}

fn body() -> Bytes {
    Bytes::from_static(&[0, 1, 127, 128, 255])
}

pub(crate) fn submit(terms: SubmitTerms) -> Request {
    Request::Submit(Submit {
        recipient: derived(),
        id: blob_id(),
        terms,
        body: body(),
    })
}

pub(crate) fn kept() -> SubmitTerms {
    SubmitTerms {
        ttl: Some(WEEK),
        topic: Some(TOPIC),
        receipt_to: Some(by_key()),
        live_only: false,
        v1_ok: true,
        relay: Some(*relay().id()),
    }
}

fn live() -> SubmitTerms {
    SubmitTerms {
        live_only: true,
        ..SubmitTerms::default()
    }
}

fn subscribe() -> Request {
    Request::Subscribe(Subscribe {
        origin: ORIGIN.into(),
        openings: vec![
            opening(&key(), true, false),
            opening(&derived_key(), false, true),
        ],
    })
}

/// What opens the mailbox of this key on the connection with the challenge.
fn opening(key: &SigningKey, tells_senders: bool, no_pin: bool) -> Opening {
    let mailbox = MailboxId::from_bytes(key.verifying_key().to_bytes());
    let signed = v2_subscribe(relay().id(), &CHALLENGE, ORIGIN, &mailbox);
    Opening {
        mailbox,
        signature: Some(key.sign(&signed).to_bytes()),
        tells_senders,
        no_pin,
    }
}

fn withdraw(kind: WithdrawalKind) -> Request {
    Request::Withdraw(Withdrawal {
        mailbox: derived(),
        shown: match kind {
            WithdrawalKind::Extend(_) => v2_extend_key(&BLOB_SECRET),
            WithdrawalKind::Cancel => BLOB_SECRET,
        },
        kind,
    })
}

/// Every kind of request, by the name of its frame.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let proof = RecoveryProof {
        key_hash: KEY_HASH,
        proof: body(),
    };
    let query = RecoveryQuery {
        key_hashes: vec![KEY_HASH, [0x78; 32]],
    };
    vec![
        ("hello", Request::Hello(Some(introduce()))),
        ("hello_without_nonce", Request::Hello(None)),
        ("submit", submit(SubmitTerms::default())),
        ("submit_with_terms", submit(kept())),
        ("submit_live_only", submit(live())),
        ("subscribe", subscribe()),
        (
            "unsubscribe",
            Request::Unsubscribe(vec![by_key(), derived()]),
        ),
        (
            "window",
            Request::Window {
                blobs: 1_024,
                bytes: 16 * 1024 * 1024,
            },
        ),
        (
            "acknowledge",
            Request::Acknowledge(vec![(derived(), blob_id()), (by_key(), RECEIPT_ID)]),
        ),
        ("extend", withdraw(WithdrawalKind::Extend(WEEK))),
        ("cancel", withdraw(WithdrawalKind::Cancel)),
        ("purge", Request::Purge(vec![derived()])),
        ("unpin", Request::Unpin(by_key())),
        ("recovery_put", Request::RecoveryStore(proof)),
        ("recovery_get", Request::RecoveryQuery(query)),
        ("ping", Request::Ping),
    ]
}

fn introduce() -> Introduce {
    Introduce {
        nonce: NONCE,
        origin: ORIGIN.into(),
    }
}

/// The answer to `hello`.
fn proven_welcome() -> Answer {
    let relay = relay();
    let signed = v2_welcome(relay.id(), &NONCE, &CHALLENGE, ORIGIN);
    welcome(Some(relay.sign(&signed)))
}

fn welcome(proof: Option<[u8; 64]>) -> Answer {
    Answer::Welcome(Box::new(Welcome {
        relay_id: *relay().id(),
        server_version: "2.0.0".into(),
        challenge: CHALLENGE,
        limits: Limits {
            blob_bytes_max: 1024 * 1024,
            submits_per_minute: 60,
            ttl_default: Duration::from_secs(90 * 86_400),
            ttl_max: Duration::from_secs(91 * 86_400),
            mailboxes_max: 256,
            window_default: (64, 4 * 1024 * 1024),
            window_max: (1_024, 16 * 1024 * 1024),
            mailbox_blobs_max: 1_000,
            mailbox_bytes_max: 50 * 1024 * 1024,
        },
        keepalive: Duration::from_secs(30),
        features: vec!["a-later-feature".into()],
        proof,
    }))
}

pub(crate) fn delivery() -> Answer {
    Answer::Blob(BlobDelivery {
        id: blob_id(),
        mailbox: derived(),
        stored_at: STORED_AT,
        expires_at: Some(EXPIRES_AT),
        redelivered: true,
        body: body(),
    })
}

pub(crate) fn refused(code: &'static str, retry_after: Option<Duration>) -> Answer {
    Answer::Refused(Refused {
        code,
        message: "what is wrong and what to do".into(),
        retry_after,
    })
}

/// Every kind of push, by the name of its frame.
pub(crate) fn pushes() -> Vec<(&'static str, Answer)> {
    let receipt = ReceiptDelivery {
        mailbox: by_key(),
        receipt_id: RECEIPT_ID,
        id: blob_id(),
        kind: ReceiptKind::Acknowledged,
        at: Timestamp::from_millis(1_795_220_040_000),
    };
    let go_away = GoAway {
        reason: GoAwayReason::Draining,
        reconnect_after: Duration::from_millis(2_500),
        alternates: vec!["wss://other.example".to_owned()].into(),
    };
    vec![
        ("welcome", welcome(None)),
        ("delivery", delivery()),
        ("caught_up", Answer::CaughtUp(vec![by_key(), derived()])),
        ("receipt", Answer::Receipt(receipt)),
        ("go_away", Answer::GoAway(go_away)),
    ]
}

fn opened() -> Vec<Result<Opened, &'static str>> {
    let opened = Opened {
        pending: 3,
        blobs: 4,
        bytes: 5_000,
    };
    let empty = Opened {
        pending: 0,
        blobs: 0,
        bytes: 0,
    };
    vec![Ok(opened), Ok(empty), Err("unauthorized")]
}

/// Every kind of answer, by the name of its frame.
pub(crate) fn answers() -> Vec<(&'static str, Answer)> {
    let purged = PurgedMailbox {
        mailbox: derived(),
        blobs: 3,
        receipts: 1,
    };
    let found = FoundProof {
        key_hash: KEY_HASH,
        proof: body(),
        stored_at: STORED_AT,
    };
    let stored = |duplicate| Answer::Stored {
        expires_at: EXPIRES_AT,
        duplicate,
    };
    let windowed = Answer::Windowed {
        blobs: 1_024,
        bytes: 16 * 1024 * 1024,
    };
    let kept = Answer::RecoveryKept {
        expires_at: EXPIRES_AT,
    };
    let found = Answer::RecoveryFound {
        proofs: vec![found],
        more: true,
    };
    vec![
        ("welcome_again", proven_welcome()),
        ("refused", refused("invalid", None)),
        (
            "refused_for_now",
            refused("rate_limited", Some(Duration::from_millis(1_500))),
        ),
        ("stored", stored(false)),
        ("stored_duplicate", stored(true)),
        ("handed", Answer::Handed),
        ("subscribed", Answer::Subscribed(opened())),
        ("windowed", windowed),
        ("purged", Answer::Purged(vec![purged])),
        ("recovery_stored", kept),
        ("recovery_proofs", found),
        ("unsubscribed", Answer::Done(Done::Unsubscribed)),
        ("acknowledged", Answer::Done(Done::Acknowledged)),
        ("extended", Answer::Done(Done::Extended)),
        ("cancelled", Answer::Done(Done::Cancelled)),
        ("unpinned", Answer::Done(Done::Unpinned)),
        ("pong", Answer::Done(Done::Pong)),
    ]
}
