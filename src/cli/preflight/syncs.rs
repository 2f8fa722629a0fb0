//! How long the disk takes until a write is on it, and whether a file can have two names there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Finding, Level};
use crate::cli::say;

/// Writes whose fsync is timed, each of a page: enough that one slow one does not decide.
const SYNCS: usize = 20;
const SYNC_BYTES: usize = 4 * 1024;

/// A disk that takes longer for all of them is slow, whatever the rest would have said.
const SYNCING_MAX: Duration = Duration::from_secs(10);

/// From here on an fsync is called slow: a lone sender then gets fewer than 100 stores a second.
const SYNC_SLOW: Duration = Duration::from_millis(10);

/// A file of our own in the data directory; removed when it is dropped.
pub(super) struct Trial {
    path: PathBuf,
    file: File,
}

impl Trial {
    pub(super) fn begin(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!(".check-{:016x}", rand::random::<u64>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { path, file })
    }

    pub(super) fn finding(&mut self) -> Finding {
        const SUBJECT: &str = "fsync";
        match self.times() {
            Ok(times) => {
                let (level, text) = told_of_syncs(median(times));
                Finding::new(level, SUBJECT, text)
            }
            Err(error) => Finding::fail(SUBJECT, format!("a write failed: {error}")),
        }
    }

    /// Only where a file cannot have two names, as on FAT and exFAT. Finished files are renamed there.
    pub(super) fn links(&self) -> Option<Finding> {
        let second = self.path.with_extension("link");
        match fs::hard_link(&self.path, &second) {
            Ok(()) => remove(&second),
            Err(_) => return Some(Finding::warn("file names", NO_LINKS)),
        }
        None
    }

    /// How long each write took to be on the disk.
    fn times(&mut self) -> io::Result<Vec<Duration>> {
        let page = [0x5A; SYNC_BYTES];
        let (begun, mut times) = (Instant::now(), Vec::with_capacity(SYNCS));
        while times.len() < SYNCS && begun.elapsed() < SYNCING_MAX {
            let writing = Instant::now();
            self.file.write_all(&page)?;
            self.file.sync_data()?;
            times.push(writing.elapsed());
        }
        Ok(times)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        say::note(format_args!("cannot remove {}: {error}", path.display()));
    }
}

const NO_LINKS: &str = "this file system has no hard links (FAT or exFAT?): the relay works on it, but it keeps no permissions either; mount it with umask=077 and the relay's user as its owner, so that no other user reads relay.secret";

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn told_of_syncs(median: Duration) -> (Level, String) {
    let millis = median.as_secs_f64() * 1e3;
    let a_second = 1.0 / median.as_secs_f64().max(1e-6);
    let mut text = format!(
        "{millis:.2} ms (median of {SYNCS}): a single sender gets at most {a_second:.0} stores a second; concurrent senders share each fsync"
    );
    if median <= SYNC_SLOW {
        return (Level::Ok, text);
    }
    text += "; over 10 ms is slow: use a local SSD, and check what else writes to this disk";
    (Level::Warn, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_fsync_is_warned_about_and_says_what_it_means() {
        let (level, text) = told_of_syncs(Duration::from_millis(2));
        assert_eq!(level, Level::Ok);
        assert!(text.starts_with("2.00 ms"), "{text}");
        assert!(text.contains("at most 500 stores a second"), "{text}");
        let (level, text) = told_of_syncs(Duration::from_millis(25));
        assert_eq!(level, Level::Warn);
        assert!(text.contains("at most 40 stores a second"), "{text}");
        // A file system in memory may take no time at all.
        assert_eq!(told_of_syncs(Duration::ZERO).0, Level::Ok);
    }

    #[test]
    fn the_middle_is_not_moved_by_one_slow_write() {
        let mut times = vec![Duration::from_millis(1); SYNCS - 1];
        times.push(Duration::from_secs(9));
        assert_eq!(median(times), Duration::from_millis(1));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn a_trial_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut trial = Trial::begin(folder.path()).unwrap();
        assert_eq!(trial.times().unwrap().len(), SYNCS);
        drop(trial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
