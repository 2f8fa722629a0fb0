//! Damage to the files of a relay that is stopped: what is damaged is never delivered and never
//! taken for what it was; what is whole goes on; and what cannot go on says so in one line.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vauchi_relay::store::sqlite::DATABASE_FILE;

use crate::harness::{Peer, eventually, http_get, id, update, value_of};
use crate::process::{Process, command, run};

const PAGE_BYTES: usize = 8_192;

/// Three blobs of this size for the mailbox 2, and one for the mailbox 3.
fn frames(bytes: usize) -> Vec<(Value, Vec<u8>)> {
    (1..=4_u8)
        .map(|number| {
            let to = if number == 4 { 3 } else { 2 };
            // Bytes that are found nowhere else in the file.
            let mut blob = vec![0; bytes];
            let mut random = blake3::Hasher::new().update(&[number]).finalize_xof();
            random.fill(&mut blob);
            (update(&format!("blob {number}"), &id(to), &blob), blob)
        })
        .collect()
}

async fn client(relay: &Process, byte: u8) -> Peer {
    let mut peer = Peer::connect(relay.clients).await;
    peer.handshake(json!({ "client_id": id(byte) })).await;
    peer
}

async fn metric(relay: &Process, series: &str) -> f64 {
    let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
    value_of(&scrape, series).unwrap_or_default()
}

/// A relay takes the blobs and is then stopped, or killed.
async fn taken(folder: &Path, frames: &[(Value, Vec<u8>)], is_killed: bool) {
    let relay = Process::start(folder).await;
    let mut sender = client(&relay, 1).await;
    for (frame, _) in frames {
        sender.send(frame).await;
        sender
            .expect_stored(frame["message_id"].as_str().unwrap())
            .await;
    }
    sender.leave().await;
    if is_killed {
        relay.kill().await;
    } else {
        relay.signal("TERM").await;
        assert!(relay.ended().await.0.success());
    }
}

/// Changes the database of a relay that is stopped.
fn damage(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join(DATABASE_FILE);
    let mut file = fs::read(&path).unwrap();
    change(&mut file);
    fs::write(&path, file).unwrap();
}

/// Where these bytes are, and nowhere else.
fn place_of(bytes: &[u8], file: &[u8]) -> usize {
    let mut places = file
        .windows(bytes.len())
        .enumerate()
        .filter(|(_, window)| window == &bytes)
        .map(|(place, _)| place);
    let place = places.next().expect("they are there");
    assert_eq!(places.next(), None, "they are there twice");
    place
}

/// The relay starts on the damaged file: the second blob does not come, the others do.
async fn expect_the_second_is_passed_over(folder: &Path, frames: &[(Value, Vec<u8>)]) -> Process {
    let relay = Process::start(folder).await;
    let mut recipient = client(&relay, 2).await;
    for number in [0, 2] {
        assert!(recipient.delivery().await.blob == frames[number].1);
    }
    recipient.expect_silence().await;
    let mut other = client(&relay, 3).await;
    assert!(other.delivery().await.blob == frames[3].1);
    relay
}

/// Its sender sends it again, and it comes.
async fn expect_the_second_can_be_sent_again(relay: &Process, frames: &[(Value, Vec<u8>)]) {
    let mut sender = client(relay, 1).await;
    sender.send(&frames[1].0).await;
    sender.expect_stored("blob 2").await;
    let mut recipient = client(relay, 2).await;
    for number in [0, 2, 1] {
        let delivery = recipient.delivery().await;
        assert!(delivery.blob == frames[number].1, "{number}");
        recipient.acknowledge(&delivery.id).await;
    }
    recipient.expect_silence().await;
    eventually("all are acknowledged", async || {
        metric(relay, "relay_blobs_acknowledged_total").await == 3.0
    })
    .await;
}

/// The log of a relay that is stopped now; names nobody.
async fn log_of(relay: Process) -> String {
    relay.signal("TERM").await;
    let (_, log) = relay.ended().await;
    for byte in 1..=3 {
        assert!(!log.contains(&id(byte)), "{log}");
    }
    assert!(!log.contains("blob 2"), "{log}");
    log
}

#[tokio::test]
async fn a_flipped_bit_sets_its_blob_aside_and_touches_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(1_000);
    taken(folder.path(), &frames, false).await;
    damage(folder.path(), |file| {
        let place = place_of(&frames[1].1, file);
        file[place + 500] ^= 1;
    });
    let relay = expect_the_second_is_passed_over(folder.path(), &frames).await;
    eventually("it is counted", async || {
        metric(&relay, "relay_blobs_lost_total").await == 1.0
    })
    .await;
    assert_eq!(metric(&relay, "relay_blobs_stored").await, 3.0);
    expect_the_second_can_be_sent_again(&relay, &frames).await;
    let log = log_of(relay).await;
    assert!(log.contains("did not match their checksum"), "{log}");
}

#[tokio::test]
async fn a_blob_on_damaged_pages_is_set_aside_and_touches_nobody_else() {
    // Bodies beyond a page lie in a chain of pages; each begins with the number of the next one.
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(3 * PAGE_BYTES);
    taken(folder.path(), &frames, false).await;
    damage(folder.path(), |file| {
        let middle = &frames[1].1[PAGE_BYTES + 100..PAGE_BYTES + 600];
        let place = place_of(middle, file);
        let page = place / PAGE_BYTES * PAGE_BYTES;
        file[page..page + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    });
    let relay = expect_the_second_is_passed_over(folder.path(), &frames).await;
    eventually("it is counted", async || {
        metric(&relay, "relay_blobs_lost_total").await == 1.0
    })
    .await;
    expect_the_second_can_be_sent_again(&relay, &frames).await;
    log_of(relay).await;
}

/// Starts the relay, which must end by itself; the line that it ends with.
async fn refused(folder: &Path) -> String {
    let (code, _, log) = run(&mut command(folder)).await;
    assert_eq!(code, Some(1), "{log}");
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    errors[0].to_owned()
}

#[tokio::test]
async fn a_truncated_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    taken(folder.path(), &frames(3 * PAGE_BYTES), false).await;
    damage(folder.path(), |file| file.truncate(file.len() / 2));
    let before = fs::read(folder.path().join(DATABASE_FILE)).unwrap();
    let line = refused(folder.path()).await;
    assert!(
        line.contains("relay.db: database disk image is malformed"),
        "{line}"
    );
    assert!(line.contains("restore it from a backup"), "{line}");
    assert!(before == fs::read(folder.path().join(DATABASE_FILE)).unwrap());
}

#[tokio::test]
async fn a_database_with_a_garbage_header_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    taken(folder.path(), &frames(100), false).await;
    damage(folder.path(), |file| file[..100].fill(0x5A));
    let before = fs::read(folder.path().join(DATABASE_FILE)).unwrap();
    let line = refused(folder.path()).await;
    assert!(line.contains("relay.db: file is not a database"), "{line}");
    assert!(line.contains("restore it from a backup"), "{line}");
    assert!(before == fs::read(folder.path().join(DATABASE_FILE)).unwrap());
}

#[tokio::test]
async fn a_log_that_is_garbage_is_refused_because_it_held_what_was_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    taken(folder.path(), &frames(100), true).await;
    let log = folder.path().join(format!("{DATABASE_FILE}-wal"));
    let length = fs::metadata(&log).unwrap().len();
    fs::write(&log, vec![0x5A; usize::try_from(length).unwrap()]).unwrap();
    let line = refused(folder.path()).await;
    assert!(line.contains("relay.db-wal"), "{line}");
    assert_eq!(fs::metadata(&log).unwrap().len(), length, "left alone");

    // As the line says: without it the relay starts with what had reached the database.
    fs::remove_file(&log).unwrap();
    Process::start(folder.path()).await.kill().await;
}
