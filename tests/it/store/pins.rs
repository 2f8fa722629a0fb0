//! What every engine promises about pins, on every engine.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::MailboxHash;
use vauchi_relay::store::StoreError;

use crate::store::contract::{
    DAY, ENGINES, HOUR, NOW, Rig, Settings, durable_engines, mailbox, quota,
};

const TTL: Duration = Duration::from_secs(30 * 86_400);

async fn pin(rig: &Rig, number: u8, now: Timestamp) {
    assert_eq!(try_pin(rig, &[number], now).await, [true]);
}

/// Whether each is pinned now.
async fn try_pin(rig: &Rig, numbers: &[u8], now: Timestamp) -> Vec<bool> {
    let mailboxes = numbers.iter().map(|number| mailbox(*number)).collect();
    rig.store.pin(mailboxes, (TTL, now), now).await.unwrap()
}

async fn is_pinned(rig: &Rig, number: u8, now: Timestamp) -> bool {
    let pinned = rig.store.are_pinned(&[mailbox(number)], TTL, now).await;
    pinned.unwrap()[0]
}

/// Those of `numbers` that are pinned.
async fn pinned(rig: &Rig, numbers: std::ops::RangeInclusive<u8>) -> Vec<u8> {
    let mut pinned = Vec::new();
    for number in numbers {
        if is_pinned(rig, number, NOW).await {
            pinned.push(number);
        }
    }
    pinned
}

#[tokio::test]
async fn a_pinned_mailbox_is_pinned_until_it_is_unpinned() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        assert!(!is_pinned(&rig, 1, NOW).await);
        pin(&rig, 1, NOW).await;
        assert_eq!(pinned(&rig, 0..=3).await, [1]);
        pin(&rig, 1, NOW).await;
        pin(&rig, 2, NOW).await;
        assert_eq!(rig.usage().pins, 2);
        for _ in 0..2 {
            rig.store.unpin(mailbox(1)).await.unwrap();
            assert_eq!(pinned(&rig, 0..=3).await, [2]);
            assert_eq!(rig.usage().pins, 1);
        }
        pin(&rig, 1, NOW).await;
        assert_eq!(pinned(&rig, 0..=3).await, [1, 2]);
        assert_eq!(rig.usage().bytes, 0);
    }
}

#[tokio::test]
async fn mailboxes_with_a_common_prefix_have_pins_of_their_own() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut bytes = [1; 32];
        bytes[31] = 2;
        let twin = MailboxHash::from_bytes(bytes);
        pin(&rig, 1, NOW).await;
        assert!(!rig.store.are_pinned(&[twin], TTL, NOW).await.unwrap()[0]);
        rig.store.pin(vec![twin], (TTL, NOW), NOW).await.unwrap();
        rig.store.unpin(mailbox(1)).await.unwrap();
        assert!(rig.store.are_pinned(&[twin], TTL, NOW).await.unwrap()[0]);
    }
}

#[tokio::test]
async fn a_pin_ends_when_it_was_unused_for_its_time() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        pin(&rig, 1, NOW).await;
        assert!(is_pinned(&rig, 1, NOW.plus(TTL)).await);
        assert!(!is_pinned(&rig, 1, NOW.plus(TTL + DAY)).await);
        // Used again it lives on, never shorter than from its last use.
        let mut now = NOW;
        for _ in 0..40 {
            now = now.plus(17 * HOUR);
            pin(&rig, 1, now).await;
            assert!(is_pinned(&rig, 1, now.plus(TTL)).await);
            assert!(!is_pinned(&rig, 1, now.plus(TTL + DAY)).await);
        }
        // What had ended begins again.
        let later = now.plus(3 * TTL);
        pin(&rig, 1, later).await;
        assert!(is_pinned(&rig, 1, later.plus(TTL)).await);
        assert_eq!(rig.usage().pins, 1);
    }
}

/// Pins of empty mailboxes that were opened once made room for others: who opened mailboxes of its own
/// without end took the pins of everybody else away.
#[tokio::test]
async fn beyond_the_bound_a_new_pin_is_refused_until_one_is_over() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.pins_max = 3)).await;
        for (number, days) in [(1, 31), (2, 30), (3, 0)] {
            pin(&rig, number, NOW.minus(days * DAY)).await;
        }
        // 1 was last used 31 days ago, at the very end of its time.
        assert_eq!(try_pin(&rig, &[4, 3, 5], NOW).await, [true, true, false]);
        assert_eq!(pinned(&rig, 1..=9).await, [2, 3, 4]);
        assert_eq!(try_pin(&rig, &[5, 6], NOW).await, [false, false]);
        assert_eq!(try_pin(&rig, &[2], NOW).await, [true], "it has one");
        assert_eq!(pinned(&rig, 1..=9).await, [2, 3, 4]);
        assert!((rig.metric("pins_evicted_total") - 1.0).abs() < 0.1);
        assert!((rig.metric("pins") - 3.0).abs() < 0.1);
        rig.store.unpin(mailbox(3)).await.unwrap();
        assert_eq!(try_pin(&rig, &[6], NOW).await, [true]);
    }
}

/// A clock that is wrong for a while forgets nothing: what is over is told by a steady one.
#[tokio::test]
async fn a_clock_far_ahead_makes_no_room() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.pins_max = 1)).await;
        pin(&rig, 1, NOW).await;
        let ahead = NOW.plus(365 * DAY);
        let pinned = rig.store.pin(vec![mailbox(2)], (TTL, NOW), ahead).await;
        assert_eq!(pinned.unwrap(), [false]);
        assert!(is_pinned(&rig, 1, NOW).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn there_is_never_a_pin_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.pins_max = 3)).await;
        let mut openers = JoinSet::new();
        for number in 0..100 {
            let store = Arc::clone(&rig.store);
            openers.spawn(async move {
                let pinned = store.pin(vec![mailbox(number)], (TTL, NOW), NOW).await;
                pinned.unwrap()[0]
            });
        }
        let are_pinned = openers.join_all().await;
        assert_eq!(are_pinned.iter().filter(|is_pinned| **is_pinned).count(), 3);
        assert_eq!(pinned(&rig, 0..=99).await.len(), 3);
        assert_eq!(rig.usage().pins, 3);
    }
}

#[tokio::test]
async fn a_restart_keeps_pins_and_a_lowered_bound_takes_none_away_before_its_time() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        for number in 0..20 {
            pin(&rig, number, NOW).await;
        }
        rig.reopen().await;
        assert_eq!(rig.usage().pins, 20);
        assert!((rig.metric("pins") - 20.0).abs() < 0.1);
        rig.change(|settings| settings.quota.pins_max = 5).await;
        assert_eq!(try_pin(&rig, &[30], NOW).await, [false]);
        assert_eq!(pinned(&rig, 0..=30).await.len(), 20);
        let later = NOW.plus(TTL + DAY);
        assert_eq!(try_pin(&rig, &[30], later).await, [true]);
        assert_eq!(rig.usage().pins, 5);
    }
}

#[tokio::test]
async fn a_closed_store_refuses_pins() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.store.close().await;
        let closed = |error| assert!(matches!(error, Some(StoreError::Closed)));
        closed(rig.store.pin(vec![mailbox(1)], (TTL, NOW), NOW).await.err());
        closed(rig.store.unpin(mailbox(1)).await.err());
        closed(rig.store.are_pinned(&[mailbox(1)], TTL, NOW).await.err());
    }
}
