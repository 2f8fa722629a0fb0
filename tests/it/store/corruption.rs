//! Damage to the files of a relay that is stopped: what is damaged is never delivered and never
//! taken for what it was; what is whole goes on; and what cannot go on says so in one line.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use vauchi_relay::config::Config;
use vauchi_relay::ids::MailboxId;
use vauchi_relay::secrets::Secret;
use vauchi_relay::store::sqlite::DATABASE_FILE;

use crate::harness::{Peer, Relay, http_get, id, update, value_of};
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

/// Stores these frames, of 1,000 bytes each.
async fn stored_frames(relay: &Relay) -> Vec<(Value, Vec<u8>)> {
    let frames = frames(1_000);
    let mut sender = relay.client(&id(1)).await;
    for (frame, _) in &frames {
        sender.send(frame).await;
        let name = frame["message_id"].as_str().unwrap();
        sender.expect_stored(name).await;
    }
    frames
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

/// Moves what a relay that is stopped has left in its log into the database: a page that is in the log, too,
/// would be read from there.
fn empty_the_log(database: &Path) {
    let options = SqliteConnectOptions::new().filename(database);
    let emptied = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let mut connection = options.connect().await.unwrap();
            let checkpoint = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)");
            checkpoint.execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    });
    emptied.join().unwrap();
}

/// Changes the database of a relay that is stopped.
fn damage(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join(DATABASE_FILE);
    empty_the_log(&path);
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

/// It is counted and kept.
async fn expect_the_second_is_kept(relay: &Process) {
    assert_eq!(metric(relay, "relay_blobs_quarantined").await, 1.0);
    assert_eq!(metric(relay, "relay_blobs_lost_total").await, 0.0);
    assert_eq!(metric(relay, "relay_blobs_stored").await, 4.0);
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
async fn a_flipped_bit_quarantines_its_blob_and_touches_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(1_000);
    taken(folder.path(), &frames, false).await;
    damage(folder.path(), |file| {
        let place = place_of(&frames[1].1, file);
        file[place + 500] ^= 1;
    });
    let relay = expect_the_second_is_passed_over(folder.path(), &frames).await;
    expect_the_second_is_kept(&relay).await;
    let log = log_of(relay).await;
    assert!(log.contains("do not match their checksum"), "{log}");
}

/// Damaged at first, whole again while the relay runs: memory that was wrong for a while, or a disk that
/// gave back something else. A session that had passed it gets it all the same.
#[tokio::test]
async fn a_blob_that_is_whole_again_comes_on_the_subscription_that_was_open() {
    let relay = Relay::start(&[]).await;
    let frames = stored_frames(&relay).await;
    let folder = relay.folder.as_ref().unwrap().path().to_owned();
    let mut place = 0;
    let relay = relay
        .restart_after(
            || {
                damage(&folder, |file| {
                    place = place_of(&frames[1].1, file) + 500;
                    file[place] ^= 1;
                });
            },
            |config| config.look_again_every = Duration::from_secs(2),
        )
        .await;
    let mut recipient = relay.client(&id(2)).await;
    // Not acknowledged yet: that would write their page, which is the damaged one, to the log.
    for number in [0, 2] {
        assert!(recipient.delivery().await.blob == frames[number].1);
    }
    relay.metric_becomes("relay_blobs_quarantined", 1.0).await;
    let database = fs::File::options()
        .read(true)
        .write(true)
        .open(folder.join(DATABASE_FILE))
        .unwrap();
    let mut byte = [0];
    database.read_exact_at(&mut byte, place as u64).unwrap();
    database.write_all_at(&[byte[0] ^ 1], place as u64).unwrap();
    // And once more what lies behind it, in order.
    for number in [1, 2] {
        let delivery = recipient.delivery().await;
        assert!(delivery.blob == frames[number].1);
        recipient.acknowledge(&delivery.id).await;
    }
    relay.metric_becomes("relay_blobs_stored", 2.0).await;
    assert_eq!(relay.metric("relay_blobs_quarantined").await, 0.0);
    assert_eq!(relay.metric("relay_blobs_lost_total").await, 0.0);
    relay.stop().await;
}

/// The leaf pages of indexes, each with where it begins.
fn index_leaves(file: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let pages = file.chunks(PAGE_BYTES).enumerate();
    let pages = pages.map(|(number, page)| (number * PAGE_BYTES, page));
    pages.filter(|(_, page)| page[0] == 0x0A)
}

/// One wrong bit in the entry of a blob in the index of mailboxes: its row is whole, and no page ever
/// found it.
#[tokio::test]
async fn a_flipped_bit_in_an_index_costs_no_blob() {
    let relay = Relay::start(&[]).await;
    let frames = stored_frames(&relay).await;
    let folder = relay.folder.as_ref().unwrap().path().to_owned();
    let flip = || {
        let secret = Secret::load(&folder.join("relay.secret")).unwrap();
        let mailbox = secret.mailbox(&MailboxId::parse(&id(2)).unwrap());
        // The entry of the second row of the table: the first bits of its mailbox, and its key.
        let entry = [&mailbox.as_bytes()[..8], &[2]].concat();
        damage(&folder, |file| {
            let place = index_leaves(file).find_map(|(begins, page)| {
                let at = page.windows(9).position(|window| window == entry)?;
                Some(begins + at)
            });
            let place = place.expect("it is there");
            // Set, not cleared: a search stops at an entry that is too large, and takes one along that is too
            // small. The first byte has the sign.
            let at = (place + 1..place + 8).find(|at| file[*at] != 0xFF).unwrap();
            file[at] |= !file[at] & (file[at] + 1);
        });
    };
    let relay = relay.restart_after(flip, |_| {}).await;
    // Until the scrub comes by nobody knows of it. Those beside it may be hidden, too.
    let mut recipient = relay.client(&id(2)).await;
    let come = async {
        loop {
            assert!(recipient.delivery().await.blob != frames[1].1);
        }
    };
    let come = tokio::time::timeout(Duration::from_secs(1), come).await;
    assert!(come.is_err());
    let scrubs = |config: &mut Config| config.scrub_rest = Duration::from_millis(100);
    let relay = relay.restart_after(|| {}, scrubs).await;
    let mut recipient = relay.client(&id(2)).await;
    let mut came = HashSet::new();
    while came.len() < 3 {
        let delivery = recipient.delivery().await;
        let number = frames.iter().position(|(_, blob)| *blob == delivery.blob);
        came.insert(number.unwrap());
        recipient.acknowledge(&delivery.id).await;
    }
    relay.metric_becomes("relay_blobs_stored", 1.0).await;
    assert_eq!(relay.metric("relay_index_rebuilds_total").await, 1.0);
    assert_eq!(relay.metric("relay_blobs_lost_total").await, 0.0);
    relay.stop().await;
}

#[tokio::test]
async fn a_blob_on_damaged_pages_is_quarantined_and_touches_nobody_else() {
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
    expect_the_second_is_kept(&relay).await;
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
