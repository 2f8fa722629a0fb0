//! What the file system under a folder is like: how much is free on it, of which kind it is, whether a
//! file may grow on it; `identity`, which file a path leads to; and `place`, which gives finished files
//! their names on all kinds.

pub mod identity;
pub mod place;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Where the bytes of a file system are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On this machine's disk, as far as can be told.
    Local,
    /// In this machine's memory; the name is the system's.
    Memory(&'static str),
    /// On another machine, where SQLite's locks and journal cannot be relied on; the name is the
    /// system's.
    Network(&'static str),
}

/// Bytes that an unprivileged process may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How large a file of this process may be (`ulimit -f`); `None` is without a limit.
pub fn file_bytes_max() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// Whether a write failed because there is no room for it: the disk is full, a quota is used up, or the
/// file is as large as it may be.
pub fn is_out_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Makes a file this large, with all of its room taken on the disk. A file system that cannot be told
/// so is written to, with bytes that no compression makes smaller.
pub fn take_room(file: &mut File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        done => return done.map_err(Into::into),
    }
    let mut left = bytes.saturating_sub(file.metadata()?.len());
    let noise: Vec<u8> = (0..NOISE_BYTES).map(|_| rand::random()).collect();
    while left > 0 {
        let slice = usize::try_from(left).unwrap_or(usize::MAX).min(noise.len());
        file.write_all(&noise[..slice])?;
        left -= slice as u64;
    }
    Ok(())
}

/// The other processes that have a file open, by name and number, as far as this user may know it.
pub fn open_elsewhere(path: &Path) -> Vec<String> {
    let Ok(path) = path.canonicalize() else {
        return Vec::new();
    };
    let own = std::process::id();
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = numbers.filter(|number| *number != own && has_open(*number, &path));
    let name = |number: u32| {
        let name = std::fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
        format!("{} (process {number})", name.trim_end())
    };
    others.map(name).take(OTHERS_MAX).collect()
}

/// How many processes are told at the most.
const OTHERS_MAX: usize = 8;

fn has_open(process: u32, path: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"));
    let mut descriptors = descriptors.into_iter().flatten().flatten();
    descriptors.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// Has the system forget what it holds of a file in memory, so that it is read from the disk again. What
/// is not on the disk yet stays.
#[cfg(target_os = "linux")]
pub fn forget_cached(file: &File) -> io::Result<()> {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).map_err(Into::into)
}

/// Not known on this system, so nothing.
#[cfg(not(target_os = "linux"))]
pub fn forget_cached(_: &File) -> io::Result<()> {
    Ok(())
}

/// What is written at once to take room.
const NOISE_BYTES: usize = 64 * 1024;

/// Whether a file is one that a container platform has mounted for this container alone: in memory and
/// read-only. Docker and Kubernetes give such files a mode that all users may read.
pub fn is_mounted_secret(path: &Path) -> bool {
    let is_read_only = rustix::fs::statvfs(path)
        .is_ok_and(|disk| disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    is_read_only && matches!(kind(path), Ok(Kind::Memory(_)))
}

/// The kind of file system that `path` is on. What is not known is taken for local.
#[cfg(target_os = "linux")]
pub fn kind(path: &Path) -> io::Result<Kind> {
    let magic = rustix::fs::statfs(path)?.f_type;
    // Negative numbers are the same 32 bits on some architectures.
    Ok(kind_of(magic as u32))
}

/// The kind of file system that `path` is on: not known on this system, so taken for local.
#[cfg(not(target_os = "linux"))]
pub fn kind(_: &Path) -> io::Result<Kind> {
    Ok(Kind::Local)
}

/// By the numbers of statfs(2).
#[cfg(target_os = "linux")]
fn kind_of(magic: u32) -> Kind {
    match magic {
        0x6969 => Kind::Network("NFS"),
        0x517B | 0xFE53_4D42 | 0xFF53_4D42 => Kind::Network("SMB"),
        0x6573_5546 => Kind::Network("FUSE"),
        0x0102_1997 => Kind::Network("9P"),
        0x00C3_6400 => Kind::Network("Ceph"),
        0x5346_414F | 0x6B41_4653 => Kind::Network("AFS"),
        0x7375_7245 => Kind::Network("Coda"),
        0x564C => Kind::Network("NCP"),
        0x0BD0_0BD0 => Kind::Network("Lustre"),
        0x0102_1994 => Kind::Memory("tmpfs"),
        0x8584_58F6 => Kind::Memory("ramfs"),
        _ => Kind::Local,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_their_numbers() {
        assert_eq!(kind_of(0x6969), Kind::Network("NFS"));
        assert_eq!(kind_of(0xFF53_4D42), Kind::Network("SMB"));
        assert_eq!(kind_of(0x0102_1994), Kind::Memory("tmpfs"));
        // ext4.
        assert_eq!(kind_of(0xEF53), Kind::Local);
    }

    #[test]
    fn a_folder_can_be_asked_and_one_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).is_ok());
        assert!(kind(folder.path()).is_ok());
        let missing = folder.path().join("not here");
        assert!(free_bytes(&missing).is_err());
        assert!(kind(&missing).is_err());
    }
}
