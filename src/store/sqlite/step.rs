//! What one transaction of settling does, and what it has done.

use super::runs::Run;
use super::tail::Entry;

/// Rows of a step that does not tell how many it touches, about.
const STEP_ROWS: usize = 4_096;

/// What one transaction does.
#[derive(Debug)]
pub(super) enum Step {
    /// Entries of the run that is being written.
    Entries(Vec<(i64, Entry)>),
    /// Entries of the run that is being written, out of others.
    Merge,
    /// Entries of rows that have left meanwhile.
    Late(Vec<(i64, i64)>),
    /// The run is finished.
    Finish,
    /// Rows that are gone, each with its number in `gone`.
    Delete(Vec<(i64, i64)>),
    /// Entries that count for nothing.
    Forget(i64),
    /// The runs are built anew from all rows up to this key.
    Rebuild(i64),
}

impl Step {
    /// How many rows of any table it changes, about.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Entries(rows) => rows.len(),
            Self::Merge | Self::Forget(_) => STEP_ROWS,
            Self::Late(rows) | Self::Delete(rows) => rows.len(),
            Self::Finish => 1,
            Self::Rebuild(_) => 16 * STEP_ROWS,
        }
    }
}

/// What a step has found that memory must follow when it is durable.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Entries of other runs that the one that is being written has now.
    pub(super) merged: Vec<(i64, Entry)>,
    /// Whether nothing is left to forget.
    pub(super) is_end: bool,
    /// Rows that were deleted beside a rebuild, each with its number in `gone`.
    pub(super) gone: Vec<(i64, i64)>,
    /// The runs that a rebuild has made.
    pub(super) runs: Vec<Run>,
}
