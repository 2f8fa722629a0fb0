//! The power is cut: nothing that was answered `Stored` is lost, and nothing comes back that was acknowledged.
//!
//! A relay runs with a library (`record.c`) that records every change of its data folder and every fsync. From the
//! record (`recording`), folders are rebuilt (`disk`) as a power cut could have left them at a moment: what an fsync
//! covers is there, and the rest is there, missing, torn or out of order. A relay starts on such a folder, and all
//! that it has is compared (`restart`) with what was answered until then (`ledger`). `load` has the work that is
//! recorded, over several starts, kills and stops, and `cuts` the moments.
//!
//! Not tried: a disk that confirms an fsync and has not written (no software helps), or that damages what it has
//! written long ago (`store::corruption`), and the room of the reserve, which holds nothing.

mod cuts;
mod disk;
mod ledger;
mod load;
mod recording;
mod restart;

use std::sync::Arc;

use cuts::{Tried, cut_and_try};
use load::{Run, Session};
use restart::Settled;

/// Images of each cut.
const LOSSES: usize = 2;

/// Eight stops make eight runs, which the ninth relay merges when it rests. It is killed, and one more starts.
fn sessions(blobs: u64) -> Vec<Session> {
    let stopped = Session {
        blobs,
        rests: false,
        is_killed: false,
    };
    let rested = Session {
        rests: true,
        ..stopped
    };
    let killed = Session {
        is_killed: true,
        ..stopped
    };
    let mut sessions = vec![killed, rested];
    sessions.extend([stopped; 7]);
    sessions.extend([rested, killed, stopped]);
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_stored_is_lost_when_the_power_is_cut() {
    let run = Arc::new(Run::record(1, &sessions(12)).await);
    let tried = cut_and_try(run, 0..10, LOSSES).await;
    holds(&tried);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour: cargo test --test it power -- --ignored"]
async fn nothing_that_was_answered_stored_is_lost_in_a_hundred_seeds() {
    let mut tried = Tried::default();
    for seed in 0..10 {
        let run = Arc::new(Run::record(seed, &sessions(30)).await);
        tried.add(cut_and_try(run, 10 * seed..10 * (seed + 1), LOSSES).await);
    }
    holds(&tried);
}

fn holds(tried: &Tried) {
    println!(
        "{} images, {} changes in doubt, {} blobs delivered; {} images with rows that are gone; {:?}; {:?}",
        tried.images, tried.pending, tried.delivered, tried.with_gone, tried.places, tried.settled
    );
    assert!(tried.faults.is_empty(), "{:#?}", tried.faults);
    for settled in [
        Settled::Before,
        Settled::During,
        Settled::Since,
        Settled::After,
    ] {
        assert!(tried.settled.contains_key(&settled), "no image {settled:?}");
    }
    assert!(tried.with_gone > 0);
}
