//! The commands of the `vauchi-relay` binary: a file each.

pub mod banner;
pub mod exit;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A store-and-forward relay for end-to-end encrypted blobs.
///
/// Without a command it serves. Settings come from RELAY_* variables; README lists them.
#[derive(Debug, Parser)]
#[command(name = "vauchi-relay", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay (the default).
    Serve,
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let code = match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
    };
    ExitCode::from(code)
}
