//! Any bytes in the small files that people keep and edit: never a panic, what was read is read the same when it is
//! written again, and a file of known relays that was understood still is after a relay was met.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use vauchi_relay::cli::fuzzing::read_key;
use vauchi_relay::client::{ClientError, KnownRelays as _, KnownRelaysFile};
use vauchi_relay::secrets::Secret;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("file");
    fs::write(&path, bytes).unwrap();
    key(&path, bytes);
    secret(bytes);
    known_relays(&path, bytes);
});

fn key(path: &Path, bytes: &[u8]) {
    let Ok(key) = read_key(path) else { return };
    let shouted = bytes.to_ascii_uppercase();
    let lower = String::from_utf8(bytes.to_ascii_lowercase()).unwrap();
    let hex = lower.split_ascii_whitespace().last().unwrap();
    // The mailbox is made from all 64 digits, and from nothing else.
    assert_eq!(hex.len(), 64);
    fs::write(path, format!("vauchi-relay-mailbox ed25519 {hex}\n")).unwrap();
    assert_eq!(read_key(path).unwrap().mailbox(), key.mailbox());
    // The words have one spelling.
    fs::write(path, shouted).unwrap();
    assert!(read_key(path).is_err());
    fs::write(path, bytes).unwrap();
}

fn secret(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(secret) = Secret::parse(&text) {
        let written = secret.file_text();
        assert_eq!(*written, format!("{}\n", text.trim().to_lowercase()));
        assert_eq!(*Secret::parse(&written).unwrap().file_text(), *written);
    }
}

fn known_relays(path: &Path, bytes: &[u8]) {
    let known = KnownRelaysFile::new(path);
    let (here, other) = ([7; 32], [8; 32]);
    let met = known.meet("relay.example", &here);
    let after = fs::read(path).unwrap();
    match met {
        Ok(()) => {
            assert!(after.starts_with(bytes), "a line was lost");
            known
                .meet("relay.example", &here)
                .expect("it was met just now");
            let another = known.meet("relay.example", &other).unwrap_err();
            assert!(
                matches!(another, ClientError::WrongRelay { .. }),
                "{another:?}"
            );
        }
        Err(_) => assert_eq!(after, bytes, "a refusal changes nothing"),
    }
}
