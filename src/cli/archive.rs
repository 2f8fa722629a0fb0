//! What a backup looks like as a file: a plain tar of four files, which a person can open without us.
//!
//! First `manifest.json` says in words what this is, then come `relay.secret` and `relay.db` as they
//! lie in a data directory, and last `checksums.b3` with the BLAKE3 of the three, as `b3sum -c` reads
//! it. Because the checksums come last, writing goes through the database once, and an archive that
//! was cut off has none.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::banner::in_bytes;
use crate::clock::Timestamp;
use crate::filesystem;
use crate::filesystem::place::folder_of;
use crate::secrets::{SECRET_FILE, Secret};
use crate::store::sqlite::DATABASE_FILE;

/// Changes when an older relay could not read an archive any more.
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const CHECKSUMS: &str = "checksums.b3";

/// No file of an archive but the database is as large.
const SMALL_BYTES_MAX: u64 = 64 * 1024;

/// What an extended header may have. One that a person's tar adds has some lines, with a time or a name.
const EXTENDED_BYTES_MAX: u64 = 64 * 1024;

/// A tar is made of blocks, and two of them with zeros end it.
const BLOCK_BYTES: u64 = 512;
const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// What is left free on a disk that something large is written to.
pub(super) const ROOM_BESIDE: u64 = 16 << 20;

const ABOUT: &str = "Backup of a vauchi-relay: relay.db is its SQLite database, relay.secret its secret, \
     checksums.b3 the BLAKE3 sums of the other files. KEEP IT AS SAFE AS THE RELAY ITSELF: anyone who has this file can \
     test whether a mailbox id that they already know is in it, see what that mailbox holds and when each blob came, and \
     impersonate this relay. Nothing in it decrypts a blob. To restore it: vauchi-relay restore FILE.";

/// The first file of an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// For a person who opens it by hand.
    about: String,
    format: u32,
    /// The version of the relay that made it.
    pub(super) relay_version: String,
    /// The instant that it shows, or just before it: what was confirmed by then is in it.
    pub(super) created_at: String,
    pub(super) created_at_millis: u64,
    pub(super) schema: i64,
    pub(super) database_bytes: u64,
    pub(super) blobs: u64,
    pub(super) recovery_proofs: u64,
    pub(super) pins: u64,
}

impl Manifest {
    /// For a copy of the database, by its name and the moment of it.
    pub(super) fn of(
        contents: crate::store::sqlite::backup::Contents,
        created_at: String,
        moment: Timestamp,
        database_bytes: u64,
    ) -> Self {
        Self {
            about: ABOUT.to_owned(),
            format: FORMAT,
            relay_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at,
            created_at_millis: moment.millis(),
            schema: contents.schema,
            database_bytes,
            blobs: contents.blobs,
            recovery_proofs: contents.recovery_proofs,
            pins: contents.pins,
        }
    }
}

/// `1 blob`, `17 blobs`.
pub(super) fn in_blobs(count: u64) -> String {
    match count {
        1 => "1 blob".to_owned(),
        count => format!("{count} blobs"),
    }
}

/// Writes an archive; how many bytes it has.
pub(super) fn write(
    out: impl Write,
    manifest: &Manifest,
    secret: &Secret,
    database: File,
) -> io::Result<u64> {
    let mut tar = tar::Builder::new(Counting::new(out));
    let at = Timestamp::from_millis(manifest.created_at_millis);
    let (about, secret) = (
        serde_json::to_string_pretty(manifest)? + "\n",
        secret.file_text().to_string(),
    );
    let sums = [
        add(&mut tar, MANIFEST, at, about.len() as u64, about.as_bytes())?,
        add(
            &mut tar,
            SECRET_FILE,
            at,
            secret.len() as u64,
            secret.as_bytes(),
        )?,
        add(
            &mut tar,
            DATABASE_FILE,
            at,
            manifest.database_bytes,
            database,
        )?,
    ]
    .concat();
    add(&mut tar, CHECKSUMS, at, sums.len() as u64, sums.as_bytes())?;
    let mut out = tar.into_inner()?;
    out.flush()?;
    Ok(out.bytes)
}

/// Adds a file and gives its line for [`CHECKSUMS`].
fn add(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    at: Timestamp,
    bytes: u64,
    from: impl Read,
) -> io::Result<String> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(at.secs());
    let mut from = Hashing::new(from);
    tar.append_data(&mut header, name, &mut from)?;
    if from.bytes != bytes {
        return Err(io::Error::other(format!(
            "{name} changed its size during the backup"
        )));
    }
    Ok(format!("{}  {name}\n", from.hash.finalize().to_hex()))
}

/// Why an archive is not taken. Each text is one line, to be put behind the name of the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Reading or unpacking failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a vauchi-relay backup: {0}")]
    Foreign(String),
    /// It ends before it should.
    #[error("incomplete: the file ends too early; writing or copying it was interrupted")]
    CutOff,
    /// Something in it is not what it was.
    #[error("damaged: {0}")]
    Damaged(String),
    /// It is of another time.
    #[error(
        "made by a newer relay (format {found}, this relay knows {FORMAT}); use that relay's version"
    )]
    Newer {
        /// The format that it has.
        found: u32,
    },
    /// The disk cannot take what is in it.
    #[error("its database needs {}, but {} has {} free; free disk space, or choose another folder with --temp-dir", in_bytes(*.needed), folder.display(), in_bytes(*.free))]
    NoRoom {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
        /// Where to.
        folder: PathBuf,
    },
}

/// An archive whose checksums are right, its database unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) manifest: Manifest,
    pub(super) secret: Secret,
    /// A file with mode 0600.
    pub(super) database: PathBuf,
}

/// The files of an archive as they are read, in whatever order.
#[derive(Default)]
struct Found {
    manifest: Option<Vec<u8>>,
    secret: Option<Vec<u8>>,
    checksums: Option<Vec<u8>>,
    has_database: bool,
    sums: Vec<(&'static str, blake3::Hash)>,
}

/// Reads an archive to its end, unpacks its database to the path `database` and compares all checksums.
/// `watch` hears how many bytes of the database are there, and of how many.
pub(super) fn unpack(
    from: impl Read,
    database: PathBuf,
    watch: impl FnMut(u64, u64),
) -> Result<Unpacked, ReadError> {
    let mut from = Counting::new(from);
    let mut found = Found::default();
    match found.take_all(&mut from, &database, watch) {
        // Whatever was missed: it is because nothing more comes.
        Err(ReadError::Foreign(_) | ReadError::Damaged(_))
            if from.has_ended && from.bytes >= BLOCK_BYTES =>
        {
            Err(ReadError::CutOff)
        }
        Err(error) => Err(error),
        Ok(end) if from.bytes < end + END_BYTES => Err(ReadError::CutOff),
        Ok(_) => found.checked(database),
    }
}

/// The name of a file that belongs into an archive.
fn known_name(entry: &tar::Entry<'_, impl Read>) -> Result<&'static str, ReadError> {
    let path = entry.path().map(|path| path.into_owned());
    let name = path
        .as_deref()
        .map(|path| path.strip_prefix("./").unwrap_or(path));
    [MANIFEST, SECRET_FILE, DATABASE_FILE, CHECKSUMS]
        .into_iter()
        .find(|known| name.is_ok_and(|name| name == Path::new(known)))
        .filter(|_| entry.header().entry_type().is_file())
        .ok_or_else(|| ReadError::Foreign("it contains an unexpected file".to_owned()))
}

/// Reads an extended header that changes nothing for us. One that does is an error: it is needed only for
/// what no backup has, long names and holes, and by some programs for files over 8 GiB.
fn pass_over(entry: &mut tar::Entry<'_, impl Read>) -> Result<(), ReadError> {
    let foreign = |what: &str| ReadError::Foreign(what.to_owned());
    let size = entry.size();
    if size > EXTENDED_BYTES_MAX {
        return Err(foreign("an extended header of it is too long"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < size {
        return Err(ReadError::CutOff);
    }
    for record in tar::PaxExtensions::new(&bytes) {
        let record = record.map_err(|error| ReadError::Damaged(error.to_string()))?;
        let key = record.key_bytes();
        if [b"path" as &[u8], b"size", b"linkpath"].contains(&key) || key.starts_with(b"GNU.sparse")
        {
            return Err(foreign(
                "an extended header of it replaces a file's name or size; pack it again with tar --format=gnu",
            ));
        }
    }
    Ok(())
}

impl Found {
    /// Reads everything; where the last file ends.
    fn take_all(
        &mut self,
        from: impl Read,
        database: &Path,
        mut watch: impl FnMut(u64, u64),
    ) -> Result<u64, ReadError> {
        let mut tar = tar::Archive::new(from);
        let mut end = 0;
        // Raw, because otherwise the library reads extended headers by itself, and takes as much memory as
        // they say that they have.
        for entry in tar.entries()?.raw(true) {
            let mut entry = entry.map_err(|error| match end {
                0 => ReadError::Foreign(
                    "it is not a tar archive, or its beginning is damaged".to_owned(),
                ),
                _ => ReadError::Damaged(error.to_string()),
            })?;
            end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK_BYTES);
            // Of somebody who has packed the files again by hand.
            let kind = entry.header().entry_type();
            if kind.is_dir() {
                continue;
            }
            if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
                pass_over(&mut entry)?;
                continue;
            }
            let name = known_name(&entry)?;
            if name == DATABASE_FILE {
                self.take_database(&mut entry, database, &mut watch)?;
            } else {
                self.take_small(name, &mut entry)?;
            }
        }
        if end == 0 {
            return Err(ReadError::Foreign("it is empty".to_owned()));
        }
        if !is_zero_to_the_end(tar.into_inner())? {
            return Err(ReadError::Damaged("there is data after its end".to_owned()));
        }
        Ok(end)
    }

    fn take_small(
        &mut self,
        name: &'static str,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), ReadError> {
        let place = match name {
            MANIFEST => &mut self.manifest,
            SECRET_FILE => &mut self.secret,
            _ => &mut self.checksums,
        };
        let size = entry.size();
        if place.is_some() || size > SMALL_BYTES_MAX {
            return Err(ReadError::Damaged(format!(
                "{name} is too long or appears twice"
            )));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(ReadError::CutOff);
        }
        self.sums.push((name, blake3::hash(&bytes)));
        *place = Some(bytes);
        Ok(())
    }

    fn take_database(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        database: &Path,
        watch: &mut impl FnMut(u64, u64),
    ) -> Result<(), ReadError> {
        let size = entry.size();
        let folder = folder_of(database);
        let free = filesystem::free_bytes(folder)?;
        if free < size.saturating_add(ROOM_BESIDE) {
            return Err(ReadError::NoRoom {
                needed: size,
                free,
                folder: folder_of(folder).to_owned(),
            });
        }
        // Fails where it is there already: an archive has one database.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(database)?;
        let mut from = Hashing::new(entry);
        let mut piece = vec![0; 1 << 20];
        while let length @ 1.. = from.read(&mut piece)? {
            file.write_all(&piece[..length])?;
            watch(from.bytes, size);
        }
        if from.bytes < size {
            return Err(ReadError::CutOff);
        }
        file.sync_all()?;
        self.sums.push((DATABASE_FILE, from.hash.finalize()));
        self.has_database = true;
        Ok(())
    }

    fn checked(self, database: PathBuf) -> Result<Unpacked, ReadError> {
        let damaged = |what: &str| ReadError::Damaged(what.to_owned());
        let (Some(manifest), Some(secret), Some(checksums), true) = (
            self.manifest,
            self.secret,
            self.checksums,
            self.has_database,
        ) else {
            return Err(ReadError::CutOff);
        };
        let checksums = String::from_utf8_lossy(&checksums);
        for (name, sum) in &self.sums {
            let line = format!("{}  {name}", sum.to_hex());
            if *name != CHECKSUMS && !checksums.lines().any(|told| told == line) {
                return Err(damaged(&format!("{name} does not match its checksum")));
            }
        }
        let manifest: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| damaged(&format!("{MANIFEST}: {error}")))?;
        if manifest.format > FORMAT {
            let found = manifest.format;
            return Err(ReadError::Newer { found });
        }
        let secret = Secret::parse(&String::from_utf8_lossy(&secret));
        Ok(Unpacked {
            manifest,
            secret: secret.ok_or_else(|| damaged("relay.secret is not a valid secret"))?,
            database,
        })
    }
}

fn is_zero_to_the_end(mut from: impl Read) -> io::Result<bool> {
    let mut piece = vec![0; 64 * 1024];
    while let length @ 1.. = from.read(&mut piece)? {
        if piece[..length].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hashes and counts what is read through it.
struct Hashing<R> {
    from: R,
    hash: blake3::Hasher,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(from: R) -> Self {
        let (hash, bytes) = (blake3::Hasher::new(), 0);
        Self { from, hash, bytes }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(into)?;
        self.hash.update(&into[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}

/// Counts what goes through it.
struct Counting<T> {
    inner: T,
    bytes: u64,
    /// Whether nothing more came when more was asked for.
    has_ended: bool,
}

impl<T> Counting<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            bytes: 0,
            has_ended: false,
        }
    }
}

impl<T: Read> Read for Counting<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(into)?;
        self.bytes += length as u64;
        self.has_ended |= length == 0 && !into.is_empty();
        Ok(length)
    }
}

impl<T: Write> Write for Counting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn header(kind: EntryType, name: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_cksum();
        header
    }

    /// Reads an archive that begins with `bytes` and goes on with zeros for 1 GiB; why it is refused, and how much
    /// of it was read.
    fn refused(bytes: &[u8]) -> (String, u64) {
        let folder = tempfile::tempdir().unwrap();
        let endless = bytes.chain(io::repeat(0).take(1 << 30));
        let mut counted = Counting::new(endless);
        let database = folder.path().join(DATABASE_FILE);
        let error = unpack(&mut counted, database, |_, _| {}).unwrap_err();
        (error.to_string(), counted.bytes)
    }

    #[test]
    fn no_header_makes_us_read_or_hold_what_it_says() {
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
            EntryType::XGlobalHeader,
            EntryType::GNUSparse,
            EntryType::Symlink,
            EntryType::new(b'X'),
        ] {
            let (why, read) = refused(header(kind, "x", 1 << 30).as_bytes());
            assert!(
                why.starts_with("not a vauchi-relay backup"),
                "{kind:?}: {why}"
            );
            assert!(read <= 4 * BLOCK_BYTES, "{kind:?}: {read}");
        }
        let small = refused(header(EntryType::Regular, MANIFEST, 1 << 30).as_bytes());
        assert!(
            small.0.contains("too long") && small.1 <= 4 * BLOCK_BYTES,
            "{small:?}"
        );
    }

    /// A chain of extended headers of sparse files, each of which says that one more follows.
    #[test]
    fn sparse_headers_are_not_followed() {
        let mut first = header(EntryType::GNUSparse, DATABASE_FILE, 512);
        first.as_gnu_mut().unwrap().set_is_extended(true);
        first.set_cksum();
        let mut more = tar::GnuExtSparseHeader::new();
        more.isextended = [1];
        let bytes = [first.as_bytes().as_slice(), &more.as_bytes().repeat(1_000)].concat();
        let (why, read) = refused(&bytes);
        assert!(
            why.contains("unexpected file") && read <= 4 * BLOCK_BYTES,
            "{why} {read}"
        );
    }

    #[test]
    fn an_extended_header_of_a_packer_is_passed_over_and_one_that_changes_a_file_is_not() {
        let with = |record: &str| {
            let header = header(EntryType::XHeader, "x", record.len() as u64);
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(record.as_bytes());
            bytes.resize(1_024, 0);
            refused(&bytes)
        };
        // Then come zeros, which end the archive.
        let (why, _) = with("20 mtime=1764450000\n");
        assert!(why.contains("incomplete"), "{why}");
        for changes in [
            "13 size=9000\n",
            "17 path=relay.db\n",
            "22 GNU.sparse.major=1\n",
        ] {
            let (why, read) = with(changes);
            assert!(
                why.contains("--format=gnu") && read <= 8 * BLOCK_BYTES,
                "{why} {read}"
            );
        }
    }
}
