//! What every engine keeps while the clock is not to be trusted: whatever the time of day, only what
//! had expired by `expired_by` is deleted for good.

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::model::{
    Appended, Burnt, Class, Envelope, Owner, RecoveryProof, RecoveryPut, View,
};

use crate::store::contract::{
    DAY, ENGINES, HOUR, NOW, Rig, Settings, at, blob, dedup, duplicate_of, expiring, mailbox, quota,
};

/// What the time is by a clock that is not trusted.
const UNTRUSTED: Timestamp = Timestamp::from_millis(0);

/// Hands a blob in at a time that is not trusted.
async fn append_untrusted(rig: &Rig, envelope: Envelope) -> Appended {
    let appended = rig.store.append(envelope, UNTRUSTED).await;
    appended.unwrap().await.unwrap()
}

#[tokio::test]
async fn a_full_mailbox_keeps_what_only_an_untrusted_clock_calls_expired() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 2)).await;
        rig.stores(expiring(blob(1, 1), NOW.plus(HOUR))).await;
        rig.stores(blob(1, 2)).await;
        let later = NOW.plus(2 * HOUR);
        let third = at(blob(1, 3), later);
        let refused = append_untrusted(&rig, third.clone()).await;
        assert_eq!(refused, Appended::MailboxFull);
        assert_eq!(rig.ids(1, View::V1, later).await, [2], "invisible");
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1, 2], "and there");
        // Two of one batch do not mislead each other.
        let (first, second) = tokio::join!(
            append_untrusted(&rig, third.clone()),
            rig.append(third.clone())
        );
        assert_eq!(first, Appended::MailboxFull);
        let expires_at = third.expires_at;
        assert_eq!(second, Appended::Stored { expires_at });
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2, 3]);
    }
}

#[tokio::test]
async fn a_full_owner_keeps_what_only_an_untrusted_clock_calls_expired() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.device_sync_blobs_max = 1)).await;
        let message = |id| Envelope {
            class: Class::DeviceSync,
            owner: Some(Owner {
                hash: mailbox(9),
                version: u64::from(id),
            }),
            ..blob(1, id)
        };
        rig.stores(expiring(message(1), NOW.plus(HOUR))).await;
        let second = at(message(2), NOW.plus(2 * HOUR));
        let refused = append_untrusted(&rig, second.clone()).await;
        assert_eq!(refused, Appended::MailboxFull);
        assert_eq!(rig.usage().device_sync.expired, 0);
        rig.stores(second).await;
        assert_eq!(rig.usage().device_sync.expired, 1);
    }
}

#[tokio::test]
async fn a_recovery_proof_makes_no_room_by_an_untrusted_clock() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let proof = |owner, hours: u32| RecoveryProof {
            key_hash: [1; 32],
            owner: mailbox(owner),
            is_proven: true,
            sealed_proof: vec![owner; 44].into(),
            stored_at: NOW,
            expires_at: NOW.plus(hours * HOUR),
        };
        let put = async |proof, expired_by| {
            let put = rig.store.recovery_put(proof, expired_by).await;
            put.unwrap()
        };
        for owner in 1..=8 {
            let kept = put(proof(owner, owner.into()), UNTRUSTED).await;
            assert_eq!(kept, RecoveryPut::Stored);
        }
        let ninth = RecoveryProof {
            stored_at: NOW.plus(2 * HOUR),
            ..proof(9, 99)
        };
        assert_eq!(put(ninth.clone(), UNTRUSTED).await, RecoveryPut::Full);
        assert_eq!(rig.usage().recovery_proofs, 8);
        let trusted = ninth.stored_at;
        assert_eq!(put(ninth, trusted).await, RecoveryPut::Stored);
        assert_eq!(rig.usage().recovery_proofs, 7);
    }
}

#[tokio::test]
async fn a_sweep_by_an_untrusted_clock_deletes_nothing_and_tells_what_expires_next() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(HOUR, 10)).await;
        rig.stores(blob(1, 1)).await;
        rig.stores(blob(1, 2)).await;
        rig.acknowledge(1, &[1], NOW).await;
        let proof = RecoveryProof {
            key_hash: [1; 32],
            owner: mailbox(1),
            is_proven: true,
            sealed_proof: vec![1; 44].into(),
            stored_at: NOW,
            expires_at: NOW.plus(HOUR),
        };
        rig.store.recovery_put(proof, UNTRUSTED).await.unwrap();

        let swept = rig.store.expire(256, UNTRUSTED).await.unwrap();
        assert_eq!((swept.blobs, swept.more), (0, false));
        let next = swept.next_expiry.expect("something is kept");
        assert!(next <= NOW.plus(30 * DAY) && next >= NOW.plus(29 * DAY));
        assert_eq!(rig.usage().recovery_proofs, 1);
        assert_eq!(rig.append(blob(1, 1)).await, duplicate_of(&blob(1, 1)));

        // A write at a time that is not trusted makes no departure forgotten.
        append_untrusted(&rig, at(blob(2, 1), NOW.plus(90 * DAY))).await;
        assert_eq!(rig.append(blob(1, 1)).await, duplicate_of(&blob(1, 1)));
        assert_eq!(rig.metric("dedup_remembered"), 1.0);
        rig.sweep(256, NOW.plus(HOUR)).await;
        assert_eq!(rig.metric("dedup_remembered"), 0.0);
        assert_eq!(rig.usage().recovery_proofs, 0);
    }
}

#[tokio::test]
async fn a_used_nonce_is_not_forgotten_by_an_untrusted_clock() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let burn = async |number, expired_by, now| {
            let burnt = rig.store.burn([number; 32], expired_by, now).await;
            burnt.unwrap()
        };
        assert_eq!(burn(1, UNTRUSTED, NOW).await, Burnt::First);
        let later = NOW.plus(HOUR);
        // Other writes and the sweep make room, but not by this clock.
        assert_eq!(burn(2, UNTRUSTED, later).await, Burnt::First);
        append_untrusted(&rig, at(blob(1, 1), later)).await;
        rig.store.expire(256, UNTRUSTED).await.unwrap();
        assert_eq!(burn(1, UNTRUSTED, NOW).await, Burnt::Used);
        assert_eq!(burn(1, NOW, NOW).await, Burnt::Used, "put right");
        assert_eq!(burn(1, later, later).await, Burnt::First);
    }
}
