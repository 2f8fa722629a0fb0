//! `vauchi-relay check`: what it shows, what it finds, what it leaves alone, and its exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use crate::process::{Process, command, run};

fn check(folder: &Path) -> Command {
    let mut check = command(folder);
    check.arg("check");
    check
}

/// Exit code and report.
async fn checked(command: &mut Command) -> (Option<i32>, Value) {
    let (code, output, errors) = run(command.arg("--json")).await;
    assert_eq!(errors, "");
    (code, serde_json::from_str(&output).unwrap())
}

/// Levels and texts of what was found about `subject`.
fn found<'a>(report: &'a Value, subject: &str) -> Vec<(&'a str, &'a str)> {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["subject"] == subject)
        .map(|finding| {
            (
                finding["level"].as_str().unwrap(),
                finding["text"].as_str().unwrap(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_good_folder_passes_and_nothing_is_left_in_it() {
    let folder = tempfile::tempdir().unwrap();
    // More than this machine's disk has to be free is not this test's business.
    let mut good = check(folder.path());
    let (code, output, errors) = run(good.env("RELAY_MAX_STORAGE_BYTES", "1")).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{output}");
    for line in ["data directory: ", "free disk: ", "secret: ", "port: "] {
        assert!(output.contains(&format!("ok    {line}")), "{output}");
    }
    assert!(output.contains("fsync: ") && output.contains("stores a second"));
    assert!(output.contains("file descriptors: "), "{output}");
    assert!(output.contains("failed: 0"), "{output}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let relay = Process::start(folder.path()).await;
    relay.kill().await;
}

#[tokio::test]
async fn every_setting_is_shown_as_it_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let mut set = check(folder.path());
    // The harness sets the new name, too.
    set.env_remove("RELAY_RATE_LIMIT_PER_MIN")
        .env("RELAY_RATE_LIMIT", "61")
        .env("RELAY_BLOB_TTL_DAYS", "7");
    let (_, report) = checked(&mut set).await;
    let settings = report["settings"].as_array().unwrap();
    let shown = |name: &str| {
        let setting = settings.iter().find(|setting| setting["name"] == name);
        let setting = setting.unwrap();
        let (value, origin) = (&setting["value"], &setting["origin"]);
        (value.as_str().unwrap(), origin.as_str().unwrap())
    };
    assert_eq!(shown("RELAY_RATE_LIMIT_PER_MIN"), ("61", "alias"));
    assert_eq!(shown("RELAY_BLOB_TTL_DAYS"), ("7", "set"));
    assert_eq!(shown("RELAY_MAX_CONNECTIONS"), ("1000", "default"));
    assert_eq!(
        shown("RELAY_DATA_DIR"),
        (folder.path().to_str().unwrap(), "set")
    );
    let names = settings.iter().map(|setting| &setting["name"]);
    let expected = vauchi_relay::config::SETTINGS.iter().map(|row| row.name);
    assert!(names.eq(expected), "{report}");
}

#[tokio::test]
async fn no_secret_is_ever_printed() {
    let folder = tempfile::tempdir().unwrap();
    let word = "swordfish-swordfish";
    let digits = "5ec2e7".repeat(10) + "5ec2";
    fs::write(folder.path().join("relay.secret"), &digits).unwrap();
    let token = folder.path().join("token");
    fs::write(&token, word).unwrap();
    let malformed = folder.path().join("malformed");
    fs::write(&malformed, word).unwrap();
    for json in [false, true] {
        for (name, value) in [
            ("RELAY_METRICS_TOKEN", word),
            ("RELAY_METRICS_TOKEN_FILE", token.to_str().unwrap()),
            ("RELAY_SECRET_FILE", malformed.to_str().unwrap()),
            // Not known, and yet somebody's secret.
            ("RELAY_SECRET", word),
            ("RELAY_NOISE_STATIC_KEY", word),
        ] {
            let mut masked = check(folder.path());
            masked.env(name, value);
            if json {
                masked.arg("--json");
            }
            let (_, output, errors) = run(&mut masked).await;
            assert!(output.contains("RELAY_METRICS_TOKEN"), "{output}");
            for secret in [word, &digits] {
                assert!(!output.contains(secret), "{name}: {output}");
                assert!(!errors.contains(secret), "{name}: {errors}");
            }
        }
    }
}

#[tokio::test]
async fn wrong_settings_are_told_as_a_start_tells_them() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = |command: &mut Command| {
        command
            .env("RELAY_MAX_CONNECTIONS", "10k")
            .env("RELAY_METRICS_TOKEN", "a")
            .env("RELAY_METRICS_TOKEN_FILE", "/nowhere/token");
    };
    let (mut checking, mut serving) = (check(folder.path()), command(folder.path()));
    wrong(&mut checking);
    wrong(&mut serving);
    let told = run(&mut checking).await;
    assert_eq!(told, run(&mut serving).await);
    assert_eq!(told.0, Some(2));
    assert_eq!(told.2.lines().count(), 2, "{}", told.2);

    let (code, report) = checked(&mut checking).await;
    assert_eq!(code, Some(2));
    assert_eq!(report["faults"].as_array().unwrap().len(), 2, "{report}");
}

#[tokio::test]
async fn a_token_file_that_cannot_be_read_names_variable_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut unreadable = check(folder.path());
    unreadable.env("RELAY_METRICS_TOKEN_FILE", "/nowhere/token");
    let (code, _, errors) = run(&mut unreadable).await;
    assert_eq!(code, Some(2));
    assert!(
        errors.starts_with("RELAY_METRICS_TOKEN_FILE: cannot read /nowhere/token: "),
        "{errors}"
    );
}

#[tokio::test]
async fn a_folder_that_is_missing_or_cannot_be_written_to_fails() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("not here");
    let (code, report) = checked(&mut check(&missing)).await;
    assert_eq!(code, Some(1));
    let [("fail", text)] = found(&report, "data directory")[..] else {
        panic!("{report}");
    };
    assert!(text.contains("not here does not exist"), "{text}");
    assert!(!missing.exists(), "it is not made");

    if !cfg!(target_os = "linux") {
        return;
    }
    // Whoever may write everywhere may still not write to /proc.
    let (code, report) = checked(&mut check(Path::new("/proc"))).await;
    assert_eq!(code, Some(1));
    let [("fail", text)] = found(&report, "data directory")[..] else {
        panic!("{report}");
    };
    assert!(text.contains("cannot write to /proc"), "{text}");
}

#[tokio::test]
async fn a_taken_port_fails_and_names_who_may_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for variable in ["RELAY_LISTEN_ADDR", "RELAY_HTTP_ADDR"] {
        let mut command = check(folder.path());
        let (code, report) = checked(command.env(variable, address.to_string())).await;
        assert_eq!(code, Some(1));
        let ports = found(&report, "port");
        let failed: Vec<_> = ports
            .iter()
            .filter(|(level, _)| *level == "fail")
            .map(|(_, text)| *text)
            .collect();
        let [text] = failed[..] else {
            panic!("{report}");
        };
        assert!(text.contains(variable), "{text}");
        let hint = format!("lsof -i :{}", address.port());
        assert!(text.contains(&hint), "{text}");
    }
}

#[tokio::test]
async fn a_folder_that_a_relay_uses_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(folder.path()).await;
    let (code, report) = checked(&mut check(folder.path())).await;
    assert_eq!(code, Some(1));
    let [("fail", text)] = found(&report, "data directory")[..] else {
        panic!("{report}");
    };
    assert!(text.contains("another relay"), "{text}");
    relay.kill().await;
    let (code, report) = checked(&mut check(folder.path())).await;
    assert_eq!(code, Some(0), "{report}");
}

#[tokio::test]
async fn secrets_that_are_missing_open_or_none_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.secret");
    let look = async |variable: Option<&Path>| {
        let mut command = check(folder.path());
        if let Some(path) = variable {
            command.env("RELAY_SECRET_FILE", path);
        }
        let (code, report) = checked(&mut command).await;
        let [(level, text)] = found(&report, "secret")[..] else {
            panic!("{report}");
        };
        (code, level.to_owned(), text.to_owned())
    };
    let (_, level, text) = look(None).await;
    assert!(
        level == "ok" && text.contains("a start creates it"),
        "{level} {text}"
    );
    assert!(!path.exists());

    // A named one is not made by a start either.
    let (code, level, text) = look(Some(&path)).await;
    assert_eq!((code, level.as_str()), (Some(1), "fail"), "{text}");
    assert!(text.starts_with("RELAY_SECRET_FILE: "), "{text}");

    fs::write(folder.path().join("relay.db"), "").unwrap();
    let (code, level, text) = look(None).await;
    assert_eq!((code, level.as_str()), (Some(1), "fail"), "{text}");
    assert!(text.contains("restore it"), "{text}");

    fs::write(&path, "ab".repeat(32)).unwrap();
    for (mode, expected) in [
        (0o600, "ok"),
        (0o440, "ok"),
        (0o644, "fail"),
        (0o660, "warn"),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let (_, level, text) = look(None).await;
        assert_eq!(level, expected, "{mode:o}: {text}");
    }
    fs::write(&path, "no secret").unwrap();
    let (code, level, _) = look(None).await;
    assert_eq!((code, level.as_str()), (Some(1), "fail"));
}

#[tokio::test]
async fn files_that_all_users_may_read_or_change_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("relay.db");
    fs::write(&database, "").unwrap();
    let look = async |expected: &[&str]| {
        let (_, report) = checked(&mut check(folder.path())).await;
        let told = found(&report, "permissions");
        assert_eq!(told.len(), expected.len(), "{report}");
        for ((level, text), expected) in told.iter().zip(expected) {
            assert!(*level == "warn" && text.contains(expected), "{report}");
        }
    };
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&database, 0o660);
    look(&[]).await;
    set(&database, 0o644);
    look(&["relay.db is accessible to all users (mode 644); run: chmod 600"]).await;
    set(folder.path(), 0o777);
    let of_folder = "can be changed by all users (mode 777); run: chmod 700";
    look(&[of_folder, "relay.db"]).await;
    set(folder.path(), 0o1777);
    look(&["relay.db"]).await;
}

#[tokio::test]
async fn a_start_that_would_go_well_enough_passes_with_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = check(folder.path());
    command
        .env("RELAY_MAX_CONNECTIONS", "4000000000")
        .env("RELAY_MAX_STORAGE_BYTES", (1_u64 << 60).to_string())
        .env("RUST_LOG", "vauchi_relay=loud");
    let (code, report) = checked(&mut command).await;
    assert_eq!((code, &report["outcome"]), (Some(0), &"warn".into()));
    for subject in ["file descriptors", "free disk", "log filter"] {
        assert_eq!(found(&report, subject)[0].0, "warn", "{subject}: {report}");
    }
    // No blob would be taken: that is no start.
    let mut full = check(folder.path());
    full.env("RELAY_MIN_FREE_BYTES", (1_u64 << 60).to_string());
    let (code, report) = checked(&mut full).await;
    assert_eq!(code, Some(1));
    assert_eq!(found(&report, "free disk")[0].0, "fail", "{report}");
}

/// A mistyped limit was a warning among others, and the default stayed in force.
#[tokio::test]
async fn a_setting_that_does_not_exist_fails_with_the_name_that_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    for (slip, meant) in [
        ("RELAY_MAX_CONECTIONS", "RELAY_MAX_CONNECTIONS"),
        ("RELAY_MAX_BLOB_SIZE", "RELAY_MAX_MESSAGE_SIZE"),
    ] {
        let mut command = check(folder.path());
        let (code, report) = checked(command.env(slip, "3")).await;
        assert_eq!((code, &report["outcome"]), (Some(1), &"fail".into()));
        let expected = format!("\"{slip}\": unknown setting, ignored; did you mean {meant}?");
        let settings = found(&report, "settings");
        assert!(settings.contains(&("fail", &expected)), "{report}");
    }
}

#[tokio::test]
async fn a_missing_folder_comes_with_the_command_that_creates_it() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("not here");
    let (code, report) = checked(&mut check(&missing)).await;
    assert_eq!(code, Some(1), "{report}");
    let (level, text) = found(&report, "data directory")[0];
    assert_eq!(level, "fail");
    let (_, rest) = text.split_once("create it: ").expect(text);
    let (command, _) = rest.split_once(" (as root)").expect(text);
    let made = tokio::process::Command::new("sh")
        .args(["-c", command])
        .status()
        .await
        .unwrap();
    assert!(made.success(), "{command}");
    assert!(missing.is_dir());
    let (_, report) = checked(&mut check(&missing)).await;
    assert_eq!(found(&report, "data directory")[0].0, "ok", "{report}");
}

#[tokio::test]
async fn the_memory_engine_needs_no_folder() {
    let mut command = check(Path::new("/nowhere/at/all"));
    let (code, report) = checked(command.env("RELAY_STORAGE_BACKEND", "memory")).await;
    assert_eq!(code, Some(0), "{report}");
    let storage = found(&report, "storage");
    assert_eq!(storage, [("ok", "memory; a restart deletes everything")]);
    assert!(found(&report, "fsync").is_empty() && found(&report, "secret").is_empty());
}

#[tokio::test]
async fn the_accept_queue_is_told_with_what_the_system_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_, report) = checked(&mut check(folder.path())).await;
    let [(level, text)] = found(&report, "accept queue")[..] else {
        panic!("{report}");
    };
    let Ok(cap) = fs::read_to_string("/proc/sys/net/core/somaxconn") else {
        return;
    };
    let cap: u32 = cap.trim().parse().unwrap();
    let expected = if cap < 4_096 { "warn" } else { "ok" };
    assert_eq!(level, expected, "{text}");
    let room = format!("room for {} connections", cap.min(4_096));
    assert!(text.starts_with(&room), "{text}");
    assert!(text.contains("dropped so far"), "{text}");
}
