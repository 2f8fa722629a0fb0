//! Settings: what is accepted, what is refused and in which words, and that the documents agree.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use vauchi_relay::config::{
    Accepts, Config, InForce, Loaded, LogFormat, Origin, SETTINGS, Setting, StorageBackend,
};

/// Loads settings that must hold; `RELAY_DATA_DIR` is always set, so that no machine's `/data`
/// makes a difference.
fn load(variables: &[(&str, &str)]) -> Config {
    load_with_warnings(variables).0
}

fn load_with_warnings(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
    let loaded = loaded(variables);
    assert_eq!(loaded.unknown, [""; 0]);
    (loaded.config, loaded.warnings)
}

fn loaded(variables: &[(&str, &str)]) -> Loaded {
    Config::from_vars(owned(variables)).unwrap()
}

/// Loads settings that must be refused.
fn faults(variables: &[(&str, &str)]) -> Vec<String> {
    let error = Config::from_vars(owned(variables)).unwrap_err();
    assert_eq!(error.to_string(), error.faults().join("\n"));
    error.faults().to_vec()
}

fn owned(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    [("RELAY_DATA_DIR", "/data")]
        .iter()
        .chain(variables)
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn only<T: std::fmt::Debug>(list: Vec<T>) -> T {
    assert_eq!(list.len(), 1, "{list:?}");
    list.into_iter().next().unwrap()
}

#[test]
fn without_variables_the_defaults_hold_and_nothing_is_said() {
    let (config, warnings) = load_with_warnings(&[("PATH", "/bin"), ("RELAYS", "x")]);
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_defaults_in_the_table_are_the_defaults_in_force() {
    let written: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| setting.default != "none")
        .map(|setting| (setting.name, setting.default))
        .collect();
    let config = load(&written);
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn the_guide_s_eight_have_the_guide_s_defaults() {
    let guide = [
        ("RELAY_LISTEN_ADDR", "0.0.0.0:8080"),
        ("RELAY_MAX_CONNECTIONS", "1000"),
        ("RELAY_MAX_MESSAGE_SIZE", "1048576"),
        ("RELAY_BLOB_TTL_DAYS", "90"),
        ("RELAY_RATE_LIMIT_PER_MIN", "60"),
        ("RELAY_CLEANUP_INTERVAL_SECS", "3600"),
        ("RELAY_STORAGE_BACKEND", "sqlite"),
        ("RELAY_DATA_DIR", "/data"),
    ];
    let ours: Vec<_> = SETTINGS
        .iter()
        .take(8)
        .map(|s| (s.name, s.default))
        .collect();
    assert_eq!(ours, guide);
}

#[test]
fn all_faults_are_told_at_once() {
    let told = faults(&[
        ("RELAY_MAX_CONNECTIONS", "10k"),
        ("RELAY_MAX_MESSAGE_SIZE", "1000"),
        ("RELAY_BLOB_TTL_DAYS", "3651"),
        ("RELAY_STORAGE_BACKEND", "mysql"),
        ("RELAY_LISTEN_ADDR", ":8080"),
        ("RELAY_HTTP_ADDR", "localhost:8081"),
        ("RELAY_ALLOW_NETWORK_FS", "maybe"),
        ("RELAY_CLEANUP_INTERVAL_SECS", ""),
        ("RELAY_KEEPALIVE_SECS", "99999999999999999999999"),
    ]);
    let expected: BTreeSet<_> = [
        "RELAY_MAX_CONNECTIONS: \"10k\" is not a whole number; use for example 10000 (default 1000)",
        "RELAY_MAX_MESSAGE_SIZE: \"1000\" is too small; use 1024 to 67108864 (default 1048576)",
        "RELAY_BLOB_TTL_DAYS: \"3651\" is too large; use 1 to 3650 (default 90)",
        "RELAY_STORAGE_BACKEND: \"mysql\" is not a valid value; use sqlite or memory or postgres (default sqlite)",
        "RELAY_LISTEN_ADDR: \":8080\" has no IP address; for all interfaces use 0.0.0.0:8080 (default 0.0.0.0:8080)",
        "RELAY_HTTP_ADDR: \"localhost:8081\" is not an IP address with a port; use for example 127.0.0.1:8081 (default 0.0.0.0:8081)",
        "RELAY_ALLOW_NETWORK_FS: \"maybe\" is not a valid value; use true or false or 1 or 0 (default false)",
        "RELAY_CLEANUP_INTERVAL_SECS: is empty; remove it or use for example 600 (default 3600)",
        "RELAY_KEEPALIVE_SECS: \"99999999999999999999999\" is too large; use 1 to 315360000 (default 30)",
    ]
    .into();
    assert_eq!(
        told.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(told.len(), expected.len());
}

#[test]
fn every_setting_refuses_an_empty_value_by_its_name() {
    for setting in SETTINGS {
        for spelling in setting.spellings() {
            let told = only(faults(&[("RELAY_DATA_DIR", "/data"), (spelling, "  ")]));
            assert!(told.starts_with(spelling), "{told}");
            assert!(told.contains("is empty"), "{told}");
        }
    }
}

#[test]
fn numbers_are_digits_only() {
    for wrong in ["1_000", "+1", "-1", "1e3", "0x10", "1 000", "1.0", "٣"] {
        let told = only(faults(&[("RELAY_MAX_CONNECTIONS", wrong)]));
        assert!(told.contains("is not a whole number"), "{told}");
    }
    let config = load(&[("RELAY_MAX_CONNECTIONS", " 2000\n")]);
    assert_eq!(config.connections_max, 2000);
}

#[test]
fn both_bounds_of_every_number_are_accepted_and_what_lies_beyond_is_not() {
    for setting in SETTINGS {
        let Accepts::Number { min, max } = setting.accepts else {
            continue;
        };
        for bound in [min, max] {
            let bound = bound.to_string();
            // The least message size goes with the least room for unfinished messages.
            let mut variables = vec![("RELAY_MAX_MESSAGE_SIZE", "1024"), (setting.name, &bound)];
            if setting.name == "RELAY_MAX_MESSAGE_SIZE" {
                variables.remove(0);
            }
            load(&variables);
        }
        let mut beyond = vec![(max + 1).to_string()];
        beyond.extend(min.checked_sub(1).map(|under| under.to_string()));
        for value in beyond {
            let told = only(faults(&[(setting.name, &value)]));
            assert!(told.starts_with(&format!("{}: ", setting.name)), "{told}");
        }
    }
}

#[test]
fn every_variable_reaches_its_field() {
    let config = load(&[
        ("RELAY_LISTEN_ADDR", "127.0.0.1:1"),
        ("RELAY_HTTP_ADDR", "[::1]:2"),
        ("RELAY_METRICS_TOKEN", "abc"),
        ("RELAY_MAX_CONNECTIONS", "3"),
        ("RELAY_MAX_MESSAGE_SIZE", "4096"),
        ("RELAY_BLOB_TTL_DAYS", "5"),
        ("RELAY_RATE_LIMIT_PER_MIN", "6"),
        ("RELAY_CLEANUP_INTERVAL_SECS", "7"),
        ("RELAY_STORAGE_BACKEND", "memory"),
        ("RELAY_DATA_DIR", "d"),
        ("RELAY_SECRET_FILE", "s"),
        ("RELAY_MAX_STORAGE_BYTES", "8"),
        ("RELAY_MIN_FREE_BYTES", "9"),
        ("RELAY_MAX_UNFINISHED_BYTES", "100000"),
        ("RELAY_MAILBOX_MAX_BLOBS", "10"),
        ("RELAY_MAILBOX_MAX_BYTES", "11"),
        ("RELAY_DEDUP_SECS", "12"),
        ("RELAY_DEDUP_MAX", "13"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "20"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.21"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.22"),
        ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "23"),
        ("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", "24"),
        ("RELAY_OPENINGS_PER_MIN", "25"),
        ("RELAY_FAILED_PROOFS_PER_MIN", "26"),
        ("RELAY_RECOVERY_RATE_LIMIT", "27"),
        ("RELAY_TRUSTED_PROXIES", "10.28.0.0/16"),
        ("RELAY_IDLE_TIMEOUT_SECS", "14"),
        ("RELAY_KEEPALIVE_SECS", "15"),
        ("RELAY_DRAIN_DELAY_SECS", "16"),
        ("RELAY_DRAIN_TIMEOUT_SECS", "17"),
        ("RELAY_LOG_FORMAT", "json"),
        ("RELAY_LOG_FILTER_FILE", "f"),
        ("RELAY_ALLOW_NETWORK_FS", "1"),
    ]);
    assert_eq!(config.listen_addr.to_string(), "127.0.0.1:1");
    assert_eq!(config.http_addr.to_string(), "[::1]:2");
    assert_eq!(config.metrics_token.as_ref().unwrap().expose(), "abc");
    assert_eq!(config.connections_max, 3);
    assert_eq!(config.message_bytes_max, 4096);
    assert_eq!(config.blob_ttl, Duration::from_secs(5 * 86_400));
    assert_eq!(config.rate_limit_per_min, 6);
    assert_eq!(config.cleanup_interval, Duration::from_secs(7));
    assert_eq!(config.storage, StorageBackend::Memory);
    assert_eq!(config.data_dir, Path::new("d"));
    assert_eq!(config.secret_file.as_deref(), Some(Path::new("s")));
    assert_eq!(config.storage_bytes_max, 8);
    assert_eq!(config.free_bytes_min, 9);
    assert_eq!(config.unfinished_bytes_max, 100_000);
    assert_eq!(config.mailbox_blobs_max, 10);
    assert_eq!(config.mailbox_bytes_max, 11);
    assert_eq!(config.dedup, Duration::from_secs(12));
    assert_eq!(config.dedup_max, 13);
    assert_eq!(config.rate_limit_per_address_per_min, 20);
    assert_eq!(config.mailbox_share_per_hour.of(100), 21);
    assert_eq!(config.address_share_per_day.of(100), 22);
    assert_eq!(config.connections_per_address_max, 23);
    assert_eq!(config.connections_per_address_per_min, 24);
    assert_eq!(config.openings_per_min, 25);
    assert_eq!(config.failed_proofs_per_min, 26);
    assert_eq!(config.recovery_rate_limit, 27);
    assert!(config.trusted_proxies.contains([10, 28, 3, 4].into()));
    assert!(!config.trusted_proxies.contains([127, 0, 0, 1].into()));
    assert_eq!(config.idle_timeout, Duration::from_secs(14));
    assert_eq!(config.keepalive, Duration::from_secs(15));
    assert_eq!(config.drain_delay, Duration::from_secs(16));
    assert_eq!(config.drain_timeout, Duration::from_secs(17));
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.log_filter_file.as_deref(), Some(Path::new("f")));
    assert!(config.allow_network_fs);
}

#[test]
fn the_memory_engine_keeps_less_unless_told_otherwise() {
    let memory = ("RELAY_STORAGE_BACKEND", "memory");
    assert_eq!(load(&[memory]).storage_bytes_max, 512 << 20);
    let told = load(&[memory, ("RELAY_MAX_STORAGE_BYTES", "1234567")]);
    assert_eq!(told.storage_bytes_max, 1_234_567);
}

#[test]
fn postgres_needs_a_database_and_says_nothing_of_its_password() {
    let postgres = ("RELAY_STORAGE_BACKEND", "postgres");
    let told = only(faults(&[postgres]));
    assert!(told.starts_with("RELAY_DATABASE_URL is not set"), "{told}");
    let told = only(faults(&[
        postgres,
        ("RELAY_DATABASE_URL", "mysql://a:s3cret@b/c"),
    ]));
    assert!(
        told.starts_with("RELAY_DATABASE_URL does not begin"),
        "{told}"
    );
    assert!(!told.contains("s3cret"), "{told}");

    let folder = tempfile::tempdir().unwrap();
    let (url, password) = (folder.path().join("url"), folder.path().join("password"));
    fs::write(&url, "postgres://relay:s3cret@db1,db2:5433/relay\n").unwrap();
    let url = ("RELAY_DATABASE_URL_FILE", url.to_str().unwrap());
    let file = ("RELAY_DATABASE_PASSWORD_FILE", password.to_str().unwrap());
    let told = only(faults(&[postgres, url, file]));
    assert!(
        told.starts_with("RELAY_DATABASE_PASSWORD_FILE: cannot read"),
        "{told}"
    );
    fs::write(&password, "s3cret").unwrap();
    let config = load(&[postgres, url, file]);
    assert!(!format!("{config:?}").contains("s3cret"));
    let database = config.database.unwrap();
    assert_eq!(database.place(), "relay at db1,db2:5433");
    assert_eq!(database.password_file.as_deref(), Some(password.as_path()));
    assert_eq!(config.storage, StorageBackend::Postgres);
}

#[test]
fn a_database_that_is_not_used_is_told() {
    let url = ("RELAY_DATABASE_URL", "postgres://relay@db/relay");
    let (config, warnings) = load_with_warnings(&[url]);
    assert_eq!(config.database, None);
    assert!(only(warnings).contains("is set but not used"));
}

#[test]
fn large_mailboxes_are_warned_about_where_they_are_counted_again() {
    let large = ("RELAY_MAILBOX_MAX_BLOBS", "10001");
    let postgres = [
        ("RELAY_STORAGE_BACKEND", "postgres"),
        ("RELAY_DATABASE_URL", "postgres://relay@db/relay"),
        large,
    ];
    let (_, warnings) = load_with_warnings(&postgres);
    assert!(only(warnings).starts_with("RELAY_MAILBOX_MAX_BLOBS is over 10000"));
    assert!(load_with_warnings(&[large]).1.is_empty());
}

#[test]
fn an_address_has_ten_times_a_client_s_rate_unless_told_otherwise() {
    let per_address = |variables: &[_]| load(variables).rate_limit_per_address_per_min;
    assert_eq!(per_address(&[("RELAY_RATE_LIMIT_PER_MIN", "7")]), 70);
    let most = u32::MAX.to_string();
    assert_eq!(per_address(&[("RELAY_RATE_LIMIT", &most)]), u32::MAX);
    // Without a limit for clients there is none for their address.
    let off = ("RELAY_RATE_LIMIT_PER_MIN", "0");
    assert_eq!(per_address(&[off]), 0);
    let told = ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "8");
    assert_eq!(per_address(&[off, told]), 8);
}

#[test]
fn shares_and_networks_are_refused_with_what_is_wrong() {
    assert_eq!(
        only(faults(&[("RELAY_MAILBOX_SHARE_PER_HOUR", "50%")])),
        "RELAY_MAILBOX_SHARE_PER_HOUR: \"50%\" is not a decimal number from 0 to 1; use for \
         example 0.25 (default 0.5)"
    );
    assert_eq!(
        only(faults(&[("RELAY_TRUSTED_PROXIES", "10.0.0.0/8,nginx")])),
        "RELAY_TRUSTED_PROXIES: \"10.0.0.0/8,nginx\" contains \"nginx\", which is not an IP address \
         or a network; use for example 172.16.0.0/12 (default 127.0.0.0/8,::1)"
    );
    let nobody = load(&[("RELAY_TRUSTED_PROXIES", "none")]);
    assert!(!nobody.trusted_proxies.contains([127, 0, 0, 1].into()));
}

#[test]
fn each_older_spelling_means_its_setting() {
    let config = load(&[
        ("RELAY_BLOB_TTL_SECS", "2592000"),
        ("RELAY_RATE_LIMIT", "61"),
        ("RELAY_CLEANUP_INTERVAL", "62"),
        ("RELAY_METRICS_ADDR", "127.0.0.1:63"),
        ("RELAY_MAX_BLOBS_PER_USER", "64"),
        ("RELAY_MAX_STORAGE_PER_USER", "65"),
        ("RELAY_IDLE_TIMEOUT", "66"),
    ]);
    assert_eq!(config.blob_ttl, Duration::from_secs(30 * 86_400));
    assert_eq!(config.rate_limit_per_min, 61);
    assert_eq!(config.cleanup_interval, Duration::from_secs(62));
    assert_eq!(config.http_addr.to_string(), "127.0.0.1:63");
    assert_eq!(config.mailbox_blobs_max, 64);
    assert_eq!(config.mailbox_bytes_max, 65);
    assert_eq!(config.idle_timeout, Duration::from_secs(66));
}

#[test]
fn both_spellings_may_be_set_only_when_they_say_the_same() {
    let config = load(&[
        ("RELAY_BLOB_TTL_DAYS", "2"),
        ("RELAY_BLOB_TTL_SECS", "172800"),
        ("RELAY_RATE_LIMIT_PER_MIN", "70"),
        ("RELAY_RATE_LIMIT", "070"),
    ]);
    assert_eq!(config.blob_ttl, Duration::from_secs(2 * 86_400));
    assert_eq!(config.rate_limit_per_min, 70);

    let told = only(faults(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "70"),
        ("RELAY_RATE_LIMIT", "71"),
    ]));
    assert_eq!(
        told,
        "RELAY_RATE_LIMIT is an older spelling of RELAY_RATE_LIMIT_PER_MIN and has another value; keep RELAY_RATE_LIMIT_PER_MIN"
    );
}

#[test]
fn a_fault_in_an_older_spelling_names_that_spelling_and_its_unit() {
    let told = only(faults(&[("RELAY_BLOB_TTL_SECS", "30d")]));
    assert_eq!(
        told,
        "RELAY_BLOB_TTL_SECS: \"30d\" is not a whole number; use 1 to 315360000 seconds, for \
         example 2592000 (default 90 days)"
    );
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_setting() {
    let cases = [
        ("RELAY_MAX_CONECTIONS", "RELAY_MAX_CONNECTIONS"),
        ("RELAY_RATE_LIMIT_PER_MINUTE", "RELAY_RATE_LIMIT_PER_MIN"),
        ("RELAY_BLOB_TTL_DAY", "RELAY_BLOB_TTL_DAYS"),
        ("RELAY_DATADIR", "RELAY_DATA_DIR"),
        ("RELAY_max_connections", "RELAY_MAX_CONNECTIONS"),
        ("RELAY_MAX_BLOB_SIZE", "RELAY_MAX_MESSAGE_SIZE"),
        ("RELAY_STORAGE", "RELAY_STORAGE_BACKEND"),
    ];
    for (wrong, right) in cases {
        let Loaded {
            warnings, unknown, ..
        } = loaded(&[(wrong, "1")]);
        assert_eq!(warnings, [""; 0]);
        let expected = format!("\"{wrong}\": unknown setting, ignored; did you mean {right}?");
        if wrong == "RELAY_STORAGE" {
            // Too far from every name: a guess would confuse.
            assert_eq!(
                only(unknown),
                format!("\"{wrong}\": unknown setting, ignored")
            );
            continue;
        }
        assert_eq!(only(unknown), expected);
    }
}

#[test]
fn what_kubernetes_injects_for_a_service_called_relay_is_passed_over() {
    let (config, warnings) = load_with_warnings(&[
        ("RELAY_PORT", "tcp://10.0.0.1:8080"),
        ("RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_PORT", "8080"),
        ("RELAY_SERVICE_PORT_WEBSOCKET", "8080"),
        ("RELAY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("RELAY_PORT_8080_TCP_PROTO", "tcp"),
        ("RELAY_PORT_8080_TCP_PORT", "8080"),
        ("RELAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("RELAY_HTTP_PORT_8081_TCP_ADDR", "10.0.0.2"),
    ]);
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    assert!(warnings.is_empty(), "{warnings:?}");

    // Somebody meant this one.
    let Loaded { unknown, .. } = loaded(&[("RELAY_PORT", "8080")]);
    assert!(only(unknown).contains("RELAY_PORT"));
}

#[test]
fn what_only_the_vauchi_relay_knows_is_one_line() {
    let (_, warnings) = load_with_warnings(&[
        ("RELAY_TLS_VERIFIED", "true"),
        ("RELAY_NOISE_STATIC_KEY", "secret-key"),
        ("RELAY_FEDERATION_PEERS", ""),
        ("RELAY_REQUIRE_NOISE_ENCRYPTION", "false"),
    ]);
    assert_eq!(
        only(warnings),
        "RELAY_FEDERATION_PEERS, RELAY_NOISE_STATIC_KEY, RELAY_REQUIRE_NOISE_ENCRYPTION, \
         RELAY_TLS_VERIFIED: a setting of the Vauchi relay that this relay does not use"
    );
}

#[test]
fn demanding_noise_is_a_fault_and_not_overheard() {
    for yes in ["true", "1"] {
        let told = only(faults(&[("RELAY_REQUIRE_NOISE_ENCRYPTION", yes)]));
        assert!(
            told.starts_with("RELAY_REQUIRE_NOISE_ENCRYPTION: "),
            "{told}"
        );
    }
}

#[test]
fn a_value_that_is_not_unicode_is_a_fault_that_names_the_variable() {
    let bad = || OsString::from_vec(vec![b'/', 0xFF]);
    let variables = [
        ("RELAY_DATA_DIR".into(), bad()),
        ("UNRELATED".into(), bad()),
        (OsString::from_vec(b"RELAY_\xFF".to_vec()), bad()),
    ];
    let error = Config::from_vars(variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        "RELAY_DATA_DIR: the value is not valid Unicode"
    );
}

#[test]
fn a_limit_of_zero_is_off_and_warned_about() {
    let off = [
        "RELAY_MAX_CONNECTIONS",
        "RELAY_RATE_LIMIT_PER_MIN",
        "RELAY_MAX_STORAGE_BYTES",
        "RELAY_MIN_FREE_BYTES",
        "RELAY_MAX_UNFINISHED_BYTES",
        "RELAY_MAILBOX_MAX_BLOBS",
        "RELAY_MAILBOX_MAX_BYTES",
        "RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN",
        "RELAY_MAILBOX_SHARE_PER_HOUR",
        "RELAY_ADDRESS_SHARE_PER_DAY",
        "RELAY_MAX_CONNECTIONS_PER_ADDRESS",
        "RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN",
        "RELAY_OPENINGS_PER_MIN",
        "RELAY_FAILED_PROOFS_PER_MIN",
        "RELAY_RECOVERY_RATE_LIMIT",
    ];
    let (config, warnings) = load_with_warnings(&off.map(|name| (name, "0")));
    assert_eq!(config.limits_off(), off);
    assert_eq!(
        warnings,
        off.map(|name| format!("{name} is 0: this limit is off"))
    );
}

#[test]
fn two_ports_that_cannot_both_be_bound_are_a_fault() {
    for (listen, http) in [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::]:9000", "127.0.0.1:9000"),
    ] {
        let pair = [("RELAY_LISTEN_ADDR", listen), ("RELAY_HTTP_ADDR", http)];
        assert!(only(faults(&pair)).contains("cannot share a port"));
    }
    load(&[
        ("RELAY_LISTEN_ADDR", "127.0.0.1:0"),
        ("RELAY_HTTP_ADDR", "127.0.0.1:0"),
    ]);
    load(&[
        ("RELAY_LISTEN_ADDR", "127.0.0.1:9000"),
        ("RELAY_HTTP_ADDR", "127.0.0.2:9000"),
    ]);
    // The other address is not known, so nothing is said about the pair.
    let told = only(faults(&[
        ("RELAY_LISTEN_ADDR", "nonsense"),
        ("RELAY_HTTP_ADDR", "0.0.0.0:8080"),
    ]));
    assert!(told.contains("\"nonsense\""), "{told}");
}

#[test]
fn unfinished_messages_have_room_for_one() {
    let told = only(faults(&[("RELAY_MAX_UNFINISHED_BYTES", "1048576")]));
    assert!(told.contains("use at least 2101248"), "{told}");
    load(&[("RELAY_MAX_UNFINISHED_BYTES", "2101248")]);
}

#[test]
fn the_metrics_token_comes_from_one_place_and_is_never_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, "from-a-file\n").unwrap();
    let file = ("RELAY_METRICS_TOKEN_FILE", path.to_str().unwrap());

    let config = load(&[file]);
    assert_eq!(
        config.metrics_token.as_ref().unwrap().expose(),
        "from-a-file"
    );
    assert!(!format!("{config:?}").contains("from-a-file"));

    let told = only(faults(&[file, ("RELAY_METRICS_TOKEN", "swordfish")]));
    assert!(told.contains("both set"), "{told}");
    let told = only(faults(&[("RELAY_METRICS_TOKEN", "sword fish")]));
    assert!(!told.contains("fish"), "{told}");

    fs::write(&path, "\n").unwrap();
    assert!(only(faults(&[file])).contains("is empty"));
    fs::remove_file(&path).unwrap();
    assert!(only(faults(&[file])).contains("cannot read"));
}

#[test]
fn a_long_value_is_cut_and_control_characters_are_escaped() {
    let long = "x".repeat(5000);
    assert!(only(faults(&[("RELAY_MAX_CONNECTIONS", &long)])).len() < 200);
    let told = only(faults(&[("RELAY_MAX_CONNECTIONS", "1\n2\u{1b}[31m")]));
    assert!(!told.contains(char::is_control), "{told:?}");
}

#[test]
fn without_variables_the_table_s_defaults_are_shown_as_in_force() {
    let shown = Config::from_vars([]).unwrap().in_force;
    let names: Vec<_> = shown.iter().map(|setting| setting.name).collect();
    let expected: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(names, expected);
    for (shown, row) in shown.iter().zip(SETTINGS) {
        assert_eq!(shown.origin, Origin::Default, "{}", row.name);
        // The folder depends on whether this machine has a /data; `none` may stand for something
        // that is made from another setting.
        if row.name != "RELAY_DATA_DIR" && row.default != "none" {
            assert_eq!(shown.value, row.default, "{}", row.name);
        }
    }
}

#[test]
fn what_is_in_force_is_shown_under_the_new_name_with_its_origin() {
    let shown = |variables: &[(&str, &str)], name: &str| {
        let loaded = Config::from_vars(owned(variables)).unwrap();
        let all = loaded.in_force.into_iter();
        let InForce { value, origin, .. } = all.into_iter().find(|s| s.name == name).unwrap();
        (value, origin)
    };
    let text = |value: &str, origin| (value.to_owned(), origin);
    assert_eq!(
        shown(&[("RELAY_RATE_LIMIT", " 061 ")], "RELAY_RATE_LIMIT_PER_MIN"),
        text("61", Origin::Alias("RELAY_RATE_LIMIT"))
    );
    let ttl = |secs| shown(&[("RELAY_BLOB_TTL_SECS", secs)], "RELAY_BLOB_TTL_DAYS");
    let alias = Origin::Alias("RELAY_BLOB_TTL_SECS");
    assert_eq!(ttl("2592000"), text("30", alias));
    assert_eq!(ttl("90000"), text("90000 seconds", alias));
    assert_eq!(
        shown(
            &[("RELAY_STORAGE_BACKEND", "memory")],
            "RELAY_MAX_STORAGE_BYTES"
        ),
        text("536870912", Origin::Default)
    );
    assert_eq!(
        shown(&[("RELAY_ALLOW_NETWORK_FS", "1")], "RELAY_ALLOW_NETWORK_FS"),
        text("true", Origin::Set)
    );
    assert_eq!(
        shown(&[], "RELAY_DATA_DIR"),
        text("/data", Origin::Set),
        "the tests set it"
    );
    assert_eq!(
        shown(
            &[("RELAY_METRICS_TOKEN", "swordfish")],
            "RELAY_METRICS_TOKEN"
        ),
        text(InForce::MASK, Origin::Set)
    );
    assert_eq!(
        shown(&[], "RELAY_METRICS_TOKEN"),
        text("none", Origin::Default)
    );
}

#[test]
fn readme_shows_exactly_the_guide_s_eight() {
    let expected: Vec<String> = SETTINGS.iter().take(8).map(readme_row).collect();
    assert_eq!(table_rows("README.md", "| `RELAY_"), expected);
    let link = "](docs/configuration.md)";
    assert!(document("README.md").contains(link), "the rest is there");
}

#[test]
fn the_configuration_page_has_a_table_of_exactly_the_settings_there_are() {
    let expected: Vec<String> = SETTINGS
        .iter()
        .map(|setting| {
            let (name, anchor) = (setting.name, setting.name.to_lowercase());
            let linked = format!("[`{name}`](#{anchor})");
            readme_row(setting).replace(&format!("`{name}` |"), &format!("{linked} |"))
        })
        .collect();
    assert_eq!(
        table_rows("docs/configuration.md", "| [`RELAY_"),
        expected,
        "\nthe table should be:\n{}",
        expected.join("\n")
    );
}

fn table_rows(page: &str, beginning: &str) -> Vec<String> {
    document(page)
        .lines()
        .filter(|line| line.starts_with(beginning))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_configuration_page_explains_exactly_the_settings_there_are() {
    let page = document("docs/configuration.md");
    let headings: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `"))
        .filter_map(|line| line.strip_suffix('`'))
        .collect();
    let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(headings, names);
    for setting in SETTINGS {
        let opening = format!("### `{}`\n\n{}\n\n", setting.name, facts(setting));
        assert!(page.contains(&opening), "missing in the page:\n{opening}");
    }
}

#[test]
fn the_environment_file_shows_exactly_the_settings_there_are_and_sets_none() {
    let file = document("deploy/systemd/relay.env");
    let unit = document("deploy/systemd/vauchi-relay.service");
    assert!(file.lines().all(|l| l.is_empty() || l.starts_with('#')));
    let mut shown = file.lines().zip(file.lines().skip(1));
    for setting in SETTINGS {
        let (what, line) = shown
            .find(|(_, line)| line.starts_with("#RELAY_"))
            .unwrap_or_else(|| panic!("{} is missing", setting.name));
        let default = match setting.default {
            "none" => "",
            // The unit has a default of its own.
            "/data" => "/var/lib/vauchi-relay",
            value => value,
        };
        assert_eq!(line, format!("#{}={default}", setting.name));
        let expected = format!("# {}", setting.what.replace('`', ""));
        assert!(what.starts_with(&expected), "{what:?} is not {expected:?}");
    }
    assert_eq!(shown.find(|(_, line)| line.starts_with("#RELAY_")), None);
    assert!(unit.contains("\nEnvironment=RELAY_DATA_DIR=/var/lib/vauchi-relay\n"));
}

/// The chart's own: where things are mounted. And what it has no use for: it runs one relay with a volume.
const SET_BY_THE_CHART: [&str; 7] = [
    "RELAY_DATABASE_PASSWORD_FILE",
    "RELAY_DATABASE_URL",
    "RELAY_DATABASE_URL_FILE",
    "RELAY_DATA_DIR",
    "RELAY_METRICS_TOKEN",
    "RELAY_METRICS_TOKEN_FILE",
    "RELAY_SECRET_FILE",
];

#[test]
fn the_chart_takes_exactly_the_settings_there_are() {
    let schema: Value =
        serde_json::from_str(&document("helm/vauchi-relay/values.schema.json")).unwrap();
    let expected: Map<String, Value> = SETTINGS
        .iter()
        .filter(|setting| !SET_BY_THE_CHART.contains(&setting.name))
        .map(|setting| (value_name(setting), value_schema(&in_the_chart(setting))))
        .collect();
    let expected = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["drainDelaySecs", "drainTimeoutSecs", "storageBackend"],
        "properties": expected,
    });
    assert!(
        schema["properties"]["config"] == expected,
        "properties.config of values.schema.json should be:\n{expected:#}"
    );
}

/// A setting as the chart takes it: without the engine that it does not run.
fn in_the_chart(setting: &Setting) -> Setting {
    match setting.name {
        "RELAY_STORAGE_BACKEND" => Setting {
            accepts: Accepts::Word(&["sqlite", "memory"]),
            what: "`memory` or `sqlite`",
            ..*setting
        },
        _ => *setting,
    }
}

/// `RELAY_MAX_CONNECTIONS` is `maxConnections`.
fn value_name(setting: &Setting) -> String {
    let words = setting.name.split('_').skip(1).map(str::to_lowercase);
    words
        .enumerate()
        .map(|(at, word)| match at {
            0 => word,
            _ => word[..1].to_uppercase() + &word[1..],
        })
        .collect()
}

/// What Helm lets through. `--set-string` and quotes make strings of numbers; their bounds are the
/// relay's to check.
fn value_schema(setting: &Setting) -> Value {
    let mut schema = match setting.accepts {
        // The ports are those of the pod; [::] serves clusters without IPv4.
        Accepts::Address => {
            let (_, port) = setting.default.rsplit_once(':').unwrap();
            json!({"type": "string", "pattern": format!("^([0-9.]+|\\[[0-9a-fA-F:]+\\]):{port}$")})
        }
        Accepts::Number { min, max } => json!({
            "type": ["integer", "string"], "minimum": min, "maximum": max, "pattern": "^[0-9]+$",
        }),
        Accepts::Share => json!({
            "type": ["number", "string"], "minimum": 0, "maximum": 1, "pattern": "^[0-9.]+$",
        }),
        Accepts::Networks => json!({
            "type": ["array", "string"], "items": {"type": "string", "minLength": 1},
            "minItems": 1, "minLength": 1,
        }),
        Accepts::Origins | Accepts::Relays => json!({"type": "string", "minLength": 1}),
        Accepts::Word(words) => json!({"enum": words}),
        Accepts::Flag => json!({"enum": [true, false, "true", "false"]}),
        Accepts::Path => json!({"type": "string", "pattern": "^/"}),
        Accepts::Secret => unreachable!("a secret belongs into a Secret: {}", setting.name),
    };
    let (name, what) = (setting.name, setting.what);
    schema["description"] = json!(format!("{name} ({}): {what}", setting.default));
    schema
}

fn readme_row(setting: &Setting) -> String {
    let Setting { name, what, .. } = setting;
    format!("| `{name}` | {} | {what} |", default(setting))
}

fn facts(setting: &Setting) -> String {
    let older = setting
        .alias
        .map(|alias| format!(" · older spelling `{alias}`"))
        .unwrap_or_default();
    format!(
        "Default {} · accepts {}{older}",
        default(setting),
        setting.accepts
    )
}

fn default(setting: &Setting) -> String {
    match setting.default {
        "none" => "none".to_owned(),
        value => format!("`{value}`"),
    }
}

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
