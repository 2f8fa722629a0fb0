//! Shows on a terminal how far something is that takes a while.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_millis(200);

/// One line on standard error, written over again and again; nothing where that is no terminal, unless
/// it is asked for, and then lines below each other.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    is_terminal: bool,
    said_at: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self::forced(false)
    }

    /// One that is shown in any case, if `is_shown`.
    pub(super) fn forced(is_shown: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            is_shown: is_shown || is_terminal,
            is_terminal,
            said_at: None,
        }
    }

    /// Says how much of `what` is done.
    pub(super) fn show(&mut self, what: &str, done: u64, all: u64) {
        let is_soon = self.said_at.is_some_and(|at| at.elapsed() < PAUSE);
        if !self.is_shown || (is_soon && done != all) {
            return;
        }
        self.said_at = Some(Instant::now());
        let percent = (u128::from(done) * 100)
            .checked_div(u128::from(all))
            .unwrap_or(100)
            .min(100);
        self.line(&format!("{what}: {percent} %"));
    }

    /// Says what is being done, of which it is not known how far it is.
    pub(super) fn say(&mut self, what: &str) {
        if self.is_shown {
            self.said_at = Some(Instant::now());
            self.line(what);
        }
    }

    /// Makes room for something that is said on the same terminal.
    pub(super) fn clear(&self) {
        if self.is_terminal && self.said_at.is_some() {
            self.write("\r\x1b[K");
        }
    }

    fn line(&self, text: &str) {
        match self.is_terminal {
            true => self.write(&format!("\r\x1b[K{text}")),
            false => self.write(&format!("{text}\n")),
        }
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr();
        // A terminal that is gone does not want to know.
        stderr.write_all(text.as_bytes()).ok();
        stderr.flush().ok();
    }
}

impl Drop for Progress {
    /// The line is gone before anything else is said.
    fn drop(&mut self) {
        self.clear();
    }
}
