//! Exit codes, as docs/operations.md lists them.

/// Everything was done; a relay was drained before it stopped.
pub const DRAINED: u8 = 0;
/// It could not start, or what was asked failed.
pub const FAILED: u8 = 1;
/// Invalid settings or arguments.
pub const SETTINGS: u8 = 2;
/// A relay stopped before its drain was complete.
pub const CUT: u8 = 3;
