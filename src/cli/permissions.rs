//! Files of the relay that other users of the machine may read or change.
//!
//! For the secret that is a reason not to start (`secrets`); for the rest it is a warning, of `check` and
//! of a start. A group may read and write, because container platforms give a volume to a group.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::banner::full_path;
use crate::config::Config;
use crate::store::sqlite::DATABASE_FILE;

/// What all users may do: read and write a file; write to a folder, unless each may remove only
/// what is its own.
const FILE_OTHERS: u32 = 0o006;
const FOLDER_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A line for each file and folder that is too open, with the command that closes it.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    if !config.needs_data_dir() {
        return Vec::new();
    }
    let folder = &config.data_dir;
    let files = ["", "-wal", "-shm"].map(|end| folder.join(format!("{DATABASE_FILE}{end}")));
    // A container has no other users, and what it gets is as open as its platform makes it.
    let is_alone = std::process::id() == 1;
    let folder = mode(folder)
        .filter(|mode| !is_alone && mode & FOLDER_OTHERS != 0 && mode & STICKY == 0)
        .map(|mode| {
            let (shown, mode) = (full_path(folder), mode & 0o777);
            format!("{shown} can be changed by all users (mode {mode:03o}); run: chmod 700 {shown}")
        });
    let files = files.iter().filter_map(|path| {
        let mode = mode(path).filter(|mode| mode & FILE_OTHERS != 0)?;
        let (shown, mode) = (full_path(path), mode & 0o777);
        Some(format!(
            "{shown} is accessible to all users (mode {mode:03o}); run: chmod 600 {shown}"
        ))
    });
    folder.into_iter().chain(files).collect()
}

fn mode(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.permissions().mode())
}
