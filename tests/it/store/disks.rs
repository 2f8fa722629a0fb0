//! The real relay on a disk that is full, or that fails to write: on file systems of its own, which
//! only the superuser may mount. Whoever is not skips these tests, loudly.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use crate::harness::{Peer, eventually, http_get, id, update, value_of};
use crate::process::{Process, command, command_after};

const MIB: u64 = 1 << 20;

/// A mounted file system; unmounted when it is dropped.
pub(crate) struct Mount {
    folder: tempfile::TempDir,
    is_mounted: bool,
}

impl Mount {
    /// `mount` with these arguments and a new folder; `None`, and a line that says why, when this
    /// user may not.
    fn new(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        match shell("mount", arguments, Some(folder.path())) {
            Ok(()) => Some(Self {
                folder,
                is_mounted: true,
            }),
            Err(why) => {
                skipped(&why);
                None
            }
        }
    }

    /// A disk in memory of this size.
    pub(crate) fn tmpfs(mib: u64) -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
    }

    /// A disk in memory for this many files, folders and names.
    pub(crate) fn tmpfs_of_files(files: u32) -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", &format!("nr_inodes={files}"), "tmpfs"])
    }

    /// A disk in memory of this size that can hold only so many files.
    fn tmpfs_with_inodes(mib: u64, inodes: u64) -> Option<Self> {
        let options = format!("size={mib}m,nr_inodes={inodes}");
        Self::new(&["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Writes a file that leaves only so many bytes free.
    fn fill(&self, leave_bytes: u64) -> Filler {
        self.fill_as("filler", leave_bytes)
    }

    fn fill_as(&self, name: &str, leave_bytes: u64) -> Filler {
        let path = self.path().join(name);
        let mut file = File::create(&path).unwrap();
        let zeros = vec![0; 64 << 10];
        while let more @ 1.. = self.free_bytes().saturating_sub(leave_bytes) {
            let more = usize::try_from(more).unwrap().min(zeros.len());
            if file.write_all(&zeros[..more]).is_err() {
                break;
            }
        }
        Filler(path)
    }

    /// As [`Mount::fill`], in a file that is there, so that it takes no inode.
    fn fill_over(&self, file: &Filler) -> Filler {
        let name = file.0.file_name().unwrap().to_str().unwrap().to_owned();
        self.fill_as(&name, 0)
    }

    /// Makes empty files until no other can be made.
    fn fill_inodes(&self) -> Vec<Filler> {
        let names = (0..).map(|number| self.path().join(format!("empty-{number}")));
        let made = names.take_while(|path| File::create(path).is_ok());
        made.map(Filler).collect()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        // Lazily, so that a relay that a failed test has left behind does not keep it.
        if let Err(why) = shell("umount", &["-l"], Some(self.folder.path())) {
            say(&format!("cannot unmount {}: {why}", self.path().display()));
        }
    }
}

/// A file that fills a disk.
struct Filler(PathBuf);

impl Filler {
    /// Space returns.
    fn delete(self) {
        fs::remove_file(self.0).unwrap();
    }
}

/// Runs a program of the system; what it says when it fails.
fn shell(program: &str, arguments: &[&str], path: Option<&Path>) -> Result<(), String> {
    let output = Command::new(program).args(arguments).args(path).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.trim()))
}

fn skipped(why: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    say(&format!(
        "SKIPPED {test}: it needs a disk of its own: {why}"
    ));
}

/// Past the test runner, which swallows what tests that pass print.
fn say(line: &str) {
    let mut stderr = std::io::stderr();
    stderr.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A client that numbers its blobs and keeps account of what was answered `Stored`.
struct Sender {
    peer: Peer,
    number: u32,
    stored: Vec<Vec<u8>>,
}

impl Sender {
    async fn connect(relay: &Process) -> Self {
        Self {
            peer: client(relay, 1).await,
            number: 0,
            stored: Vec::new(),
        }
    }

    /// A blob for the mailbox 2 that is like no other.
    fn blob(&mut self, bytes: usize) -> (Value, Vec<u8>) {
        self.number += 1;
        let mut blob = self.number.to_be_bytes().to_vec();
        blob.resize(bytes, 7);
        let name = format!("blob {}", self.number);
        (update(&name, &id(2), &blob), blob)
    }

    /// Sends a frame and returns the payload of its answer.
    async fn answer(&mut self, frame: &Value) -> Value {
        self.peer.send(frame).await;
        let answer = self.peer.receive().await["payload"].take();
        assert_eq!(answer["message_id"], frame["message_id"]);
        answer
    }

    /// Sends one blob: `None` when it is stored, else the refusal's code and its frame.
    async fn try_store(&mut self, bytes: usize) -> Option<(String, Value)> {
        let (frame, blob) = self.blob(bytes);
        let answer = self.answer(&frame).await;
        if answer["status"] == "Stored" {
            self.stored.push(blob);
            return None;
        }
        Some((answer["error"].as_str().unwrap().to_owned(), frame))
    }

    async fn store(&mut self, bytes: usize) {
        let refused = self.try_store(bytes).await;
        assert!(refused.is_none(), "{:?}", refused.unwrap().0);
    }

    /// Sends blobs until one is refused; the code and the frame of that one.
    async fn store_until_refused(&mut self, bytes: usize) -> (String, Value) {
        loop {
            if let Some(refused) = self.try_store(bytes).await {
                return refused;
            }
        }
    }

    /// Repeats a refused frame until it is stored. `code` is the only answer before that.
    async fn repeat_until_stored(&mut self, frame: &Value, codes: &[&str]) {
        eventually("the repeat is stored", async || {
            let answer = self.answer(frame).await;
            let code = answer["error"].as_str();
            assert!(code.is_none_or(|code| codes.contains(&code)), "{answer}");
            answer["status"] == "Stored"
        })
        .await;
        let blob = frame["payload"]["ciphertext"].clone();
        self.stored.push(serde_json::from_value(blob).unwrap());
    }
}

async fn client(relay: &Process, byte: u8) -> Peer {
    let mut peer = Peer::connect(relay.clients).await;
    peer.handshake(json!({ "client_id": id(byte) })).await;
    peer
}

/// Everything in the mailbox 2, which is exactly what was confirmed, in order.
async fn expect_all(relay: &Process, stored: &[Vec<u8>]) {
    let mut recipient = client(relay, 2).await;
    for blob in stored {
        let delivery = recipient.delivery().await;
        assert!(
            delivery.blob == *blob,
            "another blob: {:?}, not {:?}",
            &delivery.blob[..4],
            &blob[..4]
        );
    }
    recipient.expect_silence().await;
}

/// After kill -9, when the system has forgotten what it held of the disk.
async fn expect_all_from_the_disk(relay: Process, disk: HollowDisk, stored: &[Vec<u8>]) {
    relay.kill().await;
    let disk = disk.mounted_again();
    let relay = Process::start(disk.mount.path()).await;
    expect_all(&relay, stored).await;
    relay.kill().await;
}

/// The recipient of the mailbox 2 acknowledges the first blob.
async fn acknowledge_first(relay: &Process, stored: &mut Vec<Vec<u8>>) {
    let mut recipient = client(relay, 2).await;
    let first = recipient.delivery().await;
    assert!(first.blob == stored[0]);
    let before = metric(relay, "relay_blobs_acknowledged_total").await;
    recipient.acknowledge(&first.id).await;
    eventually("the acknowledgement is done", async || {
        metric(relay, "relay_blobs_acknowledged_total").await == before + 1.0
    })
    .await;
    stored.remove(0);
}

/// The recipient of the mailbox 2 acknowledges everything.
async fn acknowledge_all(relay: &Process, stored: &mut Vec<Vec<u8>>) {
    let mut recipient = client(relay, 2).await;
    for blob in stored.drain(..) {
        let delivery = recipient.delivery().await;
        assert!(delivery.blob == blob);
        recipient.acknowledge(&delivery.id).await;
    }
    eventually("nothing is kept", async || {
        metric(relay, "relay_blobs_stored").await == 0.0
    })
    .await;
}

async fn metric(relay: &Process, series: &str) -> f64 {
    let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
    value_of(&scrape, series).unwrap_or_default()
}

async fn status(relay: &Process, path: &str) -> (u16, String) {
    http_get(relay.operators, path, &[]).await
}

#[tokio::test]
async fn below_the_free_space_that_is_kept_blobs_are_refused_and_the_rest_goes_on() {
    // What is kept free must hold the log that grows before the disk is looked at again.
    let Some(disk) = Mount::tmpfs(64) else { return };
    let on_disk = || {
        let mut command = command(disk.path());
        command.env("RELAY_MIN_FREE_BYTES", (32 * MIB).to_string());
        command
    };
    let relay = Process::spawn(&mut on_disk()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..3 {
        sender.store(1_000).await;
    }
    let filler = disk.fill(32 * MIB - 1);
    // The disk is looked at once a second.
    let mut refused = None;
    eventually("a blob is refused", async || {
        refused = sender.try_store(100).await;
        refused.is_some()
    })
    .await;
    let (code, refused) = refused.unwrap();
    assert_eq!(code, "relay_full");
    let answer = sender.answer(&refused).await;
    assert_eq!(answer["error"], "relay_full");
    assert_eq!(answer["retry_after_ms"], 60_000);

    // It delivers, which is what makes room: so it is ready, and stays where clients find it.
    acknowledge_first(&relay, &mut sender.stored).await;
    for path in ["/health", "/ready"] {
        let (status, body) = status(&relay, path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }

    // A kill in the middle of it; the next one starts, refuses and delivers likewise.
    relay.kill().await;
    let relay = Process::spawn(&mut on_disk()).await;
    sender.peer = client(&relay, 1).await;
    assert_eq!(sender.answer(&refused).await["error"], "relay_full");
    expect_all(&relay, &sender.stored).await;
    acknowledge_first(&relay, &mut sender.stored).await;

    filler.delete();
    sender.repeat_until_stored(&refused, &["relay_full"]).await;
    expect_all(&relay, &sender.stored).await;
    relay.kill().await;
    let relay = Process::spawn(&mut on_disk()).await;
    expect_all(&relay, &sender.stored).await;
}

#[tokio::test]
async fn a_disk_without_any_space_costs_no_confirmed_blob_and_recovers_by_itself() {
    let Some(disk) = Mount::tmpfs(32) else { return };
    let relay = Process::start(disk.path()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..3 {
        sender.store(1_000).await;
    }
    let filler = disk.fill(2 * MIB);
    let (code, refused) = sender.store_until_refused(64 << 10).await;
    assert_eq!(code, "relay_full", "SQLite found the disk full");
    assert!(sender.stored.len() > 3, "some fitted");
    // What is kept for deletions is not for new blobs, however small they are.
    for bytes in [8 << 10, 100] {
        let (code, _) = sender.store_until_refused(bytes).await;
        assert_eq!(code, "relay_full");
    }
    acknowledge_first(&relay, &mut sender.stored).await;
    assert_eq!(status(&relay, "/ready").await.0, 200);
    // Somebody else takes what the relay gave up to go on deleting.
    let neighbour = disk.fill_as("neighbour", 0);
    let free = disk.free_bytes();
    assert!(free < 64 << 10, "{free} bytes are free");
    expect_all(&relay, &sender.stored).await;
    assert_eq!(status(&relay, "/health").await.0, 200);
    // As long as the log has room for the smallest write the relay is ready: deletions may go on,
    // and they make room. When not even that is written, it is not, and says why.
    let (status_code, body) = status(&relay, "/ready").await;
    assert!(status_code == 200 || body.contains("full"), "{body}");

    // A kill in the middle of it. What the relay needs to start is there already.
    relay.kill().await;
    let relay = Process::start(disk.path()).await;
    sender.peer = client(&relay, 1).await;
    expect_all(&relay, &sender.stored).await;
    assert_eq!(sender.answer(&refused).await["error"], "relay_full");
    // An acknowledgement may find no room; then the blob comes again.
    let mut recipient = client(&relay, 2).await;
    let first = recipient.delivery().await;
    recipient.acknowledge(&first.id).await;
    recipient.leave().await;

    filler.delete();
    neighbour.delete();
    sender.repeat_until_stored(&refused, &["relay_full"]).await;
    eventually("/ready says yes", async || {
        status(&relay, "/ready").await.0 == 200
    })
    .await;
    if metric(&relay, "relay_blobs_acknowledged_total").await == 1.0 {
        sender.stored.remove(0);
    }
    acknowledge_first(&relay, &mut sender.stored).await;
    sender.store(1_000).await;
    relay.kill().await;
    let relay = Process::start(disk.path()).await;
    expect_all(&relay, &sender.stored).await;
}

/// The log and its shared memory are two files that a start makes: there was neither an inode nor a byte
/// for them, and the relay ended with what SQLite calls a disk I/O error.
#[tokio::test]
async fn a_start_on_a_disk_without_a_byte_or_an_inode_serves_what_waits() {
    let Some(disk) = Mount::tmpfs_with_inodes(48, 24) else {
        return;
    };
    let relay = Process::start(disk.path()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..3 {
        sender.store(1_000).await;
    }
    relay.signal("TERM").await;
    relay.ended().await;
    let fillers = disk.fill_inodes();
    let filler = disk.fill_over(&fillers[0]);
    assert_eq!(disk.free_bytes(), 0);

    let relay = Process::start(disk.path()).await;
    sender.peer = client(&relay, 1).await;
    assert_eq!(sender.try_store(100).await.unwrap().0, "relay_full");
    expect_all(&relay, &sender.stored).await;
    acknowledge_first(&relay, &mut sender.stored).await;
    assert_eq!(status(&relay, "/ready").await.0, 200);
    // The next start finds it as full as this one did.
    relay.signal("TERM").await;
    relay.ended().await;
    let relay = Process::start(disk.path()).await;
    sender.peer = client(&relay, 1).await;
    acknowledge_first(&relay, &mut sender.stored).await;

    filler.delete();
    fillers.into_iter().skip(1).for_each(Filler::delete);
    let (frame, _) = sender.blob(1_000);
    sender.repeat_until_stored(&frame, &["relay_full"]).await;
    expect_all(&relay, &sender.stored).await;
}

/// Blobs that were acknowledged left their pages in the database, and only the disk was asked for room:
/// on a small disk 225 acknowledged blobs made room for none.
#[tokio::test]
async fn what_was_acknowledged_makes_room_on_a_disk_that_the_database_fills() {
    let Some(disk) = Mount::tmpfs(80) else { return };
    let mut command = command(disk.path());
    command.env("RELAY_MIN_FREE_BYTES", (40 * MIB).to_string());
    let relay = Process::spawn(&mut command).await;
    let mut sender = Sender::connect(&relay).await;
    let (code, refused) = sender.store_until_refused(64 << 10).await;
    assert_eq!(code, "relay_full");
    acknowledge_all(&relay, &mut sender.stored).await;
    assert!(disk.free_bytes() < 40 * MIB, "the disk has no more room");
    sender.repeat_until_stored(&refused, &["relay_full"]).await;
    expect_all(&relay, &sender.stored).await;
}

/// The signal that comes with a write beyond the limit ended the relay, and again at each start.
#[tokio::test]
async fn at_a_limit_on_the_size_of_files_blobs_are_refused_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |bytes: u64| {
        let before = format!("prlimit --pid $$ --fsize={bytes}");
        command_after(&before, folder.path())
    };
    let relay = Process::spawn(&mut limited(24 * MIB)).await;
    let mut sender = Sender::connect(&relay).await;
    let (code, refused) = sender.store_until_refused(64 << 10).await;
    assert_eq!(code, "relay_full");
    assert!(sender.stored.len() > 100, "some fitted");
    expect_all(&relay, &sender.stored).await;
    acknowledge_first(&relay, &mut sender.stored).await;
    assert_eq!(status(&relay, "/ready").await.0, 200);

    // A limit below what is there already, as after a new line in a unit. Nothing can be written then.
    relay.kill().await;
    let relay = Process::spawn(&mut limited(4 * MIB)).await;
    sender.peer = client(&relay, 1).await;
    assert!(sender.answer(&refused).await["error"].is_string());
    expect_all(&relay, &sender.stored).await;

    relay.kill().await;
    let relay = Process::spawn(&mut limited(24 * MIB)).await;
    sender.peer = client(&relay, 1).await;
    acknowledge_all(&relay, &mut sender.stored).await;
    sender.repeat_until_stored(&refused, &["relay_full"]).await;
    expect_all(&relay, &sender.stored).await;
}

/// A file system whose disk has holes: blocks that were never written need space elsewhere, and when
/// there is none, writing them fails late, at the fsync.
struct HollowDisk {
    /// In this order: what is dropped first is unmounted first.
    mount: Mount,
    ground: Mount,
}

impl HollowDisk {
    fn new() -> Option<Self> {
        let ground = Mount::tmpfs(144)?;
        let image = ground.path().join("image");
        File::create(&image).unwrap().set_len(128 * MIB).unwrap();
        // Without a journal, which would give up for good at the first failed write.
        let options = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-O",
            "^has_journal",
            "-E",
            "nodiscard",
        ];
        if let Err(why) = shell("mkfs.ext4", &options, Some(&image)) {
            skipped(&why);
            return None;
        }
        Self::place_tables(&image);
        let mount = Self::mount(&image)?;
        Some(Self { mount, ground })
    }

    /// Has the first 25 blocks stand on the ground: the file system's own first tables, and the two blocks
    /// behind them that it takes for the list of a file's pieces when there are many. Otherwise one of
    /// these may be lost when it is written, which no fsync tells, and a file cannot be read after the next
    /// mount. More must not stand there, or a small write to a file finds room as well.
    fn place_tables(image: &Path) {
        let image = File::options().read(true).write(true).open(image).unwrap();
        let mut tables = vec![0; 25 * 4_096];
        image.read_exact_at(&mut tables, 0).unwrap();
        image.write_all_at(&tables, 0).unwrap();
    }

    /// Each page is written by itself: the loop device takes a write that finds space for its first
    /// page and for no other as done, and would lie about the rest.
    fn mount(image: &Path) -> Option<Mount> {
        let mount = Mount::new(&["-o", "loop", &image.display().to_string()])?;
        let queue = Path::new("/sys/block")
            .join(loop_device(image)?)
            .join("queue");
        if let Err(error) = fs::write(queue.join("max_sectors_kb"), "4") {
            skipped(&format!("max_sectors_kb: {error}"));
            return None;
        }
        Some(mount)
    }

    /// As after a power cut: what is only in memory is gone.
    fn mounted_again(self) -> Self {
        let Self { mut mount, ground } = self;
        shell("umount", &[], Some(mount.path())).unwrap();
        mount.is_mounted = false;
        let mount = Self::mount(&ground.path().join("image")).unwrap();
        Self { mount, ground }
    }
}

/// The name of the loop device over this file.
fn loop_device(image: &Path) -> Option<String> {
    fs::read_dir("/sys/block").unwrap().find_map(|device| {
        let device = device.unwrap();
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end()) == image).then(|| device.file_name().into_string().unwrap())
    })
}

#[tokio::test]
async fn a_failed_fsync_ends_the_handle_and_confirms_nothing_that_is_not_on_the_disk() {
    let Some(disk) = HollowDisk::new() else {
        return;
    };
    let relay = Process::start(disk.mount.path()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..3 {
        sender.store(1_000).await;
    }
    // What there is has its place, SQLite's shared memory too; what comes has none.
    shell("sync", &["-f"], Some(disk.mount.path())).unwrap();
    let filler = disk.ground.fill(0);
    // What is refused now was refused by a failed fsync: the file system has space.
    let (code, refused) = sender.store_until_refused(64 << 10).await;
    assert_eq!(code, "unavailable");
    assert!(disk.mount.free_bytes() > 20 * MIB);
    let (status_code, body) = status(&relay, "/ready").await;
    assert_eq!(status_code, 503, "{body}");
    assert_eq!(metric(&relay, "relay_store_up").await, 0.0);
    assert_eq!(status(&relay, "/health").await.0, 200);
    assert_eq!(sender.answer(&refused).await["error"], "unavailable");
    expect_all(&relay, &sender.stored).await;

    filler.delete();
    eventually("/ready says yes", async || {
        status(&relay, "/ready").await.0 == 200
    })
    .await;
    assert_eq!(metric(&relay, "relay_store_up").await, 1.0);
    assert!(metric(&relay, "relay_store_reopened_total").await >= 1.0);
    sender.repeat_until_stored(&refused, &[]).await;
    sender.store(1_000).await;
    expect_all(&relay, &sender.stored).await;
    expect_all_from_the_disk(relay, disk, &sender.stored).await;
}

/// Reopening waited for whoever was reading an older state: a backup that was stopped, a shell.
#[tokio::test]
async fn a_failed_fsync_is_got_over_while_somebody_reads() {
    let Some(disk) = HollowDisk::new() else {
        return;
    };
    let relay = Process::start(disk.mount.path()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..3 {
        sender.store(1_000).await;
    }
    let reader = SqliteConnectOptions::new()
        .filename(disk.mount.path().join("relay.db"))
        .read_only(true);
    let mut reader = reader.connect().await.unwrap();
    sqlx::query("BEGIN").execute(&mut reader).await.unwrap();
    let count = async |reader: &mut SqliteConnection| {
        let row = sqlx::query("SELECT count(*) FROM blob");
        let row = row.fetch_one(reader).await.unwrap();
        row.get::<i64, _>(0)
    };
    assert_eq!(count(&mut reader).await, 3);
    sender.store(1_000).await;

    shell("sync", &["-f"], Some(disk.mount.path())).unwrap();
    let filler = disk.ground.fill(0);
    let (code, refused) = sender.store_until_refused(64 << 10).await;
    assert_eq!(code, "unavailable");
    assert_eq!(status(&relay, "/ready").await.0, 503);
    filler.delete();
    eventually("/ready says yes", async || {
        status(&relay, "/ready").await.0 == 200
    })
    .await;
    sender.repeat_until_stored(&refused, &[]).await;
    sender.store(1_000).await;
    expect_all(&relay, &sender.stored).await;
    assert_eq!(count(&mut reader).await, 3, "the reader sees what it saw");
    reader.close().await.unwrap();

    expect_all_from_the_disk(relay, disk, &sender.stored).await;
}

/// SQLite moves its log into the database by itself, keeps a failed fsync of that to itself, and tries
/// again. The file system says then that all is well, and after a power cut the database has holes.
#[tokio::test]
async fn a_log_that_could_not_be_moved_loses_nothing_when_it_is_moved_later() {
    let Some(disk) = HollowDisk::new() else {
        return;
    };
    let relay = Process::start(disk.mount.path()).await;
    let mut sender = Sender::connect(&relay).await;
    // The log has its place on the disk, and is moved.
    let log = disk.mount.path().join("relay.db-wal");
    while fs::metadata(&log).unwrap().len() < 5 * MIB {
        sender.store(64 << 10).await;
    }
    for _ in 0..16 {
        sender.store(64 << 10).await;
    }
    shell("sync", &["-f"], Some(disk.mount.path())).unwrap();
    let filler = disk.ground.fill(0);
    // There is no place where the database would grow.
    let (_, refused) = sender.store_until_refused(64 << 10).await;
    filler.delete();
    sender.repeat_until_stored(&refused, &["unavailable"]).await;
    // As much again as goes into the log.
    for _ in 0..300 {
        sender.store(64 << 10).await;
    }
    expect_all(&relay, &sender.stored).await;
    expect_all_from_the_disk(relay, disk, &sender.stored).await;
}

/// A file system whose disk can lose its end, and get it back as it was.
struct SickDisk {
    /// In this order: what is dropped first is unmounted first.
    mount: Mount,
    ground: Mount,
}

impl SickDisk {
    fn new() -> Option<Self> {
        let ground = Mount::tmpfs(160)?;
        let image = ground.path().join("image");
        File::create(&image).unwrap().set_len(64 * MIB).unwrap();
        if let Err(why) = shell("mkfs.ext4", &["-q", "-F"], Some(&image)) {
            skipped(&why);
            return None;
        }
        let mount = Mount::new(&["-o", "loop", &image.display().to_string()])?;
        Some(Self { mount, ground })
    }

    /// From now on the second half of this file cannot be read (EIO), and the system does not remember
    /// what it has read before. It comes back with [`Healthy::heal`].
    fn fall_sick(&self, file: &str) -> Healthy {
        shell("sync", &["-f"], Some(self.mount.path())).unwrap();
        let file = self.mount.path().join(file);
        let blocks = fs::metadata(&file).unwrap().len() / 4_096;
        let place = physical_block(&file, blocks / 2) * 4_096;
        let path = self.ground.path().join("image");
        let bytes = fs::read(&path).unwrap();
        let image = File::options().write(true).open(&path).unwrap();
        image.set_len(place).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        assert!(fs::read(&file).is_err(), "it can still be read");
        Healthy {
            image,
            place,
            rest: bytes[usize::try_from(place).unwrap()..].to_vec(),
        }
    }
}

/// Where a block of a file lies on its disk, as `filefrag -v` (of e2fsprogs, as is mkfs.ext4) has it:
/// `0:        0..    1023:      33792..     34815:   1024:`.
fn physical_block(file: &Path, block: u64) -> u64 {
    let output = Command::new("filefrag")
        .args(["-b4096", "-v"])
        .arg(file)
        .output()
        .unwrap();
    let extents = String::from_utf8(output.stdout).unwrap();
    let place = extents.lines().find_map(|line| {
        let numbers = line.split([':', '.']).map(str::trim);
        let numbers = numbers.filter(|word| !word.is_empty());
        let numbers: Vec<u64> = numbers.map_while(|word| word.parse().ok()).collect();
        let [_, first, last, physical, ..] = numbers[..] else {
            return None;
        };
        (first..=last)
            .contains(&block)
            .then(|| physical + block - first)
    });
    place.unwrap_or_else(|| panic!("no extent has block {block}:\n{extents}"))
}

/// What a sick disk does not give back for now.
struct Healthy {
    image: File,
    place: u64,
    rest: Vec<u8>,
}

impl Healthy {
    fn heal(&self) {
        self.image.write_all_at(&self.rest, self.place).unwrap();
    }
}

/// SQLite tells a failed read by the code of a damaged page. Blobs that could not be read for some
/// seconds were taken for damaged and deleted: 129 of 1,500, which the disk had whole.
#[tokio::test]
async fn a_disk_that_cannot_be_read_for_a_while_costs_no_blob_and_no_place_in_the_order() {
    let Some(disk) = SickDisk::new() else {
        return;
    };
    let relay = Process::start(disk.mount.path()).await;
    let mut sender = Sender::connect(&relay).await;
    for _ in 0..150 {
        sender.store(24 << 10).await;
    }
    relay.signal("TERM").await;
    relay.ended().await;
    // Nothing of it is in a cache, and nothing is written while the disk is sick.
    let relay = Process::start(disk.mount.path()).await;
    let sick = disk.fall_sick("relay.db");
    let mut recipient = client(&relay, 2).await;
    let received = AtomicUsize::new(0);
    let receive = async {
        for blob in &sender.stored {
            assert!(recipient.delivery().await.blob == *blob);
            received.fetch_add(1, Ordering::SeqCst);
        }
    };
    let recover = async {
        eventually("/ready says no, and why", async || {
            let (code, body) = status(&relay, "/ready").await;
            code == 503 && body.contains("read errors")
        })
        .await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(received.load(Ordering::SeqCst) < sender.stored.len());
        assert_eq!(metric(&relay, "relay_blobs_quarantined").await, 0.0);
        sick.heal();
    };
    tokio::join!(receive, recover);
    assert_eq!(metric(&relay, "relay_blobs_lost_total").await, 0.0);
    eventually("/ready says yes", async || {
        status(&relay, "/ready").await.0 == 200
    })
    .await;
    relay.kill().await;
}
