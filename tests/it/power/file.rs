//! The content of one file on a disk that loses its power.

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::loss::Fate;
use super::recording::Moment;

/// What reaches the disk at once or not at all.
const SECTOR: usize = 512;

/// A file as the disk has it for certain, and what was done to it since.
#[derive(Default)]
pub(super) struct File {
    durable: Vec<u8>,
    /// What was done since, each with the moment after it.
    pending: Vec<(Moment, Edit)>,
}

pub(super) enum Edit {
    Write { offset: usize, data: Bytes },
    Resize(usize),
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
    /// What is on the disk.
    pub(super) fn holding(durable: Vec<u8>) -> Self {
        Self {
            durable,
            pending: Vec::new(),
        }
    }

    pub(super) fn edited(&mut self, after: Moment, edit: Edit) {
        self.pending.push((after, edit));
    }

    /// The moments after what no fsync covers.
    pub(super) fn in_doubt(&self) -> impl Iterator<Item = Moment> {
        self.pending.iter().map(|(after, _)| *after)
    }

    /// An fsync has ended.
    pub(super) fn sync(&mut self, began: Moment) {
        let covered = self.pending.partition_point(|(after, _)| *after <= began);
        for (_, edit) in self.pending.drain(..covered) {
            edit.apply(&mut self.durable);
        }
    }

    /// As the system has it.
    pub(super) fn seen(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (_, edit) in &self.pending {
            edit.apply(&mut content);
        }
        content
    }

    /// What the disk has of it.
    pub(super) fn left(&self, fates: impl Fn(Moment, f64) -> Fate, random: &mut StdRng) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn write(offset: usize, bytes: usize, with: u8) -> Edit {
        let data = vec![with; bytes].into();
        Edit::Write { offset, data }
    }

    /// A file of 1,024 `a` on the disk, and these changes, the first before moment 1 and so on.
    fn file(edits: impl IntoIterator<Item = Edit>) -> File {
        let mut file = File::holding(vec![b'a'; 1_024]);
        for (number, edit) in edits.into_iter().enumerate() {
            file.edited(Moment::from_number(number as u64 + 1), edit);
        }
        file
    }

    /// What is left when each change has this fate, in the order of the changes.
    fn left(file: &File, fates: &[Fate]) -> Vec<u8> {
        let fate = |after: Moment, _| fates[after.number() as usize - 1];
        file.left(fate, &mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn an_fsync_covers_what_was_done_before_it_began() {
        let mut file = file([write(0, 512, b'b'), write(512, 512, b'c')]);
        file.sync(Moment::from_number(1));
        let found = left(&file, &[Fate::Lost, Fate::Lost]);
        assert_eq!((found[0], found[512]), (b'b', b'a'));
    }

    #[test]
    fn a_sector_reaches_the_disk_with_all_that_was_written_to_it_before() {
        let file = file([write(0, 600, b'b'), write(100, 10, b'c')]);
        let found = left(&file, &[Fate::Lost, Fate::Kept]);
        assert_eq!((found[0], found[100], found[511]), (b'b', b'c', b'b'));
        assert_eq!(found[512], b'a', "the other sector is lost");
        let found = left(&file, &[Fate::Cut(0.5), Fate::Lost]);
        assert_eq!((found[100], found[512]), (b'b', b'a'), "half of it");
    }

    #[test]
    fn a_longer_file_without_its_bytes_has_zeros() {
        let file = file([write(1_024, 512, b'b'), write(1_536, 512, b'c')]);
        let found = left(&file, &[Fate::Lost, Fate::Kept]);
        assert_eq!(found.len(), 2_048);
        assert_eq!((found[1_024], found[1_536]), (0, b'c'));
        assert_eq!(left(&file, &[Fate::Lost, Fate::Lost]).len(), 1_024);
    }

    #[test]
    fn what_is_written_to_a_freed_part_is_there_only_if_the_part_was_freed() {
        let file = file([Edit::Resize(512), write(0, 1_024, b'b')]);
        let found = left(&file, &[Fate::Lost, Fate::Kept]);
        assert_eq!((found[0], found[512], found.len()), (b'b', b'a', 1_024));
        let found = left(&file, &[Fate::Kept, Fate::Lost]);
        assert_eq!(found, [b'a'; 512]);
        assert_eq!(left(&file, &[Fate::Kept, Fate::Kept]), [b'b'; 1_024]);
    }
}
