//! What the SQL engines have in common, whatever their database: how values stand in `columns`, whether a row
//! is what was written (`guard`), what becomes of one that is not (`quarantine`), and the time that the
//! database knows (`kept_time`). The statements are each engine's own.

pub(super) mod columns;
pub(super) mod guard;
pub(super) mod kept_time;
pub(super) mod quarantine;
