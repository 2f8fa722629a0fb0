//! Which file a path leads to, asked in the way that costs its next fsync nothing.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The file that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The number of its file system.
    pub device: u64,
    /// Its own number there.
    pub inode: u64,
    /// How long it is.
    pub bytes: u64,
}

impl From<&Metadata> for Found {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
        }
    }
}

/// Looks where a path leads; blocks for as long as that takes.
///
/// Nothing but what is needed is asked. Whoever asks when a file was written makes the next write to it
/// note the time exactly (multigrain timestamps, Linux 6.13), and the next fsync write that note to the
/// journal of the file system: one write more that a commit waits for.
#[cfg(target_os = "linux")]
pub fn find(path: &Path) -> io::Result<Found> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
    use rustix::io::Errno;

    let wanted = StatxFlags::INO | StatxFlags::SIZE;
    match statx(CWD, path, AtFlags::empty(), wanted) {
        Ok(found) => Ok(Found {
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            bytes: found.stx_size,
        }),
        // An older system, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => find_by_metadata(path),
        Err(error) => Err(error.into()),
    }
}

/// Looks where a path leads.
#[cfg(not(target_os = "linux"))]
pub fn find(path: &Path) -> io::Result<Found> {
    find_by_metadata(path)
}

fn find_by_metadata(path: &Path) -> io::Result<Found> {
    Ok(Found::from(&std::fs::metadata(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_ask_find_the_same_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"twelve bytes").unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let found = find(file.path()).unwrap();
        assert_eq!(found, Found::from(&metadata));
        assert_eq!(found.bytes, 12);
        assert_eq!(find_by_metadata(file.path()).unwrap(), found);
        let nowhere = find(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }
}
