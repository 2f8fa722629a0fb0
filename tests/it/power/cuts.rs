//! Where the power is cut: anywhere, and where it hurts most.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::disk::{Disk, Loss};
use super::ledger::Fault;
use super::load::{Phase, Run};
use super::recording::{Change, Moment};
use super::restart::{Settled, Verdict, try_out};

/// A place to cut the power at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Anywhere,
    /// Right after an fsync of the log: what it makes durable may just have been answered.
    Commit,
    /// Before an fsync of the log has ended.
    Fsync,
    /// While the log is moved into the database.
    Move,
    /// Between a start and its first connection, often after a kill.
    Start,
    /// Idle: rows that have left are deleted, runs are merged.
    Rest,
    /// A stop, which settles everything: after one of its transactions.
    Stop,
}

const PLACES: [Place; 7] = [
    Place::Anywhere,
    Place::Commit,
    Place::Fsync,
    Place::Move,
    Place::Start,
    Place::Rest,
    Place::Stop,
];

/// Relays that are tried out at the same time.
const AT_ONCE: usize = 3;

/// One cut, and how the image comes about.
#[derive(Debug, Clone, Copy)]
struct Cut {
    place: Place,
    loss: Loss,
    seed: u64,
    /// Whether the relay is stopped and started again.
    twice: bool,
}

/// What was tried, by kind.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) images: usize,
    pub(super) places: BTreeMap<Place, usize>,
    pub(super) settled: BTreeMap<Settled, usize>,
    pub(super) with_gone: usize,
    /// Changes that no fsync covered, in all images.
    pub(super) pending: usize,
    pub(super) delivered: usize,
    /// Each with the cut that shows it.
    pub(super) faults: Vec<(String, Vec<Fault>)>,
}

/// The steps after which a cut is at each place.
fn steps_of(run: &Run) -> BTreeMap<Place, Vec<usize>> {
    let mut names = HashMap::new();
    let mut places = BTreeMap::<Place, Vec<usize>>::new();
    for (number, step) in run.steps.iter().enumerate() {
        let mut at = |place| places.entry(place).or_default().push(number);
        at(Place::Anywhere);
        let is = |inode: &u64, name: &str, names: &HashMap<u64, String>| {
            names.get(inode).is_some_and(|known| known == name)
        };
        let phase = run.phase(step.after);
        match &step.change {
            Change::Created { inode, name } => drop(names.insert(*inode, name.clone())),
            Change::SyncBegan { inode } if is(inode, "relay.db-wal", &names) => at(Place::Fsync),
            Change::SyncEnded { inode, .. } if is(inode, "relay.db-wal", &names) => {
                at(Place::Commit);
                if phase == Phase::Stop {
                    at(Place::Stop);
                }
            }
            Change::Written { inode, .. } if is(inode, "relay.db", &names) => at(Place::Move),
            _ => {}
        }
        match phase {
            Phase::Start => at(Place::Start),
            Phase::Rest => at(Place::Rest),
            Phase::Work | Phase::Stop => {}
        }
    }
    places
}

/// The cuts of these seeds, each with the step after which it is.
fn choose(run: &Run, seeds: std::ops::Range<u64>, losses: usize) -> Vec<(usize, Cut)> {
    let steps = steps_of(run);
    let mut cuts = Vec::new();
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        for place in PLACES {
            let Some(steps) = steps.get(&place) else {
                continue;
            };
            let step = match place {
                // One after the other, so that ten seeds have each transaction of a stop.
                Place::Stop => steps[seed as usize % steps.len()],
                _ => *steps.choose(&mut random).unwrap(),
            };
            for _ in 0..losses {
                let cut = Cut {
                    place,
                    loss: Loss::any(&mut random),
                    seed: random.random(),
                    twice: random.random_ratio(1, 4),
                };
                cuts.push((step, cut));
            }
        }
    }
    cuts.sort_by_key(|(step, _)| *step);
    cuts
}

/// Cuts the power at some moments for each seed, and tries out some images of each.
pub(super) async fn cut_and_try(
    run: Arc<Run>,
    seeds: std::ops::Range<u64>,
    losses: usize,
) -> Tried {
    let cuts = choose(&run, seeds, losses);
    let mut disk = Disk::empty(run.folder);
    let (mut followed, mut tried) = (0, Tried::default());
    let (mut trials, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    for (step, cut) in cuts {
        // Images are made when there is a relay for them: each takes the room of a database.
        let turn = Arc::clone(&at_once).acquire_owned().await.unwrap();
        run.steps[followed..=step]
            .iter()
            .for_each(|step| disk.follow(step));
        followed = step + 1;
        let moment = run.steps[step].after;
        tried.pending += disk.pending();
        trials.spawn(try_cut(
            Arc::clone(&run),
            disk_image(&disk, cut),
            (cut, moment),
            turn,
        ));
    }
    while let Some(trial) = trials.join_next().await {
        let (cut, moment, verdict) = trial.unwrap();
        tried.note(cut, moment, verdict);
    }
    tried
}

fn disk_image(disk: &Disk, cut: Cut) -> super::disk::Image {
    disk.cut(cut.loss, &mut StdRng::seed_from_u64(cut.seed))
}

async fn try_cut(
    run: Arc<Run>,
    image: super::disk::Image,
    (cut, moment): (Cut, Moment),
    turn: tokio::sync::OwnedSemaphorePermit,
) -> (Cut, Moment, Result<Verdict, String>) {
    // A task of its own, because a relay that does not start is a panic.
    let trial = tokio::spawn(async move {
        let mut random = StdRng::seed_from_u64(cut.seed);
        let of = (&run.keys[..], &run.ledger, moment);
        let verdict = try_out(image, of, cut.twice, &mut random).await;
        drop(turn);
        verdict
    });
    let verdict = trial.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        Err(error) => error.to_string(),
    });
    (cut, moment, verdict)
}

impl Tried {
    fn note(&mut self, cut: Cut, moment: Moment, verdict: Result<Verdict, String>) {
        self.images += 1;
        *self.places.entry(cut.place).or_default() += 1;
        let faults = match verdict {
            Ok(verdict) => {
                *self.settled.entry(verdict.settled).or_default() += 1;
                self.with_gone += usize::from(verdict.has_gone);
                self.delivered += verdict.delivered;
                verdict.faults
            }
            Err(panic) => vec![Fault::Other(panic)],
        };
        if !faults.is_empty() {
            self.faults.push((format!("{cut:?} at {moment:?}"), faults));
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.images += other.images;
        for (place, images) in other.places {
            *self.places.entry(place).or_default() += images;
        }
        for (settled, images) in other.settled {
            *self.settled.entry(settled).or_default() += images;
        }
        self.with_gone += other.with_gone;
        self.pending += other.pending;
        self.delivered += other.delivered;
        self.faults.extend(other.faults);
    }
}
