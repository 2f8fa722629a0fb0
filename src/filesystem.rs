//! What the file system under a folder is like: how much is free on it, and of which kind it is.

use std::io;
use std::path::Path;

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
