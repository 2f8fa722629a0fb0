//! The commands of the `vauchi-relay` binary: a file or a folder each.
//!
//! `serve` runs the relay and begins with what `banner` says; `check` shows the settings and, with
//! `preflight`, tries what a start needs; `keygen`, `send`, `receive`, `withdraw` (`cancel` and
//! `extend`), `purge`, `unpin` and `recovery` `connect` to relays, for scripts and by hand, and what they
//! collect goes to a `folder`; `healthcheck` is for probes; `manual` makes the manual page and the
//! completions. `backup`, `verify` and `restore` share `archive` (the file), `scratch` (a folder for
//! unfinished files) and `progress` (what a terminal is shown meanwhile). Every command writes by `say`
//! and fails with a `failure`. `exit` lists the exit codes, `descriptors` counts what connections take of
//! the system, `container` tells whether data goes with one. `fuzzing` lets fuzz targets in.

mod archive;
mod backup;
pub mod banner;
mod check;
mod connect;
mod container;
pub mod descriptors;
pub mod exit;
mod failure;
mod folder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod healthcheck;
mod keygen;
mod known_relays;
mod manual;
mod permissions;
mod preflight;
mod progress;
mod purge;
mod receive;
mod recovery;
mod restore;
mod say;
mod scratch;
mod send;
mod serve;
mod unpin;
mod verify;
mod withdraw;

use std::io::{ErrorKind, Write as _};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use signal_hook::consts::SIGXFSZ;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// A store-and-forward relay for end-to-end encrypted blobs.
///
/// Without a command it runs the relay. Settings are RELAY_* environment variables;
/// docs/configuration.md and vauchi-relay(1) list them.
///
/// With --json, a command that fails prints `{"kind": "error", "code": …, "text": …, "retry_after": …}` to
/// standard output. The code is the relay's, or one of docs/errors.md; retry_after is in seconds, or
/// null if a retry does not help.
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
    outgrown_files_fail();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(not_parsed(&error)),
    };
    let command = arguments.command.unwrap_or(Command::Serve);
    let is_json = command.is_json();
    let on_one_thread = |work: Pin<Box<dyn Future<Output = anyhow::Result<()>>>>| {
        outcome_on_one_thread(is_json, work)
    };
    let code = match command {
        Command::Serve => serve::run(),
        Command::Check(args) => check::run(&args),
        Command::Keygen(args) => on_one_thread(Box::pin(async move { keygen::run(&args) })),
        Command::Send(args) => on_one_thread(Box::pin(send::run(args))),
        Command::Receive(args) => on_one_thread(Box::pin(receive::run(args))),
        Command::Cancel(args) => on_one_thread(Box::pin(withdraw::cancel(args))),
        Command::Extend(args) => on_one_thread(Box::pin(withdraw::extend(args))),
        Command::Purge(args) => on_one_thread(Box::pin(purge::run(args))),
        Command::Unpin(args) => on_one_thread(Box::pin(unpin::run(args))),
        Command::Recovery(args) => on_one_thread(Box::pin(recovery::run(args))),
        Command::Healthcheck(args) => on_one_thread(Box::pin(healthcheck::run(args))),
        Command::Backup(args) => on_one_thread(Box::pin(backup::run(args))),
        Command::Verify(args) => on_one_thread(Box::pin(verify::run(args))),
        Command::Restore(args) => on_one_thread(Box::pin(restore::run(args))),
        Command::Man(_) => manual::man(Arguments::command()),
        Command::Completions(args) => manual::completions(&args, Arguments::command()),
    };
    ExitCode::from(code)
}

impl Command {
    /// Whether a program reads what it says.
    fn is_json(&self) -> bool {
        match self {
            Self::Check(args) => args.json,
            Self::Keygen(args) => args.json,
            Self::Send(args) => args.json,
            Self::Receive(args) => args.json,
            Self::Cancel(args) => args.is_json(),
            Self::Extend(args) => args.is_json(),
            Self::Purge(args) => args.json,
            Self::Unpin(args) => args.json,
            Self::Recovery(args) => args.is_json(),
            Self::Serve | Self::Healthcheck(_) | Self::Backup(_) | Self::Verify(_) => false,
            Self::Restore(_) | Self::Man(_) | Self::Completions(_) => false,
        }
    }
}

/// Prints the help that was asked for, or what is wrong with the arguments.
fn not_parsed(error: &clap::Error) -> u8 {
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    if error.use_stderr() {
        if std::env::args_os().any(|word| word == "--json") {
            // The exit code says it, too.
            say::line(failure::usage_as_json(&fault_of(error))).ok();
        }
        return exit::SETTINGS;
    }
    match printed {
        Err(fault) if fault.kind() != ErrorKind::BrokenPipe => {
            say::note(format_args!("vauchi-relay: {}: {fault}", say::NOT_WRITTEN));
            exit::FAILED
        }
        _ => exit::DRAINED,
    }
}

/// What is wrong, in one line: without the hints and the usage that people get.
fn fault_of(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let fault = text.lines().take_while(|line| !line.is_empty());
    let fault: Vec<_> = fault.map(str::trim).collect();
    fault.join(" ").trim_start_matches("error: ").to_owned()
}

/// Where the size of files is limited (`ulimit -f`), a write beyond that fails from here on, and whoever
/// writes handles it; the signal that comes with it would end the process.
fn outgrown_files_fail() {
    // Nobody looks at the flag; that the signal has a handler is all. It may have one, so this does not
    // fail.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).ok();
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

/// A signal ended the command; the text says what is left.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(&'static str);

/// The settings, for a command that is no server.
fn settings() -> anyhow::Result<Config> {
    let loaded = Config::from_env().map_err(|faults| Usage(faults.to_string()))?;
    Ok(loaded.config)
}

/// Comes with a signal to stop; what is half done is removed by whoever is dropped then.
async fn interrupted() -> anyhow::Error {
    match stop_signal().await {
        Ok(()) => Interrupted("interrupted; no unfinished files are left behind").into(),
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
fn outcome_on_one_thread(is_json: bool, command: impl Future<Output = anyhow::Result<()>>) -> u8 {
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
            failed(&error, is_json);
            match error.downcast_ref::<Usage>() {
                Some(_) => exit::SETTINGS,
                None => exit::FAILED,
            }
        }
    }
}

/// Says why something failed: to people and, if one is there, to the program that reads along.
fn failed(error: &anyhow::Error, is_json: bool) {
    say::note(format_args!("vauchi-relay: {error:#}"));
    if is_json {
        // Where the answer cannot be written the exit code says it.
        say::line(failure::as_json(error)).ok();
    }
}
