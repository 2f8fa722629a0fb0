//! What a server's process has used so far, from /proc.

use std::fs::{read_dir, read_to_string};

/// Nanoseconds of processor time of all its threads, from the scheduler: /proc/PID/stat has ticks, which
/// miss short bursts. Threads that have ended are not in it.
pub fn cpu_nanos(id: u32) -> u64 {
    let threads = read_dir(format!("/proc/{id}/task")).unwrap();
    threads
        .filter_map(|thread| {
            // A thread may end meanwhile.
            let schedstat = read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            schedstat.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

/// Bytes that it had written to disks.
pub fn written_bytes(id: u32) -> u64 {
    field(&format!("/proc/{id}/io"), "write_bytes:")
}

pub fn resident_bytes(id: u32) -> u64 {
    field(&format!("/proc/{id}/status"), "VmRSS:") * 1_024
}

fn field(file: &str, name: &str) -> u64 {
    let text = read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}
