//! Settling: what is in the tail becomes sorted runs, runs become fewer, and rows that have left go.
//!
//! All of it waits until the senders of a commit are answered, and goes in steps, each a transaction of its
//! own: a step that fails concerns no write, and a crash between two leaves nothing half done. Rows younger
//! than a second or two are left alone, because most of them are acknowledged by then: what has left is never
//! settled, and its neighbours on the page have left, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use tokio::time::Instant;
use tracing::{info, warn};

use super::blobs::Fresh;
use super::building::{Building, Merging, Source};
use super::columns::{Size, expiry_slot, to_i64};
use super::rows::{Sql, delete_blobs, delete_gone};
use super::runs::{
    Run, Runs, delete_entries, forget_entries, insert_entries, read_unsettled, rebuild, set_slot,
    stale_runs,
};
use super::step::{Step, Written};
use super::tail::{Entry, Following, Tail};
use crate::store::engine::{Header, Plan};
use crate::store::model::OrderKey;

/// When is settled, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Rows that are not settled, from which on they are. Each takes some 200 bytes of memory, and twice as
    /// many may be there before the run is finished.
    pub rows: usize,
    /// Entries that one step writes, and twice as many as it deletes rows.
    pub step: usize,
    /// How often is looked which rows are old enough.
    pub tick: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rows: 65_536,
            // 5 ms.
            step: 4_096,
            tick: Duration::from_secs(1),
        }
    }
}

/// Neighbouring runs of about the same length that become one.
const MERGE_RUNS: usize = 8;

/// Runs from which on they are merged although there is other work.
const RUNS_MAX: usize = 64;

/// After a failed step of a run it is not tried again for this long.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Rows that may be not settled, 200 MB: more come only while runs can neither be written nor be built anew.
const UNSETTLED_MAX: usize = 1 << 20;

/// A row in the tail: its entry and header, and its share of the tree.
const UNSETTLED_BYTES: u64 = 200;

/// A row that is gone: its key and number, and its share of the tree.
const GONE_BYTES: u64 = 24;

/// Rows that may have left and be in the table still, however young they are.
const GONE_MAX: usize = 131_072;

/// What a commit does with the rows that leave.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Deleted in the same transaction, each with its mailbox64.
    pub(super) now: Vec<(i64, i64)>,
    /// Their entries, each given as run, mailbox64 and key.
    pub(super) entries: Vec<(i64, i64, i64)>,
    /// Only noted as gone, each with its mailbox64.
    pub(super) later: Vec<(i64, i64)>,
}

/// What is settled, what is not, and the work between.
pub(super) struct Settling {
    pace: Pace,
    tail: Arc<Tail>,
    runs: Runs,
    next_run: i64,
    next_gone: i64,
    /// How many rows of each row of `gone` are in the table still.
    left: BTreeMap<i64, usize>,
    building: Option<Building>,
    /// Runs that count for nothing and have entries still.
    stale: Vec<i64>,
    age: Age,
    /// Keys of rows that are gone and cannot be deleted: their pages are damaged.
    stuck: BTreeSet<i64>,
    /// After a failed deletion they go one by one.
    is_careful: bool,
    /// A run could not be written: from then on all of them are built anew.
    rebuild_at: Option<Instant>,
    /// When that was done last.
    rebuilt_at: Option<Instant>,
}

/// Which rows are older than one to two ticks.
#[derive(Debug)]
struct Age {
    ticked: Instant,
    /// The last key at the tick before the last one.
    old_key: i64,
    last_key: i64,
    /// Rows that are gone are deleted up to this number of `gone`.
    gone_to: i64,
}

impl Settling {
    /// Reads what is settled and what is not, and lets the readers see it.
    pub(super) async fn read(
        connection: &mut SqliteConnection,
        tail: Arc<Tail>,
        pace: Pace,
    ) -> sqlx::Result<Self> {
        let runs = Runs::read(connection).await?;
        let stale = stale_runs(connection).await?;
        let (gone, left) = read_gone(connection).await?;
        let unsettled = read_unsettled(connection, runs.settled_to()).await?;
        if unsettled.unreadable > 0 {
            let blobs = unsettled.unreadable;
            warn!(
                blobs,
                "store: {blobs} stored blobs are on pages that cannot be read; they are kept, and delivered when a scrub finds them whole; check the disk"
            );
        }
        tail.replace(unsettled.entries, gone, runs.settled_to());
        let numbers = runs
            .0
            .iter()
            .map(|run| run.number)
            .chain(stale.iter().copied());
        Ok(Self {
            pace,
            next_run: numbers.max().unwrap_or(0) + 1,
            next_gone: left.last_key_value().map_or(0, |(number, _)| *number) + 1,
            runs,
            left,
            tail,
            building: None,
            stale,
            age: Age {
                ticked: Instant::now(),
                old_key: 0,
                last_key: 0,
                gone_to: 0,
            },
            stuck: BTreeSet::new(),
            is_careful: false,
            rebuild_at: None,
            rebuilt_at: None,
        })
    }

    /// The memory of what is not settled and of what is gone, estimated.
    pub(super) fn bytes(&self) -> u64 {
        let (rows, gone) = (self.tail.len() as u64, self.tail.gone_len() as u64);
        rows * UNSETTLED_BYTES + gone * GONE_BYTES
    }

    /// Whether settling has failed for so long that no more rows fit in memory.
    pub(super) fn is_overfull(&self) -> bool {
        self.tail.len() >= UNSETTLED_MAX
    }

    pub(super) fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// Which of the rows that a plan deletes go at once: those that are settled, those that are in other
    /// indexes, and those whose time is over, which the sweep would find again.
    pub(super) fn leaving(&self, plan: &Plan) -> Leaving {
        let mut leaving = Leaving::default();
        for (key, header) in &plan.deletes {
            let place = (header.mailbox.prefix64(), key.0);
            let is_plain = header.topic.is_none() && header.owner.is_none();
            let waits = is_plain && header.expires_at > plan.now;
            match waits && self.tail.holds(place.0, place.1) {
                true => leaving.later.push(place),
                false => leaving.now.push(place),
            }
        }
        let aside = plan.set_aside.iter();
        let aside = aside.map(|(key, header)| (header.mailbox.prefix64(), key.0));
        for (mailbox64, key) in leaving.now.iter().copied().chain(aside) {
            leaving
                .entries
                .extend(self.runs.of(key).map(|run| (run, mailbox64, key)));
        }
        leaving
    }

    /// Writes down which rows are gone.
    pub(super) fn write_gone(&self, connection: &Connection, leaving: &Leaving) -> Sql<()> {
        if leaving.later.is_empty() {
            return Ok(());
        }
        let keys = leaving.later.iter().map(|(_, key)| key);
        let seqs: Vec<u8> = keys.flat_map(|key| key.to_be_bytes()).collect();
        let mut insert = connection.prepare_cached("INSERT INTO gone (n, seqs) VALUES (?, ?)")?;
        insert.execute(params![self.next_gone, seqs]).map(drop)
    }

    /// Writes down which entries expire at another time.
    pub(super) fn write_extended(&self, connection: &Connection, plan: &Plan) -> Sql<()> {
        for (key, (mailbox, expires_at)) in &plan.extended {
            if let Some(run) = self.runs.of(key.0) {
                let place = (run, mailbox.prefix64(), key.0);
                set_slot(connection, place, expiry_slot(*expires_at))?;
            }
        }
        Ok(())
    }

    /// A plan is durable.
    pub(super) fn follow(&mut self, (fresh, plan): (&[Fresh<'_>], &Plan), leaving: &Leaving) {
        let number = self.next_gone;
        let tail = Arc::clone(&self.tail);
        tail.follow(|tail| {
            for Fresh { row, id64 } in fresh {
                let header = row.header();
                tail.came(row.key, entry_of(row.key, &header, *id64), header);
            }
            for (mailbox64, key) in &leaving.later {
                tail.gone(*mailbox64, *key, number);
            }
            for (mailbox64, key) in &leaving.now {
                tail.deleted(*mailbox64, *key);
            }
            for (key, header) in &plan.set_aside {
                tail.deleted(header.mailbox.prefix64(), key.0);
            }
            follow_changes(tail, plan);
        });
        if !leaving.later.is_empty() {
            self.left.insert(number, leaving.later.len());
            self.next_gone += 1;
        }
        self.note_late(plan);
    }

    /// What a run that is being written has to make up for.
    fn note_late(&mut self, plan: &Plan) {
        let Some(building) = &mut self.building else {
            return;
        };
        let left = plan.deletes.iter().chain(&plan.set_aside);
        for (key, header) in left {
            let place = (header.mailbox.prefix64(), key.0);
            if building.may_have(&self.runs, place) {
                building.late.push(place);
            }
        }
        for (key, (mailbox, expires_at)) in &plan.extended {
            let place = (mailbox.prefix64(), key.0);
            if building.may_have(&self.runs, place) {
                building.extended.insert(place, expiry_slot(*expires_at));
            }
        }
    }

    /// What to do next, if there is something. `last_key` is the last one that was given out; `is_idle` says
    /// that nobody waits for anything else; `is_all` that nothing is too young.
    pub(super) fn next_step(
        &mut self,
        last_key: i64,
        (is_idle, is_all): (bool, bool),
    ) -> Option<Step> {
        self.tick(last_key, is_all);
        while self.tail.sweep(self.pace.step) && is_all {}
        if self.rebuild_at.is_some_and(|at| at <= Instant::now()) {
            return Some(Step::Rebuild(last_key));
        }
        if let Some(gone) = self.gone_rows((self.age.old_key, self.age.gone_to)) {
            return Some(Step::Delete(gone));
        }
        if self.building.is_none() && self.rebuild_at.is_none() && self.tail.is_swept() {
            self.building = self.begin(last_key, (is_idle, is_all));
        }
        if let Some(building) = &mut self.building {
            return Some(building.next_step(&self.tail, self.pace.step));
        }
        self.stale.last().copied().map(Step::Forget)
    }

    fn tick(&mut self, last_key: i64, is_all: bool) {
        let is_due = self.age.ticked.elapsed() >= self.pace.tick;
        if is_due {
            self.age = Age {
                ticked: Instant::now(),
                old_key: self.age.last_key,
                last_key,
                gone_to: self.next_gone - 1,
            };
        }
        if is_all || self.tail.gone_len() >= GONE_MAX {
            self.age.old_key = last_key;
            self.age.gone_to = self.next_gone - 1;
        }
    }

    /// Deletes rows that are gone, however young.
    pub(super) fn delete_step(&self) -> Option<Step> {
        let gone = self.gone_rows((i64::MAX, i64::MAX))?;
        Some(Step::Delete(gone))
    }

    fn gone_rows(&self, up_to: (i64, i64)) -> Option<Vec<(i64, i64)>> {
        let limit = if self.is_careful {
            1
        } else {
            self.pace.step.div_ceil(2)
        };
        let gone = self.tail.gone_up_to(up_to, &self.stuck, limit);
        (!gone.is_empty()).then_some(gone)
    }

    /// Begins a run, when there is enough for one.
    fn begin(&mut self, last_key: i64, (is_idle, is_all): (bool, bool)) -> Option<Building> {
        let rows = self.tail.len();
        let settled_to = self.runs.settled_to();
        let old = to_i64(self.pace.rows as u64) <= self.age.old_key - settled_to;
        let to = match rows {
            0 => None,
            _ if is_all || rows >= 4 * self.pace.rows => Some(last_key),
            _ if rows >= self.pace.rows && old => Some(self.age.old_key),
            _ => None,
        };
        let (from, last_key) = match to {
            Some(to) => (Source::Tail, to),
            None if is_all => return None,
            None => {
                let merge = self.to_merge(is_idle)?;
                let last_key = merge.last()?.last_key;
                (
                    Source::Runs(merge.into_iter().map(Merging::new).collect()),
                    last_key,
                )
            }
        };
        let number = self.next_run;
        self.next_run += 1;
        Some(Building::new(number, last_key, from))
    }

    /// Neighbours of about the same length.
    fn to_merge(&self, is_idle: bool) -> Option<Vec<Run>> {
        let runs = &self.runs.0;
        if !is_idle && runs.len() <= RUNS_MAX {
            return None;
        }
        let mut neighbours = runs.windows(MERGE_RUNS).rev();
        let alike =
            neighbours.find(|runs| runs.iter().all(|run| self.tier(run) <= self.tier(&runs[0])));
        alike.map(<[Run]>::to_vec)
    }

    /// A run of eight times as many entries is in the next one.
    fn tier(&self, run: &Run) -> u32 {
        (run.entries / self.pace.rows as u64)
            .max(1)
            .ilog(MERGE_RUNS as u64)
    }

    /// Whether there is something to do later, and when.
    pub(super) fn wants(&self) -> Option<Duration> {
        if !self.tail.is_swept() {
            return Some(Duration::ZERO);
        }
        let has_gone = self.tail.gone_len() > self.stuck.len();
        let is_long = self.tail.len() >= self.pace.rows;
        let is_waiting = has_gone || is_long || self.rebuild_at.is_some();
        (is_waiting || self.to_merge(true).is_some())
            .then(|| self.pace.tick.saturating_sub(self.age.ticked.elapsed()))
    }

    /// Reads what a step writes anew. Before the transaction, because it is another connection.
    pub(super) async fn read_ahead(
        &mut self,
        connection: &mut SqliteConnection,
        step: &Step,
    ) -> sqlx::Result<Written> {
        let mut written = Written::default();
        if let (Step::Merge, Some(building)) = (step, &mut self.building) {
            written.merged = building.merge(connection, self.pace.step).await?;
        }
        Ok(written)
    }

    /// Does a step, within a transaction. `written` is what was read ahead of it.
    pub(super) fn write(
        &self,
        connection: &Connection,
        step: &Step,
        written: &mut Written,
    ) -> Sql<()> {
        match (step, &self.building) {
            (Step::Entries(rows), Some(building)) => {
                insert_entries(connection, building.number, rows)?;
            }
            (Step::Merge, Some(building)) => {
                insert_entries(connection, building.number, &written.merged)?;
            }
            (Step::Late(late), Some(building)) => {
                let entries: Vec<_> = late
                    .iter()
                    .map(|(mailbox64, key)| (building.number, *mailbox64, *key))
                    .collect();
                delete_entries(connection, &entries)?;
            }
            (Step::Finish, Some(building)) => building.finish(connection)?,
            (Step::Delete(gone), _) => self.delete(connection, gone)?,
            (Step::Forget(run), _) => {
                let deleted = forget_entries(connection, *run, self.pace.step)?;
                written.is_end = deleted < self.pace.step;
            }
            (Step::Rebuild(last_key), _) => {
                // What has left must not come back.
                let all = (i64::MAX, i64::MAX);
                written.gone = self.tail.gone_up_to(all, &self.stuck, usize::MAX);
                self.delete(connection, &written.gone)?;
                let bounds = (self.runs.settled_to(), *last_key);
                written.runs = rebuild(connection, bounds, &self.stuck)?;
            }
            (Step::Entries(_) | Step::Merge | Step::Late(_) | Step::Finish, None) => {}
        }
        Ok(())
    }

    fn delete(&self, connection: &Connection, gone: &[(i64, i64)]) -> Sql<()> {
        let keys: Vec<_> = gone.iter().map(|(key, _)| *key).collect();
        delete_blobs(connection, &keys)?;
        delete_gone(connection, &self.emptied(gone))
    }

    /// Rows of `gone` that nothing is left of once these rows are deleted.
    fn emptied(&self, gone: &[(i64, i64)]) -> Vec<i64> {
        let mut deleted = BTreeMap::<i64, usize>::new();
        for (_, number) in gone {
            *deleted.entry(*number).or_default() += 1;
        }
        let is_all = |(number, rows): &(i64, usize)| self.left.get(number) == Some(rows);
        let emptied = deleted.into_iter().filter(is_all);
        emptied.map(|(number, _)| number).collect()
    }

    /// A step is durable.
    pub(super) fn done(&mut self, step: Step, written: &Written) {
        match (step, &mut self.building) {
            (Step::Entries(rows), Some(building)) => building.written(&rows),
            (Step::Merge, Some(building)) => building.written(&written.merged),
            (Step::Late(late), Some(building)) => {
                building.late.drain(..late.len().min(building.late.len()));
            }
            (Step::Finish, _) => self.finished(),
            (Step::Delete(gone), _) => self.deleted(&gone),
            (Step::Forget(run), _) if written.is_end => self.stale.retain(|stale| *stale != run),
            (Step::Rebuild(last_key), _) => {
                self.deleted(&written.gone);
                self.rebuilt(last_key, &written.runs);
            }
            _ => {}
        }
    }

    fn finished(&mut self) {
        let Some(building) = self.building.take() else {
            return;
        };
        let run = building.run();
        match building.from {
            Source::Tail => {
                self.runs.0.extend((run.entries > 0).then_some(run));
                let settled_to = self.runs.settled_to();
                self.tail.settled(building.last_key, settled_to);
            }
            Source::Runs(merged) => {
                let merged: Vec<_> = merged.iter().map(|merging| merging.run.number).collect();
                let place = self
                    .runs
                    .0
                    .iter()
                    .position(|old| merged.contains(&old.number));
                self.runs.0.retain(|old| !merged.contains(&old.number));
                self.runs.0.insert(place.unwrap_or(0), run);
                self.stale.extend(merged);
            }
        }
    }

    fn deleted(&mut self, gone: &[(i64, i64)]) {
        for number in self.emptied(gone) {
            self.left.remove(&number);
        }
        for (_, number) in gone {
            if let Some(rows) = self.left.get_mut(number) {
                *rows -= 1;
            }
        }
        self.tail.forget_gone(gone);
        self.is_careful = false;
    }

    /// The runs were built anew.
    fn rebuilt(&mut self, last_key: i64, runs: &[Run]) {
        self.runs.0 = runs.to_vec();
        self.tail.settled(last_key, self.runs.settled_to());
        let last = runs.iter().map(|run| run.number).max().unwrap_or(0);
        self.next_run = self.next_run.max(last + 1);
        (self.building, self.rebuild_at) = (None, None);
        self.rebuilt_at = Some(Instant::now());
        self.stale.clear();
        let entries: u64 = runs.iter().map(|run| run.entries).sum();
        info!("store: the index of mailboxes was built anew from the {entries} blobs in it");
    }

    /// A step failed and changed nothing. `is_its_fault` says that it was about what the step touched.
    pub(super) fn failed(&mut self, step: &Step, is_its_fault: bool) {
        match (step, is_its_fault) {
            (Step::Delete(gone), true) => match gone[..] {
                [(key, _)] => drop(self.stuck.insert(key)),
                _ => self.is_careful = true,
            },
            (Step::Rebuild(_), _) => self.rebuild_at = Some(Instant::now() + FAILED_PAUSE),
            (Step::Forget(run), true) => self.stale.retain(|stale| stale != run),
            (_, true) => {
                // What else may be wrong with them nobody knows.
                self.abandon();
                let before = self.rebuilt_at.map(|at| at + FAILED_PAUSE);
                self.rebuild_at = Some(before.unwrap_or_else(Instant::now));
            }
            // What is read ahead of a merge is not written.
            (Step::Merge, false) => self.abandon(),
            (_, false) => {}
        }
    }

    /// Gives the run up that is being written.
    fn abandon(&mut self) {
        self.stale
            .extend(self.building.take().map(|building| building.number));
    }
}

fn entry_of(key: OrderKey, header: &Header, id64: i64) -> Entry {
    let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
    Entry {
        key: key.0,
        id64,
        size: Size::new(bytes, header.class),
        slot: expiry_slot(header.expires_at),
    }
}

fn follow_changes(tail: &mut Following<'_>, plan: &Plan) {
    for (key, (mailbox, expires_at)) in &plan.extended {
        tail.extended(mailbox.prefix64(), key.0, *expires_at);
    }
    for (key, mailbox) in &plan.delivered {
        tail.delivered(mailbox.prefix64(), key.0);
    }
}

/// Reads which rows are gone: their keys, each with its number, and how many each number has.
async fn read_gone(
    connection: &mut SqliteConnection,
) -> sqlx::Result<(BTreeMap<i64, i64>, BTreeMap<i64, usize>)> {
    let (mut gone, mut left) = (BTreeMap::new(), BTreeMap::new());
    let rows = sqlx::query("SELECT n, seqs FROM gone ORDER BY n")
        .fetch_all(connection)
        .await?;
    for row in &rows {
        let (number, seqs): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let (keys, _) = seqs.as_chunks::<8>();
        gone.extend(keys.iter().map(|key| (i64::from_be_bytes(*key), number)));
        left.insert(number, keys.len());
    }
    Ok((gone, left))
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
