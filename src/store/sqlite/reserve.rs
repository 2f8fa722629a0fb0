//! Room on the disk that is kept for making room.
//!
//! Deleting takes room first: for the log, and for what the log holds and the database does not yet. So
//! the relay keeps two files that hold nothing and take up room. When the disk is full it deletes them,
//! and what they took carries the deletions. Two, because each also takes an inode, and a start makes
//! two files: the log and its shared memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::filesystem;

/// The files in the data directory.
pub(super) const RESERVE_FILES: [&str; 2] = ["relay.reserve-1", "relay.reserve-2"];

/// Bytes of each file: 8 MiB. Both together carry the log up to its checkpoint (16 MiB).
pub(super) const FILE_BYTES: u64 = 8 << 20;

/// Bytes of all files.
pub(super) const RESERVE_BYTES: u64 = FILE_BYTES * RESERVE_FILES.len() as u64;

/// The smallest file that is worth keeping when there is no room for a whole one: a start and some
/// deletions.
const FILE_BYTES_MIN: u64 = 256 << 10;

/// By how much a file grows to find out whether it can.
const TRIAL_BYTES: usize = 64 << 10;

/// The reserve of one data directory.
#[derive(Debug, Clone)]
pub(super) struct Reserve {
    paths: [PathBuf; 2],
}

impl Reserve {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self {
            paths: RESERVE_FILES.map(|name| data_dir.join(name)),
        }
    }

    /// Takes the whole of it; what was there before stays there when that fails.
    pub(super) fn take(&self) -> io::Result<()> {
        self.paths
            .iter()
            .try_for_each(|path| take_file(path, FILE_BYTES))
    }

    /// Takes what there is room for: the next start may find none.
    pub(super) fn take_what_fits(&self) {
        for path in &self.paths {
            let mut bytes = FILE_BYTES;
            while take_file(path, bytes).is_err() && bytes > FILE_BYTES_MIN {
                bytes /= 2;
            }
        }
    }

    /// Gives its room back. Tells whether there was any.
    pub(super) fn give_up(&self) -> bool {
        let removed = self.paths.each_ref().map(fs::remove_file);
        removed.iter().any(Result::is_ok)
    }

    /// Why no file grows here, if that is so: a quota is not seen in advance.
    pub(super) fn why_nothing_grows(&self) -> Option<io::Error> {
        let path = &self.paths[0];
        let had = fs::metadata(path).map(|file| file.len()).ok();
        let grown = open(path).and_then(|mut file| {
            file.write_all(&[0xA5; TRIAL_BYTES])?;
            // Without the blocks of its last bytes it may have grown in memory only.
            file.sync_all()
        });
        put_back(path, had);
        grown.err().filter(filesystem::is_out_of_room)
    }
}

/// Makes one file this large. If it was larger it stays so.
fn take_file(path: &Path, bytes: u64) -> io::Result<()> {
    let had = fs::metadata(path).map(|file| file.len()).ok();
    let taken = open(path).and_then(|mut file| filesystem::take_room(&mut file, bytes));
    if taken.is_err() {
        put_back(path, had);
    }
    taken
}

/// Opens a file to add to its end.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// A file that did not grow is as it was before; it matters to nobody whether that succeeds.
fn put_back(path: &Path, had: Option<u64>) {
    match had {
        Some(bytes) => drop(open(path).and_then(|file| file.set_len(bytes))),
        None => drop(fs::remove_file(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn it_takes_room_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path());
        assert!(!reserve.give_up());
        for _ in 0..2 {
            reserve.take().unwrap();
            for name in RESERVE_FILES {
                let file = fs::metadata(folder.path().join(name)).unwrap();
                assert_eq!(file.len(), FILE_BYTES);
                assert!(
                    file.blocks() * 512 >= FILE_BYTES,
                    "{} blocks",
                    file.blocks()
                );
            }
        }
        assert!(reserve.why_nothing_grows().is_none());
        let file = fs::metadata(folder.path().join(RESERVE_FILES[0])).unwrap();
        assert_eq!(file.len(), FILE_BYTES);
        assert!(reserve.give_up());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
