//! What every engine promises about recovery proofs, on every engine.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::StoreError;
use vauchi_relay::store::model::{Appended, RecoveryPage, RecoveryProof, RecoveryPut};

use crate::store::contract::{
    DAY, ENGINES, HOUR, NOW, Rig, Settings, blob_of, durable_engines, mailbox, quota,
};

/// A proof of 44 bytes, 300 charged, by a stranger.
fn proof(key: u8, owner: u8) -> RecoveryProof {
    RecoveryProof {
        key_hash: [key; 32],
        owner: mailbox(owner),
        is_proven: false,
        sealed_proof: Bytes::from(vec![owner; 44]),
        stored_at: NOW,
        expires_at: NOW.plus(90 * DAY),
    }
}

fn proven(proof: RecoveryProof) -> RecoveryProof {
    RecoveryProof {
        is_proven: true,
        ..proof
    }
}

async fn put(rig: &Rig, proof: RecoveryProof) -> RecoveryPut {
    let expired_by = proof.stored_at;
    rig.store.recovery_put(proof, expired_by).await.unwrap()
}

async fn stores(rig: &Rig, proof: RecoveryProof) {
    assert_eq!(put(rig, proof).await, RecoveryPut::Stored);
}

async fn get(rig: &Rig, keys: &[u8], bytes_max: u64, now: Timestamp) -> RecoveryPage {
    let keys = keys.iter().map(|key| [*key; 32]).collect();
    rig.store.recovery_get(keys, bytes_max, now).await.unwrap()
}

/// Key and owner of each proof, as they come.
async fn found(rig: &Rig, keys: &[u8], now: Timestamp) -> Vec<(u8, u8)> {
    let page = get(rig, keys, 1 << 30, now).await;
    assert!(!page.more);
    page.proofs
        .iter()
        .map(|proof| (proof.key_hash[0], proof.owner.as_bytes()[0]))
        .collect()
}

#[tokio::test]
async fn a_proof_comes_back_as_it_was_given() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for given in [proof(1, 1), proven(proof(2, 2))] {
            stores(&rig, given.clone()).await;
            let page = get(&rig, &[given.key_hash[0]], 1_000, NOW).await;
            assert_eq!((page.proofs, page.more), (vec![given], false));
        }
        assert!(found(&rig, &[3], NOW).await.is_empty());
        assert!(found(&rig, &[], NOW).await.is_empty());
    }
}

#[tokio::test]
async fn an_owner_has_one_proof_under_a_key_and_the_last_one_counts() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        stores(&rig, proof(1, 1)).await;
        stores(&rig, proof(1, 2)).await;
        let second = RecoveryProof {
            sealed_proof: Bytes::from_static(b"another"),
            ..proof(1, 1)
        };
        stores(&rig, second.clone()).await;
        let page = get(&rig, &[1], 1_000, NOW).await;
        assert_eq!(page.proofs, [second, proof(1, 2)], "the newest first");
        stores(&rig, proof(2, 1)).await;
        assert_eq!(rig.usage().recovery_proofs, 3);
        assert_eq!(rig.usage().bytes, 300 + 300 + 263);
    }
}

#[tokio::test]
async fn of_too_many_strangers_the_oldest_goes() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        stores(&rig, proven(proof(1, 1))).await;
        for owner in 2..=8 {
            stores(&rig, proof(1, owner)).await;
        }
        // The first stranger comes again and is the newest then.
        stores(&rig, proof(1, 2)).await;
        stores(&rig, proof(1, 9)).await;
        let owners: Vec<_> = found(&rig, &[1], NOW).await;
        let owners: Vec<_> = owners.iter().map(|(_, owner)| *owner).collect();
        assert_eq!(owners, [9, 2, 8, 7, 6, 5, 4, 1]);
        assert_eq!(rig.usage().recovery_proofs, 8);
    }
}

#[tokio::test]
async fn nobody_takes_the_place_of_somebody_who_proved_themselves() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for owner in 1..=8 {
            stores(&rig, proven(proof(1, owner))).await;
        }
        assert_eq!(put(&rig, proof(1, 9)).await, RecoveryPut::Full);
        assert_eq!(put(&rig, proven(proof(1, 10))).await, RecoveryPut::Full);
        stores(&rig, proof(2, 9)).await;
        // Whoever proved it once is no stranger when the next proof comes without.
        stores(&rig, proof(1, 3)).await;
        assert_eq!(put(&rig, proof(1, 9)).await, RecoveryPut::Full);
        assert_eq!(found(&rig, &[1], NOW).await.len(), 8);
        assert_eq!(remove(&rig, 1, 5).await, 1);
        stores(&rig, proof(1, 9)).await;
    }
}

async fn remove(rig: &Rig, key: u8, owner: u8) -> u64 {
    let removed = rig.store.recovery_remove([key; 32], mailbox(owner)).await;
    removed.unwrap()
}

#[tokio::test]
async fn a_removal_takes_ones_own_and_nothing_else() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for (key, owner) in [(1, 1), (1, 2), (2, 1)] {
            stores(&rig, proof(key, owner)).await;
        }
        assert_eq!(remove(&rig, 1, 3).await, 0);
        assert_eq!(remove(&rig, 3, 1).await, 0);
        assert_eq!(remove(&rig, 1, 1).await, 1);
        assert_eq!(remove(&rig, 1, 1).await, 0);
        assert_eq!(found(&rig, &[1, 2], NOW).await, [(2, 1), (1, 2)]);
        assert_eq!(rig.usage().bytes, 600);
    }
}

#[tokio::test]
async fn a_query_of_many_keys_comes_newest_first_and_ends_where_it_is_full() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for (key, owner) in [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2)] {
            stores(&rig, proof(key, owner)).await;
        }
        let all = [(2, 2), (3, 1), (1, 2), (2, 1), (1, 1)];
        assert_eq!(found(&rig, &[1, 2, 3, 9, 2], NOW).await, all);
        for (bytes_max, fit) in [(0, 0), (43, 0), (44, 1), (131, 2), (220, 5)] {
            let page = get(&rig, &[3, 2, 1], bytes_max, NOW).await;
            let owners: Vec<_> = page.proofs.iter().map(|proof| proof.owner).collect();
            let expected: Vec<_> = all[..fit].iter().map(|all| mailbox(all.1)).collect();
            assert_eq!(owners, expected);
            assert_eq!(page.more, fit < 5);
        }
        let mut keys: Vec<u8> = (100..150).collect();
        keys.push(1);
        assert!(found(&rig, &keys, NOW).await.is_empty(), "the 51st");
        keys.swap(0, 50);
        assert_eq!(found(&rig, &keys, NOW).await.len(), 2);
    }
}

#[tokio::test]
async fn a_proof_is_invisible_from_the_moment_it_expires_and_swept_later() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let short = RecoveryProof {
            expires_at: NOW.plus(HOUR),
            ..proven(proof(1, 1))
        };
        stores(&rig, short.clone()).await;
        stores(
            &rig,
            RecoveryProof {
                owner: mailbox(2),
                ..short
            },
        )
        .await;
        stores(&rig, proof(1, 3)).await;
        let end = NOW.plus(HOUR);
        assert_eq!(found(&rig, &[1], end).await, [(1, 3)]);
        assert_eq!(rig.usage().recovery_proofs, 3);
        assert_eq!(rig.sweep(256, end).await, 0, "proofs are no blobs");
        assert_eq!(rig.usage().recovery_proofs, 1);
        assert_eq!(rig.usage().bytes, 300);
    }
}

#[tokio::test]
async fn many_expired_proofs_are_all_swept() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut writers = JoinSet::new();
        for number in 0..600_u16 {
            let store = Arc::clone(&rig.store);
            let mut one = proof(0, 1);
            one.key_hash[..2].copy_from_slice(&number.to_be_bytes());
            one.expires_at = NOW.plus(HOUR);
            writers.spawn(async move { store.recovery_put(one, NOW).await.unwrap() });
        }
        writers.join_all().await;
        assert_eq!(rig.usage().recovery_proofs, 600);
        rig.sweep(256, NOW.plus(HOUR)).await;
        assert_eq!(rig.usage().recovery_proofs, 0);
        assert_eq!(rig.usage().bytes, 0);
    }
}

#[tokio::test]
async fn what_has_expired_takes_no_place() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for owner in 1..=8 {
            let hours = u32::from(owner);
            stores(
                &rig,
                RecoveryProof {
                    expires_at: NOW.plus(hours * HOUR),
                    ..proven(proof(1, owner))
                },
            )
            .await;
        }
        let later = NOW.plus(2 * HOUR);
        let ninth = RecoveryProof {
            stored_at: later,
            ..proof(1, 9)
        };
        stores(&rig, ninth).await;
        assert_eq!(found(&rig, &[1], later).await.len(), 7);
        assert_eq!(rig.usage().recovery_proofs, 7);
    }
}

#[tokio::test]
async fn the_relays_bound_counts_proofs_and_an_exchange_may_fit() {
    for engine in ENGINES {
        let settings = quota(|quota| quota.relay_bytes_max = 900);
        let rig = Rig::open(engine, settings).await;
        rig.stores(blob_of(1, 1, 44)).await;
        stores(&rig, proof(1, 1)).await;
        stores(&rig, proof(2, 1)).await;
        assert_eq!(put(&rig, proof(3, 1)).await, RecoveryPut::RelayFull);
        assert_eq!(rig.append(blob_of(1, 2, 44)).await, Appended::RelayFull);
        stores(&rig, proof(1, 1)).await;
        let larger = RecoveryProof {
            sealed_proof: Bytes::from(vec![0; 45]),
            ..proof(1, 1)
        };
        assert_eq!(put(&rig, larger).await, RecoveryPut::RelayFull);
        assert_eq!(found(&rig, &[1], NOW).await, [(1, 1)], "the old one stays");
        assert_eq!(remove(&rig, 2, 1).await, 1);
        rig.stores(blob_of(1, 2, 44)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_owners_eight_are_kept() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut writers = JoinSet::new();
        for owner in 0..32 {
            let store = Arc::clone(&rig.store);
            let proof = match owner % 2 {
                0 => proven(proof(1, owner)),
                _ => proof(1, owner),
            };
            writers.spawn(async move { store.recovery_put(proof, NOW).await.unwrap() });
        }
        let answers = writers.join_all().await;
        let full = answers.iter().filter(|put| **put == RecoveryPut::Full);
        assert!(full.count() <= 24);
        let page = get(&rig, &[1], 1 << 20, NOW).await;
        assert_eq!(page.proofs.len(), 8);
        assert!(page.proofs.iter().all(|proof| proof.is_proven));
        assert_eq!(rig.usage().recovery_proofs, 8);
        assert_eq!(rig.usage().bytes, 8 * 300);
    }
}

#[tokio::test]
async fn the_metrics_tell_of_proofs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for owner in 1..=9 {
            stores(&rig, proof(1, owner)).await;
        }
        stores(&rig, proof(1, 9)).await;
        for (name, value) in [
            ("recovery_proofs_active", 8.0),
            ("recovery_vouchers_total", 10.0),
            ("stored_bytes", 2_400.0),
            ("blobs_stored", 0.0),
        ] {
            let got = rig.metric(name);
            assert!((got - value).abs() < 0.1, "{name} is {got}, not {value}");
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_proofs_and_who_proved_themselves() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        for owner in 1..=8 {
            stores(&rig, proven(proof(1, owner))).await;
        }
        rig.reopen().await;
        assert_eq!(rig.usage().recovery_proofs, 8);
        assert_eq!(rig.usage().bytes, 2_400);
        assert_eq!(put(&rig, proof(1, 9)).await, RecoveryPut::Full);
        assert_eq!(found(&rig, &[1], NOW).await[0], (1, 8));
    }
}

#[tokio::test]
async fn a_closed_store_refuses_proofs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.store.close().await;
        let closed = |error| assert!(matches!(error, Some(StoreError::Closed)));
        closed(rig.store.recovery_put(proof(1, 1), NOW).await.err());
        closed(rig.store.recovery_get(vec![[1; 32]], 1, NOW).await.err());
        closed(rig.store.recovery_remove([1; 32], mailbox(1)).await.err());
    }
}
