//! What a relay does to its data folder, as `record.c` records it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use bytes::{Buf as _, Bytes};
use tempfile::TempDir;

use crate::process::{Process, command};

/// A moment of a recording: everything that was recorded before it has happened, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Moment(u64);

impl Moment {
    /// After all of it.
    pub(super) const END: Self = Self(u64::MAX);

    /// Each start of a relay has a file of records of its own: a killed one leaves half a record.
    fn new(start: usize, offset: u64) -> Self {
        Self(((start as u64) << 40) | offset)
    }

    /// For tests of the disk that have no recording.
    pub(super) fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// One change of the folder.
#[derive(Clone)]
pub(super) enum Change {
    Created {
        inode: u64,
        name: String,
    },
    Linked {
        inode: u64,
        name: String,
    },
    Renamed {
        from: String,
        to: String,
    },
    Unlinked {
        name: String,
    },
    Written {
        inode: u64,
        offset: u64,
        data: Bytes,
    },
    Resized {
        inode: u64,
        bytes: u64,
    },
    SyncBegan {
        inode: u64,
    },
    SyncEnded {
        inode: u64,
        began: Moment,
    },
}

impl std::fmt::Debug for Change {
    /// Without the bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Created { inode, name } => write!(f, "created {name} as {inode}"),
            Self::Linked { inode, name } => write!(f, "linked {inode} to {name}"),
            Self::Renamed { from, to } => write!(f, "renamed {from} to {to}"),
            Self::Unlinked { name } => write!(f, "unlinked {name}"),
            Self::Written {
                inode,
                offset,
                data,
            } => {
                write!(f, "written to {inode} at {offset}: {} bytes", data.len())
            }
            Self::Resized { inode, bytes } => write!(f, "resized {inode} to {bytes}"),
            Self::SyncBegan { inode } => write!(f, "an fsync of {inode} began"),
            Self::SyncEnded { inode, .. } => write!(f, "an fsync of {inode} ended"),
        }
    }
}

/// A change, and the moment after it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) after: Moment,
    pub(super) change: Change,
}

/// The library, built with the C compiler that the bundled SQLite needs, too.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/power/record.c");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Under a name of its own first: another run of the tests may be using it.
    let draft = folder.join(format!("record-{}.so", std::process::id()));
    let built = Command::new("gcc")
        .args([
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
        ])
        .args([&draft, &source])
        .arg("-ldl")
        .status();
    let built = built.expect("gcc is installed").success();
    assert!(built, "gcc builds record.c");
    let library = folder.join("record.so");
    fs::rename(draft, &library).unwrap();
    library
});

/// Starts relays on one folder, one after the other, and records what they do to it.
pub(super) struct Recorder {
    folder: PathBuf,
    records: TempDir,
    /// How many relays were started.
    starts: Mutex<usize>,
}

impl Recorder {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.canonicalize().unwrap(),
            records: tempfile::tempdir().unwrap(),
            starts: Mutex::new(0),
        }
    }

    /// A relay that is recorded from its first change on.
    pub(super) async fn start(&self) -> Process {
        let record = {
            let mut starts = self.starts.lock().unwrap();
            *starts += 1;
            self.record_of(*starts - 1)
        };
        let mut command = command(&self.folder);
        command
            .env("LD_PRELOAD", &*LIBRARY)
            .env("POWER_FOLDER", &self.folder)
            .env("POWER_RECORD", record);
        Process::spawn(&mut command).await
    }

    fn record_of(&self, start: usize) -> PathBuf {
        self.records.path().join(format!("record-{start}"))
    }

    /// Now: what an answer that has come stands for was recorded before this moment.
    pub(super) fn now(&self) -> Moment {
        let start = self.starts.lock().unwrap().saturating_sub(1);
        let recorded = fs::metadata(self.record_of(start)).map_or(0, |record| record.len());
        Moment::new(start, recorded)
    }

    /// When the relay that runs, or ran last, was started.
    pub(super) fn began(&self) -> Moment {
        Moment::new(self.starts.lock().unwrap().saturating_sub(1), 0)
    }

    /// What the relay that ran last has done. It must have ended.
    pub(super) fn read(&self) -> Vec<Step> {
        let start = *self.starts.lock().unwrap() - 1;
        let bytes = Bytes::from(fs::read(self.record_of(start)).unwrap());
        parse(start, bytes)
    }
}

/// The number that records know a file or folder by.
pub(super) fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Which files changes are of.
#[derive(Default)]
pub(super) struct Names(HashMap<u64, String>);

impl Names {
    /// The file whose content this step changes, or brings to the disk. All steps must be given, in order.
    pub(super) fn of(&mut self, step: &Step) -> Option<&str> {
        match &step.change {
            Change::Created { inode, name } | Change::Linked { inode, name } => {
                self.0.insert(*inode, name.clone());
                None
            }
            Change::Renamed { .. } | Change::Unlinked { .. } => None,
            Change::Written { inode, .. }
            | Change::Resized { inode, .. }
            | Change::SyncBegan { inode }
            | Change::SyncEnded { inode, .. } => self.0.get(inode).map(String::as_str),
        }
    }
}

/// Bytes in front of each record: kind and length, 4 bytes each, inode and offset, 8 bytes each.
const HEAD_BYTES: usize = 24;

fn parse(start: usize, mut bytes: Bytes) -> Vec<Step> {
    let (total, mut steps) = (bytes.len(), Vec::new());
    // Half a record at the end is that of a killed relay, whose change did not begin.
    while bytes.len() >= HEAD_BYTES {
        let (kind, length) = (bytes.get_u32_ne(), bytes.get_u32_ne() as usize);
        let (inode, offset) = (bytes.get_u64_ne(), bytes.get_u64_ne());
        if bytes.len() < length {
            break;
        }
        let data = bytes.split_to(length);
        steps.push(Step {
            after: Moment::new(start, (total - bytes.len()) as u64),
            change: change(kind, (inode, offset), data, start),
        });
    }
    steps
}

fn change(kind: u32, (inode, offset): (u64, u64), data: Bytes, start: usize) -> Change {
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_str().unwrap().to_owned();
    match kind {
        1 => Change::Created {
            inode,
            name: text(&data),
        },
        2 => Change::Linked {
            inode,
            name: text(&data),
        },
        3 => {
            let zero = data.iter().position(|byte| *byte == 0).unwrap();
            let (from, to) = (text(&data[..zero]), text(&data[zero + 1..]));
            Change::Renamed { from, to }
        }
        4 => Change::Unlinked { name: text(&data) },
        5 => Change::Written {
            inode,
            offset,
            data,
        },
        6 => Change::Resized {
            inode,
            bytes: offset,
        },
        7 => Change::SyncBegan { inode },
        8 => Change::SyncEnded {
            inode,
            began: Moment::new(start, offset),
        },
        _ => panic!("record.c did not understand something: {}", text(&data)),
    }
}
