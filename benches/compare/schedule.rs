//! Which runs there are, in which order, and what each round measured.
//!
//! The runs of one load take turns, ours and the peers', round by round, so that a machine that grows
//! slower does so for all.

use std::path::PathBuf;

use crate::Bench;
use crate::loads::{Load, Sample};
use crate::peers::Subject;
use crate::rows::{Row, Run};

/// All samples of one run. `binary` is `None` for a peer.
pub struct Measured {
    pub binary: Option<usize>,
    pub run: Run,
    pub samples: Vec<Sample>,
    /// Why it has no result.
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone)]
pub enum Failure {
    /// The peer is not installed.
    Missing(String),
    /// A request was refused, or a blob is not accounted for.
    Inexact(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(what) => to.write_str(what),
            Self::Inexact(why) => write!(to, "FAILED: {why}"),
        }
    }
}

/// The result of every run that has a result.
pub struct Results(Vec<Measured>);

impl Results {
    /// Runs all that the rows need.
    pub fn measure(bench: &Bench, binaries: &[PathBuf], rows: &[Row]) -> Self {
        let mut all = plan(binaries.len(), rows);
        for measured in &mut all {
            measured.failure = measured.run.0.installed().err().map(Failure::Missing);
        }
        let mut groups: Vec<Load> = all.iter().map(|measured| group(measured.run.1)).collect();
        groups.dedup();
        for load in groups {
            for round in 1..=bench.rounds {
                let same = all.iter_mut().filter(|one| group(one.run.1) == load);
                same.for_each(|one| one.one_more(bench, binaries, round));
            }
        }
        Self(all)
    }

    /// Of one of our binaries, or of a peer.
    pub fn of(&self, binary: usize, run: Run) -> &Measured {
        let binary = run.0.is_ours().then_some(binary);
        let found = self
            .0
            .iter()
            .find(|one| (one.binary, one.run) == (binary, run));
        found.expect("every run of a row was planned")
    }

    pub fn all(&self) -> &[Measured] {
        &self.0
    }
}

impl Measured {
    /// Other than by a peer that is not installed.
    pub fn has_failed(&self) -> bool {
        matches!(self.failure, Some(Failure::Inexact(_)))
    }

    fn one_more(&mut self, bench: &Bench, binaries: &[PathBuf], round: usize) {
        if self.failure.is_some() || bench.is_interrupted() {
            return;
        }
        let (subject, load) = self.run;
        let binary = self.binary.map(|number| &binaries[number]);
        let label = self.binary.map(crate::table::letter).unwrap_or_default();
        let name = subject.describe().0;
        match load.run(bench, subject, binary.unwrap_or(&PathBuf::new())) {
            Ok(sample) => {
                eprintln!("round {round}, {name} {label}, {load:?}: {sample:?}");
                self.samples.push(sample);
            }
            Err(why) => {
                eprintln!("round {round}, {name} {label}, {load:?}: FAILED: {why}");
                self.failure = Some(Failure::Inexact(why));
            }
        }
    }
}

/// Every run once, those of one group together and in the order of the rows.
fn plan(binaries: usize, rows: &[Row]) -> Vec<Measured> {
    let mut runs: Vec<Run> = Vec::new();
    for run in rows.iter().flat_map(Row::runs) {
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    let first = |run: &Run| runs.iter().position(|other| group(other.1) == group(run.1));
    let mut sorted = runs.clone();
    sorted.sort_by_key(first);
    sorted
        .into_iter()
        .flat_map(|run| {
            let whose = if run.0.is_ours() {
                (0..binaries).map(Some).collect()
            } else {
                vec![None]
            };
            whose.into_iter().map(move |binary| Measured {
                binary,
                run,
                samples: Vec::new(),
                failure: None,
            })
        })
        .collect()
}

/// Loads whose results are compared take turns.
fn group(load: Load) -> Load {
    match load {
        Load::Stores { body, .. } => Load::Stores { body, waiting: 0 },
        other => other,
    }
}

/// The peers that the rows need and that are not installed, each with what to do.
pub fn missing(rows: &[Row]) -> Vec<String> {
    let mut subjects: Vec<Subject> = Vec::new();
    for (subject, _) in rows.iter().flat_map(Row::runs) {
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    let missing = subjects.into_iter();
    missing
        .filter_map(|subject| subject.installed().err())
        .collect()
}
