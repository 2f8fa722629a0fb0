//! v2: requests with long lists, or that name one thing many times, are bounded and answered once.

use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::RecoveryQuery;
use vauchi_relay::protocol::v2::message::Done;
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::store::faulty::{Call, faulty_relay};
use crate::v2::client::{Guest, Owned, submit};

fn blob_id(number: u32) -> BlobId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    BlobId::from_bytes(id)
}

#[tokio::test]
async fn a_purge_that_names_a_mailbox_a_thousand_times_purges_it_once() {
    let (relay, faulty) = faulty_relay(&[]).await;
    let (one, other) = (Owned::key(1), Owned::v2_only(2));
    let mut guest = Guest::connect(&relay).await;
    let subscribe = guest.subscribe_to(&[&one, &other], false);
    guest.try_subscribe(subscribe).await;
    guest.caught_up().await;
    guest.store(submit(&one.id(), 1, b"x")).await;
    guest.blob().await;

    let mut ids = vec![one.id(); 1_000];
    ids.push(other.id());
    ids.extend([one.id(); 1_000]);
    let answer = guest.answer(Request::Purge(ids)).await;
    let Answer::Purged(mailboxes) = answer else {
        panic!("{answer:?}")
    };
    let told: Vec<_> = mailboxes
        .iter()
        .map(|purged| (purged.mailbox, purged.blobs))
        .collect();
    assert_eq!(told, [(one.id(), 1), (other.id(), 0)]);
    // One that holds nothing is not purged, and only one of them has a pin to take off.
    assert_eq!(
        (faulty.calls(Call::Purge), faulty.calls(Call::Unpin)),
        (1, 1)
    );
    guest.expect_nothing().await;
}

#[tokio::test]
async fn mailboxes_that_are_closed_by_the_ten_thousand_are_closed_and_answered_once() {
    let relay = Relay::start(&[("RELAY_STORAGE_BACKEND", "memory")]).await;
    let owned: Vec<_> = (0..=255).map(Owned::v2_only).collect();
    let mut guest = Guest::connect(&relay).await;
    let subscribe = guest.subscribe_to(&owned.iter().collect::<Vec<_>>(), false);
    guest.try_subscribe(subscribe).await;
    guest.caught_up().await;
    let mut sender = Guest::connect(&relay).await;
    for number in 0..64 {
        sender
            .store(submit(&owned[number as usize].id(), number, b"x"))
            .await;
        guest.blob().await;
    }
    // The window is full; closing empties it.
    let mut ids: Vec<_> = (0..10_000_u32)
        .map(|number| {
            let mut id = [9; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            MailboxId::from_bytes(id)
        })
        .collect();
    for _ in 0..20 {
        ids.extend(owned[1..].iter().map(Owned::id));
    }
    assert_eq!(
        guest.done(Request::Unsubscribe(ids.clone())).await,
        Done::Unsubscribed
    );
    sender
        .store(submit(&owned[1].id(), 99, b"to a closed one"))
        .await;
    sender
        .store(submit(&owned[0].id(), 99, b"to the open one"))
        .await;
    assert_eq!(guest.blob().await.mailbox, owned[0].id());
    guest.expect_nothing().await;
    // Nobody wants to know.
    guest.ask_as(0, &Request::Unsubscribe(ids)).await;
    guest.expect_nothing().await;
}

#[tokio::test]
async fn a_thousand_acknowledgements_are_one_request_and_one_more_is_refused_whole() {
    let relay = Relay::start(&[("RELAY_STORAGE_BACKEND", "memory")]).await;
    let (owned, mut owner) = (Owned::v2_only(1), Guest::connect(&relay).await);
    owner.open_empty(&owned).await;
    let mut sender = Guest::connect(&relay).await;
    for number in 0..3 {
        sender.store(submit(&owned.id(), number, b"x")).await;
        owner.blob().await;
    }
    let acknowledge = |count| {
        let items = (0..count).map(|number| (owned.id(), blob_id(number)));
        Request::Acknowledge(items.collect())
    };
    let refused = owner.refusal(acknowledge(1_001)).await;
    assert_eq!((refused.code, refused.retry_after), ("invalid", None));
    // Not even this is answered when no answer is wanted.
    owner.ask_as(0, &acknowledge(1_001)).await;
    owner.expect_nothing().await;
    assert_eq!(relay.metric("relay_blobs_stored").await, 3.0);
    assert_eq!(owner.done(acknowledge(1_000)).await, Done::Acknowledged);
    assert_eq!(relay.metric("relay_blobs_stored").await, 0.0);
    // The same thousand times, and unanswered.
    sender.store(submit(&owned.id(), 5_000, b"x")).await;
    owner.blob().await;
    let same = Request::Acknowledge(vec![(owned.id(), blob_id(5_000)); 1_000]);
    owner.ask_as(0, &same).await;
    relay.metric_becomes("relay_blobs_stored", 0.0).await;
    owner.expect_nothing().await;
    assert_eq!(relay.metric("relay_blobs_acknowledged_total").await, 4.0);
}

#[tokio::test]
async fn a_mailbox_that_is_named_twice_is_answered_twice_and_open_once() {
    let relay = Relay::start(&[]).await;
    let (owned, mut owner) = (Owned::key(1), Guest::connect(&relay).await);
    let mut sender = Guest::connect(&relay).await;
    sender.store(submit(&owned.id(), 1, b"once")).await;
    let mut subscribe = owner.subscribe_to(&[&owned, &owned, &owned], true);
    // One of the proofs is not good, which closes nothing.
    subscribe.openings[1].signature = None;
    let outcomes = owner.try_subscribe(subscribe).await;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[0], outcomes[2]);
    assert_eq!(outcomes[1], Err("unauthorized"));
    assert_eq!(&*owner.blob().await.body, b"once");
    assert_eq!(owner.caught_up().await, [owned.id()]);
    sender.store(submit(&owned.id(), 2, b"and once more")).await;
    owner.blob().await;
    owner.expect_nothing().await;
    let close = Request::Unsubscribe(vec![owned.id()]);
    owner.done(close).await;
    sender
        .store(submit(&owned.id(), 3, b"to a closed one"))
        .await;
    owner.expect_nothing().await;
}

#[tokio::test]
async fn fifty_hashes_are_one_question_and_one_more_is_refused() {
    let relay = Relay::start(&[]).await;
    let mut guest = Guest::connect(&relay).await;
    let query = |count: u8| {
        Request::RecoveryQuery(RecoveryQuery {
            key_hashes: (0..count).map(|byte| [byte; 32]).collect(),
        })
    };
    let answer = guest.answer(query(50)).await;
    assert!(matches!(answer, Answer::RecoveryFound { more: false, .. }));
    assert_eq!(guest.refusal(query(51)).await.code, "invalid");
}
