//! A disk that loses its power: what is on it for certain at a moment, and what may be.
//!
//! Certain is what an fsync that has ended covers. Everything else was in the system's memory, and whatever part of
//! it has reached the disk by then:
//!
//! - of content, each sector (512 bytes) by itself: a later write without an earlier one, half of a write, or a file
//!   that has become longer without the bytes, which are zeros then. A sector reaches the disk as it is in memory at
//!   that moment, with everything that was written to it before;
//! - of a file that became shorter, nothing that was written to the freed part afterwards, unless the disk knows that
//!   it became shorter: file systems keep that order;
//! - of names, each by itself, except that what became of one name is kept in order. Journaling file systems keep all
//!   of it in order; this one is worse.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::file::{Edit, File};
use super::loss::{Fate, Loss};
use super::recording::{Change, Moment, Step, inode};

/// Mapped memory that SQLite builds anew from the log at a start, whatever is in it: it writes there without a call
/// that could be recorded.
pub(super) const NOT_KEPT: &str = "relay.db-shm";

/// Files that hold nothing and take up room, by a call that is not recorded. A power cut may leave them empty.
pub(super) const RESERVE: &str = "relay.reserve-";

/// The folder at one moment, as the system has it and as the disk may have it.
pub(super) struct Disk {
    folder: u64,
    files: Vec<File>,
    /// The file that an inode stands for: inodes are used again.
    by_inode: HashMap<u64, usize>,
    /// As the system has them.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    renamings: Vec<(Moment, Renaming)>,
}

#[derive(Clone)]
enum Renaming {
    Put(String, usize),
    Remove(String),
    Move(String, String, usize),
}

impl Disk {
    /// An empty folder that the records know by this number.
    pub(super) fn empty(folder: u64) -> Self {
        Self {
            folder,
            files: Vec::new(),
            by_inode: HashMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renamings: Vec::new(),
        }
    }

    /// A folder in which all of this is on the disk.
    pub(super) fn holding(image: &Image, folder: &Path) -> Self {
        let mut disk = Self::empty(inode(folder));
        for (number, (name, content)) in image.0.iter().enumerate() {
            disk.files.push(File::holding(content.clone()));
            disk.by_inode.insert(inode(&folder.join(name)), number);
            disk.durable_names.insert(name.clone(), number);
        }
        disk.names = disk.durable_names.clone();
        disk
    }

    /// A step is taken.
    pub(super) fn follow(&mut self, step: &Step) {
        let after = step.after;
        match &step.change {
            Change::Created { inode, name } => {
                self.files.push(File::default());
                self.by_inode.insert(*inode, self.files.len() - 1);
                self.put(after, name, self.files.len() - 1);
            }
            Change::Linked { inode, name } => self.put(after, name, self.by_inode[inode]),
            Change::Renamed { from, to } => {
                let file = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), file);
                let renaming = Renaming::Move(from.clone(), to.clone(), file);
                self.renamings.push((after, renaming));
            }
            Change::Unlinked { name } => {
                self.names.remove(name);
                self.renamings.push((after, Renaming::Remove(name.clone())));
            }
            Change::Written {
                inode,
                offset,
                data,
            } => {
                let offset = usize::try_from(*offset).unwrap();
                let edit = Edit::Write {
                    offset,
                    data: data.clone(),
                };
                self.file(*inode).edited(after, edit);
            }
            Change::Resized { inode, bytes } => {
                let edit = Edit::Resize(usize::try_from(*bytes).unwrap());
                self.file(*inode).edited(after, edit);
            }
            Change::SyncBegan { .. } => {}
            Change::SyncEnded { inode, began } if *inode == self.folder => self.sync_names(*began),
            Change::SyncEnded { inode, began } => self.file(*inode).sync(*began),
        }
    }

    fn put(&mut self, after: Moment, name: &str, file: usize) {
        self.names.insert(name.to_owned(), file);
        self.renamings
            .push((after, Renaming::Put(name.to_owned(), file)));
    }

    fn file(&mut self, inode: u64) -> &mut File {
        &mut self.files[self.by_inode[&inode]]
    }

    fn sync_names(&mut self, began: Moment) {
        let covered = self.renamings.partition_point(|(after, _)| *after <= began);
        for (_, renaming) in self.renamings.drain(..covered) {
            renaming.apply(&mut self.durable_names);
        }
    }

    /// As the system has it: what a process finds that starts without a power cut.
    pub(super) fn as_seen(&self) -> Image {
        let content = |file: &usize| self.files[*file].seen();
        let files = self
            .names
            .iter()
            .map(|(name, file)| (name.clone(), content(file)));
        Image(files.collect())
    }

    /// What a power cut may leave.
    pub(super) fn cut(&self, loss: Loss, random: &mut StdRng) -> Image {
        let fates = loss.fates(self.moments());
        let names = self.names_left(&fates, random);
        let left = |(name, file): (String, usize)| {
            let content = self.files[file].left(&fates, random);
            (name, content)
        };
        Image(names.into_iter().map(left).collect())
    }

    /// How many changes no fsync covers.
    pub(super) fn in_doubt(&self) -> usize {
        self.moments().len()
    }

    fn moments(&self) -> Vec<Moment> {
        let edits = self.files.iter().flat_map(File::in_doubt);
        let names = self.renamings.iter().map(|(after, _)| *after);
        let mut moments: Vec<_> = edits.chain(names).collect();
        moments.sort_unstable();
        moments
    }

    fn names_left(
        &self,
        fates: impl Fn(Moment, f64) -> Fate,
        random: &mut StdRng,
    ) -> BTreeMap<String, usize> {
        let (mut names, mut stuck) = (self.durable_names.clone(), HashSet::new());
        for (after, renaming) in &self.renamings {
            let touched = renaming.names();
            let is_stuck = touched.iter().any(|name| stuck.contains(name));
            let fate = fates(*after, random.random());
            if is_stuck || !fate.happens(random) {
                stuck.extend(touched);
            } else {
                renaming.clone().apply(&mut names);
            }
        }
        names
    }
}

impl Renaming {
    fn names(&self) -> Vec<&String> {
        match self {
            Self::Put(name, _) | Self::Remove(name) => vec![name],
            Self::Move(from, to, _) => vec![from, to],
        }
    }

    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Put(name, file) => drop(names.insert(name, file)),
            Self::Remove(name) => drop(names.remove(&name)),
            Self::Move(from, to, file) => {
                names.remove(&from);
                names.insert(to, file);
            }
        }
    }
}

/// The files of a folder, by name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Image(pub(super) BTreeMap<String, Vec<u8>>);

impl Image {
    /// Writes the files as only their owner may read them; of the mapped memory, noise.
    pub(super) fn write(&self, folder: &Path) {
        let noise: Vec<u8> = (0..32 << 10)
            .map(|byte: u32| ((byte * 31) >> 3) as u8)
            .collect();
        for (name, content) in &self.0 {
            let content = if name == NOT_KEPT { &noise } else { content };
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(folder.join(name));
            made.unwrap().write_all(content).unwrap();
        }
    }
}
