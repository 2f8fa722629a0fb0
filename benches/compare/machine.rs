//! The head of the table: the machine, its disk and the versions.

use std::fmt::Write as _;
use std::fs::{File, read_to_string};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::Bench;
use crate::peers::Subject;
use crate::table::letter;

/// Syncs that are measured.
const SYNCS: usize = 200;

/// Above this, other programs were running.
const LOAD_MAX: f64 = 0.5;

pub fn head(bench: &Bench, binaries: &[PathBuf]) -> String {
    let mut head = String::new();
    let cpus = read_to_string("/proc/cpuinfo").unwrap();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| {
        rest.trim_start_matches(['\t', ' ', ':'])
    });
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let pinned = bench.cores.map_or_else(
        || "one core, shared by server and generator".to_owned(),
        |cores| {
            format!(
                "server on core {}, generator on core {}",
                cores.server, cores.generator
            )
        },
    );
    let (p50, p99) = sync_times(bench);
    writeln!(
        head,
        "- machine: {model}; Linux {}; {pinned}",
        kernel.trim()
    )
    .unwrap();
    writeln!(
        head,
        "- disk: {} ({}); append of 4 KiB with fdatasync p50 {p50:.2} ms, p99 {p99:.2} ms",
        file_system(&bench.root),
        bench.root.display(),
    )
    .unwrap();
    writeln!(head, "- {}", other_work()).unwrap();
    for (number, binary) in binaries.iter().enumerate() {
        let hash = blake3::hash(&std::fs::read(binary).unwrap()).to_hex();
        let version = version(binary, "--version");
        let (letter, path) = (letter(number), binary.display());
        writeln!(
            head,
            "- ours, {letter}: {path}, {version}, BLAKE3 {}",
            &hash[..12]
        )
        .unwrap();
    }
    for subject in [Subject::Redis, Subject::Mosquitto, Subject::Nats] {
        let argument = if subject == Subject::Mosquitto {
            "-h"
        } else {
            "--version"
        };
        match subject.installed() {
            Ok(program) => writeln!(head, "- peer: {}", version(&program, argument)).unwrap(),
            Err(missing) => writeln!(head, "- **peer missing: {missing}**").unwrap(),
        }
    }
    writeln!(
        head,
        "- medians of {} rounds, each {:?} after {:?} of warm-up; [least..most]",
        bench.rounds, bench.span, bench.warm_up
    )
    .unwrap();
    head
}

fn other_work() -> String {
    let load = read_to_string("/proc/loadavg").unwrap();
    let load = load.split(' ').next().unwrap();
    match load.parse::<f64>() {
        Ok(number) if number > LOAD_MAX => {
            format!("**other programs are running (load {load}): the figures are noise**")
        }
        _ => format!("load before the run {load}"),
    }
}

/// p50 and p99 in milliseconds.
fn sync_times(bench: &Bench) -> (f64, f64) {
    let folder = bench.folder();
    let mut file = File::create(folder.path().join("appended")).unwrap();
    let mut took: Vec<_> = (0..SYNCS)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&[7; 4_096]).unwrap();
            file.sync_data().unwrap();
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    took.sort_by(f64::total_cmp);
    (took[SYNCS / 2], took[SYNCS * 99 / 100])
}

/// The type of the file system that holds this folder.
fn file_system(folder: &Path) -> String {
    let mounts = read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        folder.starts_with(at).then(|| (at.len(), kind.to_owned()))
    });
    mounts.max().map_or("unknown".to_owned(), |(_, kind)| kind)
}

/// What a program calls itself: the beginning of the first line, before build details.
fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<_> = text.split_whitespace().take(3).collect();
    words.join(" ")
}
