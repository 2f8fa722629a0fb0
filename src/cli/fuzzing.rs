//! What fuzz targets reach of the commands: the files that they read. Only with the feature `fuzzing`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{archive, keygen};
use crate::client::MailboxKey;

/// Reads a key file.
pub fn read_key(path: &Path) -> anyhow::Result<MailboxKey> {
    keygen::read(path)
}

/// Reads a backup to its end, unpacks its database to this path and compares all checksums.
pub fn unpack(from: impl Read, database: PathBuf) -> anyhow::Result<()> {
    archive::unpack(from, database, |_, _| ())?;
    Ok(())
}
