//! v2: every code, by a request that meets it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use vauchi_relay::protocol::v2::client::encode_request;
use vauchi_relay::protocol::v2::message::SubmitTerms;
use vauchi_relay::protocol::v2::{Answer, Request, Tag};
use vauchi_relay::service::refusal::Refusal;

use crate::harness::{Relay, http_get, value_of};
use crate::store::faulty::{Call, Fault, Faults, faulty_relay};
use crate::v2::client::{Guest, Owned, on_terms, submit};

const BLOB_BYTES_MAX: usize = 100_000;

fn to(byte: u8) -> MailboxId {
    MailboxId::from_bytes([byte; 32])
}

/// Whether the same request may succeed later.
#[derive(Debug, PartialEq, Eq)]
enum Hint {
    Never,
    Later,
}
use Hint::{Later, Never};

/// Meets refusals, and sees that each is told and counted.
struct Meeting {
    guest: Guest,
    operators: SocketAddr,
    met: BTreeSet<&'static str>,
}

impl Meeting {
    async fn counted(&self, code: &str) -> [f64; 2] {
        let (status, scrape) = http_get(self.operators, "/metrics", &[]).await;
        assert_eq!(status, 200);
        let by_code = format!("relay_refusals_total{{code=\"{code}\"}}");
        let in_all = "relay_messages_rejected_total";
        [by_code.as_str(), in_all].map(|series| value_of(&scrape, series).unwrap())
    }

    async fn meet(&mut self, code: &'static str, hint: Hint, request: Request) {
        // Any number will do.
        let number = 4_000_000_000 - self.met.len() as u32;
        let frame = encode_request(Tag::new(number), &request);
        self.meet_by(code, hint, number, frame).await;
    }

    async fn meet_by(&mut self, code: &'static str, hint: Hint, number: u32, frame: Bytes) {
        let before = self.counted(code).await;
        self.guest.send(frame).await;
        let (number_told, answer) = self.guest.receive_numbered().await;
        assert_eq!(number_told, Some(number), "{answer:?}");
        let Answer::Refused(refused) = answer else {
            panic!("not {code}: {answer:?}")
        };
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.message.len() > 20, "{refused:?}");
        let told = match refused.retry_after {
            None => Never,
            Some(wait) => {
                assert!(!wait.is_zero());
                Later
            }
        };
        assert_eq!(told, hint, "{refused:?}");
        let after = self.counted(code).await;
        assert_eq!(after, before.map(|count| count + 1.0), "{code}");
        self.met.insert(code);
    }
}

async fn relay_with_little_room() -> (Relay, Arc<Faults>) {
    faulty_relay(&[
        ("RELAY_MAX_MESSAGE_SIZE", "100000"),
        ("RELAY_MAILBOX_MAX_BLOBS", "1"),
        ("RELAY_MAX_STORAGE_BYTES", "220000"),
        ("RELAY_RECOVERY_RATE_LIMIT", "1"),
        ("RELAY_DRAIN_TIMEOUT_SECS", "120"),
    ])
    .await
}

/// One that has a mailbox with a blob in flight, in a relay that is nearly full.
async fn guest_in_need(relay: &Relay, own: &Owned) -> Guest {
    let mut guest = Guest::connect(relay).await;
    guest.open_empty(own).await;
    let mut sender = Guest::connect(relay).await;
    sender.store(submit(&own.id(), 1, b"in flight")).await;
    for byte in 7..=8 {
        sender.store(submit(&to(byte), 1, &[7; 90_000])).await;
    }
    sender.peer.leave().await;
    guest.blob().await;
    guest
}

#[tokio::test]
async fn every_code_is_met_and_each_is_told_with_words_and_a_hint_and_counted() {
    let (relay, faulty) = relay_with_little_room().await;
    let own = Owned::v2_only(1);
    let mut meeting = Meeting {
        guest: guest_in_need(&relay, &own).await,
        operators: relay.running.operators,
        met: BTreeSet::new(),
    };
    let query = Request::RecoveryQuery(RecoveryQuery {
        key_hashes: vec![[5; 32]],
    });
    meeting.guest.answer(query.clone()).await;
    let many: Vec<_> = (0..1_025_u16)
        .map(|number| {
            let mut secret = [3; 32];
            secret[..2].copy_from_slice(&number.to_be_bytes());
            Owned::from_seed(secret)
        })
        .collect();
    let many: Vec<_> = many.iter().collect();
    let mut too_many = meeting.guest.subscribe_to(&many, false);
    // Refused before a proof is looked at; with them the frame would be too large.
    for opening in &mut too_many.openings {
        opening.signature = None;
    }
    let mut elsewhere = meeting.guest.subscribe_to(&[&own], false);
    elsewhere.origin = "relay.example.org".into();
    let blob = |number, body: &[u8]| submit(&own.id(), number, body);
    let asking =
        |change: fn(&mut SubmitTerms)| Request::Submit(on_terms(submit(&to(3), 1, b"x"), change));
    for (code, hint, request) in [
        (
            "invalid",
            Never,
            asking(|terms| {
                terms.live_only = true;
                terms.ttl = Some(Duration::from_secs(60));
            }),
        ),
        (
            "too_large",
            Never,
            Request::Submit(blob(2, &[0; BLOB_BYTES_MAX + 1])),
        ),
        ("rate_limited", Later, query),
        ("mailbox_full", Later, Request::Submit(blob(2, b"x"))),
        (
            "relay_full",
            Later,
            Request::Submit(submit(&to(9), 1, &[7; 90_000])),
        ),
        ("id_reused", Never, Request::Submit(blob(1, b"another"))),
        (
            "unauthorized",
            Never,
            asking(|terms| terms.receipt_to = Some(to(4))),
        ),
        (
            "ttl_out_of_range",
            Never,
            asking(|terms| terms.ttl = Some(Duration::from_secs(91 * 86_400))),
        ),
        (
            "not_connected",
            Later,
            asking(|terms| terms.live_only = true),
        ),
        ("too_many_mailboxes", Never, Request::Subscribe(too_many)),
        ("wrong_origin", Never, Request::Subscribe(elsewhere)),
        (
            "unknown_relay",
            Never,
            asking(|terms| terms.relay = Some([1; 32])),
        ),
    ] {
        meeting.meet(code, hint, request).await;
    }
    // Number 5, and a frame of kind 900.
    let unknown = Bytes::from_static(&[0x08, 5, 0xA2, 0x38, 0]);
    meeting.meet_by("unsupported", Never, 5, unknown).await;
    faulty.on(Call::Append, 1, Fault::FailCommit);
    let last = Request::Submit(submit(&to(3), 1, b"x"));
    meeting.meet("unavailable", Later, last.clone()).await;
    // What is in flight keeps the session, and so the operators' port, until it is acknowledged.
    let stopping = tokio::spawn(relay.stop());
    let go_away = meeting.guest.receive().await;
    assert!(matches!(go_away, Answer::GoAway(_)), "{go_away:?}");
    meeting.meet("shutting_down", Later, last).await;

    assert_eq!(meeting.met, Refusal::CODES.into_iter().collect());
    meeting.guest.peer.leave().await;
    stopping.await.unwrap();
}

#[tokio::test]
async fn unauthorized_is_said_in_the_same_words_whatever_was_not_proven() {
    let relay = Relay::start(&[]).await;
    let (owned, mut owner) = (Owned::key(1), Guest::connect(&relay).await);
    owner.open_empty(&owned).await;
    owner.store(submit(&owned.id(), 1, b"private")).await;
    let blob = owner.blob().await;
    let mut stranger = Guest::connect(&relay).await;
    let mut said: Vec<Refused> = Vec::new();
    // In use, and never seen.
    for mailbox in [owned.id(), to(9)] {
        let asking = on_terms(submit(&to(3), 1, b"x"), |terms| {
            terms.receipt_to = Some(mailbox);
        });
        for request in [
            Request::Acknowledge(vec![(mailbox, blob.id)]),
            Request::Acknowledge(vec![(mailbox, BlobId::from_bytes([9; 16]))]),
            Request::Purge(vec![mailbox]),
            Request::Unpin(mailbox),
            Request::Submit(asking),
            Request::RecoveryStore(RecoveryProof {
                key_hash: [5; 32],
                proof: Bytes::from_static(b"nobody's"),
            }),
        ] {
            said.push(stranger.refusal(request).await);
        }
    }
    assert_eq!(said[0].code, "unauthorized");
    assert!(said.iter().all(|refused| *refused == said[0]), "{said:?}");
}

#[tokio::test]
async fn whatever_is_refused_is_charged_but_for_what_is_in_flight() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "3")]).await;
    let mut guest = Guest::connect(&relay).await;
    for mailbox in 1..=3 {
        let request = Request::Acknowledge(vec![(to(mailbox), BlobId::from_bytes([9; 16]))]);
        assert_eq!(guest.refusal(request).await.code, "unauthorized");
    }
    let request = Request::Purge(vec![to(1)]);
    assert_eq!(guest.refusal(request).await.code, "rate_limited");
}
