//! Any bytes as a backup: never a panic, no more memory than a small file of it may take, and never more of a database
//! than the archive has. Read as they come, with all checksums of a tar and of a backup put right, and as the contents
//! of a backup that is well packed.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use vauchi_relay::cli::fuzzing::unpack;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

const BLOCK_BYTES: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    read(&put_right(bytes));
    // `{"about": …}`, the secret and the database, with an empty line between them.
    if bytes.starts_with(b"{") {
        read(&packed(bytes));
    }
});

fn read(archive: &[u8]) {
    let database = FOLDER.path().join("relay.db");
    let is_unpacked = unpack(archive, database.clone()).is_ok();
    match fs::read(&database) {
        Ok(bytes) => {
            let mut windows = archive.windows(bytes.len().max(1));
            assert!(bytes.is_empty() || windows.any(|window| window == bytes));
            fs::remove_file(&database).unwrap();
        }
        Err(_) => assert!(!is_unpacked),
    }
}

/// With the checksum of each header, and the lines of the checksums' file, as they should be.
fn put_right(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let (mut at, mut sums) = (0, String::new());
    while let Some(block) = archive[at..].first_chunk_mut::<BLOCK_BYTES>() {
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0);
        let rest = archive.len() - at - BLOCK_BYTES;
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(rest);
        let content = &mut archive[at + BLOCK_BYTES..][..size];
        let name = header.path_bytes();
        if &*name == b"checksums.b3" {
            let length = sums.len().min(size);
            content[..length].copy_from_slice(&sums.as_bytes()[..length]);
        } else {
            sums += &line(&String::from_utf8_lossy(&name), content);
        }
        at += (BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES)).min(archive.len() - at);
    }
    archive
}

fn line(name: &str, content: &[u8]) -> String {
    format!("{}  {name}\n", blake3::hash(content).to_hex())
}

fn packed(contents: &[u8]) -> Vec<u8> {
    let mut rest = contents;
    let mut next = || {
        let end = rest.windows(2).position(|two| two == b"\n\n");
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.get(2..).unwrap_or_default();
        part
    };
    let files = ["manifest.json", "relay.secret", "relay.db"].map(|name| (name, next()));
    let sums: String = files.map(|(name, content)| line(name, content)).concat();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files.into_iter().chain([("checksums.b3", sums.as_bytes())]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.into_inner().unwrap()
}
