//! The power is cut: nothing that was answered `Stored` is lost, and nothing comes back that was acknowledged.
//!
//! A relay runs with a library (`record.c`) that records every change of its data folder and every fsync. From the
//! record (`recording`), folders are rebuilt as a power cut could have left them at a moment (`disk`, `file`, `loss`):
//! what an fsync covers is there; the rest is there, missing, torn or out of order. A relay starts on such a folder,
//! and all that it has is compared (`restart`) with what was answered until then (`ledger`). `load` has the work that
//! is recorded, over several starts, kills and stops, and `cuts` the moments.
//!
//! Not tried: a disk that confirms an fsync and has not written, one that damages what it has written long ago
//! (`store::corruption` does), and protocol v1, whose blobs take the same way into the store.

mod cuts;
mod disk;
mod file;
mod ledger;
mod load;
mod loss;
mod recording;
mod restart;

use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use cuts::{Place, Tried, cut_and_try, places_of, settling, try_start, without_fsyncs};
use disk::Disk;
use ledger::Fault;
use load::{Load, Phase, Run, Session};
use loss::Loss;
use recording::{Moment, Step};
use restart::{Settled, Then};

/// Images of each cut.
const LOSSES: usize = 2;

const STOPPED: Session = Session {
    blobs: 12,
    rests: false,
    is_killed: false,
};

const RESTED: Session = Session {
    rests: true,
    ..STOPPED
};

const KILLED: Session = Session {
    is_killed: true,
    ..STOPPED
};

/// Relays that share a folder, one after the other.
fn load(seed: u64, sessions: &[Session]) -> Load {
    Load {
        seed,
        mailboxes: 16,
        read: 8,
        bytes_max: 1_500,
        sessions: sessions.to_vec(),
    }
}

/// Eight stops make eight runs, which are merged when a relay rests.
const WITH_A_MERGE: [Session; 12] = [
    KILLED, RESTED, STOPPED, STOPPED, STOPPED, STOPPED, STOPPED, STOPPED, STOPPED, RESTED, KILLED,
    STOPPED,
];

/// What must be among the images, whatever seeds and timing bring.
const KINDS: [(Place, Settled); 4] = [
    (Place::Anywhere, Settled::Since),
    (Place::Stop, Settled::During),
    (Place::Stop, Settled::Since),
    (Place::Stop, Settled::After),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_stored_is_lost_when_the_power_is_cut() {
    let run = Arc::new(Run::record(load(1, &WITH_A_MERGE)).await);
    let tried = cut_and_try(&run, 0..10, (&places_of(&run), LOSSES)).await;
    println!("{tried}");
    holds(&tried, &KINDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes: cargo test --test it power -- --ignored"]
async fn nothing_that_was_answered_stored_is_lost_in_a_hundred_seeds() {
    let mut tried = Tried::default();
    for seed in 0..10 {
        let run = Arc::new(Run::record(load(seed, &WITH_A_MERGE)).await);
        let seeds = 10 * seed..10 * (seed + 1);
        tried.add(cut_and_try(&run, seeds, (&places_of(&run), LOSSES)).await);
    }
    println!("{tried}");
    holds(&tried, &KINDS);
}

/// More than 65,536 rows wait, so that the relay settles them while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes: cargo test --test it power -- --ignored"]
async fn nothing_is_lost_while_a_running_relay_settles() {
    let session = Session {
        blobs: 850,
        ..RESTED
    };
    let load = Load {
        seed: 1,
        mailboxes: 100,
        read: 20,
        bytes_max: 200,
        sessions: vec![session],
    };
    let run = Arc::new(Run::record(load).await);
    let mut places = places_of(&run);
    places.retain(|place, _| matches!(place, Place::Commit | Place::Stop));
    places.insert(Place::Settle, settling(&run, &places).await);
    let tried = cut_and_try(&run, 0..10, (&places, 1)).await;
    let kinds = [
        (Place::Commit, Settled::Before),
        (Place::Settle, Settled::During),
        (Place::Stop, Settled::After),
    ];
    println!("{tried}");
    holds(&tried, &kinds);
}

/// What is found at the end of a run on a disk that ignores fsyncs of this file from a moment on.
async fn found_without_fsyncs(run: Run, file: &str, from: Moment) -> Result<Vec<Fault>, String> {
    let (run, end) = (Arc::new(run), Moment::END);
    let try_steps = async |steps: &[Step]| {
        let mut disk = Disk::empty(run.folder);
        steps.iter().for_each(|step| disk.follow(step));
        let mut random = StdRng::seed_from_u64(1);
        let image = disk.cut(Loss::Everything, &mut random);
        let run = Arc::clone(&run);
        let found = try_start(image, (run, end), Then::Nothing, random).await;
        found.map(|verdict| verdict.faults)
    };
    let with_fsyncs = try_steps(&run.steps).await;
    assert_eq!(with_fsyncs, Ok(Vec::new()), "with its fsyncs it is sound");
    try_steps(&without_fsyncs(&run.steps, file, from)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_ignores_fsyncs_of_the_log_is_found_out() {
    let run = Run::record(load(1, &[KILLED])).await;
    // Blobs that are stored before it are acknowledged after it.
    let middle = run.steps[run.steps.len() / 2].after;
    assert_eq!(run.phase(middle), Phase::Work);
    let found = found_without_fsyncs(run, "relay.db-wal", middle).await;
    let faults = found.expect("a relay starts on the older state");
    assert!(matches!(faults[0], Fault::Lost(1..)), "{faults:?}");
    assert!(matches!(faults[1], Fault::CameBack(1..)), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_ignores_fsyncs_of_the_database_is_found_out() {
    // The second relay begins a new log: only the database has what was in the first one. That is so little that
    // none of it is moved before the stop, or a relay may start on what was.
    let little = Session {
        blobs: 2,
        ..STOPPED
    };
    let run = Run::record(load(1, &[little, KILLED])).await;
    let mut phases = run.phases.iter();
    let (stop, _) = phases.find(|(_, phase)| **phase == Phase::Stop).unwrap();
    let stop = *stop;
    let found = found_without_fsyncs(run, "relay.db", stop).await;
    let line = found.expect_err("no relay starts on half of a database");
    assert!(line.contains("relay.db: "), "{line}");
}

fn holds(tried: &Tried, kinds: &[(Place, Settled)]) {
    assert!(tried.faults.is_empty(), "{:#?}", tried.faults);
    for kind in kinds {
        assert!(tried.found.contains_key(kind), "no image is {kind:?}");
    }
    assert!(tried.with_gone > 0);
}
