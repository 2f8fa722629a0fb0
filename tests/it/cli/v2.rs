//! `keygen`, `send` and `receive` as a script has them, against the real relay.

use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

use crate::harness::{Relay, eventually, id};
use crate::process::{command, run, shell};

/// Runs the binary; standard output of one that succeeds.
pub(crate) async fn cli(relay: &Relay, folder: &Path, words: &[&str]) -> String {
    let (code, output, errors) = try_cli(relay, folder, words).await;
    assert_eq!(code, Some(0), "{words:?}: {errors}");
    output
}

pub(crate) async fn try_cli(
    relay: &Relay,
    folder: &Path,
    words: &[&str],
) -> (Option<i32>, String, String) {
    let mut command = command(folder);
    command.args(words).current_dir(folder);
    if words[0] != "keygen" {
        let url = format!("ws://{}", relay.running.clients);
        command.args(["--relay", &url]);
    }
    run(&mut command).await
}

pub(crate) fn lines(output: &str) -> Vec<Value> {
    let parsed = output.lines().map(serde_json::from_str);
    parsed.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_mailbox_of_ones_own_a_blob_its_receipts_and_nothing_for_v1() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    let mailbox = cli(&["keygen", "mine.key"]).await.trim().to_owned();
    assert!(mailbox.starts_with("v2:"), "{mailbox}");
    cli(&["keygen", "--v2-only", "receipts.key"]).await;

    let topic = id(3);
    let send = [
        "send",
        "--to",
        &mailbox,
        "--ttl",
        "2h",
        "--receipt",
        "receipts.key",
        "--json",
    ];
    let old = cli(&[&send[..], &["--topic", &topic, "--text", "old"]].concat()).await;
    let new = cli(&[&send[..], &["--topic", &topic, "--text", "new"]].concat()).await;
    let ids = [&old, &new].map(|output| lines(output)[0]["id"].clone());
    assert!(
        lines(&new)[0]["secret"]
            .as_str()
            .is_some_and(|secret| secret.len() == 64)
    );

    // Who knows no more than the address gets nothing through v1.
    let digits = mailbox.strip_prefix("v2:").unwrap();
    assert_eq!(
        cli(&["receive", "--mailbox", digits, "--wait", "0.2"]).await,
        ""
    );

    let left = cli(&["receive", "--key", "mine.key", "--no-ack"]).await;
    assert_eq!(left, "new");
    let taken = cli(&["receive", "--key", "mine.key", "--json", "--receipts"]).await;
    assert_eq!(lines(&taken)[0]["id"], ids[1]);
    assert_eq!(lines(&taken)[0]["blob"], "6e6577");
    assert_eq!(relay.running.store.usage().stored, 0);

    let receipts = cli(&["receive", "--key", "receipts.key", "--json"]).await;
    let told: Vec<_> = lines(&receipts)
        .into_iter()
        .map(|line| {
            (
                line["kind"].as_str().unwrap().to_owned(),
                line["id"].clone(),
            )
        })
        .collect();
    let expected = [
        ("removed", &ids[0]),
        ("delivered", &ids[1]),
        ("acknowledged", &ids[1]),
    ]
    .map(|(kind, id)| (kind.to_owned(), id.clone()));
    assert_eq!(told, expected);
}

#[tokio::test]
async fn bare_digits_reach_clients_of_either_protocol_as_they_are() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    for by in [&["--text", "hello"][..], &["--v1", "--text", "hello"]] {
        let stored = cli(&[&["send", "--to", &id(1)][..], by].concat()).await;
        assert!(
            stored.starts_with("stored ") && stored.len() > 20,
            "{stored}"
        );
        let received = cli(&["receive", "--mailbox", &id(1), "--wait", "0.5"]).await;
        assert_eq!(received, "hello");
    }
}

#[tokio::test]
async fn blobs_go_to_files_by_their_ids() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    let mailbox = cli(&["keygen", "mine.key"]).await.trim().to_owned();
    std::fs::write(folder.path().join("large"), vec![7; 300_000]).unwrap();
    let said = cli(&["send", "--to", &mailbox, "large"]).await;
    let name = said.trim().strip_prefix("stored ").unwrap().to_owned();
    cli(&["send", "--to", &mailbox, "--no-pad", "--text", ""]).await;
    cli(&["receive", "--key", "mine.key", "--out", "in"]).await;
    let written = std::fs::read(folder.path().join("in").join(name)).unwrap();
    assert_eq!(written, vec![7; 300_000]);
    assert_eq!(
        std::fs::read_dir(folder.path().join("in")).unwrap().count(),
        2
    );
}

/// A file that cannot grow fails as one on a full disk does, and needs no disk of its own.
#[tokio::test]
async fn a_blob_that_can_not_be_written_whole_is_not_acknowledged() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    let mailbox = cli(&["keygen", "mine.key"]).await.trim().to_owned();
    let body = vec![7; 20_000];
    std::fs::write(folder.path().join("large"), &body).unwrap();
    cli(&["recovery", "put", &id(3), "large", "--key", "mine.key"]).await;
    cli(&["send", "--to", &mailbox, "large"]).await;
    cli(&["send", "--to", &id(1), "large"]).await;
    let url = format!("ws://{}", relay.running.clients);
    for words in [
        &["receive", "--key", "mine.key"][..],
        &["receive", "--mailbox", &id(1)],
        &["recovery", "get", &id(3)],
    ] {
        let cramped = r#"trap "" XFSZ; ulimit -f 8; exec "$0" "$@""#;
        let mut cramped = shell(cramped, folder.path());
        cramped
            .args(words)
            .args(["--relay", &url, "--out", "in"])
            .current_dir(folder.path());
        let (code, _, errors) = run(&mut cramped).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("cannot write in/"), "{words:?}: {errors}");
        cli(&[words, &["--out", "in"]].concat()).await;
        let written = std::fs::read_dir(folder.path().join("in")).unwrap();
        let written: Vec<_> = written.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(written.len(), 1, "{words:?}: {written:?}");
        assert!(std::fs::read(&written[0]).unwrap() == body, "{words:?}");
        std::fs::remove_file(&written[0]).unwrap();
        std::fs::remove_dir(folder.path().join("in")).unwrap();
    }
}

#[tokio::test]
async fn who_is_interrupted_before_the_end_says_so_unless_that_is_the_end() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("ws://{}", relay.running.clients);
    for (more, expected) in [(&["--wait", "900"][..], Some(1)), (&["--follow"], Some(0))] {
        let hello = ["send", "--to", &id(1), "--text", "hello"];
        cli(&relay, folder.path(), &hello).await;
        let mut receive = command(folder.path());
        receive.args(["receive", "--mailbox", &id(1), "--relay", &url]);
        // Not a pipe that nobody reads: what is in it is not acknowledged.
        let receive = receive.args(more).stdout(Stdio::null()).spawn().unwrap();
        eventually("the blob is acknowledged", async || {
            relay.running.store.usage().stored == 0
        })
        .await;
        let pid = receive.id().unwrap().to_string();
        let kill = tokio::process::Command::new("kill")
            .args(["-s", "INT", &pid])
            .status();
        assert!(kill.await.unwrap().success());
        let ended = receive.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), expected, "{more:?}: {ended:?}");
        let errors = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(
            errors.contains("interrupted"),
            expected == Some(1),
            "{errors}"
        );
    }
}

/// It names a minute, which is longer than a script wants to hang.
#[tokio::test]
async fn a_full_mailbox_is_told_at_once() {
    let relay = Relay::start(&[("RELAY_MAILBOX_MAX_BLOBS", "1")]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = format!("v2:{}", id(1));
    let send = ["send", "--to", &to, "--text", "x"];
    cli(&relay, folder.path(), &send).await;
    let (code, output, errors) = try_cli(&relay, folder.path(), &send).await;
    assert_eq!((code, output.as_str()), (Some(1), ""), "{errors}");
    let told = "the relay did not store the blob: refused (mailbox_full)";
    assert!(errors.contains(told), "{errors}");
    assert!(errors.contains("Retry in 60 s."), "{errors}");
}

#[tokio::test]
async fn a_key_that_can_not_be_written_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"trap "" XFSZ; ulimit -f 0; exec "$0" "$@""#;
    let keygen = ["keygen", "mine.key"];
    let mut cramped = shell(script, folder.path());
    cramped.args(keygen).current_dir(folder.path());
    let (code, _, errors) = run(&mut cramped).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("cannot write mine.key"), "{errors}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let mut again = command(folder.path());
    again.args(keygen).current_dir(folder.path());
    let (code, _, errors) = run(&mut again).await;
    assert_eq!(code, Some(0), "{errors}");
    let key = std::fs::read(folder.path().join("mine.key")).unwrap();
    let (code, _, errors) = run(&mut again).await;
    let told = "mine.key already exists; keygen never overwrites a key. Choose another name.";
    assert_eq!((code, errors), (Some(1), format!("vauchi-relay: {told}\n")));
    assert_eq!(std::fs::read(folder.path().join("mine.key")).unwrap(), key);
}

#[tokio::test]
async fn faults_are_told_apart_by_exit_code_and_said() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.key"), "nonsense").unwrap();
    let to = format!("v2:{}", id(1));
    let hash = id(3);
    let mut too_many = vec!["recovery", "get"];
    too_many.resize(2 + 51, &hash);
    for (words, code, said) in [
        (&too_many[..], 2, &*hash),
        (&["receive", "--key", "bad.key"], 2, "not a key file of"),
        (&["receive"], 2, "--mailbox"),
        (
            &["send", "--to", &to, "--text", "x", "--ttl", "5"],
            2,
            "s, m, h or d",
        ),
        (
            &["send", "--to", "v2:x", "--text", "x"],
            2,
            "64 hexadecimal digits",
        ),
        (
            &["send", "--to", &to, "--text", "x", "--v1", "--ttl", "5s"],
            2,
            "cannot be used with",
        ),
        (
            &["send", "--to", &to, "--text", "x", "--ttl", "999d"],
            1,
            "ttl_out_of_range",
        ),
        (&["receive", "--key", "none.key"], 1, "cannot read none.key"),
    ] {
        let (got, output, errors) = try_cli(&relay, folder.path(), words).await;
        assert_eq!(
            (got, output.as_str()),
            (Some(code), ""),
            "{words:?}: {errors}"
        );
        assert!(errors.contains(said), "{words:?}: {errors}");
    }
}

#[tokio::test]
async fn a_relay_is_remembered_and_another_one_at_its_place_gets_nothing() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = format!("v2:{}", id(0xAB));
    let send = [
        "send",
        "--to",
        &to,
        "--text",
        "x",
        "--known-relays",
        "state/known",
    ];
    cli(&relay, folder.path(), &send).await;
    let file = folder.path().join("state/known");
    let kept = std::fs::read_to_string(&file).unwrap();
    let host = relay.running.clients;
    let relay_id = crate::v2::client::Guest::connect(&relay)
        .await
        .welcome
        .relay_id;
    let hex: String = relay_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(kept, format!("{host} {hex}\n"));
    cli(&relay, folder.path(), &send).await;

    std::fs::write(&file, format!("{host} {}\n", "22".repeat(32))).unwrap();
    let (code, _, errors) = try_cli(&relay, folder.path(), &send).await;
    assert_eq!(code, Some(1));
    let told = format!("{host} is another relay than before: its id is {hex}, but state/known has");
    assert!(errors.contains(&told), "{errors}");
    assert!(errors.contains("Nothing was sent"), "{errors}");
    // Known under another name.
    std::fs::write(&file, format!("relay.example {hex}\n")).unwrap();
    let (code, _, errors) = try_cli(&relay, folder.path(), &send).await;
    let told = format!(
        "presents the identity of relay.example; if both are names of one relay, add its id to the address: #{hex}"
    );
    assert!(code == Some(1) && errors.contains(&told), "{errors}");
    // The id in the address counts more than any file, and the user's own file leaves out this machine.
    let url = format!("ws://{host}#{hex}");
    let mut command = command(folder.path());
    command.args(send).args(["--relay", &url]);
    let (code, _, errors) = run(command.current_dir(folder.path())).await;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(relay.running.store.usage().stored, 3);
}
