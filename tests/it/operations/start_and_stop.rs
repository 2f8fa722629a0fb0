//! What an operator sees when the relay starts, does not start, and stops.

use serde_json::json;

use crate::harness::{Peer, http_get, id, value_of};
use crate::process::{Process, command, command_after, run, shell};

#[tokio::test]
async fn the_first_signal_drains_and_the_exit_code_is_zero() {
    for name in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let relay = Process::start(folder.path()).await;
        let mut client = Peer::connect(relay.clients).await;
        client.handshake(json!({ "client_id": id(1) })).await;
        relay.signal(name).await;
        client.expect_close(1001).await;
        client.leave().await;
        let (status, log) = relay.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("draining") && log.contains("stopped"), "{log}");
    }
}

#[tokio::test]
async fn the_second_signal_stops_at_once_with_exit_code_three() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::spawn(command(folder.path()).env("RELAY_DRAIN_TIMEOUT_SECS", "600")).await;
    let mut client = Peer::connect(relay.clients).await;
    client.handshake(json!({ "client_id": id(1) })).await;
    client.round_trip(&id(1), b"never acknowledged").await;
    relay.signal("TERM").await;
    crate::harness::eventually("not ready", async || {
        http_get(relay.operators, "/ready", &[]).await.0 == 503
    })
    .await;
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert_eq!(status.code(), Some(3), "{log}");
}

/// A start does not fail for it: at a downgrade the settings of the newer relay would stop the older one.
#[tokio::test]
async fn a_setting_that_does_not_exist_is_a_warning_of_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::spawn(command(folder.path()).env("RELAY_MAX_BLOB_SIZE", "3")).await;
    let words = "unknown setting, ignored; did you mean RELAY_MAX_MESSAGE_SIZE?";
    relay.logs(words, 1).await;
    let log = relay.log();
    let line = log.lines().find(|line| line.contains(words)).unwrap();
    assert!(line.contains("WARN"), "{line}");
    relay.kill().await;
}

#[tokio::test]
async fn file_descriptors_are_raised_as_far_as_they_go_and_too_few_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let allowed = async |relay: &Process| {
        let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
        value_of(&scrape, "process_max_fds")
    };
    let relay = Process::spawn(&mut command_after("ulimit -Sn 256", folder.path())).await;
    // 1,000 sessions, as many strangers, 64 operators, 64 for files.
    assert_eq!(allowed(&relay).await, Some(2128.0));
    assert!(!relay.log().contains("file descriptors"), "{}", relay.log());
    relay.kill().await;

    let relay = Process::spawn(&mut command_after("ulimit -n 512", folder.path())).await;
    assert_eq!(allowed(&relay).await, Some(512.0));
    relay
        .logs("the limit of 512 file descriptors is too low", 1)
        .await;
    relay.kill().await;
}

/// One session from hello to goodbye, which a relay that logs debug lines mentions.
async fn visit(relay: &Process) {
    let mut client = Peer::connect(relay.clients).await;
    client.handshake(json!({ "client_id": id(1) })).await;
    client.leave().await;
    crate::harness::eventually("the session is over", async || {
        let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
        value_of(&scrape, "relay_connections_active") == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn hanging_up_switches_debug_lines_on_and_off_and_never_ends_the_relay() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    visit(&relay).await;
    relay.signal("HUP").await;
    relay
        .logs("the log filter is now vauchi_relay=debug", 1)
        .await;
    assert!(!relay.log().contains("DEBUG"), "{}", relay.log());
    visit(&relay).await;
    relay.logs("session ended", 1).await;
    relay.signal("HUP").await;
    relay
        .logs("the log filter is now vauchi_relay=info", 1)
        .await;
    visit(&relay).await;
    assert_eq!(relay.log().matches("session ended").count(), 1);
    for _ in 0..20 {
        relay.signal("HUP").await;
    }
    visit(&relay).await;
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn hanging_up_a_draining_relay_does_not_hurry_it() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::spawn(command(folder.path()).env("RELAY_DRAIN_DELAY_SECS", "600")).await;
    relay.signal("TERM").await;
    relay.logs("draining", 1).await;
    relay.signal("HUP").await;
    relay
        .logs("the log filter is now vauchi_relay=debug", 1)
        .await;
    assert_eq!(http_get(relay.operators, "/health", &[]).await.0, 200);
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert_eq!(status.code(), Some(3), "{log}");
}

#[tokio::test]
async fn hanging_up_reads_the_filter_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("filter");
    std::fs::write(&path, "vauchi_relay=debug\n").unwrap();
    let mut started = command(folder.path());
    started.env("RELAY_LOG_FILTER_FILE", &path);
    let relay = Process::spawn(&mut started).await;
    visit(&relay).await;
    relay.logs("session ended", 1).await;

    std::fs::write(&path, "vauchi_relay=loud").unwrap();
    relay.signal("HUP").await;
    relay
        .logs("keeping the log filter vauchi_relay=debug", 1)
        .await;
    visit(&relay).await;
    relay.logs("session ended", 2).await;

    std::fs::remove_file(&path).unwrap();
    relay.signal("HUP").await;
    relay
        .logs("the log filter is now vauchi_relay=info", 1)
        .await;
    visit(&relay).await;

    std::fs::write(&path, "vauchi_relay=trace").unwrap();
    relay.signal("HUP").await;
    relay
        .logs("the log filter is now vauchi_relay=trace", 1)
        .await;
    let log = relay.log();
    assert_eq!(log.matches("session ended").count(), 2, "{log}");
    relay.kill().await;
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once_with_exit_code_two() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = command(folder.path());
    relay
        .env("RELAY_MAX_CONNECTIONS", "10k")
        .env("RELAY_STORAGE_BACKEND", "floppy");
    let (code, _, errors) = run(&mut relay).await;
    assert_eq!(code, Some(2), "{errors}");
    assert!(
        errors.contains("RELAY_MAX_CONNECTIONS: \"10k\"") && errors.contains("\"floppy\""),
        "{errors}"
    );
    assert!(
        std::fs::read_dir(folder.path()).unwrap().next().is_none(),
        "nothing was touched"
    );
}

#[tokio::test]
async fn a_taken_port_is_told_in_the_system_s_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for variable in ["RELAY_LISTEN_ADDR", "RELAY_HTTP_ADDR"] {
        let (code, _, errors) = run(command(folder.path()).env(variable, &address)).await;
        assert_eq!(code, Some(1), "{errors}");
        assert!(
            errors.contains("Address already in use") && errors.contains(variable),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn a_data_directory_that_is_not_there_comes_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("not here");
    let (code, _, errors) = run(&mut command(&missing)).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(
        errors.contains("not here does not exist; create it: install -d ")
            && errors.contains("or mount its volume there"),
        "{errors}"
    );
    assert!(!missing.exists(), "it is not made");
}

#[tokio::test]
async fn a_secret_file_that_is_named_must_be_there_and_hold_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named.secret");
    let told = async |expected: &str| {
        let mut relay = command(folder.path());
        let (code, _, errors) = run(relay.env("RELAY_SECRET_FILE", &path)).await;
        assert_eq!(code, Some(1), "{errors}");
        for words in ["RELAY_SECRET_FILE", path.to_str().unwrap(), expected] {
            assert!(errors.contains(words), "{words} in {errors}");
        }
    };
    told("is missing").await;
    assert!(!path.exists(), "it is not made up");
    std::fs::write(&path, "swordfish").unwrap();
    let set = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    set(0o600);
    told("is not a relay secret").await;
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    told("Is a directory").await;
    std::fs::remove_dir(&path).unwrap();

    std::fs::write(&path, "ab".repeat(32)).unwrap();
    set(0o644);
    told("is accessible to all users (mode 644); run: chmod 600").await;
    set(0o640);
    let relay = Process::spawn(command(folder.path()).env("RELAY_SECRET_FILE", &path)).await;
    assert!(!folder.path().join("relay.secret").exists());
    relay.kill().await;
}

#[tokio::test]
async fn a_database_whose_secret_is_gone_is_not_locked_by_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (secret, kept) = (
        folder.path().join("relay.secret"),
        folder.path().join("kept"),
    );
    Process::start(folder.path()).await.kill().await;
    std::fs::rename(&secret, &kept).unwrap();
    let (code, _, errors) = run(&mut command(folder.path())).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("restore it"), "{errors}");
    assert!(!secret.exists());
    std::fs::rename(&kept, &secret).unwrap();
    Process::start(folder.path()).await.kill().await;
}

#[tokio::test]
async fn a_second_relay_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let (code, _, errors) = run(&mut command(folder.path())).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("another relay"), "{errors}");
    drop(relay);
}

#[tokio::test]
async fn the_first_lines_of_the_log_answer_what_an_operator_asks_first() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::spawn(command(folder.path()).env("RELAY_LOG_FORMAT", "json")).await;
    let (clients, operators) = (relay.clients.to_string(), relay.operators.to_string());
    relay.signal("TERM").await;
    let (_, log) = relay.ended().await;
    for line in log.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            json["level"].is_string() && json["timestamp"].is_string(),
            "{line}"
        );
    }
    for fact in [
        env!("CARGO_PKG_VERSION"),
        &clients,
        &operators,
        "90 days",
        folder.path().to_str().unwrap(),
    ] {
        assert!(log.contains(fact), "{fact} in\n{log}");
    }
}

#[tokio::test]
async fn send_and_receive_work_by_hand_and_healthcheck_tells() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let url = format!("ws://{}", relay.clients);
    let mailbox = id(7);
    let send = [
        "send",
        "--relay",
        &url,
        "--to",
        &mailbox,
        "--text",
        "hello from a terminal",
    ];
    let (code, output, errors) = run(command(folder.path()).args(send)).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(output.starts_with("stored "), "{output}");

    let receive = ["receive", "--relay", &url, "--mailbox", &mailbox];
    let (code, output, errors) = run(command(folder.path()).args(receive)).await;
    assert_eq!(
        (code, output.trim_end()),
        (Some(0), "hello from a terminal"),
        "{errors}"
    );
    let (code, output, _) = run(command(folder.path()).args(receive)).await;
    assert_eq!(
        (code, output.as_str()),
        (Some(0), ""),
        "it was acknowledged"
    );

    let probe = [
        "healthcheck",
        "--ready",
        "--addr",
        &relay.operators.to_string(),
    ];
    assert_eq!(run(command(folder.path()).args(probe)).await.0, Some(0));
    relay.kill().await;

    let (code, _, errors) = run(command(folder.path()).args(probe)).await;
    assert_eq!((code, errors.lines().count()), (Some(1), 1), "{errors}");
}

/// A file that cannot grow fails as one on a full disk does.
#[tokio::test]
async fn a_secret_that_cannot_be_written_leaves_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"trap "" XFSZ; ulimit -f 0; exec "$0""#;
    let (code, _, errors) = run(&mut shell(script, folder.path())).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("relay.secret"), "{errors}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
