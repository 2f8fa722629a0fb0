//! What the frames in `proto/golden` say, as values.
//!
//! The secrets, keys and signatures are real, so that the frames are test vectors for client authors, too;
//! `proto/README.md` tells how they are made.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use vauchi_relay::protocol::proof::{v2_blob_id, v2_secret_mailbox, v2_subscribe};
use vauchi_relay::protocol::v2::message::{
    BlobDelivery, Done, FoundProof, GoAway, GoAwayReason, Limits, Opened, Opening, OpeningProof,
    PurgedMailbox, ReceiptDelivery, ReceiptKind, Submit, SubmitTerms, Subscribe, Welcome,
    Withdrawal, WithdrawalKind,
};
use vauchi_relay::protocol::v2::{Answer, Request, Tag};

const RELAY_ID: [u8; 32] = [0x22; 32];
const CHALLENGE: [u8; 32] = [0x33; 32];
const ORIGIN: &str = "relay.example:8443";
const MAILBOX_SECRET: [u8; 32] = [0x44; 32];
const KEY_SEED: [u8; 32] = [0x55; 32];
const BLOB_SECRET: [u8; 32] = [0x66; 32];
const KEY_HASH: [u8; 32] = [0x77; 32];
const RECEIPT_ID: BlobId = BlobId::from_bytes([0x88; 16]);
const TOPIC: [u8; 32] = [0x99; 32];
pub(crate) const TAG: Option<Tag> = Tag::new(300);
const STORED_AT: Timestamp = Timestamp::from_millis(1_795_220_095_000);
const EXPIRES_AT: Timestamp = Timestamp::from_millis(1_802_996_095_000);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

pub(crate) fn by_secret() -> MailboxId {
    v2_secret_mailbox(&MAILBOX_SECRET)
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&KEY_SEED)
}

fn by_key() -> MailboxId {
    MailboxId::from_bytes(key().verifying_key().to_bytes())
}

pub(crate) fn blob_id() -> BlobId {
    v2_blob_id(&by_secret(), &BLOB_SECRET)
}

fn body() -> Bytes {
    Bytes::from_static(&[0, 1, 127, 128, 255])
}

pub(crate) fn submit(terms: SubmitTerms) -> Request {
    Request::Submit(Submit {
        recipient: by_secret(),
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
        relay: Some(RELAY_ID),
    }
}

fn live() -> SubmitTerms {
    SubmitTerms {
        live_only: true,
        ..SubmitTerms::default()
    }
}

fn subscribe() -> Request {
    let signed = v2_subscribe(&RELAY_ID, &CHALLENGE, ORIGIN, &by_key());
    let signature = key().sign(&signed).to_bytes();
    Request::Subscribe(Subscribe {
        origin: ORIGIN.into(),
        openings: vec![
            Opening {
                mailbox: by_key(),
                proof: OpeningProof::Signature(signature),
                tells_senders: true,
            },
            Opening {
                mailbox: by_secret(),
                proof: OpeningProof::Secret(MAILBOX_SECRET),
                tells_senders: false,
            },
        ],
    })
}

fn withdraw(kind: WithdrawalKind) -> Request {
    Request::Withdraw(Withdrawal {
        mailbox: by_secret(),
        secret: BLOB_SECRET,
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
        ("hello", Request::Hello),
        ("submit", submit(SubmitTerms::default())),
        ("submit_with_terms", submit(kept())),
        ("submit_live_only", submit(live())),
        ("subscribe", subscribe()),
        (
            "unsubscribe",
            Request::Unsubscribe(vec![by_key(), by_secret()]),
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
            Request::Acknowledge(vec![(by_secret(), blob_id()), (by_key(), RECEIPT_ID)]),
        ),
        ("extend", withdraw(WithdrawalKind::Extend(WEEK))),
        ("cancel", withdraw(WithdrawalKind::Cancel)),
        ("purge", Request::Purge(vec![by_secret()])),
        ("unpin", Request::Unpin(by_key())),
        ("recovery_put", Request::RecoveryStore(proof)),
        ("recovery_get", Request::RecoveryQuery(query)),
        ("ping", Request::Ping),
    ]
}

fn welcome() -> Answer {
    Answer::Welcome(Box::new(Welcome {
        relay_id: RELAY_ID,
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
    }))
}

pub(crate) fn delivery() -> Answer {
    Answer::Blob(BlobDelivery {
        id: blob_id(),
        mailbox: by_secret(),
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
        ("welcome", welcome()),
        ("delivery", delivery()),
        ("caught_up", Answer::CaughtUp(vec![by_key(), by_secret()])),
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
        mailbox: by_secret(),
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
        ("welcome_again", welcome()),
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
