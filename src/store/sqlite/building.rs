//! A run that is being written, from the tail or from other runs.

use std::collections::VecDeque;

use foldhash::HashMap;
use rusqlite::Connection;
use sqlx::sqlite::SqliteConnection;

use super::rows::Sql;
use super::runs::{Run, Runs, insert_run, next_entries, set_slot};
use super::step::Step;
use super::tail::{Entry, Tail};

/// A run that is being written.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) number: i64,
    pub(super) last_key: i64,
    pub(super) from: Source,
    /// Up to here it is written: mailbox64 and key.
    pub(super) behind: Option<(i64, i64)>,
    pub(super) entries: u64,
    /// Rows that have left meanwhile: their entries go when all are written.
    pub(super) late: Vec<(i64, i64)>,
    /// Rows that live longer since.
    pub(super) extended: HashMap<(i64, i64), i64>,
}

#[derive(Debug)]
pub(super) enum Source {
    Tail,
    Runs(Vec<Merging>),
}

/// A run that becomes a part of another one.
#[derive(Debug)]
pub(super) struct Merging {
    pub(super) run: Run,
    /// Its next entries.
    ahead: VecDeque<(i64, Entry)>,
    /// Up to here it was read.
    behind: Option<(i64, i64)>,
    is_read: bool,
}

impl Building {
    pub(super) fn new(number: i64, last_key: i64, from: Source) -> Self {
        Self {
            number,
            last_key,
            from,
            behind: None,
            entries: 0,
            late: Vec::new(),
            extended: HashMap::default(),
        }
    }

    pub(super) fn run(&self) -> Run {
        Run {
            number: self.number,
            last_key: self.last_key,
            entries: self.entries,
        }
    }

    /// Whether the entry of this row may be written, or read to be written.
    pub(super) fn may_have(&self, runs: &Runs, (mailbox64, key): (i64, i64)) -> bool {
        match &self.from {
            Source::Tail => key <= self.last_key && Some((mailbox64, key)) <= self.behind,
            Source::Runs(merged) => {
                let run = runs.of(key);
                merged.iter().any(|merging| Some(merging.run.number) == run)
            }
        }
    }

    pub(super) fn next_step(&mut self, tail: &Tail, step: usize) -> Step {
        match &self.from {
            Source::Tail => {
                let rows = tail.to_settle(self.behind, self.last_key, step);
                if !rows.is_empty() {
                    return Step::Entries(rows);
                }
            }
            Source::Runs(merged) => {
                if !merged.iter().all(Merging::is_through) {
                    return Step::Merge;
                }
            }
        }
        let late = self.late.len().min(step);
        match late {
            0 => Step::Finish,
            _ => Step::Late(self.late[..late].to_vec()),
        }
    }

    /// Reads the next entries of the runs that are merged, in order.
    pub(super) async fn merge(
        &mut self,
        connection: &mut SqliteConnection,
        step: usize,
    ) -> sqlx::Result<Vec<(i64, Entry)>> {
        let Source::Runs(merged) = &mut self.from else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::with_capacity(step);
        while entries.len() < step {
            for merging in merged.iter_mut() {
                merging.read_ahead(connection, step).await?;
            }
            let first = merged.iter_mut().filter_map(|merging| {
                let (mailbox64, entry) = merging.ahead.front()?;
                Some(((*mailbox64, entry.key), merging))
            });
            let Some((_, merging)) = first.min_by_key(|(place, _)| *place) else {
                break;
            };
            entries.extend(merging.ahead.pop_front());
        }
        Ok(entries)
    }

    /// These entries are durable.
    pub(super) fn written(&mut self, entries: &[(i64, Entry)]) {
        self.entries += entries.len() as u64;
        if let Some((mailbox64, entry)) = entries.last() {
            self.behind = Some((*mailbox64, entry.key));
        }
    }

    /// The run takes its place.
    pub(super) fn finish(&self, connection: &Connection) -> Sql<()> {
        for ((mailbox64, key), slot) in &self.extended {
            set_slot(connection, (self.number, *mailbox64, *key), *slot)?;
        }
        if let Source::Runs(merged) = &self.from {
            for merging in merged {
                let sql = "DELETE FROM run WHERE last_seq = ?";
                connection.execute(sql, [merging.run.last_key])?;
            }
        }
        match (self.entries, &self.from) {
            // Everything has left.
            (0, Source::Tail) => Ok(()),
            _ => insert_run(connection, &self.run()),
        }
    }
}

impl Merging {
    pub(super) fn new(run: Run) -> Self {
        Self {
            run,
            ahead: VecDeque::new(),
            behind: None,
            is_read: false,
        }
    }

    fn is_through(&self) -> bool {
        self.is_read && self.ahead.is_empty()
    }

    async fn read_ahead(
        &mut self,
        connection: &mut SqliteConnection,
        step: usize,
    ) -> sqlx::Result<()> {
        if self.is_read || !self.ahead.is_empty() {
            return Ok(());
        }
        let entries = next_entries(connection, self.run.number, self.behind, step).await?;
        self.is_read = entries.len() < step;
        if let Some((mailbox64, entry)) = entries.last() {
            self.behind = Some((*mailbox64, entry.key));
        }
        self.ahead.extend(entries);
        Ok(())
    }
}
