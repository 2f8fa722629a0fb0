//! Where the power is cut: anywhere, and where it hurts most.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::disk::{Disk, Image};
use super::ledger::Fault;
use super::load::{Phase, Run};
use super::loss::Loss;
use super::recording::{Change, Moment, Names, Step};
use super::restart::{Settled, Then, Verdict, cut_again, look, try_out};

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
    /// After one of the last transactions before a running relay has finished its first run.
    Settle,
}

/// The steps after which a cut is at each place.
pub(super) type Places = BTreeMap<Place, Vec<usize>>;

/// Relays that are tried out at the same time.
const AT_ONCE: usize = 3;

/// One cut, and how the image comes about.
#[derive(Debug, Clone, Copy)]
struct Cut {
    place: Place,
    loss: Loss,
    seed: u64,
    then: Then,
    /// Whether the power is cut again while a relay starts on what the first cut has left.
    again: bool,
}

/// What was tried, by kind.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) images: usize,
    /// By the place of the cut, and by how far settling had come.
    pub(super) found: BTreeMap<(Place, Settled), usize>,
    pub(super) with_gone: usize,
    /// Changes that no fsync covered, in all images.
    pub(super) in_doubt: usize,
    pub(super) delivered: usize,
    /// Each with the cut that shows it.
    pub(super) faults: Vec<(String, Vec<Fault>)>,
}

pub(super) fn places_of(run: &Run) -> Places {
    let (mut names, mut places) = (Names::default(), Places::new());
    for (number, step) in run.steps.iter().enumerate() {
        let phase = run.phase(step.after);
        let of_file = match (&step.change, names.of(step)) {
            (Change::SyncBegan { .. }, Some("relay.db-wal")) => Some(Place::Fsync),
            (Change::SyncEnded { .. }, Some("relay.db-wal")) => Some(Place::Commit),
            (Change::Written { .. }, Some("relay.db")) => Some(Place::Move),
            _ => None,
        };
        let of_phase = match phase {
            Phase::Start => Some(Place::Start),
            Phase::Rest => Some(Place::Rest),
            Phase::Stop => (of_file == Some(Place::Commit)).then_some(Place::Stop),
            Phase::Work => None,
        };
        let at = [Some(Place::Anywhere), of_file, of_phase];
        for place in at.into_iter().flatten() {
            places.entry(place).or_default().push(number);
        }
    }
    places
}

/// Transactions of a run, and as many between them of senders, about: 65,536 rows are 16 steps.
const SETTLING_COMMITS: usize = 24;

/// [`Place::Settle`], found by looking into the database after this commit and that.
pub(super) async fn settling(run: &Run, places: &Places) -> Vec<usize> {
    let commits = &places[&Place::Commit];
    let (mut without, mut with) = (0, commits.len());
    while without < with {
        let middle = usize::midpoint(without, with);
        let mut disk = Disk::empty(run.folder);
        let steps = &run.steps[..=commits[middle]];
        steps.iter().for_each(|step| disk.follow(step));
        let (settled, ..) = look(&disk.as_seen()).await;
        match settled < Settled::Since {
            true => without = middle + 1,
            false => with = middle,
        }
    }
    commits[with.saturating_sub(SETTLING_COMMITS)..with].to_vec()
}

/// The same, but that no fsync of this file has any effect from a moment on.
pub(super) fn without_fsyncs(steps: &[Step], file: &str, from: Moment) -> Vec<Step> {
    let mut names = Names::default();
    let has_effect = |step: &&Step| {
        let is_of_file = names.of(step) == Some(file);
        let is_fsync = matches!(step.change, Change::SyncEnded { .. });
        !(is_of_file && is_fsync && step.after > from)
    };
    steps.iter().filter(has_effect).cloned().collect()
}

/// The cuts of these seeds, each with the step after which it is.
fn choose(seeds: Range<u64>, (places, losses): (&Places, usize)) -> Vec<(usize, Cut)> {
    let mut cuts = Vec::new();
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        for (place, steps) in places {
            let step = match place {
                // One after the other, so that ten seeds have each transaction of a stop.
                Place::Stop => steps[seed as usize % steps.len()],
                _ => *steps.choose(&mut random).unwrap(),
            };
            for _ in 0..losses {
                let cut = Cut {
                    place: *place,
                    loss: Loss::any(&mut random),
                    seed: random.random(),
                    then: match random.random_range(0..4) {
                        0 => Then::Stop,
                        1 => Then::BackUp,
                        _ => Then::Nothing,
                    },
                    again: random.random_ratio(1, 8),
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
    run: &Arc<Run>,
    seeds: Range<u64>,
    (places, losses): (&Places, usize),
) -> Tried {
    let mut disk = Disk::empty(run.folder);
    let (mut followed, mut tried) = (0, Tried::default());
    let (mut trials, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    for (step, cut) in choose(seeds, (places, losses)) {
        // Images are made when there is a relay for them: each takes the room of a database.
        let turn = Arc::clone(&at_once).acquire_owned().await.unwrap();
        run.steps[followed..=step]
            .iter()
            .for_each(|step| disk.follow(step));
        followed = step + 1;
        tried.in_doubt += disk.in_doubt();
        let mut random = StdRng::seed_from_u64(cut.seed);
        let image = disk.cut(cut.loss, &mut random);
        let (run, moment) = (Arc::clone(run), run.steps[step].after);
        trials.spawn(async move {
            let verdict = try_image(image, (run, moment), cut, random).await;
            drop(turn);
            (cut, moment, verdict)
        });
    }
    while let Some(trial) = trials.join_next().await {
        let (cut, moment, verdict) = trial.unwrap();
        tried.note(cut, moment, verdict);
    }
    tried
}

async fn try_image(
    mut image: Image,
    (run, moment): (Arc<Run>, Moment),
    cut: Cut,
    mut random: StdRng,
) -> Result<Verdict, String> {
    // Each in a task of its own, because a relay that does not start is a panic.
    if cut.again {
        let cut = tokio::spawn(async move {
            let image = cut_again(&image, &mut random).await;
            (image, random)
        });
        (image, random) = cut.await.map_err(words)?;
    }
    try_start(image, (run, moment), cut.then, random).await
}

/// What is found on an image of that moment, or why no relay starts on it.
pub(super) async fn try_start(
    image: Image,
    (run, moment): (Arc<Run>, Moment),
    then: Then,
    mut random: StdRng,
) -> Result<Verdict, String> {
    let trial = tokio::spawn(async move {
        let of = (&run.keys[..], &run.ledger, moment);
        try_out(&image, of, then, &mut random).await
    });
    trial.await.map_err(words)
}

fn words(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (images, in_doubt, gone) = (self.images, self.in_doubt, self.with_gone);
        let (delivered, found) = (self.delivered, &self.found);
        write!(
            f,
            "{images} images, {gone} of them with rows that are gone; {in_doubt} changes in doubt; {delivered} blobs delivered; {found:?}"
        )
    }
}

impl Tried {
    fn note(&mut self, cut: Cut, moment: Moment, verdict: Result<Verdict, String>) {
        self.images += 1;
        let faults = match verdict {
            Ok(verdict) => {
                let found = (cut.place, verdict.settled);
                *self.found.entry(found).or_default() += 1;
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
        for (found, images) in other.found {
            *self.found.entry(found).or_default() += images;
        }
        self.with_gone += other.with_gone;
        self.in_doubt += other.in_doubt;
        self.delivered += other.delivered;
        self.faults.extend(other.faults);
    }
}
