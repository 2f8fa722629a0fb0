//! What every engine promises about pins, on every engine.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::MailboxHash;
use vauchi_relay::store::StoreError;
use vauchi_relay::store::model::View;

use crate::store::contract::{
    DAY, ENGINES, HOUR, NOW, Rig, Settings, blob, durable_engines, mailbox, quota,
};

const TTL: Duration = Duration::from_secs(30 * 86_400);

async fn pin(rig: &Rig, number: u8, now: Timestamp) {
    rig.store.pin(vec![mailbox(number)], now).await.unwrap();
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
        rig.store.pin(vec![twin], NOW).await.unwrap();
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

#[tokio::test]
async fn beyond_the_bound_empty_mailboxes_that_were_opened_once_go_first() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.pins_max = 5)).await;
        let at = |hours: u32| NOW.minus(hours * HOUR);
        // 1 is the oldest and protects something; 2 was opened twice; 3, 4 and 5 once, 3 is older.
        rig.stores(blob(1, 1)).await;
        pin(&rig, 1, at(9)).await;
        pin(&rig, 2, at(8)).await;
        pin(&rig, 2, at(8)).await;
        pin(&rig, 4, at(5)).await;
        pin(&rig, 3, at(7)).await;
        pin(&rig, 5, at(4)).await;
        for (new, expected) in [
            (6, vec![1, 2, 4, 5, 6]),
            (7, vec![1, 2, 5, 6, 7]),
            (8, vec![1, 2, 6, 7, 8]),
        ] {
            pin(&rig, new, NOW).await;
            assert_eq!(pinned(&rig, 1..=9).await, expected);
        }
        // Twice opened ones, without any opened once, and then the one that protects something.
        for number in 6..=8 {
            pin(&rig, number, NOW).await;
        }
        pin(&rig, 9, NOW).await;
        assert_eq!(pinned(&rig, 1..=9).await, [1, 6, 7, 8, 9]);
        for number in 6..=9 {
            rig.stores(blob(number, 1)).await;
        }
        pin(&rig, 10, NOW).await;
        assert_eq!(pinned(&rig, 1..=10).await, [6, 7, 8, 9, 10]);
        assert!((rig.metric("pins_evicted_total") - 5.0).abs() < 0.1);
        assert!((rig.metric("pins") - 5.0).abs() < 0.1);
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn there_is_never_a_pin_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.pins_max = 3)).await;
        let mut openers = JoinSet::new();
        for number in 0..100 {
            let store = Arc::clone(&rig.store);
            openers.spawn(async move { store.pin(vec![mailbox(number)], NOW).await.unwrap() });
        }
        openers.join_all().await;
        assert_eq!(pinned(&rig, 0..=99).await.len(), 3);
        assert_eq!(rig.usage().pins, 3);
        assert!((rig.metric("pins_evicted_total") - 97.0).abs() < 0.1);
    }
}

#[tokio::test]
async fn a_restart_keeps_pins_and_a_lowered_bound_is_reached() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        for number in 0..20 {
            pin(&rig, number, NOW).await;
        }
        rig.reopen().await;
        assert_eq!(rig.usage().pins, 20);
        assert!((rig.metric("pins") - 20.0).abs() < 0.1);
        assert_eq!(pinned(&rig, 0..=30).await.len(), 20);
        rig.change(|settings| settings.quota.pins_max = 5).await;
        pin(&rig, 30, NOW).await;
        assert_eq!(rig.usage().pins, 5);
        assert_eq!(pinned(&rig, 0..=30).await.len(), 5);
        assert!(is_pinned(&rig, 30, NOW).await);
    }
}

#[tokio::test]
async fn a_closed_store_refuses_pins() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.store.close().await;
        let closed = |error| assert!(matches!(error, Some(StoreError::Closed)));
        closed(rig.store.pin(vec![mailbox(1)], NOW).await.err());
        closed(rig.store.unpin(mailbox(1)).await.err());
        closed(rig.store.are_pinned(&[mailbox(1)], TTL, NOW).await.err());
    }
}
