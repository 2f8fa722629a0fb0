//! What the commands do beside sending and receiving one blob: many at once, live ones, second thoughts,
//! purges, pins, recovery, and how far they are.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use vauchi_relay::store::model::ROW_OVERHEAD_BYTES;

use crate::cli::v2::{cli, lines, try_cli};
use crate::harness::{PATIENCE, Relay, eventually, id};
use crate::process::command;

/// A mailbox whose key is in `mine.key`.
async fn mailbox(relay: &Relay, folder: &Path) -> String {
    let said = cli(relay, folder, &["keygen", "mine.key"]).await;
    said.trim().to_owned()
}

#[tokio::test]
async fn several_files_go_in_their_order_and_all_come_with_a_word_how_far_it_is() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = mailbox(&relay, folder.path()).await;
    let names: Vec<_> = (0..20).map(|n| format!("file{n}")).collect();
    for name in &names {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    let mut words = vec!["send", "--to", &to, "--progress"];
    words.extend(names.iter().map(String::as_str));
    let (code, said, progress) = try_cli(&relay, folder.path(), &words).await;
    assert_eq!((code, said.lines().count()), (Some(0), 20), "{progress}");
    assert!(progress.contains("sending: 0 %\n"), "{progress}");
    assert!(progress.ends_with("sending: 100 %\n"), "{progress}");

    let receive = ["receive", "--key", "mine.key", "--json", "--progress"];
    let (code, said, progress) = try_cli(&relay, folder.path(), &receive).await;
    let came: Vec<_> = lines(&said)
        .iter()
        .map(|line| line["blob"].as_str().unwrap().to_owned())
        .collect();
    let sent: Vec<_> = names
        .iter()
        .map(|name| data_encoding::HEXLOWER.encode(name.as_bytes()))
        .collect();
    assert_eq!((code, came), (Some(0), sent), "{progress}");
    assert!(progress.ends_with("receiving: 100 %\n"), "{progress}");
    assert_eq!(relay.running.store.usage().stored, 0);

    let missing = ["send", "--to", &to, "file0", "none", "file1"];
    let (code, said, errors) = try_cli(&relay, folder.path(), &missing).await;
    assert!(
        said.starts_with("stored "),
        "what was under way is told: {said}"
    );
    assert!(
        code == Some(1) && errors.contains("cannot read none"),
        "{errors}"
    );
    for wrong in [
        &["send", "--to", &to, "--topic", &id(1), "file0", "file1"][..],
        &["send", "--to", &to, "-", "-"],
        &["send", "--to", &to, "--live", "--ttl", "1h", "file0"],
    ] {
        let (code, _, errors) = try_cli(&relay, folder.path(), wrong).await;
        assert_eq!(code, Some(2), "{wrong:?}: {errors}");
    }
}

#[tokio::test]
async fn a_live_blob_reaches_who_follows_and_following_ends_well_when_it_is_interrupted() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = mailbox(&relay, folder.path()).await;
    let live = ["send", "--to", &to, "--live", "--text", "now"];
    let (code, _, errors) = try_cli(&relay, folder.path(), &live).await;
    assert!(
        code == Some(1) && errors.contains("not_connected"),
        "{errors}"
    );

    let url = format!("ws://{}", relay.running.clients);
    let mut following = command(folder.path())
        .args([
            "receive",
            "--key",
            "mine.key",
            "--receipts",
            "--follow",
            "--json",
        ])
        .args(["--relay", &url])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(following.stdout.take().unwrap()).lines();
    eventually("handed", async || {
        try_cli(&relay, folder.path(), &live)
            .await
            .1
            .starts_with("handed ")
    })
    .await;
    let line = out.next_line().await.unwrap().unwrap();
    assert_eq!(lines(&line)[0]["blob"], "6e6f77");
    cli(
        &relay,
        folder.path(),
        &["send", "--to", &to, "--text", "kept"],
    )
    .await;
    out.next_line().await.unwrap().unwrap();
    // Who is interrupted before that gets the blob again.
    eventually("acknowledged", async || {
        relay.running.store.usage().stored == 0
    })
    .await;

    let process = following.id().unwrap().to_string();
    let mut kill = tokio::process::Command::new("kill");
    assert!(
        kill.args(["-INT", &process])
            .status()
            .await
            .unwrap()
            .success()
    );
    let ended = tokio::time::timeout(PATIENCE, following.wait()).await;
    let mut errors = String::new();
    let mut stderr = following.stderr.take().unwrap();
    stderr.read_to_string(&mut errors).await.unwrap();
    assert_eq!(ended.unwrap().unwrap().code(), Some(0), "{errors}");
}

#[tokio::test]
async fn what_send_printed_takes_blobs_back_or_has_them_kept() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    let to = mailbox(&relay, folder.path()).await;
    let send = ["send", "--to", &to, "--ttl", "1h", "--json", "--text"];
    let kept = cli(&[&send[..], &["kept"]].concat()).await;
    let both = [
        cli(&[&send[..], &["one"]].concat()).await,
        cli(&[&send[..], &["two"]].concat()).await,
    ];
    std::fs::write(folder.path().join("kept.json"), &kept).unwrap();
    std::fs::write(folder.path().join("both.json"), both.concat()).unwrap();

    let extended = cli(&["extend", "--ttl", "2h", "kept.json"]).await;
    let id = lines(&kept)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(extended, format!("extended {id}\n"));
    let cancelled = cli(&["cancel", "--json", "both.json"]).await;
    let told: Vec<_> = lines(&cancelled)
        .iter()
        .map(|line| line["id"].clone())
        .collect();
    let ids: Vec<_> = both
        .iter()
        .map(|said| lines(said)[0]["id"].clone())
        .collect();
    assert_eq!(told, ids);
    relay.time.advance(Duration::from_secs(5_400));
    assert_eq!(cli(&["receive", "--key", "mine.key"]).await, "kept");

    std::fs::write(folder.path().join("other"), "HUSH").unwrap();
    let (code, _, errors) = try_cli(&relay, folder.path(), &["cancel", "other"]).await;
    assert_eq!(code, Some(2));
    assert!(
        errors.contains("not the output of `send --json`") && !errors.contains("HUSH"),
        "{errors}"
    );
}

#[tokio::test]
async fn a_mailbox_of_ones_own_is_purged_and_unpinned() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = mailbox(&relay, folder.path()).await;
    let shown = cli(&relay, folder.path(), &["keygen", "--show", "mine.key"]).await;
    assert_eq!(shown.trim(), to);
    let digits = to.strip_prefix("v2:").unwrap();
    let send = ["send", "--to", digits, "--text", "x"];
    for _ in 0..2 {
        cli(&relay, folder.path(), &send).await;
    }
    let charged = relay.running.store.usage().bytes;
    assert_eq!(charged, 2 * (1 + ROW_OVERHEAD_BYTES));
    let purged = cli(&relay, folder.path(), &["purge", "--key", "mine.key"]).await;
    assert_eq!(purged, format!("purged {to}: 2 blobs, 0 receipts\n"));
    assert_eq!(relay.running.store.usage().stored, 0);

    // Opening it to purge it has pinned it, and purging has taken the pin off; a look pins it again.
    cli(&relay, folder.path(), &send).await;
    cli(
        &relay,
        folder.path(),
        &["receive", "--key", "mine.key", "--no-ack"],
    )
    .await;
    let by_v1 = ["receive", "--mailbox", digits, "--wait", "0.3"];
    let (code, _, errors) = try_cli(&relay, folder.path(), &by_v1).await;
    assert!(code == Some(1) && errors.contains("4401"), "{errors}");
    let unpinned = cli(&relay, folder.path(), &["unpin", "--key", "mine.key"]).await;
    assert_eq!(unpinned, format!("unpinned {to}\n"));
    assert_eq!(cli(&relay, folder.path(), &by_v1).await, "x");
}

#[tokio::test]
async fn recovery_proofs_are_put_and_got() {
    let relay = Relay::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let cli = async |words: &[&str]| cli(&relay, folder.path(), words).await;
    mailbox(&relay, folder.path()).await;
    let (hash, unknown) = (id(4), id(5));
    std::fs::write(folder.path().join("proof"), "it is me").unwrap();
    let put = ["recovery", "put", "--key", "mine.key", &hash, "proof"];
    assert_eq!(cli(&put).await, format!("kept {hash}\n"));
    assert_eq!(cli(&["recovery", "get", &unknown, &hash]).await, "it is me");
    let found = cli(&["recovery", "get", "--json", &hash]).await;
    assert_eq!(lines(&found)[0]["key_hash"], hash.as_str());
    assert_eq!(lines(&found)[0]["proof"], "6974206973206d65");
    cli(&["recovery", "get", &hash, "--out", "found"]).await;
    let written = folder.path().join("found").join(format!("{hash}-0"));
    assert_eq!(std::fs::read(written).unwrap(), b"it is me");
    assert_eq!(cli(&["recovery", "get", &unknown]).await, "");
}

/// Left at the relay, they fill the window, and the relay holds back the rest.
#[tokio::test]
async fn more_than_can_be_left_at_the_relay_is_not_told_as_all() {
    let relay = Relay::start(&[("RELAY_MAX_MESSAGE_SIZE", "8388608")]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = mailbox(&relay, folder.path()).await;
    std::fs::write(folder.path().join("large"), vec![7; 6 << 20]).unwrap();
    let receive = [
        "receive", "--key", "mine.key", "--no-ack", "--wait", "0.3", "--out", "in",
    ];
    for count in 1..=3 {
        cli(&relay, folder.path(), &["send", "--to", &to, "large"]).await;
        let (code, _, errors) = try_cli(&relay, folder.path(), &receive).await;
        let written = std::fs::read_dir(folder.path().join("in")).unwrap().count();
        assert_eq!(written, count.min(2), "{errors}");
        assert_eq!(code, Some(if count < 3 { 0 } else { 1 }), "{errors}");
        assert_eq!(
            errors.contains("more blobs may be waiting"),
            count == 3,
            "{errors}"
        );
    }
}
