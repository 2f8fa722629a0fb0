//! A folder for unfinished files, removed with them when the command ends.
//!
//! It lies beside what it is for, so that a finished file is moved into place without being copied.
//! Removed are the files that were asked for here, each by its name, and then the empty folder:
//! nothing is deleted for what it is called, and no folder with what happens to be in it.
//!
//! A process that is killed leaves its folder behind. A file in the folder says what it is, and the
//! next command in the same place names it, for the operator to delete.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::banner::full_path;
use super::say;
use crate::ids::parse_hex;
use crate::store::sqlite::DATABASE_FILE;

/// Followed by 16 random hexadecimal digits.
const PREFIX: &str = ".vauchi-relay-";

/// The first file in the folder, which is locked as long as its command runs.
const MARK: &str = "UNFINISHED";
const MARK_TEXT: &str = "A vauchi-relay command keeps unfinished files in this folder and removes it when it ends.\n\
     If no such command is running, the one that made it was killed: delete this folder.\n";

/// What SQLite puts beside a database, by the end of its name; the first is the database.
pub(super) const ENDS_OF_A_DATABASE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Removed when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// All that may be in it.
    files: Vec<PathBuf>,
    /// The folder, locked.
    lock: Option<File>,
}

impl Scratch {
    /// Makes one in `folder`, for this user only.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
        // Fails where something has that name: what is in the folder is ours from here on.
        DirBuilder::new().mode(0o700).create(&path)?;
        let (files, lock) = (Vec::new(), None);
        let mut scratch = Self { path, files, lock };
        scratch.mark_as_ours()?;
        Ok(scratch)
    }

    fn mark_as_ours(&mut self) -> io::Result<()> {
        let folder = File::open(&self.path)?;
        // Before there is a mark, so that it is never found without the lock. Where a file system has no
        // locks nobody can tell whether the command still runs, and the folder is not named.
        folder.try_lock().ok();
        self.lock = Some(folder);
        File::create_new(self.file(MARK))?.write_all(MARK_TEXT.as_bytes())
    }

    /// The path for a file of this name, which is removed in the end. It is not made here.
    pub(super) fn file(&mut self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        self.files.push(path.clone());
        path
    }

    /// The path for a database, which is removed with what SQLite puts beside it.
    pub(super) fn database(&mut self) -> PathBuf {
        for end in ENDS_OF_A_DATABASE {
            self.file(&format!("{DATABASE_FILE}{end}"));
        }
        self.path.join(DATABASE_FILE)
    }

    fn remove(&self) -> io::Result<()> {
        // The mark goes last: after a kill in the middle the folder is still known.
        for file in self.files.iter().rev() {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_dir(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Once more, should a copy that was broken off have made a file meanwhile.
        if let Err(error) = self.remove().or_else(|_| self.remove()) {
            let path = full_path(&self.path);
            say::note(format_args!(
                "warning: cannot remove {path}: {error}; look into it, then delete it"
            ));
        }
    }
}

/// Files that have their names already and lose them again, unless the command comes to its end. Each is one
/// that this command has made, and that nobody has been told of.
#[derive(Debug, Default)]
pub(super) struct Placed {
    files: Vec<PathBuf>,
}

impl Placed {
    /// Notes one more.
    pub(super) fn add(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// They stay.
    pub(super) fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        for file in self.files.iter().rev() {
            if let Err(error) = fs::remove_file(file) {
                let path = full_path(file);
                say::note(format_args!(
                    "warning: cannot remove the unfinished {path}: {error}; delete it"
                ));
            }
        }
    }
}

/// Names to the operator the folders here whose command was killed. Nothing is deleted.
pub(super) fn name_what_was_left(folder: &Path) {
    for path in left_behind(folder) {
        let path = full_path(&path);
        say::note(format_args!(
            "warning: {path} was left behind by a vauchi-relay command that was killed; nothing needs it, delete it"
        ));
    }
}

/// Folders of [`Scratch`] whose process is gone, by their mark and its lock: a name proves nothing.
fn left_behind(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        // A command that cannot make a folder here says why.
        return Vec::new();
    };
    let is_scratch_name = |name: &str| {
        let digits = name.strip_prefix(PREFIX);
        digits.is_some_and(|digits| parse_hex::<8>(digits).is_ok())
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_scratch_name))
        .map(|entry| entry.path())
        .filter(|path| has_mark_without_process(path).unwrap_or(false))
        .collect()
}

fn has_mark_without_process(folder: &Path) -> io::Result<bool> {
    // Another user may have put a pipe there, which would be waited for.
    let at_once = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mark = OpenOptions::new()
        .read(true)
        .custom_flags(at_once)
        .open(folder.join(MARK))?;
    let mut text = Vec::new();
    let bytes_max = MARK_TEXT.len() as u64 + 1;
    mark.take(bytes_max).read_to_end(&mut text)?;
    Ok(text == MARK_TEXT.as_bytes() && File::open(folder)?.try_lock_shared().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn its_own_files_go_and_a_file_that_it_did_not_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::new(folder.path()).unwrap();
        for name in ["key", "never made"] {
            scratch.file(name);
        }
        let database = scratch.database();
        fs::write(scratch.path.join("key"), "x").unwrap();
        for end in ENDS_OF_A_DATABASE {
            fs::write(format!("{}{end}", database.display()), "x").unwrap();
        }
        drop(scratch);
        assert_eq!(count(folder.path()), 0);

        let scratch = Scratch::new(folder.path()).unwrap();
        let (path, foreign) = (scratch.path.clone(), scratch.path.join("foreign"));
        fs::write(&foreign, "x").unwrap();
        drop(scratch);
        assert_eq!((count(&path), count(folder.path())), (1, 1));
        assert!(foreign.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_told_from_what_is_in_use_and_from_what_is_only_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let in_use = Scratch::new(folder.path()).unwrap();
        let left = folder.path().join(format!("{PREFIX}{:016x}", 1));
        let only_called_so = folder.path().join(format!("{PREFIX}{:016x}", 2));
        for folder in [&left, &only_called_so] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("relay.db"), "x").unwrap();
        }
        fs::write(left.join(MARK), MARK_TEXT).unwrap();
        fs::write(only_called_so.join(MARK), "other words").unwrap();
        assert_eq!(left_behind(folder.path()), std::slice::from_ref(&left));
        fs::rename(left, folder.path().join(".vauchi-relay-data")).unwrap();
        assert_eq!(left_behind(folder.path()), [""; 0].map(PathBuf::from));
        drop(in_use);
        assert_eq!(count(folder.path()), 2);
    }
}
