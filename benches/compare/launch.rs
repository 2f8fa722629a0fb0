//! Starts a server on its own core, so that it ends with this program however that ends.
//!
//! Nothing safe runs between fork and exec, so this program starts itself again: that process pins
//! itself, asks to be killed with its parent, and becomes the server. Its number stays the same.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The first argument of the process that becomes a server.
pub const WORD: &str = "--become-server";

/// Where server and generator run.
#[derive(Clone, Copy)]
pub struct Cores {
    pub server: usize,
    pub generator: usize,
}

impl Cores {
    /// The first two that this process may use; `None` where there is only one.
    pub fn find() -> Option<Self> {
        let allowed = sched_getaffinity(None).unwrap();
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        Some(Self {
            server: cores.next()?,
            generator: cores.next()?,
        })
    }
}

/// A command that starts this program; add its arguments.
pub fn command(program: impl Into<OsString>, cores: Option<Cores>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(WORD)
        .arg(getpid().as_raw_nonzero().to_string())
        .arg(cores.map_or_else(|| "any".to_owned(), |cores| cores.server.to_string()))
        .arg(program.into());
    command
}

/// What [`command`] asks of the new process; `words` are its arguments after [`WORD`].
pub fn become_server(mut words: impl Iterator<Item = OsString>) -> ! {
    let parent = words.next().unwrap();
    let core = words.next().unwrap();
    let program = words.next().unwrap();
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parent: i32 = parent.to_str().unwrap().parse().unwrap();
    // It may have ended before the line above.
    assert!(getppid().map(Pid::as_raw_pid) == Some(parent));
    if let Ok(core) = core.to_str().unwrap().parse() {
        pin(core);
    }
    raise_descriptors();
    panic!("{}", Command::new(program).args(words).exec());
}

/// Keeps the calling thread, and what it starts, on one core.
pub fn pin(core: usize) {
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).unwrap();
}

/// As many descriptors as the system allows; returns how many.
pub fn raise_descriptors() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    maximum.unwrap_or(u64::MAX)
}
