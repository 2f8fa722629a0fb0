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

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::recording::{Change, Moment, Step, inode};

const SECTOR: usize = 512;

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

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    /// What was done since, each with the moment after it.
    pending: Vec<(Moment, Edit)>,
}

enum Edit {
    Write { offset: usize, data: Bytes },
    Resize(usize),
}

#[derive(Clone)]
enum Renaming {
    Put(String, usize),
    Remove(String),
    Move(String, String, usize),
}

/// What became of everything that no fsync covers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Loss {
    /// It is all there, as after the end of a process.
    Nothing,
    /// Nothing of it is there.
    Everything,
    /// It reached the disk in the order in which it was done, up to this share of it, where it is torn.
    After(f64),
    /// One change is lost, by its share of them all, and everything before and after it is there.
    One(f64),
    /// Each change is there or not, with this chance.
    Changes(f64),
    /// Each sector of each change is there or not, with this chance.
    Sectors(f64),
}

impl Loss {
    pub(super) fn any(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2..4 => Self::After(random.random()),
            4..6 => Self::One(random.random()),
            6..8 => Self::Changes(chance(random)),
            _ => Self::Sectors(chance(random)),
        }
    }
}

/// Often near to all and near to nothing: in between, almost every change is damaged.
fn chance(random: &mut StdRng) -> f64 {
    [0.02, 0.2, 0.5, 0.8, 0.98][random.random_range(0..5)]
}

/// What became of one change.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Kept,
    Lost,
    /// The sectors before this share of them are there.
    Cut(f64),
    /// Each sector has this chance.
    Torn(f64),
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
            let durable = content.clone();
            let pending = Vec::new();
            disk.files.push(File { durable, pending });
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
                self.file(*inode).pending.push((after, edit));
            }
            Change::Resized { inode, bytes } => {
                let edit = Edit::Resize(usize::try_from(*bytes).unwrap());
                self.file(*inode).pending.push((after, edit));
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
        let fates = self.fates(loss);
        let names = self.names_left(&fates, random);
        let left = |(name, file): (String, usize)| {
            let content = self.files[file].left(&fates, random);
            (name, content)
        };
        Image(names.into_iter().map(left).collect())
    }

    /// How many changes no fsync covers.
    pub(super) fn pending(&self) -> usize {
        self.moments().len()
    }

    fn moments(&self) -> Vec<Moment> {
        let edits = self.files.iter().flat_map(|file| &file.pending);
        let names = self.renamings.iter().map(|(after, _)| *after);
        let mut moments: Vec<_> = edits.map(|(after, _)| *after).chain(names).collect();
        moments.sort_unstable();
        moments
    }

    fn fates(&self, loss: Loss) -> impl Fn(Moment, f64) -> Fate {
        let moments = self.moments();
        let at = move |share: f64| {
            let index = (share * moments.len() as f64) as usize;
            moments.get(index).copied().unwrap_or(Moment::END)
        };
        let marked = match loss {
            Loss::After(share) | Loss::One(share) => at(share),
            _ => Moment::END,
        };
        move |after, dice| match loss {
            Loss::Nothing => Fate::Kept,
            Loss::Everything => Fate::Lost,
            Loss::After(_) if after < marked => Fate::Kept,
            Loss::After(_) if after > marked => Fate::Lost,
            Loss::After(_) => Fate::Cut(dice),
            Loss::One(_) if after != marked => Fate::Kept,
            // Lost as a whole, or in part.
            Loss::One(_) if dice < 0.5 => Fate::Lost,
            Loss::One(_) => Fate::Torn(0.5),
            Loss::Changes(chance) if dice < chance => Fate::Kept,
            Loss::Changes(_) => Fate::Lost,
            Loss::Sectors(chance) => Fate::Torn(chance),
        }
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

impl Fate {
    /// Whether a change that is made at once or not at all took place.
    fn happens(self, random: &mut StdRng) -> bool {
        match self {
            Self::Kept => true,
            Self::Lost => false,
            Self::Cut(share) => share >= 0.5,
            Self::Torn(chance) => random.random_bool(chance),
        }
    }

    fn has_sector(self, (number, of): (usize, usize), random: &mut StdRng) -> bool {
        match self {
            Self::Kept => true,
            Self::Lost => false,
            Self::Cut(share) => (number as f64) < share * of as f64,
            Self::Torn(chance) => random.random_bool(chance),
        }
    }

    /// Whether a file that a write makes longer is longer; it may be so without the bytes.
    fn lengthens(self, random: &mut StdRng) -> bool {
        self == Self::Kept || (self != Self::Lost && random.random())
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

impl Edit {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => overwrite(content, *offset, data),
            Self::Resize(bytes) => content.resize(*bytes, 0),
        }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

impl File {
    fn sync(&mut self, began: Moment) {
        let covered = self.pending.partition_point(|(after, _)| *after <= began);
        for (_, edit) in self.pending.drain(..covered) {
            edit.apply(&mut self.durable);
        }
    }

    fn seen(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (_, edit) in &self.pending {
            edit.apply(&mut content);
        }
        content
    }

    /// What the disk has of it.
    fn left(&self, fates: impl Fn(Moment, f64) -> Fate, random: &mut StdRng) -> Vec<u8> {
        let (mut memory, mut disk) = (self.durable.clone(), self.durable.clone());
        let mut length = disk.len();
        // From here on the disk has what it had: it does not know that the file became shorter.
        let mut stuck_from = usize::MAX;
        for (after, edit) in &self.pending {
            let fate = fates(*after, random.random());
            match edit {
                Edit::Write { offset, data } => {
                    edit.apply(&mut memory);
                    let (first, end) = (offset / SECTOR, offset + data.len());
                    let sectors = end.div_ceil(SECTOR) - first;
                    for number in 0..sectors {
                        let from = (first + number) * SECTOR;
                        let to = (from + SECTOR).min(memory.len());
                        if to <= stuck_from && fate.has_sector((number, sectors), random) {
                            overwrite(&mut disk, from, &memory[from..to]);
                        }
                    }
                    if end > length && stuck_from == usize::MAX && fate.lengthens(random) {
                        length = end;
                    }
                }
                Edit::Resize(bytes) => {
                    let happens = stuck_from == usize::MAX && fate.happens(random);
                    if !happens && *bytes < memory.len() {
                        stuck_from = stuck_from.min(*bytes);
                    }
                    edit.apply(&mut memory);
                    if happens {
                        disk.truncate(*bytes);
                        length = *bytes;
                    }
                }
            }
        }
        disk.resize(length, 0);
        disk
    }
}

/// The files of a folder, by name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Image(pub(super) BTreeMap<String, Vec<u8>>);

impl Image {
    /// Writes the files as only their owner may read them; of the mapped memory, noise.
    pub(super) fn write(&self, folder: &Path) {
        let noise: Vec<u8> = (0..32 << 10)
            .map(|byte: u32| (byte * 31 >> 3) as u8)
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
