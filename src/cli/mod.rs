//! The commands of the `vauchi-relay` binary: a file each.

pub(crate) mod healthcheck;
pub(crate) mod receive;
pub(crate) mod send;

use std::process::ExitCode;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
