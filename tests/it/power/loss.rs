//! How much a power cut loses of what no fsync covers: all, nothing, and everything in between.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::recording::Moment;

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

    /// What becomes of the change before a moment, of all that is in doubt; and by a number that chance gives.
    pub(super) fn fates(self, in_doubt: Vec<Moment>) -> impl Fn(Moment, f64) -> Fate {
        let at = move |share: f64| {
            let index = (share * in_doubt.len() as f64) as usize;
            in_doubt.get(index).copied().unwrap_or(Moment::END)
        };
        let marked = match self {
            Self::After(share) | Self::One(share) => at(share),
            _ => Moment::END,
        };
        move |after, dice| match self {
            Self::Nothing => Fate::Kept,
            Self::Everything => Fate::Lost,
            Self::After(_) if after < marked => Fate::Kept,
            Self::After(_) if after > marked => Fate::Lost,
            Self::After(_) => Fate::Cut(dice),
            Self::One(_) if after != marked => Fate::Kept,
            // Lost as a whole, or in part.
            Self::One(_) if dice < 0.5 => Fate::Lost,
            Self::One(_) => Fate::Torn(0.5),
            Self::Changes(chance) if dice < chance => Fate::Kept,
            Self::Changes(_) => Fate::Lost,
            Self::Sectors(chance) => Fate::Torn(chance),
        }
    }
}

/// Often near to all and near to nothing: in between, almost every change is damaged.
fn chance(random: &mut StdRng) -> f64 {
    [0.02, 0.2, 0.5, 0.8, 0.98][random.random_range(0..5)]
}

/// What became of one change.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// The sectors before this share of them are there.
    Cut(f64),
    /// Each sector has this chance.
    Torn(f64),
}

impl Fate {
    /// Whether a change that is made at once or not at all took place.
    pub(super) fn happens(self, random: &mut StdRng) -> bool {
        match self {
            Self::Kept => true,
            Self::Lost => false,
            Self::Cut(share) => share >= 0.5,
            Self::Torn(chance) => random.random_bool(chance),
        }
    }

    pub(super) fn has_sector(self, (number, of): (usize, usize), random: &mut StdRng) -> bool {
        match self {
            Self::Kept => true,
            Self::Lost => false,
            Self::Cut(share) => (number as f64) < share * of as f64,
            Self::Torn(chance) => random.random_bool(chance),
        }
    }

    /// Whether a file that a write makes longer is longer; it may be so without the bytes.
    pub(super) fn lengthens(self, random: &mut StdRng) -> bool {
        self == Self::Kept || (self != Self::Lost && random.random())
    }
}
