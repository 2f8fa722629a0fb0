//! The commands of the `vauchi-relay` binary: a file each.

pub mod banner;

use std::process::ExitCode;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
