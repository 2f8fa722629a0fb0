//! What every engine promises about device sync messages, on every engine.

use std::sync::Arc;
use std::time::Duration;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::StoreError;
use vauchi_relay::store::model::{
    Appended, BacklogCursor, Class, Envelope, Kept, OrderKey, Owner, PageBounds, StoredBlob, View,
};

use crate::store::contract::{
    ENGINES, EVERYTHING, HOUR, NOW, Rig, Settings, append, blob, blob_of, expiring, id, mailbox,
    number, quota, race,
};

/// Owners have numbers of their own; what is a mailbox's hash here is an owner's there.
fn owned(envelope: Envelope, owner: u8, version: u64) -> Envelope {
    Envelope {
        class: Class::DeviceSync,
        owner: Some(Owner {
            hash: mailbox(owner),
            version,
        }),
        ..envelope
    }
}

fn sync(owner: u8, device: u8, id: u32, version: u64) -> Envelope {
    owned(blob(device, id), owner, version)
}

/// Reads a backlog to its end in pages of `blobs_max`.
pub(crate) async fn backlog(
    rig: &Rig,
    device: u8,
    blobs_max: u32,
    now: Timestamp,
) -> (Vec<StoredBlob>, BacklogCursor) {
    let bounds = PageBounds {
        blobs_max,
        ..EVERYTHING
    };
    let mut cursor = BacklogCursor::START;
    let mut blobs = Vec::new();
    loop {
        let page = rig
            .store
            .device_sync_backlog(mailbox(device), cursor, bounds, now)
            .await
            .unwrap();
        assert!(
            page.next != cursor || !page.more.is_any(),
            "a page that leads nowhere"
        );
        blobs.extend(page.blobs);
        cursor = page.next;
        if !page.more.is_any() {
            return (blobs, cursor);
        }
    }
}

async fn waiting(rig: &Rig, device: u8) -> Vec<u32> {
    let (blobs, _) = backlog(rig, device, 100, NOW).await;
    blobs.iter().map(|blob| number(blob.id)).collect()
}

async fn purge_owner(rig: &Rig, owner: u8) -> u64 {
    let purged = rig.store.purge_owner(mailbox(owner), NOW).await;
    purged.unwrap().blobs
}

#[tokio::test]
async fn device_sync_is_shown_to_its_device_and_to_nobody_else() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(1, 1)).await;
        rig.stores(sync(9, 1, 2, 1)).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1]);
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [1]);
        assert_eq!(rig.ids(1, View::DeviceSync, NOW).await, [2]);
        assert_eq!(waiting(&rig, 1).await, [2]);
        assert_eq!(rig.purge(1, View::Proven, NOW).await, 1);
        assert_eq!(waiting(&rig, 1).await, [2]);
    }
}

#[tokio::test]
async fn a_backlog_comes_by_version_then_by_arrival() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let versions = [5, 1 << 63, 5, 0, u64::MAX, 7, 0];
        for (number, version) in (1..).zip(versions) {
            rig.stores(sync(9, 1, number, version)).await;
        }
        for blobs_max in [1, 2, 3, 100] {
            let (blobs, _) = backlog(&rig, 1, blobs_max, NOW).await;
            let ids: Vec<_> = blobs.iter().map(|blob| number(blob.id)).collect();
            assert_eq!(ids, [4, 7, 1, 3, 6, 2, 5], "in pages of {blobs_max}");
            let sorted: Vec<_> = blobs.iter().map(|blob| blob.version).collect();
            assert!(sorted.is_sorted() && sorted[6] == Some(u64::MAX));
        }
    }
}

#[tokio::test]
async fn a_backlog_is_bounded_in_bytes_and_has_at_least_one() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 1..=3 {
            let large = owned(blob_of(1, number, 100), 9, 9 - u64::from(number));
            rig.stores(large).await;
        }
        for (bytes_max, expected) in [(1, vec![3]), (200, vec![3, 2]), (1_000, vec![3, 2, 1])] {
            let bounds = PageBounds {
                blobs_max: 10,
                bytes_max,
            };
            let page = rig
                .store
                .device_sync_backlog(mailbox(1), BacklogCursor::START, bounds, NOW)
                .await
                .unwrap();
            let ids: Vec<_> = page.blobs.iter().map(|blob| number(blob.id)).collect();
            assert_eq!(page.more.is_any(), ids.len() < 3);
            assert_eq!(ids, expected);
        }
    }
}

#[tokio::test]
async fn what_comes_while_a_backlog_is_read_comes_after_it_by_arrival_and_once() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 1..=4 {
            rig.stores(sync(9, 1, number, 10 - u64::from(number))).await;
        }
        let bounds = PageBounds {
            blobs_max: 2,
            ..EVERYTHING
        };
        let first = rig
            .store
            .device_sync_backlog(mailbox(1), BacklogCursor::START, bounds, NOW)
            .await
            .unwrap();
        assert!(first.more.is_any());
        // One would stand before the cursor, one behind it.
        rig.stores(sync(9, 1, 11, 1)).await;
        rig.stores(sync(9, 1, 10, 99)).await;
        let second = rig
            .store
            .device_sync_backlog(mailbox(1), first.next, EVERYTHING, NOW)
            .await
            .unwrap();
        let ids: Vec<_> = second.blobs.iter().map(|blob| number(blob.id)).collect();
        assert_eq!((ids, second.more.is_any()), (vec![2, 1], false));
        let later = rig
            .store
            .page(
                mailbox(1),
                View::DeviceSync,
                second.next.up_to,
                EVERYTHING,
                NOW,
            )
            .await
            .unwrap();
        let ids: Vec<_> = later.blobs.iter().map(|blob| number(blob.id)).collect();
        assert_eq!(ids, [11, 10]);
    }
}

#[tokio::test]
async fn an_empty_backlog_ends_where_it_began() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(2, 1)).await;
        let (blobs, cursor) = backlog(&rig, 1, 3, NOW).await;
        assert!(blobs.is_empty());
        assert_eq!(cursor.up_to, OrderKey::START);
        let (blobs, _) = backlog(&rig, 2, 3, NOW).await;
        assert!(blobs.is_empty(), "a blob is no device sync message");
    }
}

#[tokio::test]
async fn an_acknowledgement_takes_it_from_its_device_only() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(sync(9, 1, 1, 1)).await;
        rig.stores(sync(9, 2, 1, 1)).await;
        assert_eq!(rig.acknowledge(1, &[1, 5], NOW).await, 1);
        assert!(waiting(&rig, 1).await.is_empty());
        assert_eq!(waiting(&rig, 2).await, [1]);
    }
}

#[tokio::test]
async fn a_purged_owner_has_nothing_left_on_any_device() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 0..300 {
            let device = u8::try_from(number % 3).unwrap();
            let appended = rig.append(sync(9, device, number, 1)).await;
            assert!(matches!(appended, Appended::Stored { .. }));
        }
        rig.stores(sync(8, 1, 999, 1)).await;
        rig.stores(blob(9, 1)).await;
        assert_eq!(purge_owner(&rig, 9).await, 300);
        assert_eq!(purge_owner(&rig, 9).await, 0);
        assert_eq!(waiting(&rig, 1).await, [999]);
        assert_eq!(rig.ids(9, View::V1, NOW).await, [1]);
        let usage = rig.usage();
        assert_eq!((usage.device_sync.purged, usage.purged), (300, 0));
    }
}

#[tokio::test]
async fn owners_with_a_common_prefix_are_different_owners() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut twin = sync(9, 1, 2, 2);
        let mut bytes = [9; 32];
        bytes[31] = 1;
        let hash = vauchi_relay::ids::MailboxHash::from_bytes(bytes);
        twin.owner = Some(Owner { hash, version: 2 });
        rig.stores(sync(9, 1, 1, 1)).await;
        rig.stores(twin).await;
        assert_eq!(purge_owner(&rig, 9).await, 1);
        assert_eq!(waiting(&rig, 1).await, [2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_owner_never_holds_a_message_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.device_sync_blobs_max = 10)).await;
        let envelopes = (0..32)
            .map(|number| sync(9, u8::try_from(number % 4).unwrap(), number, 1))
            .collect();
        assert_eq!(race(&rig, envelopes, Appended::MailboxFull).await, (10, 22));
        assert_eq!(rig.usage().device_sync.stored, 10);
        rig.stores(sync(8, 1, 99, 1)).await;
        rig.stores(blob(1, 98)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_owner_never_holds_a_byte_too_many() {
    for engine in ENGINES {
        let settings = quota(|quota| quota.device_sync_bytes_max = 10_999);
        let rig = Rig::open(engine, settings).await;
        let envelopes = (0..32)
            .map(|number| {
                owned(
                    blob_of(u8::try_from(number % 4).unwrap(), number, 744),
                    9,
                    1,
                )
            })
            .collect();
        assert_eq!(race(&rig, envelopes, Appended::MailboxFull).await, (10, 22));
        assert_eq!(rig.usage().bytes, 10_000);
        rig.stores(owned(blob_of(5, 100, 743), 9, 1)).await;
        let full = rig.append(owned(blob_of(6, 101, 0), 9, 1)).await;
        assert_eq!(full, Appended::MailboxFull);
    }
}

#[tokio::test]
async fn the_quotas_of_mailboxes_and_owners_do_not_meet() {
    for engine in ENGINES {
        let settings = quota(|quota| {
            quota.mailbox_blobs_max = 1;
            quota.device_sync_blobs_max = 2;
            quota.relay_bytes_max = 5 * 300;
        });
        let rig = Rig::open(engine, settings).await;
        rig.stores(owned(blob_of(1, 1, 44), 9, 1)).await;
        rig.stores(owned(blob_of(1, 2, 44), 9, 1)).await;
        rig.stores(blob_of(1, 3, 44)).await;
        assert_eq!(rig.append(blob(1, 4)).await, Appended::MailboxFull);
        let full = rig.append(sync(9, 2, 4, 1)).await;
        assert_eq!(full, Appended::MailboxFull);
        rig.stores(owned(blob_of(1, 5, 44), 8, 1)).await;
        rig.stores(blob_of(2, 1, 44)).await;
        let full = rig.append(sync(7, 3, 1, 1)).await;
        assert_eq!(full, Appended::RelayFull, "the relay counts both");
        rig.acknowledge(1, &[1], NOW).await;
        rig.stores(owned(blob_of(4, 1, 44), 9, 1)).await;
        assert_eq!(purge_owner(&rig, 9).await, 2);
        rig.stores(owned(blob_of(4, 2, 44), 9, 1)).await;
    }
}

#[tokio::test]
async fn a_full_owner_first_loses_what_has_expired_on_any_device() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.device_sync_blobs_max = 2)).await;
        rig.stores(expiring(sync(9, 1, 1, 1), NOW.plus(HOUR))).await;
        rig.stores(expiring(sync(9, 2, 2, 1), NOW.plus(20 * HOUR)))
            .await;
        let third = |hours: u32| {
            let now = NOW.plus(hours * HOUR);
            Envelope {
                stored_at: now,
                expires_at: now.plus(HOUR),
                ..sync(9, 3, 3, 1)
            }
        };
        assert_eq!(rig.append(third(0)).await, Appended::MailboxFull);
        rig.stores(third(2)).await;
        let fourth = Envelope {
            id: id(4),
            ..third(2)
        };
        assert_eq!(rig.append(fourth).await, Appended::MailboxFull);
        assert_eq!(rig.usage().device_sync.expired, 1);
    }
}

#[tokio::test]
async fn what_has_expired_is_invisible_at_once_and_swept_later() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(expiring(sync(9, 1, 1, 1), NOW.plus(HOUR))).await;
        rig.stores(sync(9, 1, 2, 0)).await;
        let just = NOW.plus(HOUR - Duration::from_millis(1));
        assert_eq!(backlog(&rig, 1, 9, just).await.0.len(), 2);
        assert_eq!(backlog(&rig, 1, 9, NOW.plus(HOUR)).await.0.len(), 1);
        assert_eq!(rig.usage().device_sync.stored, 2);
        assert_eq!(rig.sweep(256, NOW.plus(2 * HOUR)).await, 1);
        let usage = rig.usage();
        assert_eq!((usage.device_sync.expired, usage.expired), (1, 0));
    }
}

#[tokio::test]
async fn a_repeat_is_a_duplicate_while_it_waits_and_after_it_left() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let first = sync(9, 1, 1, 1);
        let duplicate = Appended::Duplicate {
            expires_at: first.expires_at,
        };
        rig.stores(first.clone()).await;
        assert_eq!(rig.append(first.clone()).await, duplicate);
        rig.acknowledge(1, &[1], NOW).await;
        assert_eq!(rig.append(first.clone()).await, duplicate);
        let other = owned(blob_of(1, 1, 5), 9, 1);
        assert_eq!(rig.append(other).await, Appended::IdReused);
    }
}

#[tokio::test]
async fn device_sync_has_sums_and_metrics_of_its_own() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob_of(1, 50, 744)).await;
        for number in 0..4 {
            rig.stores(owned(blob_of(1, number, 744), 9, 1)).await;
        }
        rig.stores(expiring(sync(9, 2, 1, 1), NOW.plus(HOUR))).await;
        rig.acknowledge(1, &[0, 50], NOW).await;
        rig.sweep(256, NOW.plus(2 * HOUR)).await;
        let expected = Kept {
            created: 5,
            acknowledged: 1,
            expired: 1,
            stored: 3,
            ..Kept::default()
        };
        let usage = rig.usage();
        assert_eq!(usage.device_sync, expected);
        assert_eq!((usage.created, usage.stored, usage.bytes), (1, 0, 3_000));
        purge_owner(&rig, 9).await;
        for (name, value) in [
            ("device_sync_stored", 0.0),
            ("device_sync_stored_at_start", 0.0),
            ("device_sync_created_total", 5.0),
            ("device_sync_acknowledged_total", 1.0),
            ("device_sync_purged_total", 3.0),
            ("device_sync_expired_total", 1.0),
            ("device_sync_lost_total", 0.0),
            ("blobs_created_total", 1.0),
            ("blobs_acknowledged_total", 1.0),
            ("stored_bytes", 0.0),
        ] {
            let got = rig.metric(name);
            assert!((got - value).abs() < 0.1, "{name} is {got}, not {value}");
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_device_sync_and_its_quota() {
    for engine in crate::store::contract::durable_engines() {
        let mut rig = Rig::open(engine, quota(|quota| quota.device_sync_blobs_max = 2)).await;
        rig.stores(sync(9, 1, 1, 7)).await;
        rig.stores(sync(9, 2, 2, 3)).await;
        rig.reopen().await;
        assert_eq!(rig.usage().device_sync.stored_at_start, 2);
        assert_eq!(rig.append(sync(9, 3, 3, 1)).await, Appended::MailboxFull);
        let (blobs, _) = backlog(&rig, 1, 9, NOW).await;
        assert_eq!(blobs[0].version, Some(7));
        assert_eq!(purge_owner(&rig, 9).await, 2);
        rig.stores(sync(9, 3, 3, 1)).await;
    }
}

#[tokio::test]
async fn a_purge_leaves_what_is_stored_after_it_began() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 0..600 {
            let device = u8::try_from(number % 2).unwrap();
            append(&rig.store, sync(9, device, number, 1)).await;
        }
        let store = Arc::clone(&rig.store);
        let purge = tokio::spawn(async move { store.purge_owner(mailbox(9), NOW).await });
        let mut later = 1_000;
        while !purge.is_finished() {
            append(&rig.store, sync(9, 1, later, 1)).await;
            later += 1;
        }
        let purged = purge.await.unwrap().unwrap().blobs;
        let left = u64::try_from(waiting(&rig, 1).await.len()).unwrap();
        assert!(purged >= 600 && purged + left == 600 + u64::from(later - 1_000));
        assert!(waiting(&rig, 0).await.is_empty());
    }
}

#[tokio::test]
async fn a_closed_store_refuses_device_sync_verbs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.store.close().await;
        let purged = rig.store.purge_owner(mailbox(1), NOW).await;
        assert!(matches!(purged, Err(StoreError::Closed)), "{purged:?}");
        let page = rig
            .store
            .device_sync_backlog(mailbox(1), BacklogCursor::START, EVERYTHING, NOW)
            .await;
        assert!(matches!(page, Err(StoreError::Closed)));
    }
}
