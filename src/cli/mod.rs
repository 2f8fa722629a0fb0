//! The commands of the `vauchi-relay` binary: a file each.
//!
//! `serve` runs the relay and begins with what `banner` says; `check` shows the settings and, with
//! `preflight`, tries what a start needs; `send` and `receive` talk to a relay, so that a newcomer
//! sees it work by hand; `healthcheck` is for probes; `manual` makes the manual page. `exit` lists the exit codes, `descriptors`
//! counts what connections take of the system.

pub mod banner;
mod check;
pub mod descriptors;
pub mod exit;
mod healthcheck;
mod manual;
mod preflight;
mod receive;
mod send;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A store-and-forward relay for end-to-end encrypted blobs.
///
/// Without a command it serves. Settings come from RELAY_* variables; README and vauchi-relay(1)
/// list them.
///
/// Exit codes: 0 done, or drained and stopped; 1 could not start, or what was asked failed;
/// 2 settings or arguments wrong; 3 stopped before the drain was complete.
#[derive(Debug, Parser)]
#[command(name = "vauchi-relay", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay (the default)
    Serve,
    Check(check::Args),
    Send(send::Args),
    Receive(receive::Args),
    Healthcheck(healthcheck::Args),
    #[command(hide = true)]
    Man(manual::ManArgs),
    #[command(hide = true)]
    Completions(manual::CompletionsArgs),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let code = match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
        Command::Check(args) => check::run(&args),
        Command::Send(args) => client(send::run(args)),
        Command::Receive(args) => client(receive::run(args)),
        Command::Healthcheck(args) => client(healthcheck::run(args)),
        Command::Man(_) => manual::man(Arguments::command()),
        Command::Completions(args) => manual::completions(&args, Arguments::command()),
    };
    ExitCode::from(code)
}

/// Runs a command that talks to a relay; one thread is enough for it.
fn client(command: impl Future<Output = anyhow::Result<()>>) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => exit::DRAINED,
        Err(error) => {
            eprintln!("vauchi-relay: {error:#}");
            exit::FAILED
        }
    }
}
