//! v2: who may open a mailbox, and what a stranger who knows its id cannot do.

use std::time::Duration;

use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery, Refused};
use vauchi_relay::protocol::proof;
use vauchi_relay::protocol::v2::message::{
    Done, Introduce, Opening, Subscribe, Welcome, Withdrawal, WithdrawalKind,
};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::store::faulty::{Call, faulty_relay};
use crate::v2::client::{Guest, ORIGIN, Owned, on_terms, submit};

#[tokio::test]
async fn only_a_good_proof_opens_a_mailbox_and_every_bad_one_is_refused_alike() {
    let relay = Relay::start(&[]).await;
    let (by_key, by_secret) = (Owned::key(1), Owned::v2_only(2));
    let mut guest = Guest::connect(&relay).await;
    let good = guest.subscribe_to(&[&by_key, &by_secret], false);
    let mut bad = Vec::new();
    // The right key over something else.
    let mut other = good.openings[0].signature.unwrap();
    other[0] ^= 1;
    for signature in [None, Some([9; 64]), Some([0; 64]), Some(other)] {
        for place in [0, 1] {
            let mut opening = good.openings[place].clone();
            opening.signature = signature;
            bad.push(opening);
        }
    }
    let mut subscribe = good.clone();
    subscribe.openings.extend(bad);
    let outcomes = guest.try_subscribe(subscribe).await;
    assert!(outcomes[..2].iter().all(Result::is_ok));
    assert_eq!(outcomes.len(), 10);
    assert!(
        outcomes[2..]
            .iter()
            .all(|outcome| *outcome == Err("unauthorized"))
    );
    // Signed for another connection.
    let mut other = Guest::connect(&relay).await;
    assert_eq!(
        other
            .try_subscribe(guest.subscribe_to(&[&by_key], false))
            .await,
        [Err("unauthorized")]
    );
}

#[tokio::test]
async fn an_origin_of_another_shape_is_invalid_also_without_public_origins() {
    let relay = Relay::start(&[]).await;
    let mut guest = Guest::connect(&relay).await;
    let by_key = Owned::key(1);
    for bad in [
        "",
        "ws://relay.example.com",
        "relay.example.com/",
        "relay.example.com/path",
        "relay.example.com:443",
        "relay.example.com:80",
        "relay.example.com:",
        "::1",
        "[::1",
    ] {
        let mut subscribe = guest.subscribe_to(&[&by_key], false);
        subscribe.origin = bad.into();
        // Signed as it is sent, so that only its shape is wrong.
        subscribe.openings[0].signature = Some(by_key.signature(&guest.welcome, bad));
        let refused = guest.refusal(Request::Subscribe(subscribe)).await;
        assert_eq!(refused.code, "invalid", "{bad:?}");
    }
}

/// What a stranger is answered to everything it may try with the id of a mailbox, one by one.
async fn answers_to_a_stranger(relay: &Relay, id: MailboxId) -> Vec<String> {
    let mut stranger = Guest::connect(relay).await;
    let opening = |signature| Opening {
        mailbox: id,
        signature,
        tells_senders: true,
        no_pin: false,
    };
    let withdraw = |kind| {
        Request::Withdraw(Withdrawal {
            mailbox: id,
            shown: *id.as_bytes(),
            kind,
        })
    };
    let mut id_as_secret = [0; 16];
    id_as_secret.copy_from_slice(&id.as_bytes()[..16]);
    let blob = BlobId::from_bytes(id_as_secret);
    let mut answers = Vec::new();
    for request in [
        Request::Subscribe(Subscribe {
            origin: ORIGIN.into(),
            openings: vec![opening(None), opening(Some([7; 64]))],
        }),
        Request::Acknowledge(vec![(id, blob)]),
        Request::Purge(vec![id]),
        Request::Unpin(id),
        Request::Unsubscribe(vec![id]),
        withdraw(WithdrawalKind::Cancel),
        withdraw(WithdrawalKind::Extend(Duration::from_secs(86_400))),
        Request::Submit(on_terms(submit(&id, 77, b"x"), |terms| {
            terms.live_only = true;
        })),
        Request::Submit(on_terms(submit(&id, 77, b"x"), |terms| {
            terms.receipt_to = Some(id);
        })),
        Request::Submit(submit(&id, 77, b"x")),
        Request::Submit(submit(&id, 77, b"x")),
    ] {
        answers.push(format!("{:?}", stranger.answer(request).await));
    }
    stranger.expect_nothing().await;
    answers
}

#[tokio::test]
async fn a_stranger_is_answered_alike_whether_a_mailbox_is_in_use_or_was_never_seen() {
    let relay = Relay::start(&[]).await;
    let never_seen = MailboxId::from_bytes([9; 32]);
    let expected = answers_to_a_stranger(&relay, never_seen).await;
    for (owned, number) in [(Owned::key(1), 10), (Owned::v2_only(2), 20)] {
        // It has a blob in flight, one that waits, and a receipt; its owner is there and tells nobody.
        let id = owned.id();
        let mut owner = Guest::connect(&relay).await;
        let quiet = owner.subscribe_to(&[&owned], false);
        owner.try_subscribe(quiet).await;
        owner.caught_up().await;
        let mut sender = Guest::connect(&relay).await;
        sender.store(submit(&id, 1, b"in flight")).await;
        owner.blob().await;
        let gone = on_terms(submit(&never_seen, number, b"x"), |terms| {
            terms.receipt_to = Some(id);
            terms.topic = Some([4; 32]);
        });
        owner.store(gone).await;
        let in_its_place = on_terms(submit(&never_seen, number + 1, b"x"), |terms| {
            terms.topic = Some([4; 32]);
        });
        sender.store(in_its_place).await;
        owner.receipt().await;
        let narrow = Request::Window { blobs: 1, bytes: 1 };
        owner.answer(narrow).await;
        sender.store(submit(&id, 2, b"waits")).await;
        assert_eq!(answers_to_a_stranger(&relay, id).await, expected);

        // v1 lets a stranger into what was never proven by key; it sees none of this.
        if owned.no_pin {
            let mut v1 = relay.client(&id.to_hex()).await;
            v1.expect_silence().await;
        }
        let mut again = Guest::connect(&relay).await;
        let pending = again.open(&owned).await.pending;
        assert_eq!(
            pending, 4,
            "two blobs, the receipt, and what the stranger sent"
        );
    }
}

#[tokio::test]
async fn an_own_mailbox_gives_no_power_over_another() {
    let relay = Relay::start(&[]).await;
    let (owned, own) = (Owned::key(1), Owned::v2_only(2));
    let mut owner = Guest::connect(&relay).await;
    owner.open_empty(&owned).await;
    let mut stranger = Guest::connect(&relay).await;
    stranger.open_empty(&own).await;
    let mut sender = Guest::connect(&relay).await;
    sender.store(submit(&owned.id(), 1, b"private")).await;
    sender.store(submit(&own.id(), 2, b"the stranger's")).await;
    let (private, theirs) = (owner.blob().await.id, stranger.blob().await.id);
    // Under the name of the own mailbox the other's blob is not there, which is fine.
    stranger.acknowledge(own.id(), private).await;
    // A request that names both is refused, and does nothing to either.
    for request in [
        Request::Acknowledge(vec![(own.id(), theirs), (owned.id(), private)]),
        Request::Purge(vec![own.id(), owned.id()]),
    ] {
        assert_eq!(stranger.refusal(request).await.code, "unauthorized");
    }
    assert_eq!(relay.metric("relay_blobs_stored").await, 2.0);
    // Closing what another has open closes nothing there.
    let close = Request::Unsubscribe(vec![owned.id()]);
    assert_eq!(stranger.done(close).await, Done::Unsubscribed);
    sender.store(submit(&owned.id(), 3, b"still open")).await;
    assert_eq!(&*owner.blob().await.body, b"still open");
    stranger.acknowledge(own.id(), theirs).await;
    assert_eq!(relay.metric("relay_blobs_stored").await, 2.0);
}

#[tokio::test]
async fn v1_and_v2_meet_in_one_mailbox() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::v2_only(1);
    let mut sender = Guest::connect(&relay).await;
    let open_to_all = on_terms(submit(&owned.id(), 1, b"for both"), |terms| {
        terms.v1_ok = true
    });
    sender.store(open_to_all).await;
    sender.store(submit(&owned.id(), 2, b"for v2")).await;
    let mut v1 = relay.client(&owned.id().to_hex()).await;
    assert_eq!(v1.delivery().await.blob, b"for both");
    v1.expect_silence().await;
    v1.store(&owned.id().to_hex(), b"from v1").await;
    let mut owner = Guest::connect(&relay).await;
    owner.open(&owned).await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(owner.blob().await.body);
    }
    assert_eq!(bodies, [&b"for both"[..], b"for v2", b"from v1"]);
}

#[tokio::test]
async fn strangers_can_not_lock_v1_users_out_with_blobs_that_v1_can_not_see() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "2")]).await;
    let owned = Owned::v2_only(1);
    let mut stranger = Guest::connect(&relay).await;
    for number in 0..2 {
        stranger.store(submit(&owned.id(), number, b"unseen")).await;
    }
    let full = Request::Submit(submit(&owned.id(), 3, b"unseen"));
    assert_eq!(stranger.refusal(full).await.code, "mailbox_full");
    let mut v1 = relay.client(&owned.id().to_hex()).await;
    v1.store(&owned.id().to_hex(), b"seen").await;
    assert_eq!(v1.delivery().await.blob, b"seen");
}

#[tokio::test]
async fn a_purge_counts_and_gives_the_id_up() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::key(1);
    let mut guest = Guest::connect(&relay).await;
    guest.store(submit(&owned.id(), 1, b"one")).await;
    guest.store(submit(&owned.id(), 2, b"two")).await;
    guest.open(&owned).await;
    guest.blob().await;
    guest.blob().await;
    guest.caught_up().await;
    let purge = Request::Purge(vec![owned.id()]);
    let Answer::Purged(mailboxes) = guest.answer(purge).await else {
        panic!()
    };
    assert_eq!((mailboxes[0].blobs, mailboxes[0].receipts), (2, 0));
    // The pin went with it.
    let mut v1 = relay.client(&owned.id().to_hex()).await;
    v1.expect_silence().await;
}

#[tokio::test]
async fn recovery_proofs_are_stored_by_who_opened_a_mailbox_and_found_by_anyone() {
    let relay = Relay::start(&[]).await;
    let proof = |byte| RecoveryProof {
        key_hash: [5; 32],
        proof: vec![byte; 40].into(),
    };
    let mut guest = Guest::connect(&relay).await;
    let refused = guest.refusal(Request::RecoveryStore(proof(1))).await;
    assert_eq!(refused.code, "unauthorized");
    guest.open(&Owned::key(1)).await;
    guest.caught_up().await;
    let kept = guest.answer(Request::RecoveryStore(proof(1))).await;
    assert!(matches!(kept, Answer::RecoveryKept { .. }));
    let mut other = Guest::connect(&relay).await;
    let query = Request::RecoveryQuery(RecoveryQuery {
        key_hashes: vec![[5; 32], [6; 32]],
    });
    let Answer::RecoveryFound { proofs, more, .. } = other.answer(query).await else {
        panic!()
    };
    assert_eq!((proofs.len(), more), (1, false));
    assert_eq!(&proofs[0].proof[..], [1; 40]);
}

/// 800 keys were 800 commits of one row on the first connection, and 800 more on the second.
#[tokio::test]
async fn many_keys_are_pinned_by_one_read_and_one_commit() {
    let (relay, faulty) = faulty_relay(&[("RELAY_RATE_LIMIT_PER_MIN", "0")]).await;
    let owned: Vec<_> = (0..=255).map(Owned::key).collect();
    let all: Vec<_> = owned.iter().collect();
    for connection in 1..=3 {
        let mut guest = Guest::connect(&relay).await;
        let subscribe = guest.subscribe_to(&all, false);
        guest.try_subscribe(subscribe).await;
        assert_eq!(faulty.calls(Call::IsPinned), connection);
        assert_eq!(faulty.calls(Call::Pin), connection);
    }
    assert!(relay.metric("relay_pins").await > 100.0);
}

/// What the relay says to this client about who it is.
async fn introduced(guest: &mut Guest, origin: &str) -> Result<Welcome, Refused> {
    let introduce = Introduce {
        nonce: [5; 32],
        origin: origin.into(),
    };
    match guest.answer(Request::Hello(Some(introduce))).await {
        Answer::Welcome(welcome) => Ok(*welcome),
        Answer::Refused(refused) => Err(refused),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_relay_proves_its_id_for_this_nonce_connection_and_host() {
    let relay = Relay::start(&[]).await;
    let mut guest = Guest::connect(&relay).await;
    assert_eq!(guest.welcome.proof, None, "nobody has asked");
    let welcome = introduced(&mut guest, ORIGIN).await.unwrap();
    let (id, challenge) = (welcome.relay_id, welcome.challenge);
    assert_eq!(
        (id, challenge),
        (guest.welcome.relay_id, guest.welcome.challenge)
    );
    let proves = |nonce, origin| {
        let signed = proof::v2_welcome(&id, &nonce, &challenge, origin);
        proof::v2_is_welcome(&id, &signed, &welcome.proof.unwrap())
    };
    assert!(proves([5; 32], ORIGIN));
    assert!(!proves([6; 32], ORIGIN));
    assert!(!proves([5; 32], "relay.example.org"));
}

/// The first question who a relay is belongs to connecting; with more of them a client would have it sign
/// as fast as it can ask.
#[tokio::test]
async fn the_first_hello_is_free_and_later_ones_are_charged() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_MIN", "1")]).await;
    let mut guest = Guest::connect(&relay).await;
    for _ in 0..2 {
        introduced(&mut guest, ORIGIN).await.unwrap();
    }
    let refused = introduced(&mut guest, ORIGIN).await.unwrap_err();
    assert_eq!(refused.code, "rate_limited");
}

/// The proofs of a client that has dialled another host were passed on here by somebody who wants to use
/// them, and is told nothing that would make the client believe it.
#[tokio::test]
async fn without_public_origins_the_host_of_the_upgrade_is_the_only_origin() {
    let relay = Relay::start(&[]).await;
    let owned = Owned::key(1);
    for (host, origin, is_served) in [
        ("relay.example.com", ORIGIN, true),
        ("Relay.Example.COM:80", ORIGIN, true),
        ("relay.example.com:443", ORIGIN, true),
        ("relay.example.com:8443", ORIGIN, false),
        ("relay.example.org", ORIGIN, false),
        ("192.0.2.1:8080", ORIGIN, false),
    ] {
        let mut guest = Guest::connect_as(&relay, host).await;
        assert_eq!(
            introduced(&mut guest, origin).await.is_ok(),
            is_served,
            "{host}"
        );
        let subscribe = guest.subscribe_to(&[&owned], false);
        match is_served {
            true => assert!(guest.try_subscribe(subscribe).await[0].is_ok()),
            false => {
                let refused = guest.refusal(Request::Subscribe(subscribe)).await;
                assert_eq!((refused.code, refused.retry_after), ("wrong_origin", None));
            }
        }
    }
}

#[tokio::test]
async fn with_public_origins_the_list_counts_and_not_the_host_of_the_upgrade() {
    let relay = Relay::start(&[("RELAY_PUBLIC_ORIGINS", "a.example,relay.example.com")]).await;
    let owned = Owned::key(1);
    let mut behind_a_proxy = Guest::connect_as(&relay, "10.0.0.7:8080").await;
    introduced(&mut behind_a_proxy, ORIGIN).await.unwrap();
    behind_a_proxy.open(&owned).await;
    // One that passes clients on can name itself in the upgrade.
    let mut passed_on = Guest::connect_as(&relay, "evil.example").await;
    let refused = introduced(&mut passed_on, "evil.example")
        .await
        .unwrap_err();
    assert_eq!(refused.code, "wrong_origin");
    let mut subscribe = passed_on.subscribe_to(&[&owned], false);
    subscribe.origin = "evil.example".into();
    subscribe.openings[0].signature = Some(owned.signature(&passed_on.welcome, "evil.example"));
    let refused = passed_on.refusal(Request::Subscribe(subscribe)).await;
    assert_eq!(refused.code, "wrong_origin");
}
