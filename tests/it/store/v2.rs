//! What every engine promises to the native protocol: topics, cancelling and extending, receipts,
//! and what mailboxes hold.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxHash, Topic};
use vauchi_relay::store::model::{
    Appended, Class, Envelope, Holding, Opener, Owner, ROW_OVERHEAD_BYTES, Receipt, ReceiptKind,
    Removed, StoredBlob, Tells, View,
};

use crate::harness::eventually;
use crate::store::contract::{
    DAY, ENGINES, HOUR, NOW, Rig, Settings, at, blob, blob_of, dedup, duplicate_of,
    durable_engines, expiring, id, mailbox, number, proven_only, quota,
};

/// The mailbox in which receipts lie.
const RECEIPTS: u8 = 9;

fn about(topic: i64, envelope: Envelope) -> Envelope {
    Envelope {
        topic: Some(Topic::from_prefix64(topic)),
        ..envelope
    }
}

fn asking(envelope: Envelope) -> Envelope {
    Envelope {
        receipt_to: Some(mailbox(RECEIPTS)),
        ..envelope
    }
}

impl Rig {
    async fn cancels(&self, mailbox: u8, number: u32, now: Timestamp) {
        let (mailbox, id) = (crate::store::contract::mailbox(mailbox), id(number));
        let pending = self.store.cancel(mailbox, id, now).await.unwrap();
        pending.await.unwrap();
    }

    async fn extends(&self, mailbox: u8, number: u32, expires_at: Timestamp, now: Timestamp) {
        let (mailbox, id) = (crate::store::contract::mailbox(mailbox), id(number));
        let pending = self.store.extend(mailbox, id, expires_at, now).await;
        pending.unwrap().await.unwrap();
    }

    async fn delivers(&self, mailbox: u8, numbers: &[u32], now: Timestamp) {
        let ids = numbers.iter().copied().map(id).collect();
        let mailbox = crate::store::contract::mailbox(mailbox);
        let pending = self.store.delivered(mailbox, ids, now).await.unwrap();
        pending.await.unwrap();
    }

    async fn acknowledges(&self, mailbox: u8, ids: &[BlobId], tells: Tells) -> Removed {
        let mailbox = crate::store::contract::mailbox(mailbox);
        let pending = self
            .store
            .acknowledge(
                mailbox,
                ids.to_vec(),
                Opener {
                    view: View::Proven,
                    tells,
                },
                NOW,
            )
            .await;
        pending.unwrap().await.unwrap()
    }

    async fn purges(&self, mailbox: u8, view: View, tells: Tells) -> Removed {
        let mailbox = crate::store::contract::mailbox(mailbox);
        self.store.purge(mailbox, view, tells, NOW).await.unwrap()
    }

    /// The receipts in a mailbox, as the blob's number and what became of it.
    async fn receipts_in(&self, mailbox: u8, now: Timestamp) -> Vec<(u32, ReceiptKind)> {
        let blobs = self.blobs(mailbox, View::Proven, now).await;
        let receipts = blobs.iter().filter_map(StoredBlob::receipt);
        receipts
            .map(|receipt| (number(receipt.id), receipt.kind))
            .collect()
    }

    async fn receipts(&self) -> Vec<(u32, ReceiptKind)> {
        self.receipts_in(RECEIPTS, NOW).await
    }

    async fn holding(&self, number: u8, view: View, now: Timestamp) -> Holding {
        let held = self.store.holdings(vec![mailbox(number)], view, now).await;
        held.unwrap()[0]
    }
}

/// The rig of every engine, with these settings.
async fn rigs(settings: Settings) -> Vec<Rig> {
    let mut rigs = Vec::new();
    for engine in ENGINES {
        rigs.push(Rig::open(engine, settings.clone()).await);
    }
    rigs
}

/// A list of the mailboxes that were woken, and what fills it.
fn wakes() -> (Arc<Mutex<Vec<MailboxHash>>>, Settings) {
    let woken = Arc::<Mutex<Vec<MailboxHash>>>::default();
    let list = Arc::clone(&woken);
    let settings = Settings {
        news: Arc::new(move |news| {
            let mailboxes = news.iter().map(|row| row.envelope.mailbox);
            list.lock().unwrap().extend(mailboxes);
        }),
        ..Settings::default()
    };
    (woken, settings)
}

// Topics

#[tokio::test]
async fn what_asked_for_receipts_may_be_swept_before_the_rest() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        // More than a slice, in the slots before and after a full ten minutes.
        let end = Timestamp::from_millis(NOW.millis() / 600_000 * 600_000).plus(HOUR);
        let second = Duration::from_secs(1);
        for number in 0..300 {
            rig.stores(expiring(blob(1, number), end)).await;
        }
        for (number, expires_at) in [
            (301, end.minus(second)),
            (302, end.plus(second)),
            (303, end.plus(3 * second)),
        ] {
            rig.stores(expiring(asking(blob(2, number)), expires_at))
                .await;
        }
        let store = &rig.store;
        assert_eq!(store.expire_asking(NOW).await.unwrap(), 0);
        let untrusted = Timestamp::default();
        assert_eq!(store.expire_asking(untrusted).await.unwrap(), 0);
        let by = end.plus(2 * second);
        assert_eq!(store.expire_asking(by).await.unwrap(), 2);
        let mut told = rig.receipts().await;
        told.sort_unstable_by_key(|(number, _)| *number);
        let expired = ReceiptKind::Expired;
        assert_eq!(told, [(301, expired), (302, expired)]);
        assert_eq!(store.expire_asking(by).await.unwrap(), 0);
        assert_eq!(rig.sweep(256, by).await, 300);
        assert_eq!(rig.ids(2, View::V1, NOW).await, [303]);
    }
}

#[tokio::test]
async fn a_blob_replaces_the_last_one_of_its_topic_at_the_end_of_the_queue() {
    for rig in rigs(Settings::default()).await {
        rig.stores(about(1, blob(1, 1))).await;
        rig.stores(blob(1, 2)).await;
        rig.stores(about(2, blob(1, 3))).await;
        rig.stores(about(1, blob(2, 4))).await;
        rig.stores(about(1, blob(1, 5))).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2, 3, 5]);
        assert_eq!(rig.ids(2, View::V1, NOW).await, [4]);
        let usage = rig.usage();
        assert_eq!((usage.created, usage.replaced, usage.stored), (5, 1, 4));
        assert!((rig.metric("blobs_replaced_total") - 1.0).abs() < 0.1);
        // It is a departure: a late repeat does not bring it back, nor replace its successor.
        let repeat = about(1, blob(1, 1));
        assert_eq!(rig.append(repeat.clone()).await, duplicate_of(&repeat));
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2, 3, 5]);
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_not_replaced() {
    for rig in rigs(Settings::default()).await {
        rig.stores(about(1, blob(1, 1))).await;
        assert_eq!(rig.acknowledge(1, &[1], NOW).await, 1);
        rig.stores(about(1, blob(1, 2))).await;
        let usage = rig.usage();
        assert_eq!((usage.acknowledged, usage.replaced), (1, 0));
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2]);
    }
}

#[tokio::test]
async fn of_a_topic_handed_in_many_times_at_once_the_last_one_stays() {
    for rig in rigs(Settings::default()).await {
        let mut pending = Vec::new();
        for number in 1..=50 {
            pending.push(
                rig.store
                    .append(about(1, blob(1, number)), NOW)
                    .await
                    .unwrap(),
            );
        }
        for appended in pending {
            assert!(matches!(appended.await, Ok(Appended::Stored { .. })));
        }
        assert_eq!(rig.ids(1, View::V1, NOW).await, [50]);
        let usage = rig.usage();
        assert_eq!((usage.created, usage.replaced, usage.stored), (50, 49, 1));
    }
}

#[tokio::test]
async fn a_full_mailbox_admits_what_takes_another_ones_place_and_fits() {
    for rig in rigs(quota(|quota| {
        quota.mailbox_blobs_max = 2;
        quota.mailbox_bytes_max = 2 * ROW_OVERHEAD_BYTES + 100;
    }))
    .await
    {
        rig.stores(about(1, blob_of(1, 1, 40))).await;
        rig.stores(blob_of(1, 2, 40)).await;
        assert_eq!(rig.append(blob(1, 3)).await, Appended::MailboxFull);
        let too_large = about(1, blob_of(1, 4, 61));
        assert_eq!(rig.append(too_large).await, Appended::MailboxFull);
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1, 2], "nothing was lost");
        rig.stores(about(1, blob_of(1, 5, 60))).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2, 5]);
        // What v1 cannot see has a quota of its own: this exchange takes nothing from it.
        rig.stores(proven_only(about(1, blob_of(1, 6, 100)))).await;
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [2, 6]);
    }
}

#[tokio::test]
async fn a_full_relay_admits_an_exchange_that_fits() {
    for rig in rigs(quota(|quota| {
        quota.relay_bytes_max = 2 * ROW_OVERHEAD_BYTES + 50;
    }))
    .await
    {
        rig.stores(about(1, blob_of(1, 1, 20))).await;
        rig.stores(blob_of(2, 1, 20)).await;
        assert_eq!(rig.append(blob(2, 2)).await, Appended::RelayFull);
        let too_large = about(1, blob_of(1, 2, 31));
        assert_eq!(rig.append(too_large).await, Appended::RelayFull);
        rig.stores(about(1, blob_of(1, 3, 30))).await;
        assert_eq!(rig.usage().bytes, 2 * ROW_OVERHEAD_BYTES + 50);
    }
}

#[tokio::test]
async fn what_had_expired_is_not_replaced_but_expired() {
    for rig in rigs(Settings::default()).await {
        let later = NOW.plus(2 * HOUR);
        rig.stores(asking(about(1, expiring(blob(1, 1), NOW.plus(HOUR)))))
            .await;
        rig.stores(at(about(1, blob(1, 2)), later)).await;
        let usage = rig.usage();
        assert_eq!((usage.replaced, usage.expired), (0, 1));
        assert_eq!(rig.receipts().await, [(1, ReceiptKind::Expired)]);
    }
}

#[tokio::test]
async fn a_topic_is_known_after_a_restart() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        rig.stores(about(1, blob(1, 1))).await;
        rig.reopen().await;
        rig.stores(about(1, blob(1, 2))).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2]);
    }
}

// Cancel, extend

#[tokio::test]
async fn a_cancelled_blob_is_gone_and_remembered() {
    for rig in rigs(Settings::default()).await {
        rig.stores(blob(1, 1)).await;
        rig.stores(blob(2, 1)).await;
        rig.cancels(1, 1, NOW).await;
        rig.cancels(1, 1, NOW).await;
        rig.cancels(1, 77, NOW).await;
        assert!(rig.ids(1, View::V1, NOW).await.is_empty());
        assert_eq!(rig.ids(2, View::V1, NOW).await, [1]);
        let usage = rig.usage();
        assert_eq!((usage.cancelled, usage.stored), (1, 1));
        assert!((rig.metric("blobs_cancelled_total") - 1.0).abs() < 0.1);
        assert_eq!(rig.append(blob(1, 1)).await, duplicate_of(&blob(1, 1)));
        let another = blob_of(1, 1, 7);
        assert_eq!(rig.append(another).await, Appended::IdReused);
    }
}

#[tokio::test]
async fn nobody_cancels_or_extends_what_no_sender_handed_in() {
    for rig in rigs(Settings::default()).await {
        let message = Envelope {
            class: Class::DeviceSync,
            owner: Some(Owner {
                hash: mailbox(77),
                version: 1,
            }),
            ..asking(about(1, blob(1, 1)))
        };
        rig.stores(message.clone()).await;
        rig.stores(asking(blob(2, 1))).await;
        rig.acknowledges(2, &[id(1)], Tells::Senders).await;
        let receipt = rig.blobs(RECEIPTS, View::Proven, NOW).await.remove(0);
        let late = NOW.plus(60 * DAY);
        for (place, id) in [(1, id(1)), (RECEIPTS, receipt.id)] {
            let extended = rig.store.extend(mailbox(place), id, late, NOW).await;
            extended.unwrap().await.unwrap();
            let cancelled = rig.store.cancel(mailbox(place), id, NOW).await;
            cancelled.unwrap().await.unwrap();
        }
        assert_eq!(rig.usage().device_sync.stored, 1);
        assert_eq!(rig.usage().receipts.stored, 1);
        let kept = rig.blobs(1, View::DeviceSync, NOW).await.remove(0);
        assert_eq!(kept.expires_at, message.expires_at);
        // Nor does such a message have a topic, or ask for receipts.
        assert!(!kept.wants_receipts);
        rig.stores(about(1, blob(1, 2))).await;
        assert_eq!(rig.usage().replaced, 0);
    }
}

#[tokio::test]
async fn an_extended_blob_lives_longer_and_never_shorter() {
    for engine in ENGINES {
        let mut rig = Rig::open(engine, Settings::default()).await;
        let (early, late) = (NOW.plus(5 * HOUR), NOW.plus(10 * HOUR));
        rig.stores(expiring(blob(1, 1), early)).await;
        rig.stores(expiring(blob(1, 2), early)).await;
        rig.extends(1, 1, late, NOW).await;
        rig.extends(1, 1, NOW.plus(HOUR), NOW).await;
        rig.extends(1, 77, late, NOW).await;
        if engine.reopens {
            rig.reopen().await;
        }
        let kept = rig.blobs(1, View::V1, NOW.plus(7 * HOUR)).await;
        assert_eq!(kept.len(), 1);
        assert_eq!((number(kept[0].id), kept[0].expires_at), (1, late));
        assert_eq!(rig.sweep(10, NOW.plus(7 * HOUR)).await, 1);
        // A repeat is answered with the expiry as it is now.
        let repeat = at(blob(1, 1), NOW.plus(7 * HOUR));
        let known = Appended::Duplicate { expires_at: late };
        assert_eq!(rig.append(repeat.clone()).await, known);
        assert_eq!(rig.sweep(10, late.plus(HOUR)).await, 1);
        let repeat = at(repeat, late.plus(HOUR));
        assert_eq!(rig.append(repeat).await, known);
    }
}

#[tokio::test]
async fn what_has_expired_is_not_brought_back() {
    for rig in rigs(Settings::default()).await {
        let end = NOW.plus(HOUR);
        rig.stores(expiring(blob(1, 1), end)).await;
        rig.extends(1, 1, NOW.plus(DAY), end).await;
        assert!(rig.ids(1, View::V1, end).await.is_empty());
        rig.cancels(1, 1, end).await;
        let usage = rig.usage();
        assert_eq!((usage.cancelled, usage.expired), (0, 1));
    }
}

#[tokio::test]
async fn a_full_mailbox_keeps_what_was_extended() {
    for rig in rigs(quota(|quota| quota.mailbox_blobs_max = 2)).await {
        rig.stores(expiring(blob(1, 1), NOW.plus(HOUR))).await;
        rig.stores(expiring(blob(1, 2), NOW.plus(HOUR))).await;
        rig.extends(1, 1, NOW.plus(DAY), NOW).await;
        let later = NOW.plus(2 * HOUR);
        rig.stores(at(blob(1, 3), later)).await;
        assert_eq!(rig.ids(1, View::V1, later).await, [1, 3]);
        assert_eq!(
            rig.append(at(blob(1, 4), later)).await,
            Appended::MailboxFull
        );
    }
}

/// All of it goes into one transaction where there are transactions.
#[tokio::test]
async fn what_is_handed_in_extended_and_cancelled_at_once_comes_out_right() {
    for engine in ENGINES {
        let mut rig = Rig::open(engine, Settings::default()).await;
        let late = NOW.plus(60 * DAY);
        for number in 1..=20 {
            let appended = rig
                .store
                .append(asking(blob(1, number)), NOW)
                .await
                .unwrap();
            let extended = rig.store.extend(mailbox(1), id(number), late, NOW).await;
            let told = rig.store.delivered(mailbox(1), vec![id(number)], NOW).await;
            let cancelled = match number % 2 {
                0 => Some(rig.store.cancel(mailbox(1), id(number), NOW).await.unwrap()),
                _ => None,
            };
            drop((appended, extended.unwrap(), told.unwrap(), cancelled));
        }
        rig.cancels(1, 77, NOW).await;
        if engine.reopens {
            rig.reopen().await;
        }
        let kept = rig.blobs(1, View::V1, NOW).await;
        assert_eq!(kept.len(), 10);
        for blob in kept {
            assert_eq!(blob.expires_at, late);
            assert!(blob.wants_receipts && blob.is_delivered_told);
        }
        let receipts = rig.receipts().await;
        let told = |kind| receipts.iter().filter(|receipt| receipt.1 == kind).count();
        assert_eq!(told(ReceiptKind::Delivered), 20);
        assert_eq!(told(ReceiptKind::Removed), 10);
        assert_eq!(receipts.len(), 30);
    }
}

// Receipts

#[tokio::test]
async fn a_sender_who_asked_hears_what_became_of_its_blob() {
    for rig in rigs(Settings::default()).await {
        let now = NOW.plus(Duration::from_millis(90_001));
        rig.stores(asking(blob(1, 1))).await;
        rig.stores(blob(1, 2)).await;
        rig.delivers(1, &[1, 2, 77], now).await;
        rig.delivers(1, &[1], now).await;
        rig.acknowledges(1, &[id(1), id(2)], Tells::Senders).await;
        let told = rig.blobs(RECEIPTS, View::Proven, NOW).await;
        let receipts: Vec<_> = told.iter().map(|row| row.receipt().unwrap()).collect();
        let receipt = |kind, at| Receipt {
            id: id(1),
            kind,
            at,
        };
        let minute = NOW.plus(Duration::from_secs(60));
        let expected = [
            receipt(ReceiptKind::Delivered, minute),
            receipt(ReceiptKind::Acknowledged, NOW),
        ];
        assert_eq!(receipts, expected);
        assert!(told.iter().all(|row| row.class == Class::Receipt));
        assert!(told.iter().all(|row| !row.wants_receipts));
        assert_ne!(told[0].id, told[1].id);
        assert_eq!(told[0].expires_at, now.plus(30 * DAY));
        let usage = rig.usage();
        assert_eq!((usage.receipts.created, usage.receipts.stored), (2, 2));
        assert_eq!(usage.blobs().created, 2, "receipts are counted apart");
        assert!((rig.metric("receipts_created_total") - 2.0).abs() < 0.1);
        assert!((rig.metric("receipts_stored") - 2.0).abs() < 0.1);
        // A v1 session neither sees them nor purges them.
        assert!(rig.blobs(RECEIPTS, View::V1, NOW).await.is_empty());
        let purged = rig.purges(RECEIPTS, View::V1, Tells::Nobody).await;
        assert_eq!(purged, Removed::default());
        let ids: Vec<_> = told.iter().map(|row| row.id).collect();
        let removed = rig.acknowledges(RECEIPTS, &ids, Tells::Senders).await;
        assert_eq!((removed.blobs, removed.receipts), (0, 2));
        assert_eq!(rig.usage().receipts.acknowledged, 2);
        assert!((rig.metric("receipts_acknowledged_total") - 2.0).abs() < 0.1);
    }
}

#[tokio::test]
async fn a_blob_says_whether_its_sender_wants_to_hear_of_its_delivery() {
    for rig in rigs(Settings::default()).await {
        rig.stores(asking(blob(1, 1))).await;
        rig.stores(blob(1, 2)).await;
        let said = async || {
            let blobs = rig.blobs(1, View::Proven, NOW).await;
            let said = |blob: &StoredBlob| (blob.wants_receipts, blob.is_delivered_told);
            blobs.iter().map(said).collect::<Vec<_>>()
        };
        assert_eq!(said().await, [(true, false), (false, false)]);
        rig.delivers(1, &[1, 2], NOW).await;
        assert_eq!(said().await, [(true, true), (false, false)]);
    }
}

#[tokio::test]
async fn a_recipient_who_tells_nobody_is_not_told_of() {
    for rig in rigs(Settings::default()).await {
        for number in 1..=4 {
            rig.stores(asking(blob(1, number))).await;
        }
        rig.acknowledges(1, &[id(1)], Tells::Nobody).await;
        rig.acknowledges(1, &[id(2)], Tells::Senders).await;
        assert_eq!(rig.receipts().await, [(2, ReceiptKind::Acknowledged)]);
        rig.purges(1, View::V1, Tells::Nobody).await;
        assert_eq!(rig.receipts().await.len(), 1);
        rig.stores(asking(blob(1, 5))).await;
        rig.purges(1, View::V1, Tells::Senders).await;
        assert_eq!(rig.receipts().await[1..], [(5, ReceiptKind::Removed)]);
    }
}

#[tokio::test]
async fn expiry_and_the_senders_own_doings_are_always_told() {
    for engine in ENGINES {
        let mut rig = Rig::open(engine, Settings::default()).await;
        rig.stores(asking(expiring(blob(1, 1), NOW.plus(HOUR))))
            .await;
        rig.stores(asking(blob(1, 2))).await;
        rig.stores(asking(about(1, blob(1, 3)))).await;
        if engine.reopens {
            rig.reopen().await;
        }
        rig.cancels(1, 2, NOW).await;
        rig.stores(about(1, blob(1, 4))).await;
        rig.sweep(10, NOW.plus(3 * HOUR)).await;
        let expected = [
            (2, ReceiptKind::Removed),
            (3, ReceiptKind::Removed),
            (1, ReceiptKind::Expired),
        ];
        assert_eq!(rig.receipts().await, expected);
        let told = rig.blobs(RECEIPTS, View::Proven, NOW).await;
        // When it expired, not when that was noticed.
        assert_eq!(told[2].receipt().unwrap().at, NOW.plus(HOUR));
    }
}

/// A recipient that came too late and tells nobody purged what had expired: its sender heard nothing,
/// which is what it hears of a blob that was collected in time.
#[tokio::test]
async fn what_had_expired_before_a_purge_is_told_as_expired() {
    for tells in [Tells::Nobody, Tells::Senders] {
        for rig in rigs(Settings::default()).await {
            let expired = asking(expiring(blob(1, 1), NOW.minus(HOUR)));
            let stored_at = NOW.minus(3 * HOUR);
            rig.stores(Envelope {
                stored_at,
                ..expired
            })
            .await;
            let removed = rig.purges(1, View::Proven, tells).await;
            assert_eq!(removed.blobs, 1);
            assert_eq!(rig.receipts().await, [(1, ReceiptKind::Expired)]);
            assert_eq!((rig.usage().expired, rig.usage().purged), (1, 0));
        }
    }
}

#[tokio::test]
async fn a_full_mailbox_tells_of_what_it_loses() {
    for rig in rigs(quota(|quota| quota.mailbox_blobs_max = 1)).await {
        rig.stores(asking(expiring(blob(1, 1), NOW.plus(HOUR))))
            .await;
        rig.stores(at(blob(1, 2), NOW.plus(2 * HOUR))).await;
        assert_eq!(rig.receipts().await, [(1, ReceiptKind::Expired)]);
    }
}

/// The memory engine forgot the id of a receipt whose predecessor, about an earlier blob of the same
/// id, was swept in the same commit: nobody could acknowledge it.
#[tokio::test]
async fn a_receipt_that_comes_as_its_like_goes_can_be_acknowledged() {
    let settings = Settings {
        receipt_ttl: 2 * HOUR,
        ..dedup(HOUR, 1_000)
    };
    for rig in rigs(settings).await {
        rig.stores(asking(expiring(blob(1, 1), NOW.plus(HOUR))))
            .await;
        assert_eq!(rig.sweep(256, NOW.plus(2 * HOUR)).await, 1);
        // Its receipt and the second blob expire together.
        let again = at(asking(blob(1, 1)), NOW.plus(4 * HOUR).minus(HOUR / 2));
        rig.stores(expiring(again, NOW.plus(4 * HOUR))).await;
        let later = NOW.plus(5 * HOUR);
        assert_eq!(rig.sweep(256, later).await, 2);
        let told = rig.blobs(RECEIPTS, View::Proven, later).await;
        assert_eq!(told.len(), 1);
        let ids = [told[0].id];
        let removed = rig.acknowledges(RECEIPTS, &ids, Tells::Nobody).await;
        assert_eq!(removed.receipts, 1);
        assert_eq!(rig.usage().receipts.stored, 0);
    }
}

#[tokio::test]
async fn receipts_wake_their_mailbox() {
    let (woken, settings) = wakes();
    for rig in rigs(settings).await {
        woken.lock().unwrap().clear();
        rig.stores(asking(blob(1, 1))).await;
        eventually("woken", async || !woken.lock().unwrap().is_empty()).await;
        woken.lock().unwrap().clear();
        rig.delivers(1, &[1], NOW).await;
        eventually("woken", async || !woken.lock().unwrap().is_empty()).await;
        assert_eq!(*woken.lock().unwrap(), [mailbox(RECEIPTS)]);
        rig.delivers(1, &[1], NOW).await;
        rig.acknowledges(1, &[id(1)], Tells::Nobody).await;
        assert_eq!(woken.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn receipts_count_together_with_what_v1_cannot_see_and_are_dropped_when_that_is_full() {
    for rig in rigs(quota(|quota| quota.mailbox_blobs_max = 3)).await {
        for number in 1..=3 {
            rig.stores(blob(RECEIPTS, number)).await;
            rig.stores(asking(blob(1, number))).await;
        }
        rig.stores(proven_only(blob(RECEIPTS, 4))).await;
        rig.acknowledges(1, &[id(1), id(2), id(3)], Tells::Senders)
            .await;
        let told = [
            (1, ReceiptKind::Acknowledged),
            (2, ReceiptKind::Acknowledged),
        ];
        assert_eq!(rig.receipts().await, told);
        let usage = rig.usage();
        assert_eq!(usage.receipts_dropped, 1);
        assert_eq!((usage.receipts.created, usage.acknowledged), (2, 3));
        assert!((rig.metric("receipts_dropped_total") - 1.0).abs() < 0.1);
        let refused = rig.append(proven_only(blob(RECEIPTS, 5))).await;
        assert_eq!(refused, Appended::MailboxFull);
        assert_eq!(
            rig.purges(RECEIPTS, View::Proven, Tells::Senders).await,
            Removed {
                blobs: 4,
                receipts: 2
            }
        );
        assert_eq!(rig.usage().receipts.purged, 2);
    }
}

#[tokio::test]
async fn a_delivery_that_could_not_be_told_is_not_told_later() {
    for rig in rigs(quota(|quota| quota.mailbox_blobs_max = 1)).await {
        rig.stores(proven_only(blob(RECEIPTS, 1))).await;
        rig.stores(asking(blob(1, 1))).await;
        rig.delivers(1, &[1], NOW).await;
        rig.cancels(RECEIPTS, 1, NOW).await;
        rig.delivers(1, &[1], NOW).await;
        assert!(rig.receipts().await.is_empty());
        assert_eq!(rig.usage().receipts_dropped, 1);
    }
}

#[tokio::test]
async fn a_full_relay_drops_a_receipt_and_not_the_event() {
    for rig in rigs(quota(|quota| {
        quota.relay_bytes_max = ROW_OVERHEAD_BYTES + 10
    }))
    .await
    {
        rig.stores(asking(blob_of(1, 1, 10))).await;
        rig.delivers(1, &[1], NOW).await;
        rig.acknowledges(1, &[id(1)], Tells::Senders).await;
        assert!(rig.receipts().await.is_empty());
        let usage = rig.usage();
        assert_eq!((usage.receipts_dropped, usage.acknowledged), (2, 1));
    }
}

#[tokio::test]
async fn a_receipt_expires_in_silence() {
    let settings = Settings {
        receipt_ttl: DAY,
        ..Settings::default()
    };
    for rig in rigs(settings).await {
        rig.stores(asking(blob(1, 1))).await;
        rig.delivers(1, &[1], NOW).await;
        let later = NOW.plus(DAY);
        assert!(rig.receipts_in(RECEIPTS, later).await.is_empty());
        assert_eq!(rig.sweep(10, later.plus(HOUR)).await, 1);
        let receipts = rig.usage().receipts;
        assert_eq!((receipts.expired, receipts.created), (1, 1));
        assert!((rig.metric("receipts_expired_total") - 1.0).abs() < 0.1);
    }
}

#[tokio::test]
async fn receipts_may_lie_in_the_mailbox_that_they_are_about() {
    for rig in rigs(quota(|quota| quota.mailbox_blobs_max = 2)).await {
        let itself = |envelope: Envelope| Envelope {
            receipt_to: Some(envelope.mailbox),
            ..proven_only(envelope)
        };
        rig.stores(itself(about(1, blob(1, 1)))).await;
        rig.stores(itself(blob(1, 2))).await;
        // The exchange takes the place that becomes free; its receipt finds none.
        rig.stores(itself(about(1, blob(1, 3)))).await;
        assert_eq!(rig.ids(1, View::Proven, NOW).await.len(), 2);
        assert_eq!(rig.usage().receipts_dropped, 1);
        rig.acknowledges(1, &[id(2)], Tells::Senders).await;
        let told = [(2, ReceiptKind::Acknowledged)];
        assert_eq!(rig.receipts_in(1, NOW).await, told);
    }
}

/// A blob that came again after it was forgotten meets its fate again.
#[tokio::test]
async fn the_same_news_twice_is_told_once_while_it_waits() {
    for rig in rigs(dedup(Duration::ZERO, 10)).await {
        for _ in 0..2 {
            rig.stores(asking(blob(1, 1))).await;
            rig.delivers(1, &[1], NOW).await;
            rig.acknowledges(1, &[id(1)], Tells::Senders).await;
        }
        assert_eq!(rig.receipts().await.len(), 2);
        let receipts = rig.blobs(RECEIPTS, View::Proven, NOW).await;
        let ids: Vec<_> = receipts.iter().map(|row| row.id).collect();
        rig.acknowledges(RECEIPTS, &ids, Tells::Nobody).await;
        rig.stores(asking(blob(1, 1))).await;
        rig.delivers(1, &[1], NOW).await;
        assert_eq!(rig.receipts().await, [(1, ReceiptKind::Delivered)]);
    }
}

#[tokio::test]
async fn the_mark_of_a_delivery_and_the_receipts_outlive_a_restart() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        // Larger than a page, so that the mark is not beside the whole body.
        rig.stores(asking(blob_of(1, 1, 50_000))).await;
        rig.delivers(1, &[1], NOW).await;
        let before = rig.usage();
        rig.reopen().await;
        let after = rig.usage();
        assert_eq!(after.receipts.stored_at_start, 1);
        assert_eq!((before.bytes, before.stored), (after.bytes, after.stored));
        rig.delivers(1, &[1], NOW).await;
        assert_eq!(rig.receipts().await, [(1, ReceiptKind::Delivered)]);
        let body = rig.blobs(1, View::V1, NOW).await.remove(0).body;
        assert_eq!(body, Bytes::from(vec![b'x'; 50_000]));
        rig.acknowledges(1, &[id(1)], Tells::Senders).await;
        rig.reopen().await;
        assert_eq!(rig.receipts().await.len(), 2);
    }
}

#[tokio::test]
async fn a_page_has_blobs_and_receipts_in_order() {
    for rig in rigs(Settings::default()).await {
        rig.stores(blob(RECEIPTS, 1)).await;
        rig.stores(asking(blob(1, 1))).await;
        rig.delivers(1, &[1], NOW).await;
        rig.stores(proven_only(blob(RECEIPTS, 2))).await;
        rig.acknowledges(1, &[id(1)], Tells::Senders).await;
        let rows = rig.blobs(RECEIPTS, View::Proven, NOW).await;
        let classes: Vec<_> = rows.iter().map(|row| row.class).collect();
        let expected = [
            Class::SeenByV1,
            Class::Receipt,
            Class::ProvenOnly,
            Class::Receipt,
        ];
        assert_eq!(classes, expected);
        assert!(rows.is_sorted_by_key(|row| row.key));
        assert_eq!(rows[0].receipt(), None);
    }
}

// Holdings

#[tokio::test]
async fn holdings_come_in_the_order_asked() {
    for rig in rigs(Settings::default()).await {
        rig.stores(blob_of(1, 1, 10)).await;
        rig.stores(proven_only(blob_of(1, 2, 20))).await;
        rig.stores(blob_of(2, 1, 5)).await;
        rig.stores(asking(blob_of(3, 1, 0))).await;
        rig.delivers(3, &[1], NOW).await;
        let asked: Vec<_> = (0..200).rev().map(mailbox).collect();
        let holding = |blobs: u32, bytes| Holding {
            pending: blobs,
            blobs: blobs.into(),
            bytes: u64::from(blobs) * ROW_OVERHEAD_BYTES + bytes,
        };
        let held = rig.store.holdings(asked.clone(), View::Proven, NOW).await;
        let held = held.unwrap();
        assert_eq!(held.len(), asked.len());
        assert_eq!(held[198], holding(2, 30));
        assert_eq!(held[197], holding(1, 5));
        assert_eq!(held[196], holding(1, 0));
        assert_eq!(held[190], holding(1, 25), "a receipt");
        let empty = held.iter().filter(|held| **held == Holding::default());
        assert_eq!(empty.count(), 196);
        let seen = rig.holding(1, View::V1, NOW).await;
        assert_eq!(seen, holding(1, 10));
        assert_eq!(rig.holding(RECEIPTS, View::V1, NOW).await.blobs, 0);
        let none = rig.store.holdings(Vec::new(), View::Proven, NOW).await;
        assert!(none.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_has_expired_counts_against_the_quota_and_does_not_wait() {
    for rig in rigs(Settings::default()).await {
        rig.stores(expiring(blob(1, 1), NOW.plus(HOUR))).await;
        rig.stores(blob(1, 2)).await;
        let held = rig.holding(1, View::V1, NOW.plus(2 * HOUR)).await;
        assert_eq!((held.pending, held.blobs), (1, 2));
    }
}

#[tokio::test]
async fn at_most_a_thousand_are_counted_as_waiting() {
    for rig in rigs(Settings::default()).await {
        rig.stores_all(1, 0..1_001).await;
        let held = rig.holding(1, View::V1, NOW).await;
        assert_eq!((held.pending, held.blobs), (1_000, 1_001));
    }
}

#[tokio::test]
async fn a_closed_store_takes_none_of_these() {
    for rig in rigs(Settings::default()).await {
        let (place, late) = (mailbox(1), NOW.plus(DAY));
        rig.store.close().await;
        assert!(rig.store.cancel(place, id(1), NOW).await.is_err());
        assert!(rig.store.extend(place, id(1), late, NOW).await.is_err());
        let told = rig.store.delivered(place, vec![id(1)], NOW).await;
        assert!(told.is_err());
        let held = rig.store.holdings(vec![place], View::Proven, NOW).await;
        assert!(held.is_err());
    }
}
