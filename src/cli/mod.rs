//! The commands of the `vauchi-relay` binary: a file or a folder each.
//!
//! `serve` runs the relay and begins with what `banner` says; `check` shows the settings and, with
//! `preflight`, tries what a start needs; `keygen`, `send`, `receive`, `withdraw` (`cancel` and
//! `extend`), `purge`, `unpin` and `recovery` `connect` to relays, for scripts and by hand, and what they
//! collect goes to a `folder`; `healthcheck` is for probes; `manual` makes the manual page and the
//! completions. `backup`, `verify` and `restore` share `archive` (the file), `scratch` (a folder for
//! unfinished files) and `progress` (what a terminal is shown meanwhile). `exit` lists the exit codes,
//! `descriptors` counts what connections take of the system, `container` tells whether data goes with
//! one.

mod archive;
mod backup;
pub mod banner;
mod check;
mod connect;
mod container;
pub mod descriptors;
pub mod exit;
mod folder;
mod healthcheck;
mod keygen;
mod manual;
mod permissions;
mod preflight;
mod progress;
mod purge;
mod receive;
mod recovery;
mod restore;
mod scratch;
mod send;
mod serve;
mod unpin;
mod verify;
mod withdraw;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// A store-and-forward relay for end-to-end encrypted blobs.
///
/// Without a command it runs the relay. Settings are RELAY_* environment variables;
/// docs/configuration.md and vauchi-relay(1) list them.
///
/// Exit codes: 0 success, or drained and stopped; 1 the relay could not start, or the command failed; 2
/// invalid settings or arguments; 3 stopped before the drain was complete.
#[derive(Debug, Parser)]
#[command(name = "vauchi-relay", version = env!("VAUCHI_VERSION"))]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay (the default)
    Serve,
    Check(check::Args),
    Keygen(keygen::Args),
    Send(send::Args),
    Receive(receive::Args),
    Cancel(withdraw::CancelArgs),
    Extend(withdraw::ExtendArgs),
    Purge(purge::Args),
    Unpin(unpin::Args),
    Recovery(recovery::Args),
    Healthcheck(healthcheck::Args),
    Backup(backup::Args),
    Verify(verify::Args),
    Restore(restore::Args),
    #[command(hide = true)]
    Man(manual::ManArgs),
    #[command(hide = true)]
    Completions(manual::CompletionsArgs),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    hide_memory();
    let code = match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
        Command::Check(args) => check::run(&args),
        Command::Keygen(args) => on_one_thread(async move { keygen::run(&args) }),
        Command::Send(args) => on_one_thread(send::run(args)),
        Command::Receive(args) => on_one_thread(receive::run(args)),
        Command::Cancel(args) => on_one_thread(withdraw::cancel(args)),
        Command::Extend(args) => on_one_thread(withdraw::extend(args)),
        Command::Purge(args) => on_one_thread(purge::run(args)),
        Command::Unpin(args) => on_one_thread(unpin::run(args)),
        Command::Recovery(args) => on_one_thread(recovery::run(args)),
        Command::Healthcheck(args) => on_one_thread(healthcheck::run(args)),
        Command::Backup(args) => on_one_thread(backup::run(args)),
        Command::Verify(args) => on_one_thread(verify::run(args)),
        Command::Restore(args) => on_one_thread(restore::run(args)),
        Command::Man(_) => manual::man(Arguments::command()),
        Command::Completions(args) => manual::completions(&args, Arguments::command()),
    };
    ExitCode::from(code)
}

/// Keeps secrets and blobs out of core dumps, and other processes of this user out of this one's memory.
/// Root can still attach a debugger.
fn hide_memory() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // Where the system has no such call there is nothing to turn off.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    }
}

/// The arguments or the settings are wrong; the text says which.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The settings, for a command that is no server.
fn settings() -> anyhow::Result<Config> {
    let loaded = Config::from_env().map_err(|faults| Usage(faults.to_string()))?;
    Ok(loaded.config)
}

/// Comes with a signal to stop; what is half done is removed by whoever is dropped then.
async fn interrupted() -> anyhow::Error {
    match stop_signal().await {
        Ok(()) => anyhow::anyhow!("interrupted; no files are left behind"),
        Err(error) => anyhow::Error::from(error).context("cannot listen for signals"),
    }
}

async fn stop_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Runs a command that is no server; one thread is enough for it.
fn on_one_thread(command: impl Future<Output = anyhow::Result<()>>) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(command);
            // What was given up is not waited for.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => exit::DRAINED,
        Err(error) => {
            eprintln!("vauchi-relay: {error:#}");
            match error.downcast_ref::<Usage>() {
                Some(_) => exit::SETTINGS,
                None => exit::FAILED,
            }
        }
    }
}
