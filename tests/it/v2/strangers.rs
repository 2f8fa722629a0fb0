//! v2: strangers can neither fill the relay, squat recovery, nor spend what proofs cost others. Each through
//! the real socket; a proxy on loopback, which is trusted, lets a test be many addresses.

use std::time::Duration;

use serde_json::json;
use vauchi_relay::ids::MailboxId;
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use vauchi_relay::protocol::v2::message::{Opening, Submit, Subscribe};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{Relay, envelope, id};
use crate::v2::client::{Guest, ORIGIN, Owned, submit};

const HOME: &str = "203.0.113.7";
const ELSEWHERE: &str = "203.0.113.8";

fn to(byte: u8) -> MailboxId {
    MailboxId::from_bytes([byte; 32])
}

/// What a refusal for haste says of when to come back.
fn hint(refused: &Refused) -> Duration {
    assert_eq!(refused.code, "rate_limited", "{refused:?}");
    assert!(
        refused.message.contains("retry_after_ms") || refused.message.contains("tomorrow"),
        "{refused:?}"
    );
    refused.retry_after.expect("a retry hint")
}

async fn is_refused(guest: &mut Guest, submit: &Submit) -> Option<Refused> {
    match guest.answer(Request::Submit(submit.clone())).await {
        Answer::Stored { .. } => None,
        Answer::Refused(refused) => Some(refused),
        other => panic!("{other:?}"),
    }
}

/// Submits with `guests` in turn until one is refused; how many were stored, which was refused, and why.
async fn flood(
    guests: &mut [Guest],
    next: impl Fn(u32) -> Submit,
) -> (u32, usize, Submit, Refused) {
    let count = guests.len();
    for number in 0..1_000 {
        let place = number as usize % count;
        let submit = next(number);
        if let Some(refused) = is_refused(&mut guests[place], &submit).await {
            return (number, place, submit, refused);
        }
    }
    panic!("all were stored");
}

async fn connections<const N: usize>(relay: &Relay, address: &str) -> [Guest; N] {
    let mut guests = Vec::new();
    for _ in 0..N {
        guests.push(Guest::connect_from(relay, address).await);
    }
    guests.try_into().ok().unwrap()
}

/// The same submit is admitted when the relay said it would be, not a millisecond earlier, and nothing beyond it.
async fn expect_true_hint(relay: &Relay, guest: &mut Guest, submit: &Submit, hint: Duration) {
    relay.time.advance(hint - Duration::from_millis(1));
    assert!(is_refused(guest, submit).await.is_some(), "too early");
    relay.time.advance(Duration::from_millis(1));
    assert_eq!(is_refused(guest, submit).await, None, "when it was told");
}

#[tokio::test]
async fn the_submits_of_an_address_are_counted_over_its_connections() {
    // A seventh of a minute is no whole number of milliseconds.
    let relay = Relay::start(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "4"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "7"),
    ])
    .await;
    let mut guests: [Guest; 3] = connections(&relay, HOME).await;
    let (stored, place, refused_submit, refused) =
        flood(&mut guests, |number| submit(&to(1), number, b"x")).await;
    assert_eq!(stored, 7);
    let mut neighbour = Guest::connect_from(&relay, ELSEWHERE).await;
    neighbour.store(submit(&to(1), 99, b"its own rate")).await;
    expect_true_hint(&relay, &mut guests[place], &refused_submit, hint(&refused)).await;
    let by_address = "relay_rate_limited_by_total{budget=\"address\"}";
    assert_eq!(relay.metric(by_address).await, 2.0);
}

#[tokio::test]
async fn a_connection_without_a_mailbox_has_its_rate_and_a_mailbox_has_its_own() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "7")]).await;
    let mut guests: [Guest; 1] = connections(&relay, HOME).await;
    let (stored, _, refused_submit, refused) =
        flood(&mut guests, |number| submit(&to(1), number, b"x")).await;
    assert_eq!(stored, 7);
    expect_true_hint(&relay, &mut guests[0], &refused_submit, hint(&refused)).await;
    // Two connections of one mailbox are one client.
    let mut guests: [Guest; 2] = connections(&relay, HOME).await;
    for guest in &mut guests {
        guest.open_empty(&Owned::v2_only(1)).await;
    }
    let (stored, ..) = flood(&mut guests, |number| submit(&to(1), 100 + number, b"x")).await;
    assert_eq!(stored, 7);
}

#[tokio::test]
async fn one_address_takes_its_share_of_a_mailbox_however_many_connections_it_has() {
    // Seven an hour by blobs, five by bytes: 1,700 and 256 are 2 KiB of 10 KiB.
    for (settings, body, expected) in [
        ([("RELAY_MAILBOX_MAX_BLOBS", "14")], 10, 7),
        ([("RELAY_MAILBOX_MAX_BYTES", "20480")], 1_700, 5),
    ] {
        let share = ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5");
        let relay = Relay::start(&[settings[0], share]).await;
        let mut guests: [Guest; 3] = connections(&relay, HOME).await;
        let (stored, place, refused_submit, refused) =
            flood(&mut guests, |number| submit(&to(1), number, &vec![7; body])).await;
        assert_eq!(stored, expected);
        guests[place]
            .store(submit(&to(2), 1, b"another mailbox"))
            .await;
        let mut honest = Guest::connect_from(&relay, ELSEWHERE).await;
        honest.store(submit(&to(1), 99, &vec![8; body])).await;
        expect_true_hint(&relay, &mut guests[place], &refused_submit, hint(&refused)).await;
    }
}

#[tokio::test]
async fn one_address_cannot_fill_the_relay() {
    let relay = Relay::start(&[
        ("RELAY_MAX_STORAGE_BYTES", "409600"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.05"),
    ])
    .await;
    // 20 KiB a day; each blob has 4 KiB and a mailbox of its own.
    let blob = vec![7; 4 * 1_024 - 256];
    let mut guests: [Guest; 3] = connections(&relay, HOME).await;
    let (stored, place, refused_submit, refused) = flood(&mut guests, |number| {
        submit(&to(number as u8), number, &blob)
    })
    .await;
    assert_eq!(stored, 5);
    let wait = hint(&refused);
    assert_eq!(
        wait.as_secs() / 60,
        24 * 60 / 5,
        "until a blob of this size fits"
    );
    let mut honest = Guest::connect_from(&relay, ELSEWHERE).await;
    honest.store(submit(&to(1), 99, &blob)).await;
    // Nor by another door.
    guests[place].open_empty(&Owned::v2_only(1)).await;
    let proof = Request::RecoveryStore(proof(1, &blob));
    hint(&guests[place].refusal(proof).await);
    expect_true_hint(&relay, &mut guests[place], &refused_submit, wait).await;
    let stored = relay.metric("relay_stored_bytes").await;
    assert_eq!(stored, 7.0 * 4_096.0);
}

#[tokio::test]
async fn where_several_limits_are_met_the_hint_is_of_the_one_that_lasts_longest() {
    // One blob an hour into a mailbox, and 20 KiB a day into the relay.
    let relay = Relay::start(&[
        ("RELAY_MAILBOX_MAX_BLOBS", "2"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
        ("RELAY_MAX_STORAGE_BYTES", "409600"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.05"),
    ])
    .await;
    let mut guests: [Guest; 1] = connections(&relay, HOME).await;
    let blob = vec![7; 20 * 1_024 - 256];
    let (stored, _, refused_submit, refused) =
        flood(&mut guests, |number| submit(&to(1), number, &blob)).await;
    assert_eq!(stored, 1);
    let wait = hint(&refused);
    assert_eq!(wait, Duration::from_secs(86_400));
    expect_true_hint(&relay, &mut guests[0], &refused_submit, wait).await;
}

fn proof(key: u8, proof: &[u8]) -> RecoveryProof {
    RecoveryProof {
        key_hash: [key; 32],
        proof: proof.to_vec().into(),
    }
}

/// Keeps a proof under hash 5 as the owner of a mailbox, from an address.
async fn keep(relay: &Relay, address: &str, owned: &Owned) -> Result<(), Refused> {
    let mut guest = Guest::connect_from(relay, address).await;
    guest.open_empty(owned).await;
    let body = owned.id().as_bytes()[..1].to_vec();
    match guest.answer(Request::RecoveryStore(proof(5, &body))).await {
        Answer::RecoveryKept { .. } => Ok(()),
        Answer::Refused(refused) => Err(refused),
        other => panic!("{other:?}"),
    }
}

/// The first bytes of the proofs under hash 5, the newest first.
async fn kept(relay: &Relay) -> Vec<u8> {
    let query = RecoveryQuery {
        key_hashes: vec![[5; 32]],
    };
    let mut anyone = Guest::connect(relay).await;
    match anyone.answer(Request::RecoveryQuery(query)).await {
        Answer::RecoveryFound { proofs, .. } => proofs.iter().map(|found| found.proof[0]).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_address_takes_two_places_a_day_under_a_hash_whatever_it_opens() {
    let relay = Relay::start(&[("RELAY_RECOVERY_RATE_LIMIT", "1000")]).await;
    for number in 1..=2 {
        keep(&relay, HOME, &Owned::v2_only(number)).await.unwrap();
    }
    let wait = hint(&keep(&relay, HOME, &Owned::key(3)).await.unwrap_err());
    assert_eq!(wait, Duration::from_secs(12 * 3_600));
    keep(&relay, ELSEWHERE, &Owned::v2_only(4)).await.unwrap();
    relay.time.advance(wait - Duration::from_millis(1));
    hint(&keep(&relay, HOME, &Owned::key(3)).await.unwrap_err());
    relay.time.advance(Duration::from_millis(1));
    keep(&relay, HOME, &Owned::key(3)).await.unwrap();
    assert_eq!(kept(&relay).await.len(), 4);
}

#[tokio::test]
async fn of_eight_places_the_unproven_go_the_oldest_first_and_the_proven_stay() {
    let relay = Relay::start(&[]).await;
    // Three that v1 lets store without a proof, then five that proved themselves.
    let unproven = async |byte: u8| {
        let mut peer = relay.client(&id(byte)).await;
        let payload =
            json!({ "type": "RecoveryProofStore", "key_hash": id(5), "proof_data": [byte] });
        peer.send(&envelope("an unproven one", payload)).await;
        peer.receive().await["payload"].clone()
    };
    for byte in 1..=3 {
        assert_eq!(unproven(byte).await["status"], "Stored");
    }
    let proven: Vec<_> = (11..=18).map(Owned::v2_only).collect();
    let named = |owned: &Owned| owned.id().as_bytes()[0];
    for owned in &proven[..5] {
        keep(&relay, HOME, owned).await.unwrap();
    }
    let mut expected: Vec<_> = [1, 2, 3].into_iter().collect();
    expected.extend(proven[..5].iter().map(named));
    for owned in &proven[5..] {
        keep(&relay, HOME, owned).await.unwrap();
        expected.remove(0);
        expected.push(named(owned));
        let newest_first: Vec<_> = expected.iter().rev().copied().collect();
        assert_eq!(kept(&relay).await, newest_first);
    }
    // All eight have proved themselves: nobody gets in, and nobody is pushed out.
    let refused = keep(&relay, HOME, &Owned::key(20)).await.unwrap_err();
    assert_eq!(refused.code, "mailbox_full");
    assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()));
    assert_eq!(unproven(21).await["error"], "mailbox_full");
    // One's own is replaced.
    keep(&relay, HOME, &proven[0]).await.unwrap();
    assert_eq!(kept(&relay).await[0], named(&proven[0]));
    assert_eq!(kept(&relay).await.len(), 8);
    // A place comes back with time.
    relay.time.advance(Duration::from_secs(90 * 86_400));
    keep(&relay, HOME, &Owned::key(20)).await.unwrap();
}

#[tokio::test]
async fn who_only_knows_an_id_neither_replaces_nor_deletes_its_recovery_proof() {
    // v1 lets anybody say that they are a mailbox that was never opened by key.
    let relay = Relay::start(&[]).await;
    let owned = Owned::v2_only(1);
    keep(&relay, HOME, &owned).await.unwrap();
    let named = owned.id().as_bytes()[0];
    let mut stranger = relay.client_from(ELSEWHERE, &owned.id().to_hex()).await;
    let put = json!({ "type": "RecoveryProofStore", "key_hash": id(5), "proof_data": [0] });
    stranger.send(&envelope("in its name", put)).await;
    stranger.expect_stored("in its name").await;
    assert_eq!(kept(&relay).await, [0, named], "it is one of its own");
    let purge = json!({ "type": "PurgeRequest", "include_recovery_proofs": true,
        "recovery_key_hash": id(5) });
    for deleted in [1, 0] {
        stranger.send(&envelope("all of it", purge.clone())).await;
        let purged = stranger.receive().await;
        assert_eq!(purged["payload"]["recovery_proofs_deleted"], deleted);
    }
    assert_eq!(kept(&relay).await, [named]);
}

/// Openings with proofs that are not good.
fn badly_proven(count: u32) -> Subscribe {
    let openings = (0..count).map(|number| Opening {
        mailbox: {
            let mut mailbox = [9; 32];
            mailbox[..4].copy_from_slice(&number.to_be_bytes());
            MailboxId::from_bytes(mailbox)
        },
        signature: None,
        tells_senders: false,
        no_pin: false,
    });
    Subscribe {
        origin: ORIGIN.into(),
        openings: openings.collect(),
    }
}

#[tokio::test]
async fn too_many_bad_proofs_end_the_connection_and_later_ones_are_not_looked_at() {
    let relay = Relay::start(&[("RELAY_FAILED_PROOFS_PER_MIN", "3")]).await;
    let mut guest = Guest::connect_from(&relay, HOME).await;
    // What comes at once is answered at once, though it is over the bound.
    let outcomes = guest.try_subscribe(badly_proven(5)).await;
    assert_eq!(outcomes, [Err("unauthorized"); 5]);
    assert_eq!(relay.metric("relay_rate_limited_total").await, 0.0);

    let mut again = Guest::connect_from(&relay, HOME).await;
    let mut wait = Duration::ZERO;
    for guest in [&mut guest, &mut again] {
        // It would be good.
        let subscribe = guest.subscribe_to(&[&Owned::key(1)], false);
        wait = hint(&guest.refusal(Request::Subscribe(subscribe)).await);
        guest.peer.expect_close(4429).await;
    }
    assert_eq!(relay.metric("relay_rate_limited_total").await, 2.0);
    // Neither those elsewhere nor those who prove nothing are touched.
    let mut elsewhere = Guest::connect_from(&relay, ELSEWHERE).await;
    elsewhere.open_empty(&Owned::key(1)).await;
    let mut sender = Guest::connect_from(&relay, HOME).await;
    sender.store(submit(&to(1), 1, b"x")).await;
    relay.time.advance(wait);
    sender.open_empty(&Owned::key(1)).await;
}

#[tokio::test]
async fn openings_are_counted_by_connection_and_address_before_any_proof_is_checked() {
    let relay = Relay::start(&[
        ("RELAY_OPENINGS_PER_MIN", "3"),
        ("RELAY_FAILED_PROOFS_PER_MIN", "1"),
    ])
    .await;
    let mut guests: [Guest; 5] = connections(&relay, HOME).await;
    for guest in &mut guests[..4] {
        for byte in 1..=3 {
            guest.open_empty(&Owned::v2_only(byte)).await;
        }
    }
    let (first, rest) = guests.split_first_mut().unwrap();
    let refused = first.refusal(Request::Subscribe(badly_proven(1))).await;
    assert_eq!(hint(&refused), Duration::from_secs(20));
    // The address has had four times as many; its fifth connection gets none.
    let subscribe = rest[3].subscribe_to(&[&Owned::v2_only(1)], false);
    let refused = rest[3].refusal(Request::Subscribe(subscribe)).await;
    assert_eq!(hint(&refused), Duration::from_secs(5));
    let failed = "relay_rate_limited_by_total{budget=\"failed_proofs\"}";
    assert_eq!(relay.metric(failed).await, 0.0);
    let mut elsewhere = Guest::connect_from(&relay, ELSEWHERE).await;
    elsewhere.open_empty(&Owned::v2_only(1)).await;
    relay.time.advance(Duration::from_secs(5));
    rest[3].open_empty(&Owned::v2_only(1)).await;
    // Of a refused request nothing was done.
    relay.time.advance(Duration::from_secs(15));
    first.open_empty(&Owned::v2_only(4)).await;
}

#[tokio::test]
async fn a_subscribe_without_mailboxes_is_not_free() {
    let relay = Relay::start(&[("RELAY_OPENINGS_PER_MIN", "2")]).await;
    let mut guest = Guest::connect_from(&relay, HOME).await;
    for _ in 0..2 {
        assert!(guest.try_subscribe(badly_proven(0)).await.is_empty());
    }
    hint(&guest.refusal(Request::Subscribe(badly_proven(0))).await);
}

#[tokio::test]
async fn a_subscribe_over_the_bound_is_refused_before_any_proof_is_checked() {
    let relay = Relay::start(&[
        ("RELAY_STORAGE_BACKEND", "memory"),
        ("RELAY_OPENINGS_PER_MIN", "1026"),
        ("RELAY_FAILED_PROOFS_PER_MIN", "1"),
    ])
    .await;
    let mut guest = Guest::connect_from(&relay, HOME).await;
    for count in [1_025, 5_000] {
        let subscribe = Request::Subscribe(badly_proven(count));
        let refused = guest.refusal(subscribe).await;
        assert_eq!(
            (refused.code, refused.retry_after),
            ("too_many_mailboxes", None)
        );
    }
    // 1,024 may be open, however often they are named; one more may not.
    let owned: Vec<_> = (0..1_025_u16)
        .map(|number| {
            let mut secret = [3; 32];
            secret[..2].copy_from_slice(&number.to_be_bytes());
            Owned::from_seed(secret)
        })
        .collect();
    for part in owned[..1_024].chunks(64) {
        // A debug build takes some milliseconds for each proof.
        let part = guest.subscribe_to(&part.iter().collect::<Vec<_>>(), false);
        assert!(guest.try_subscribe(part).await.iter().all(Result::is_ok));
        assert_eq!(guest.caught_up().await.len(), 64);
    }
    let one_more = guest.subscribe_to(&[&owned[1_024]], false);
    let refused = guest.refusal(Request::Subscribe(one_more.clone())).await;
    assert_eq!(refused.code, "too_many_mailboxes");
    let one_again = guest.subscribe_to(&[&owned[7]], false);
    assert!(guest.try_subscribe(one_again).await[0].is_ok());
    guest.done(Request::Unsubscribe(vec![owned[7].id()])).await;
    assert!(guest.try_subscribe(one_more).await[0].is_ok());
    assert_eq!(relay.metric("relay_rate_limited_total").await, 0.0);
}

/// An address that had set all of its pins got no more and was served all the same, so that strangers
/// opened the mailboxes of its neighbours.
#[tokio::test]
async fn a_mailbox_that_cannot_be_pinned_is_not_opened() {
    let relay = Relay::start(&[("RELAY_PINS_MAX", "2")]).await;
    let mut guest = Guest::connect_from(&relay, HOME).await;
    let [one, two, three] = [1, 2, 3].map(Owned::key);
    let unpinned = Owned::v2_only(4);
    let subscribe = guest.subscribe_to(&[&one, &two, &three, &unpinned], false);
    let outcomes = guest.try_subscribe(subscribe).await;
    assert!(outcomes[0].is_ok() && outcomes[1].is_ok() && outcomes[3].is_ok());
    assert_eq!(outcomes[2], Err("relay_full"));
    assert_eq!(relay.metric("relay_pins_refused_total").await, 1.0);
    assert_eq!(guest.caught_up().await.len(), 3);
    // Without a pin it opens: its owner has said that v1 has no business there.
    let mut without = guest.subscribe_to(&[&three], false);
    without.openings[0].no_pin = true;
    assert!(guest.try_subscribe(without).await[0].is_ok());
    let mut v1 = relay.client(&three.id().to_hex()).await;
    v1.expect_silence().await;
}

#[tokio::test]
async fn one_connection_does_not_use_up_the_pins_of_its_address() {
    let relay = Relay::start(&[]).await;
    let mut greedy = Guest::connect_from(&relay, HOME).await;
    let pinned = |number: u16| {
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let no_pin = false;
        Owned {
            no_pin,
            ..Owned::from_seed(seed)
        }
    };
    let owned: Vec<_> = (0..=256).map(pinned).collect();
    let subscribe = greedy.subscribe_to(&owned.iter().collect::<Vec<_>>(), false);
    let outcomes = greedy.try_subscribe(subscribe).await;
    assert!(outcomes[..256].iter().all(Result::is_ok));
    assert_eq!(outcomes[256], Err("rate_limited"));
    let mut neighbour = Guest::connect_from(&relay, HOME).await;
    neighbour.open_empty(&owned[256]).await;
    assert_eq!(relay.metric("relay_pins").await, 257.0);
}
