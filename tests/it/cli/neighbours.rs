//! A command deletes nothing but what it made itself, whatever the things beside its file are called.
//!
//! A past bug: `keygen`, `backup`, `verify`, `restore` and `receive --out` deleted every folder beside
//! their file whose name began with `.vauchi-relay-`, with all that was in it. A relay may keep its
//! data in such a folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Peer, id};
use crate::process::{Process, command, run};

/// A folder that a command works in, and in it the data directory of a relay that is running.
struct Place {
    folder: tempfile::TempDir,
    relay: Process,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(data_in(folder.path())).unwrap();
        let relay = Process::start(&data_in(folder.path())).await;
        let mut sender = client(&relay, &id(1)).await;
        sender.store(&id(2), b"confirmed").await;
        sender.leave().await;
        Self { folder, relay }
    }

    /// Runs the binary in the folder, with the settings of the relay.
    async fn run(&self, words: &[&str]) {
        let mut command = command(&data_in(self.folder.path()));
        command.args(words).current_dir(self.folder.path());
        let (code, _, errors) = run(&mut command).await;
        assert_eq!(code, Some(0), "{words:?}: {errors}");
    }

    fn url(&self) -> String {
        format!("ws://{}", self.relay.clients)
    }

    /// The data is whole: the relay that starts from it delivers what was confirmed.
    async fn keeps_its_data(self) -> bool {
        self.relay.kill().await;
        let data = data_in(self.folder.path());
        let is_there = |name| data.join(name).is_file();
        if !is_there("relay.db") || !is_there("relay.secret") {
            return false;
        }
        let relay = Process::start(&data).await;
        let delivered = client(&relay, &id(2)).await.delivery().await.blob;
        relay.kill().await;
        delivered == b"confirmed"
    }
}

fn data_in(folder: &Path) -> PathBuf {
    folder.join(".vauchi-relay-data")
}

async fn client(relay: &Process, id: &str) -> Peer {
    let mut peer = Peer::connect(relay.clients).await;
    peer.handshake(json!({ "client_id": id })).await;
    peer
}

/// Which of these arguments cost a relay beside the file its data.
async fn costs(words: &[&str]) -> Option<String> {
    let place = Place::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let backup = elsewhere.path().join("a.tar");
    place.run(&["backup", backup.to_str().unwrap()]).await;
    fs::copy(&backup, place.folder.path().join("a.tar")).unwrap();
    let url = place.url();
    let words: Vec<_> = words
        .iter()
        .map(|word| if *word == "URL" { &url } else { *word })
        .collect();
    place.run(&words).await;
    (!place.keeps_its_data().await).then(|| words[0].to_owned())
}

#[tokio::test]
async fn no_command_deletes_a_folder_that_it_did_not_make() {
    let other = id(3);
    let mut lost = Vec::new();
    for words in [
        &["keygen", "mine.key"][..],
        &["backup", "b.tar"],
        &["verify", "a.tar"],
        &["restore", "--to", ".", "a.tar"],
        &[
            "receive",
            "--relay",
            "URL",
            "--mailbox",
            &other,
            "--out",
            ".",
        ],
    ] {
        lost.extend(costs(words).await);
    }
    assert_eq!(lost, [""; 0], "a relay's data was deleted by each of these");
}

/// What `backup` names by the time, and what people name.
const BY_TIME: &str = "vauchi-relay-20261121T052519Z.tar";
const BY_HAND: [&str; 3] = [
    "vauchi-relay-before-upgrade.tar",
    "vauchi-relay-20261121.tar",
    "relay.tar",
];

#[test]
fn old_backups_are_deleted_by_the_whole_shape_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in BY_HAND.into_iter().chain([BY_TIME]) {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let between = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let (_, rest) = text.split_once(from).unwrap();
        rest.split_once(to).unwrap().0.to_owned()
    };
    let unit = between(
        "deploy/systemd/vauchi-relay-backup.service",
        "-type f -name ",
        " ",
    );
    let cron = between(
        "deploy/kubernetes/backup-cronjob.yaml",
        r#"["-name", ""#,
        "\"",
    );
    let chart = between("helm/vauchi-relay/templates/backup.yaml", "grep -E '", "'");
    for script in [
        format!("find . -name '{unit}' -printf '%f\\n'"),
        format!("find . -name '{cron}' -printf '%f\\n'"),
        format!("ls | grep -E '{chart}'"),
    ] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).current_dir(folder.path());
        let found = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        assert_eq!(found.trim(), BY_TIME, "{script}");
    }
}
