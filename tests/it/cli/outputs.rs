//! Where commands write: outputs that are full, closed, or read by nobody, and what programs read there.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

use crate::cli::v2::{cli, lines, try_cli};
use crate::harness::{PATIENCE, Relay, eventually, id};
use crate::process::{Process, command, run, shell};
use crate::store::disks::Mount;

type Ended = (Option<i32>, String, String);

/// A relay, and a folder with a key `mine.key`, a sent blob in `sent.json`, and a backup of another relay.
struct Place {
    relay: Relay,
    folder: tempfile::TempDir,
    address: String,
}

impl Place {
    async fn new() -> Self {
        let relay = Relay::start(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let address = cli(&relay, folder.path(), &["keygen", "mine.key"]).await;
        let address = address.trim().to_owned();
        let send = ["send", "--to", &address, "--text", "waits", "--json"];
        let sent = cli(&relay, folder.path(), &send).await;
        fs::write(folder.path().join("sent.json"), sent).unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        let another = Process::start(&folder.path().join("data")).await;
        another.signal("TERM").await;
        assert!(another.ended().await.0.success());
        Self {
            relay,
            folder,
            address,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the binary with these words, where the shell has sent its outputs somewhere.
    async fn run(&self, outputs: &str, words: &[&str]) -> Ended {
        let mut shell = shell(&format!("exec \"$0\" \"$@\" {outputs}"), &self.path("data"));
        let url = format!("ws://{}", self.relay.running.clients);
        let words = words.iter().map(|word| match *word {
            "URL" => url.as_str(),
            "ADDRESS" => self.address.as_str(),
            word => word,
        });
        run(shell.args(words).current_dir(self.folder.path())).await
    }

    /// Unfinished files.
    fn left_behind(&self) -> Vec<PathBuf> {
        hidden_in(self.folder.path())
            .chain(hidden_in(&self.path("data")))
            .collect()
    }
}

fn hidden_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().as_encoded_bytes()[0] == b'.')
}

const SEND: &[&str] = &["send", "--relay", "URL", "--to", "ADDRESS", "--text", "x"];

/// Each command that answers on standard output. Their order matters: what one leaves the next may need.
fn answering() -> Vec<Vec<&'static str>> {
    let hash = "ab00000000000000000000000000000000000000000000000000000000000000";
    let with = |words: &[&'static str], more: &[&'static str]| [words, more].concat();
    vec![
        vec!["keygen", "new.key"],
        vec!["keygen", "--show", "--json", "mine.key"],
        SEND.to_vec(),
        with(SEND, &["--json"]),
        with(&SEND[..3], &["--to", hash, "--v1", "--text", "x"]),
        vec!["extend", "--relay", "URL", "--ttl", "1h", "sent.json"],
        vec!["receive", "--relay", "URL", "--key", "mine.key"],
        SEND.to_vec(),
        vec!["receive", "--relay", "URL", "--key", "mine.key", "--json"],
        vec!["receive", "--relay", "URL", "--mailbox", hash],
        vec!["cancel", "--relay", "URL", "sent.json"],
        vec!["unpin", "--relay", "URL", "--key", "mine.key"],
        vec![
            "recovery",
            "put",
            "--relay",
            "URL",
            "--key",
            "mine.key",
            hash,
            "sent.json",
        ],
        vec!["recovery", "get", "--relay", "URL", hash],
        vec!["purge", "--relay", "URL", "--key", "mine.key"],
        vec!["backup", "backup.tar"],
    ]
}

/// Each command whose answer is for reading.
const READING: &[&[&str]] = &[
    &["--help"],
    &["--version"],
    &["send", "--help"],
    &["help", "receive"],
    &["check"],
    &["check", "--json"],
    &["man"],
    &["completions", "bash"],
];

#[tokio::test]
async fn an_answer_that_cannot_be_written_is_a_failure_and_a_second_try_works() {
    let place = Place::new().await;
    for words in answering() {
        let (code, _, errors) = place.run("> /dev/full", &words).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("standard output"), "{words:?}: {errors}");
        assert!(!errors.contains("panicked"), "{words:?}: {errors}");
        assert_eq!(place.left_behind(), [""; 0].map(PathBuf::from), "{words:?}");
        if words[0] == "backup" && words[1] != "-" {
            assert!(errors.contains("is complete"), "{errors}");
            fs::remove_file(place.path(words[1])).unwrap();
        }
        let (code, said, errors) = place.run("", &words).await;
        assert_eq!(code, Some(0), "{words:?}: {errors}");
        assert!(!said.is_empty(), "{words:?}");
    }
    let (code, _, errors) = place.run("> /dev/full", &["backup", "-"]).await;
    assert!(
        code == Some(1) && errors.contains("standard output"),
        "{errors}"
    );
    let (code, _, errors) = place.run("> whole.tar", &["backup", "-"]).await;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(place.left_behind(), [""; 0].map(PathBuf::from));
}

#[tokio::test]
async fn what_is_for_reading_fails_on_a_full_disk_and_not_because_somebody_has_read_enough() {
    let place = Place::new().await;
    for words in READING {
        let (code, _, errors) = place.run("> /dev/full", words).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("standard output"), "{words:?}: {errors}");
        let mut command = command(&place.path("data"));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command.args(*words).stdout(writer).spawn().unwrap();
        let status = child.wait().await.unwrap();
        assert_eq!(status.code(), Some(0), "{words:?}");
    }
}

#[tokio::test]
async fn notes_that_cannot_be_written_stop_no_command() {
    let place = Place::new().await;
    fs::create_dir(place.path("restored")).unwrap();
    let commands = answering().into_iter().chain([
        vec!["verify", "backup.tar"],
        vec!["restore", "backup.tar", "--to", "restored"],
        vec!["check"],
    ]);
    for words in commands {
        let (code, ..) = place.run("2> /dev/full", &words).await;
        assert_eq!(code, Some(0), "{words:?}");
    }
    // And one that fails says so by its code.
    let (code, ..) = place.run("2> /dev/full", &["verify", "sent.json"]).await;
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn a_relay_whose_log_cannot_be_written_serves() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let clients = relay.clients.to_string();
    relay.signal("TERM").await;
    assert!(relay.ended().await.0.success());
    let mut shell = shell("exec \"$0\" 2> /dev/full", folder.path());
    let mut relay = shell.env("RELAY_LISTEN_ADDR", &clients).spawn().unwrap();
    eventually("it serves", async || {
        let url = format!("ws://{clients}");
        let words = [
            "send",
            "--v1",
            "--to",
            &id(1),
            "--text",
            "x",
            "--relay",
            &url,
        ];
        run(command(folder.path()).args(words)).await.0 == Some(0)
    })
    .await;
    terminate(&relay).await;
    assert_eq!(relay.wait().await.unwrap().code(), Some(0));
}

/// A pipe holds 64 KiB. Once, a relay whose log went into one that nobody read stopped in the middle of its
/// next lines: it served nobody, and SIGTERM did not end it.
#[tokio::test]
async fn a_relay_whose_log_nobody_reads_serves_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let clients = relay.clients.to_string();
    relay.signal("TERM").await;
    assert!(relay.ended().await.0.success());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut filler = never_waiting(&writer);
    fill(&mut filler);
    let mut relay = command(folder.path())
        .env("RELAY_LISTEN_ADDR", &clients)
        .env("RUST_LOG", "vauchi_relay=debug")
        .stderr(writer)
        .spawn()
        .unwrap();
    let url = format!("ws://{clients}");
    let words = [
        "send",
        "--v1",
        "--to",
        &id(1),
        "--text",
        "x",
        "--relay",
        &url,
    ];
    for _ in 0..3 {
        eventually("it serves", async || {
            run(command(folder.path()).args(words)).await.0 == Some(0)
        })
        .await;
    }
    let reading = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        while !log.contains("lines of this log were dropped") {
            let mut piece = [0; 4096];
            let read = reader.read(&mut piece).unwrap();
            log.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        reader
    });
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let _reader = read.expect("it says so").unwrap();
    fill(&mut filler);
    terminate(&relay).await;
    let ended = tokio::time::timeout(PATIENCE, relay.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
}

/// Another way into the pipe: the one that the relay gets waits, as a supervisor's does.
fn never_waiting(pipe: &std::io::PipeWriter) -> fs::File {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let at_once = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .custom_flags(at_once)
        .open(path)
        .unwrap()
}

fn fill(pipe: &mut fs::File) {
    while pipe.write(&[b'.'; 64]).is_ok() {}
}

async fn terminate(child: &Child) {
    let process = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &process]).status();
    assert!(kill.await.unwrap().success());
}

/// A `receive` whose output nobody has read yet.
async fn unread(place: &Place, words: &[&str]) -> (Child, ChildStdout) {
    let url = format!("ws://{}", place.relay.running.clients);
    let mut child = command(place.folder.path())
        .args(["receive", "--relay", &url])
        .args(words)
        .current_dir(place.folder.path())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    eventually("it has written", async || {
        rustix::io::ioctl_fionread(&output).unwrap() > 0
    })
    .await;
    (child, output)
}

async fn code_of(mut child: Child) -> (Option<i32>, String) {
    let mut errors = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let ending = async {
        stderr.read_to_string(&mut errors).await.unwrap();
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, ending)
        .await
        .expect("it ends");
    (status.code(), errors)
}

/// A pipe holds 64 KiB. They were acknowledged, and lost with the program that should have read them.
#[tokio::test]
async fn a_blob_that_is_still_in_the_pipe_is_not_acknowledged() {
    let place = Place::new().await;
    let v1 = id(7);
    let to_v1 = ["send", "--to", &v1, "--text", "waits"];
    cli(&place.relay, place.folder.path(), &to_v1).await;
    let stored = || place.relay.running.store.usage().stored;
    for words in [
        &["--key", "mine.key"][..],
        &["--key", "mine.key", "--json"],
        &["--mailbox", &v1],
        &["--mailbox", &v1, "--json"],
    ] {
        let before = stored();
        let (child, output) = unread(&place, words).await;
        drop(output);
        let (code, errors) = code_of(child).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("not acknowledged"), "{words:?}: {errors}");
        assert_eq!(stored(), before, "{words:?}");

        let (child, output) = unread(&place, words).await;
        interrupt(&child).await;
        let (code, errors) = code_of(child).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert_eq!(stored(), before, "{words:?}");
        drop(output);
    }
    for words in [&["--key", "mine.key"][..], &["--mailbox", &v1]] {
        let before = stored();
        let (child, mut output) = unread(&place, words).await;
        let mut read = String::new();
        output.read_to_string(&mut read).await.unwrap();
        assert_eq!((read.as_str(), code_of(child).await.0), ("waits", Some(0)));
        assert_eq!(stored(), before - 1, "{words:?}");
    }
}

/// The folder for unfinished files is there before the connection is.
#[tokio::test]
async fn who_is_interrupted_while_it_connects_leaves_nothing_behind() {
    let place = Place::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let hash = id(9);
    for words in [
        &["receive", "--mailbox", &hash][..],
        &["receive", "--key", "mine.key"],
        &["recovery", "get", &hash],
    ] {
        let child = command(place.folder.path())
            .args(words)
            .args(["--relay", &url, "--out", "came"])
            .current_dir(place.folder.path())
            .spawn()
            .unwrap();
        let connection = tokio::time::timeout(PATIENCE, silent.accept()).await;
        let _connection = connection.expect("it connects").unwrap();
        assert_eq!(hidden_in(&place.path("came")).count(), 1, "{words:?}");
        interrupt(&child).await;
        let (code, errors) = code_of(child).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("interrupted"), "{words:?}: {errors}");
        assert_eq!(hidden_in(&place.path("came")).count(), 0, "{words:?}");
    }
}

async fn interrupt(child: &Child) {
    let mut kill = Command::new("kill");
    let process = child.id().unwrap().to_string();
    let killed = kill.args(["-INT", &process]).status().await.unwrap();
    assert!(killed.success());
}

#[tokio::test]
async fn a_restore_that_fails_half_way_leaves_nothing_and_the_next_works() {
    let place = Place::new().await;
    let backup = ["backup", "backup.tar"];
    assert_eq!(place.run("", &backup).await.0, Some(0));
    for files in 2..40 {
        let Some(disk) = Mount::tmpfs_of_files(files) else {
            return;
        };
        let to = disk.path().to_str().unwrap();
        let words = ["restore", "backup.tar", "--to", to];
        let (code, _, errors) = place.run("", &words).await;
        let there = |name: &str| disk.path().join(name).exists();
        if code == Some(0) {
            assert!(there("relay.db") && there("relay.secret"), "{files}");
            assert!(files > 6, "disks that are too small were tried: {files}");
            return;
        }
        assert!(!errors.contains("panicked"), "{files}: {errors}");
        assert!(
            !there("relay.db") && !there("relay.secret"),
            "{files}: {errors}"
        );
        assert_eq!(hidden_in(disk.path()).count(), 0, "{files}: {errors}");
    }
    panic!("40 files are enough");
}

fn is_error(line: &Value, code: &str, retry_after: Value) {
    let keys: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["code", "kind", "retry_after", "text"], "{line}");
    assert_eq!(line["kind"], "error", "{line}");
    assert_eq!(line["code"], code, "{line}");
    assert_eq!(line["retry_after"], retry_after, "{line}");
    assert!(
        line["text"].as_str().is_some_and(|text| !text.is_empty()),
        "{line}"
    );
}

#[tokio::test]
async fn with_json_every_command_says_in_json_why_it_failed() {
    let place = Place::new().await;
    let nobody = "ws://127.0.0.1:1";
    let hash = id(9);
    let cases: &[(&[&str], &str)] = &[
        (&["keygen", "mine.key"], "failed"),
        (&["keygen", "--show", "sent.json"], "usage"),
        (
            &["send", "--relay", nobody, "--to", "ADDRESS", "--text", "x"],
            "unreachable",
        ),
        (
            &[
                "send", "--relay", nobody, "--v1", "--to", &hash, "--text", "x",
            ],
            "unreachable",
        ),
        (
            &["send", "--relay", "http://x", "--to", &hash, "--text", "x"],
            "address",
        ),
        (
            &[
                "send", "--relay", "URL", "--to", "ADDRESS", "--live", "--text", "x",
            ],
            "not_connected",
        ),
        (
            &["receive", "--relay", nobody, "--key", "mine.key"],
            "unreachable",
        ),
        (
            &["receive", "--relay", nobody, "--mailbox", &hash],
            "unreachable",
        ),
        (&["cancel", "--relay", nobody, "sent.json"], "unreachable"),
        (&["cancel", "--relay", nobody, "mine.key"], "usage"),
        (
            &["extend", "--relay", nobody, "--ttl", "1h", "sent.json"],
            "unreachable",
        ),
        (
            &["purge", "--relay", nobody, "--key", "mine.key"],
            "unreachable",
        ),
        (
            &["unpin", "--relay", nobody, "--key", "mine.key"],
            "unreachable",
        ),
        (
            &[
                "recovery",
                "put",
                "--relay",
                nobody,
                "--key",
                "mine.key",
                &hash,
                "sent.json",
            ],
            "unreachable",
        ),
        (
            &["recovery", "get", "--relay", nobody, &hash],
            "unreachable",
        ),
        (&["send", "--no-such-option"], "usage"),
        (&["purge", "--relay", nobody], "usage"),
    ];
    for (words, code) in cases {
        let (ended, said, errors) = place.run("", &[words, &["--json"][..]].concat()).await;
        let expected = if *code == "usage" { 2 } else { 1 };
        assert_eq!(ended, Some(expected), "{words:?}: {errors}");
        assert!(!errors.is_empty(), "{words:?}");
        let said = lines(&said);
        assert_eq!(said.len(), 1, "{words:?}: {said:?}");
        let retry_after = match *code {
            "not_connected" => json!(60),
            _ => Value::Null,
        };
        is_error(&said[0], code, retry_after);
        if words[..] == ["purge", "--relay", nobody] {
            let text = said[0]["text"].as_str().unwrap();
            assert!(text.ends_with("not provided: --key <KEYFILE>"), "{text}");
        }
    }
    let mut invalid = command(&place.path("data"));
    let invalid = invalid
        .env("RELAY_MAX_CONNECTIONS", "ten")
        .args(["check", "--json"]);
    let (code, said, _) = run(invalid).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &said["kind"], &said["code"]),
        (Some(2), &json!("error"), &json!("usage"))
    );
}

#[tokio::test]
async fn a_refusal_says_in_json_when_to_try_again() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "1")]).await;
    let folder = tempfile::tempdir().unwrap();
    let send = ["send", "--to", &id(1), "--json", "--text", "x"];
    cli(&relay, folder.path(), &send).await;
    let (code, said, errors) = try_cli(&relay, folder.path(), &send).await;
    assert_eq!(code, Some(1), "{errors}");
    is_error(&lines(&said)[0], "mailbox_full", json!(60));
}

#[tokio::test]
async fn receive_gives_a_json_object_for_each_blob_through_v1_too() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    for text in ["one", "two"] {
        let sent = cli(&["send", "--v1", "--to", &id(1), "--text", text, "--json"]).await;
        let sent = &lines(&sent)[0];
        assert_eq!(
            (&sent["mailbox"], &sent["secret"]),
            (&json!(id(1)), &Value::Null)
        );
    }
    let receive = ["receive", "--mailbox", &id(1), "--json"];
    let left = lines(&cli(&[&receive[..], &["--no-ack"]].concat()).await);
    let keys = |line: &Value| {
        line.as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let fields = [
        "blob",
        "bytes",
        "expires_at",
        "file",
        "id",
        "kind",
        "mailbox",
        "stored_at",
    ];
    for (line, blob) in left.iter().zip(["6f6e65", "74776f"]) {
        assert_eq!(keys(line), fields);
        assert_eq!((&line["blob"], &line["bytes"]), (&json!(blob), &json!(3)));
        assert_eq!(
            (&line["kind"], &line["mailbox"]),
            (&json!("blob"), &json!(id(1)))
        );
    }
    let files = lines(&cli(&[&receive[..], &["--out", "new"]].concat()).await);
    assert_eq!((left.len(), files.len()), (2, 2));
    for line in files {
        let file = folder
            .path()
            .join("new")
            .join(line["file"].as_str().unwrap());
        assert_eq!(fs::read(file).unwrap().len(), 3);
        assert_eq!(line["blob"], Value::Null);
    }
}
