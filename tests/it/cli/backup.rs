//! Backup beside a relay that serves, verify, restore: the real binary, the real socket, and what
//! comes out of the restored relay.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sqlx::Connection as _;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::harness::{PATIENCE, Peer, eventually, http_get, id, update};
use crate::process::{Process, command, run, shell};
use crate::store::disks::Mount;

const SENDERS: usize = 8;
const MAILBOXES: usize = 200;

/// A relay's folder, and a folder for backups.
struct Place {
    data: tempfile::TempDir,
    backups: tempfile::TempDir,
}

type Ended = (Option<i32>, String, String);

impl Place {
    fn new() -> Self {
        Self {
            data: tempfile::tempdir().unwrap(),
            backups: tempfile::tempdir().unwrap(),
        }
    }

    fn data(&self) -> &Path {
        self.data.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.backups.path().join(name)
    }

    /// Runs the binary with these arguments on this relay's folder.
    async fn run(&self, command_and_file: (&str, &Path)) -> Ended {
        on(self.data(), command_and_file).await
    }

    /// Backs up into a file of this name.
    async fn backup(&self, name: &str) -> PathBuf {
        let file = self.file(name);
        let (code, _, errors) = self.run(("backup", &file)).await;
        assert_eq!(code, Some(0), "{errors}");
        assert!(
            errors.contains("the backup contains the relay's secret"),
            "{errors}"
        );
        file
    }

    /// What is in both folders and should not be: folders for what is half done.
    fn left_behind(&self) -> Vec<PathBuf> {
        [self.data(), self.backups.path()]
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().as_encoded_bytes()[0] == b'.')
            .collect()
    }
}

async fn on(data_dir: &Path, (word, file): (&str, &Path)) -> Ended {
    run(command(data_dir).arg(word).arg(file)).await
}

async fn client(relay: &Process, id: &str) -> Peer {
    let mut peer = Peer::connect(relay.clients).await;
    peer.handshake(json!({ "client_id": id })).await;
    peer
}

async fn stop(relay: Process) {
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert!(status.success(), "{log}");
}

/// A relay takes these blobs for the mailbox 2.
async fn with_blobs(place: &Place, blobs: &[&[u8]]) -> Process {
    let relay = Process::start(place.data()).await;
    let mut sender = client(&relay, &id(1)).await;
    for blob in blobs {
        sender.store(&id(2), blob).await;
    }
    relay
}

/// A relay with so many MiB in blobs of 64 KiB.
async fn with_mebibytes(place: &Place, mebibytes: usize) -> Process {
    let relay = Process::start(place.data()).await;
    let mut sender = client(&relay, &id(1)).await;
    for number in 0..mebibytes * 16 {
        let mut blob = number.to_be_bytes().to_vec();
        blob.resize(64 << 10, 7);
        sender.store(&mailbox_id(number % MAILBOXES), &blob).await;
    }
    relay
}

/// The relay that starts in `folder` delivers these to the mailbox 2, and nothing else.
async fn expect_delivered(folder: &Path, blobs: &[&[u8]]) {
    let relay = Process::start(folder).await;
    let mut recipient = client(&relay, &id(2)).await;
    for blob in blobs {
        assert_eq!(recipient.delivery().await.blob, *blob);
    }
    recipient.expect_silence().await;
    stop(relay).await;
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mailbox_id(number: usize) -> String {
    format!("{number:064x}")
}

/// Senders at full speed: what was confirmed so far, and an end to it.
struct Senders {
    confirmed: Arc<Mutex<Vec<usize>>>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn blob(number: usize) -> Vec<u8> {
    let mut blob = number.to_be_bytes().to_vec();
    blob.resize(4_096, (number % 251) as u8);
    blob
}

impl Senders {
    fn start(address: SocketAddr) -> Self {
        let confirmed = Arc::<Mutex<Vec<usize>>>::default();
        let is_over = Arc::<AtomicBool>::default();
        let tasks = (0..SENDERS)
            .map(|sender| {
                let (confirmed, is_over) = (Arc::clone(&confirmed), Arc::clone(&is_over));
                tokio::spawn(async move {
                    let mut peer = Peer::connect(address).await;
                    let own = mailbox_id(MAILBOXES + sender);
                    peer.handshake(json!({ "client_id": own })).await;
                    let mut numbers = (sender..).step_by(SENDERS);
                    while !is_over.load(Ordering::Relaxed) {
                        let number = numbers.next().unwrap();
                        let name = format!("33333333-3333-4333-8333-{number:012}");
                        let to = mailbox_id(number % MAILBOXES);
                        peer.send(&update(&name, &to, &blob(number))).await;
                        peer.expect_stored(&name).await;
                        confirmed.lock().await.push(number);
                    }
                })
            })
            .collect();
        Self {
            confirmed,
            is_over,
            tasks,
        }
    }

    async fn count(&self) -> usize {
        self.confirmed.lock().await.len()
    }

    async fn have_confirmed(&self, count: usize) {
        eventually("senders get on", async || self.count().await >= count).await;
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_before_a_backup_began_is_delivered_by_the_restored_relay() {
    let place = Place::new();
    let relay = Process::start(place.data()).await;
    let senders = Senders::start(relay.clients);
    senders.have_confirmed(1_000).await;

    let expected: Vec<usize> = senders.confirmed.lock().await.clone();
    let (began, ready) = (expected.len(), AtomicBool::new(true));
    let backup = place.file("a.tar");
    let is_done = AtomicBool::new(false);
    let backing_up = async {
        place.backup("a.tar").await;
        is_done.store(true, Ordering::Relaxed);
    };
    let asking = async {
        while !is_done.load(Ordering::Relaxed) {
            let (status, _) = http_get(relay.operators, "/ready", &[]).await;
            ready.fetch_and(status == 200, Ordering::Relaxed);
        }
    };
    tokio::join!(backing_up, asking);
    assert!(ready.load(Ordering::Relaxed), "ready all the while");
    let stored_meanwhile = senders.count().await - began;
    assert!(stored_meanwhile > 0, "senders went on");
    // And they still do.
    senders.have_confirmed(began + stored_meanwhile + 100).await;
    senders.end().await;
    relay.kill().await;
    assert_eq!(place.left_behind(), Vec::<PathBuf>::new());

    let (code, _, errors) = place.run(("verify", &backup)).await;
    assert_eq!(code, Some(0), "{errors}");
    let restored = Place::new();
    let (code, _, errors) = restored.run(("restore", &backup)).await;
    assert_eq!(code, Some(0), "{errors}");
    let relay = Process::start(restored.data()).await;
    let mut missing: HashMap<usize, HashSet<Vec<u8>>> = HashMap::new();
    for number in expected {
        let mailbox = missing.entry(number % MAILBOXES).or_default();
        mailbox.insert(blob(number));
    }
    for (mailbox, mut blobs) in missing {
        let mut recipient = client(&relay, &mailbox_id(mailbox)).await;
        while !blobs.is_empty() {
            // What was stored while the backup began may come, too.
            let delivery = recipient.delivery().await;
            blobs.remove(&delivery.blob);
            recipient.acknowledge(&delivery.id).await;
        }
    }
}

#[tokio::test]
async fn an_empty_relay_is_backed_up_and_restored() {
    let place = Place::new();
    let relay = Process::start(place.data()).await;
    let backup = place.backup("empty.tar").await;
    stop(relay).await;
    // Of a relay that is stopped, too.
    let second = place.backup("stopped.tar").await;
    for backup in [backup, second] {
        let restored = Place::new();
        let (code, _, errors) = restored.run(("restore", &backup)).await;
        assert_eq!(code, Some(0), "{errors}");
        let secret = |place: &Place| fs::read(place.data().join("relay.secret")).unwrap();
        assert_eq!(secret(&restored), secret(&place));
        expect_delivered(restored.data(), &[]).await;
    }
}

#[tokio::test]
async fn a_relay_that_was_killed_is_backed_up_with_what_is_in_its_log() {
    let place = Place::new();
    with_blobs(&place, &[b"in the log"]).await.kill().await;
    let backup = place.backup("a.tar").await;
    let restored = Place::new();
    let (code, ..) = restored.run(("restore", &backup)).await;
    assert_eq!(code, Some(0));
    expect_delivered(restored.data(), &[b"in the log"]).await;
    expect_delivered(place.data(), &[b"in the log"]).await;
}

#[tokio::test]
async fn the_file_is_private_and_opens_with_the_tools_of_every_system() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let file = place.backup("a.tar").await;
    assert_eq!(mode(&file), 0o600);

    // A folder in place of a file: the name is the time, and is told on standard output.
    let (code, output, errors) = place.run(("backup", place.backups.path())).await;
    assert_eq!(code, Some(0), "{errors}");
    let named = Path::new(output.trim());
    assert_eq!(mode(named), 0o600);
    let name = named.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("vauchi-relay-2") && name.ends_with("Z.tar"));

    // It says in its first bytes what it is, without any tool.
    let beginning = fs::read(&file).unwrap();
    let beginning = String::from_utf8_lossy(&beginning[512..1_536]).into_owned();
    assert!(beginning.contains("KEEP IT AS SAFE AS THE RELAY ITSELF"));

    let sh = |script: &str| {
        let output = std::process::Command::new("sh")
            .args(["-ec", script])
            .current_dir(place.backups.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = sh("mkdir x && tar -xf a.tar -C x && ls x && cat x/manifest.json");
    assert!(listed.contains("checksums.b3\nmanifest.json\nrelay.db\nrelay.secret\n"));
    assert!(listed.contains("\"blobs\": 1"));
    assert_eq!(
        fs::read(place.file("x/relay.secret")).unwrap(),
        fs::read(place.data().join("relay.secret")).unwrap()
    );
    if std::process::Command::new("sqlite3")
        .arg("-version")
        .output()
        .is_ok()
    {
        let counted =
            sh("sqlite3 -readonly x/relay.db 'SELECT count(*) FROM blob; PRAGMA integrity_check'");
        assert_eq!(counted, "1\nok\n");
    }
    // Packed again by hand it is a backup still.
    sh("tar -cf again.tar -C x .");
    let (code, _, errors) = place.run(("verify", &place.file("again.tar"))).await;
    assert_eq!(code, Some(0), "{errors}");
    stop(relay).await;
}

#[tokio::test]
async fn a_backup_goes_through_pipes_and_back() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let file = place.file("piped.tar");
    let script = "\"$0\" backup - | cat > \"$1\"";
    let (code, _, errors) = run(shell(script, place.data()).arg(&file)).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("to standard output"), "{errors}");
    for word in ["verify", "restore"] {
        let restored = Place::new();
        let mut with_stdin = command(restored.data());
        with_stdin
            .args([word, "-"])
            .stdin(fs::File::open(&file).unwrap());
        let (code, _, errors) = run(&mut with_stdin).await;
        assert_eq!(code, Some(0), "{errors}");
        if word == "restore" {
            expect_delivered(restored.data(), &[b"hello"]).await;
        }
    }
    stop(relay).await;
}

/// Where a file of the archive has its header, and where its bytes are.
fn parts(archive: &Path) -> Vec<(String, usize, usize, usize)> {
    let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
    let entries = tar.entries().unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let at = |place: u64| usize::try_from(place).unwrap();
            (
                name,
                at(entry.raw_header_position()),
                at(entry.raw_file_position()),
                at(entry.size()),
            )
        })
        .collect()
}

#[tokio::test]
async fn one_changed_byte_anywhere_is_noticed_and_nothing_is_restored() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello", b"there"]).await;
    let file = place.backup("a.tar").await;
    stop(relay).await;
    let whole = fs::read(&file).unwrap();
    let parts = parts(&file);
    assert_eq!(parts.len(), 4);
    let bad = place.file("bad.tar");
    let restored = Place::new();
    for (name, header, bytes, length) in parts {
        let header_bytes = [0, 100, 124, 136, 152, 156, 257].map(|at| header + at);
        let content = [0, length / 3, length - 1].map(|at| bytes + at);
        for at in header_bytes.into_iter().chain(content) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&bad, changed).unwrap();
            let (code, _, errors) = place.run(("verify", &bad)).await;
            assert_eq!(code, Some(1), "{name} {at}: {errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
        let (code, _, errors) = restored.run(("restore", &bad)).await;
        assert_eq!(code, Some(1), "{name}: {errors}");
        assert_eq!(names_in(restored.data()), ["relay.lock"], "{name}");
    }
    assert_eq!(place.left_behind(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_archive_that_was_cut_off_is_noticed() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let file = place.backup("a.tar").await;
    stop(relay).await;
    let whole = fs::read(&file).unwrap();
    let cut = place.file("cut.tar");
    let lengths = [
        1,
        100,
        512,
        1_000,
        4_096,
        whole.len() / 2,
        whole.len() - 1_600,
    ];
    let near_the_end = [whole.len() - 1_024, whole.len() - 512, whole.len() - 1];
    for length in lengths.into_iter().chain(near_the_end) {
        fs::write(&cut, &whole[..length]).unwrap();
        let (code, _, errors) = place.run(("verify", &cut)).await;
        assert_eq!(code, Some(1), "{length}: {errors}");
        if length > 512 {
            assert!(
                errors.contains("incomplete: the file ends too early"),
                "{length}: {errors}"
            );
        }
    }
    fs::write(&cut, b"").unwrap();
    let (code, _, errors) = place.run(("verify", &cut)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("not a vauchi-relay backup"), "{errors}");
    // Something that was put behind it.
    fs::write(&cut, [&whole[..], b"more"].concat()).unwrap();
    let (code, _, errors) = place.run(("verify", &cut)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("there is data after its end"), "{errors}");
}

#[tokio::test]
async fn nothing_is_ever_overwritten() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let file = place.backup("a.tar").await;
    let before = fs::read(&file).unwrap();
    let (code, _, errors) = place.run(("backup", &file)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("already exists"), "{errors}");
    assert!(fs::read(&file).unwrap() == before);

    // A relay runs in it.
    let (code, _, errors) = place.run(("restore", &file)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("another relay is using"), "{errors}");
    stop(relay).await;

    // Each file of a database is in the way, and is named.
    let database = fs::read(place.data().join("relay.db")).unwrap();
    let (code, _, errors) = place.run(("restore", &file)).await;
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("move it away: ") && errors.contains("relay.db"),
        "{errors}"
    );
    assert!(fs::read(place.data().join("relay.db")).unwrap() == database);
    for end in ["-wal", "-shm", "-journal"] {
        let other = Place::new();
        let name = format!("relay.db{end}");
        fs::write(other.data().join(&name), "x").unwrap();
        let (code, _, errors) = other.run(("restore", &file)).await;
        assert_eq!(code, Some(1));
        assert!(errors.contains(&name), "{errors}");
        assert_eq!(names_in(other.data()), [name.as_str(), "relay.lock"]);
    }

    // With the database moved away its own secret is not in the way.
    fs::rename(place.data().join("relay.db"), place.file("old.db")).unwrap();
    for end in ["-wal", "-shm"] {
        fs::remove_file(place.data().join(format!("relay.db{end}"))).ok();
    }
    let (code, _, errors) = place.run(("restore", &file)).await;
    assert_eq!(code, Some(0), "{errors}");
    expect_delivered(place.data(), &[b"hello"]).await;
}

#[tokio::test]
async fn a_wrong_secret_is_noticed_wherever_it_is() {
    let place = Place::new();
    let secret = place.file("secret");
    let wrong = place.file("wrong");
    fs::write(&secret, "11".repeat(32)).unwrap();
    fs::write(&wrong, "22".repeat(32)).unwrap();
    for path in [&secret, &wrong] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let with = |data: &Path, secret: &Path| {
        let mut command = command(data);
        command.env("RELAY_SECRET_FILE", secret);
        command
    };
    let relay = Process::spawn(&mut with(place.data(), &secret)).await;
    let mut sender = client(&relay, &id(1)).await;
    sender.store(&id(2), b"hello").await;
    sender.leave().await;
    let file = place.file("a.tar");

    // Backing up: another one, and none.
    let (code, _, errors) = run(with(place.data(), &wrong).arg("backup").arg(&file)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("a different secret"), "{errors}");
    let (code, _, errors) = place.run(("backup", &file)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("RELAY_SECRET_FILE"), "{errors}");
    assert!(!file.exists());
    let (code, _, errors) = run(with(place.data(), &secret).arg("backup").arg(&file)).await;
    assert_eq!(code, Some(0), "{errors}");
    stop(relay).await;

    // Restoring: another one, in either place.
    let restored = Place::new();
    let (code, _, errors) = run(with(restored.data(), &wrong).arg("restore").arg(&file)).await;
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("differs from the backup's secret"),
        "{errors}"
    );
    assert_eq!(names_in(restored.data()), ["relay.lock"]);
    fs::copy(&wrong, restored.data().join("relay.secret")).unwrap();
    let (code, _, errors) = restored.run(("restore", &file)).await;
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("differs from the backup's secret"),
        "{errors}"
    );
    assert_eq!(names_in(restored.data()), ["relay.lock", "relay.secret"]);
    fs::remove_file(restored.data().join("relay.secret")).unwrap();

    // The right one stays where it is.
    let (code, _, errors) = run(with(restored.data(), &secret).arg("restore").arg(&file)).await;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(names_in(restored.data()), ["relay.db", "relay.lock"]);
    let relay = Process::spawn(&mut with(restored.data(), &secret)).await;
    let mut recipient = client(&relay, &id(2)).await;
    assert_eq!(recipient.delivery().await.blob, b"hello");
    stop(relay).await;

    // And without the setting the one of the backup is written.
    let restored = Place::new();
    let (code, _, errors) = restored.run(("restore", &file)).await;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(mode(&restored.data().join("relay.secret")), 0o600);
    assert_eq!(mode(&restored.data().join("relay.db")), 0o600);
    expect_delivered(restored.data(), &[b"hello"]).await;

    // An archive whose secret is not that of its database, every checksum right.
    let forged = place.file("forged.tar");
    forge(&file, &forged, &fs::read(&wrong).unwrap());
    let (code, _, errors) = place.run(("verify", &forged)).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("with a different secret"), "{errors}");
}

/// The same archive with another secret.
fn forge(from: &Path, to: &Path, secret: &[u8]) {
    let mut archive = tar::Archive::new(fs::File::open(from).unwrap());
    let mut forged = tar::Builder::new(fs::File::create(to).unwrap());
    let mut sums = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        match name.as_str() {
            "relay.secret" => bytes = secret.to_vec(),
            "checksums.b3" => bytes = sums.clone().into_bytes(),
            _ => {}
        }
        sums += &format!("{}  {name}\n", blake3::hash(&bytes).to_hex());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        forged.append_data(&mut header, &name, &bytes[..]).unwrap();
    }
    forged.finish().unwrap();
}

/// A backup that has to wait in the middle, because nobody takes what it writes.
async fn stuck(place: &Place) -> Child {
    let child = command(place.data()).args(["backup", "-"]).spawn().unwrap();
    eventually("the database is copied", async || {
        let copies = place.left_behind();
        let copy = copies.first().map(|folder| folder.join("relay.db"));
        copy.is_some_and(|copy| copy.metadata().is_ok_and(|copy| copy.len() > 2 << 20))
    })
    .await;
    child
}

#[tokio::test]
async fn a_backup_that_is_killed_harms_nobody_and_what_it_left_is_named_by_the_next_one() {
    let place = Place::new();
    let relay = with_mebibytes(&place, 4).await;
    let mut child = stuck(&place).await;
    child.kill().await.unwrap();
    let left = place.left_behind();
    assert_eq!(left.len(), 1, "a kill leaves something");
    let files = names_in(&left[0]);
    assert_eq!(files[..2], ["UNFINISHED", "relay.db"]);

    let mut sender = client(&relay, &id(1)).await;
    sender.store(&id(2), b"after the kill").await;
    let (status, _) = http_get(relay.operators, "/ready", &[]).await;
    assert_eq!(status, 200);
    let mut with_pipe = command(place.data());
    with_pipe.args(["backup", "-"]).stdout(Stdio::null());
    let ended = with_pipe.spawn().unwrap().wait_with_output();
    let ended = ended.await.unwrap();
    assert!(ended.status.success());
    let errors = String::from_utf8(ended.stderr).unwrap();
    let told = format!("warning: {} was left behind by", left[0].display());
    assert_eq!(errors.matches(&told).count(), 1, "{errors}");
    assert!(errors.contains("delete it\n"), "{errors}");
    assert_eq!(place.left_behind(), left, "and is the operator's to delete");
    assert_eq!(names_in(&left[0]), files);

    // Into a file: whenever the kill comes, there is a whole file or none.
    for attempt in 0..10 {
        let file = place.file(&format!("{attempt}.tar"));
        let left = place.left_behind().len();
        let mut child = command(place.data())
            .arg("backup")
            .arg(&file)
            .spawn()
            .unwrap();
        let mut looks = 0;
        eventually("it has begun", async || {
            looks += 1;
            place.left_behind().len() > left || file.exists() || looks > 1_000
        })
        .await;
        for _ in 0..attempt * 50 {
            tokio::task::yield_now().await;
        }
        child.kill().await.unwrap();
        if file.exists() {
            let (code, _, errors) = place.run(("verify", &file)).await;
            assert_eq!(code, Some(0), "{errors}");
        }
    }
    sender.store(&id(2), b"after ten kills").await;
    stop(relay).await;
    expect_delivered(place.data(), &[b"after the kill", b"after ten kills"]).await;
}

#[tokio::test]
async fn a_signal_ends_a_backup_and_nothing_is_left_behind() {
    let place = Place::new();
    let relay = with_mebibytes(&place, 4).await;
    for signal in ["INT", "TERM"] {
        let mut child = stuck(&place).await;
        let pid = child.id().unwrap().to_string();
        let mut kill = std::process::Command::new("kill");
        assert!(kill.args(["-s", signal, &pid]).status().unwrap().success());
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap();
        assert_eq!(status.unwrap().code(), Some(1));
        let mut errors = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut errors).await.unwrap();
        assert!(errors.contains("interrupted"), "{errors}");
        assert_eq!(place.left_behind(), Vec::<PathBuf>::new());
    }
    // Whoever read the pipe went away.
    let mut child = stuck(&place).await;
    drop(child.stdout.take());
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap();
    assert_eq!(status.unwrap().code(), Some(1));
    assert_eq!(place.left_behind(), Vec::<PathBuf>::new());
    stop(relay).await;
}

/// The copy is made first and the log is free from then on: a slow pipe does not make it grow.
#[tokio::test]
async fn a_backup_that_nobody_takes_does_not_hold_the_log() {
    let place = Place::new();
    let relay = with_mebibytes(&place, 4).await;
    let mut child = stuck(&place).await;
    let mut sender = client(&relay, &id(1)).await;
    let blob = vec![9; 200 << 10];
    // Two and a half times what the log holds before it is moved into the database.
    for number in 0..200 {
        sender.store(&mailbox_id(number % MAILBOXES), &blob).await;
    }
    let log = fs::metadata(place.data().join("relay.db-wal"))
        .unwrap()
        .len();
    assert!(log < 32 << 20, "the log has {} MiB", log >> 20);
    child.kill().await.unwrap();
    stop(relay).await;
}

/// A reader as a backup is one, in the middle of its copy.
#[tokio::test]
async fn a_relay_stops_at_once_while_it_is_copied() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.data().join("relay.db"))
        .read_only(true);
    let mut reader = sqlx::sqlite::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let mut copying = reader.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM blob")
        .fetch_one(&mut *copying)
        .await
        .unwrap();
    let mut sender = client(&relay, &id(1)).await;
    sender.store(&id(2), b"there").await;
    sender.leave().await;
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert!(status.success(), "{log}");
    assert!(!log.contains("did not close in time"), "{log}");
    drop(copying);
    reader.close().await.unwrap();
    expect_delivered(place.data(), &[b"hello", b"there"]).await;
}

#[tokio::test]
async fn without_room_a_backup_says_so_first_and_a_failing_write_leaves_nothing() {
    let place = Place::new();
    let relay = with_mebibytes(&place, 4).await;
    // Half-way no write goes through any more: 2 MiB, in blocks of 512 bytes.
    let file = place.file("a.tar");
    let script = "trap '' XFSZ; ulimit -f 4096 && exec \"$0\" backup \"$1\"";
    let mut limited = shell(script, place.data());
    limited.arg(&file);
    let (code, _, errors) = run(&mut limited).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(!file.exists());
    assert_eq!(place.left_behind(), Vec::<PathBuf>::new());

    if let Some(disk) = Mount::tmpfs(6) {
        let (code, _, errors) = place.run(("backup", &disk.path().join("a.tar"))).await;
        assert_eq!(code, Some(1));
        assert!(
            errors.contains("are free, but the backup needs"),
            "{errors}"
        );
        assert!(names_in(disk.path()).is_empty());
        // A backup that is there, and no room to unpack it.
        let file = place.backup("b.tar").await;
        let mut verify = command(place.data());
        verify
            .arg("verify")
            .arg(&file)
            .arg("--temp-dir")
            .arg(disk.path());
        let (code, _, errors) = run(&mut verify).await;
        assert_eq!(code, Some(1));
        assert!(errors.contains("free disk space"), "{errors}");
        let (code, _, errors) = on(disk.path(), ("restore", &file)).await;
        assert_eq!(code, Some(1));
        assert!(errors.contains("free disk space"), "{errors}");
        assert_eq!(names_in(disk.path()), ["relay.lock"]);
    }
    let mut sender = client(&relay, &id(1)).await;
    sender.store(&id(2), b"after all that").await;
    stop(relay).await;
}

#[tokio::test]
async fn damage_on_the_relays_disk_is_told_and_does_not_keep_the_rest_from_being_restored() {
    let place = Place::new();
    let bodies: [Vec<u8>; 3] = [1, 2, 3].map(|number| {
        let mut body = vec![0; 1_000];
        blake3::Hasher::new()
            .update(&[number])
            .finalize_xof()
            .fill(&mut body);
        body
    });
    let all: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    stop(with_blobs(&place, &all).await).await;
    let path = place.data().join("relay.db");
    let mut database = fs::read(&path).unwrap();
    let at = database
        .windows(1_000)
        .position(|window| window == all[1])
        .unwrap();
    database[at + 500] ^= 1;
    fs::write(&path, database).unwrap();

    let file = place.backup("a.tar").await;
    let (code, _, errors) = place.run(("verify", &file)).await;
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("1 of 3 blobs do not match their checksum"),
        "{errors}"
    );
    let restored = Place::new();
    let (code, _, errors) = restored.run(("restore", &file)).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("warning: 1 of 3 blobs"), "{errors}");
    expect_delivered(restored.data(), &[all[0], all[2]]).await;
}

#[tokio::test]
async fn root_restores_for_the_owner_of_the_folder() {
    let place = Place::new();
    let relay = with_blobs(&place, &[b"hello"]).await;
    let file = place.backup("a.tar").await;
    stop(relay).await;
    let restored = Place::new();
    if std::os::unix::fs::chown(restored.data(), Some(1_000), Some(1_000)).is_err() {
        return;
    }
    let (code, _, errors) = restored.run(("restore", &file)).await;
    assert_eq!(code, Some(0), "{errors}");
    for name in ["relay.db", "relay.secret", "relay.lock"] {
        let metadata = fs::metadata(restored.data().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1_000, 1_000), "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_backed_up_is_refused_in_a_line() {
    let place = Place::new();
    let file = place.file("a.tar");
    let refused = async |command: &mut tokio::process::Command, code: i32, words: &str| {
        let (ended, _, errors) = run(command).await;
        assert_eq!(ended, Some(code), "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(!file.exists());
    };
    // No relay was ever here.
    let backup = || {
        let mut command = command(place.data());
        command.arg("backup").arg(&file);
        command
    };
    refused(&mut backup(), 1, "there is no relay's database here").await;
    refused(backup().env("RELAY_STORAGE_BACKEND", "memory"), 1, "memory").await;
    refused(
        backup().env("RELAY_MAX_CONNECTIONS", "many"),
        2,
        "RELAY_MAX_CONNECTIONS",
    )
    .await;
    refused(
        command(place.data()).args(["backup", "--verify", "-"]),
        2,
        "--verify",
    )
    .await;
    let nowhere = place.file("nowhere/a.tar");
    let missing = place.file("missing");
    refused(
        &mut restore(&missing, &file),
        1,
        "must name an existing folder",
    )
    .await;
    refused(&mut restore(place.data(), &file), 1, "No such file").await;
    stop(Process::start(place.data()).await).await;
    refused(
        command(place.data()).arg("backup").arg(&nowhere),
        1,
        "No such file",
    )
    .await;
    fs::write(place.file("text"), "hello\n").unwrap();
    refused(
        command(place.data()).arg("verify").arg(place.file("text")),
        1,
        "not a vauchi-relay backup",
    )
    .await;
}

fn restore(to: &Path, file: &Path) -> tokio::process::Command {
    let mut command = command(to);
    command.arg("restore").arg(file);
    command
}
