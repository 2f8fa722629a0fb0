//! A folder for what is half done, which goes away whatever happens.
//!
//! It lies beside what it is for, so that a finished file is moved into place without being copied.
//! Who is killed leaves it behind; the next one who works in the same place removes it, which a lock
//! on the folder tells from one that is still in use.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

const PREFIX: &str = ".vauchi-relay-";

/// How often a name is tried that another process may just be removing.
const TRIES: u32 = 8;

/// Removed when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// Locked as long as this lives, where the file system has locks.
    _lock: File,
}

impl Scratch {
    /// Makes one in `folder`, for this user only, and removes what others have left there.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        remove_left_behind(folder);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..TRIES {
            let path = folder.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
            DirBuilder::new().mode(0o700).create(&path)?;
            match locked(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                // Taken for one that was left behind, between the two lines above.
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Once more, should a copy that was broken off have made a file meanwhile.
        let removed = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
        if let Err(error) = removed {
            eprintln!("{}: cannot be removed: {error}", self.path.display());
        }
    }
}

/// Opens and locks a folder that was just made.
fn locked(path: &Path) -> io::Result<File> {
    let folder = File::open(path)?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        // Without locks it is left behind for somebody with a broom.
        Ok(()) | Err(TryLockError::Error(_)) => path.metadata().map(|_| folder),
    }
}

fn remove_left_behind(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        // Who makes a folder here will hear why.
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_ours
            && is_folder
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            // Another user's cannot be removed, and is not in the way.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Gives a finished file its name, unless something has that name already.
pub(super) fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // A file system without links.
        Err(_) if to.symlink_metadata().is_ok() => {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Err(_) => fs::rename(from, to)?,
    }
    File::open(folder_of(to))?.sync_all()
}

/// The folder that a file is in.
pub(super) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(".vauchi-relay-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("relay.db"), "x").unwrap();
        let first = Scratch::new(folder.path()).unwrap();
        assert!(!left.exists());
        let second = Scratch::new(folder.path()).unwrap();
        assert!(first.path().exists() && second.path().exists());
        drop((first, second));
        assert_eq!(count(folder.path()), 0);
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        let error = put_in_place(&from, &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
        fs::remove_file(&to).unwrap();
        put_in_place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
    }
}
