//! What a command says: answers on standard output, notes on standard error.
//!
//! `println!` and `eprintln!` panic where they cannot write, such as on a full disk, and then the command
//! ends in the middle of its work. The lints `print_stdout` and `print_stderr` keep them away.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context as _;

/// Writes a line to standard output, for programs and people who asked for it. When this returns `Ok`,
/// the system has it.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    answer(format!("{text}\n").as_bytes()).context(NOT_WRITTEN)
}

/// What is said when an answer cannot be written.
pub(super) const NOT_WRITTEN: &str = "cannot write to standard output";

/// Writes to standard output as [`line`] does, bytes as they are.
pub(super) fn answer(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes something to be read, such as a manual. Whoever closed the pipe (`| head`) has read enough.
pub(super) fn page(text: &[u8]) -> anyhow::Result<()> {
    match answer(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context(NOT_WRITTEN),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. Where that cannot be written nobody can be told, and the exit code has
/// to do.
pub(super) fn note(text: impl Display) {
    let line = format!("{text}\n");
    io::stderr().write_all(line.as_bytes()).ok();
}
