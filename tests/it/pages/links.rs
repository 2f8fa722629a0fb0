//! Every link, path, metric and setting that README and docs/ name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use vauchi_relay::config::{SETTINGS, Setting};

use crate::harness::{Relay, http_get};

/// Names that stand for any file, or that readers make.
const READERS: [&str; 4] = ["src/x/y.rs", "src/x/y/z.rs", ".ci/NAME", "fuzz/corpus"];

/// Variables that Caddy, Kubernetes or the Vauchi relay read.
const NO_SETTINGS: [&str; 8] = [
    "RELAY_DOMAIN",
    "RELAY_UPSTREAM",
    "RELAY_PORT",
    "RELAY_SERVICE_HOST",
    "RELAY_PORT_8080_TCP_ADDR",
    "RELAY_TLS_VERIFIED",
    "RELAY_REQUIRE_NOISE_ENCRYPTION",
    // The mistyped setting of configuration.md.
    "RELAY_MAX_BLOB_SIZE",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Each page with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ]
    .iter()
    .map(|name| root().join(name))
    .collect();
    paths.push(root().join("helm/vauchi-relay/README.md"));
    for folder in ["docs", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        paths.extend(files.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

/// A row with more cells than the head loses the last ones on the page: the table of budgets lost its settings.
#[test]
fn every_row_of_a_table_has_as_many_cells_as_its_head() {
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        let mut head = None;
        for line in text.lines() {
            if !line.starts_with('|') {
                head = None;
            } else if *head.get_or_insert(cells(line)) != cells(line) {
                wrong.push(format!("{}: {line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Bars in code, and those behind a backslash, do not end a cell.
fn cells(row: &str) -> usize {
    let words: String = row.split('`').step_by(2).collect();
    words.replace("\\|", "").matches('|').count()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    let mut broken = Vec::new();
    let mut count = 0;
    for (page, text) in pages() {
        // A link's words and its target may be on two lines, a target never.
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let leads_somewhere = match anchor {
                "" => file.exists(),
                anchor => {
                    let text = fs::read_to_string(&file).unwrap_or_default();
                    anchors(&text).contains(anchor)
                }
            };
            if !leads_somewhere {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(count > 150, "{count}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_path_of_the_project_that_is_named_exists() {
    let folders = [
        "deploy/", "docs/", "helm/", ".ci/", "src/", "tests/", "benches/", "fuzz/",
    ];
    let mut missing = Vec::new();
    let mut count = 0;
    for (page, text) in pages() {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "/._-*{}~".contains(c)));
        for word in words {
            let word = word.trim_start_matches("./").trim_end_matches(['.', '/']);
            let is_ours = folders.iter().any(|folder| word.starts_with(folder));
            // A pattern names many.
            if !is_ours || word.contains(['*', '{', '~']) || READERS.contains(&word) {
                continue;
            }
            count += 1;
            let beside = page.parent().unwrap().join(word);
            if !root().join(word).exists() && !beside.exists() {
                missing.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(count > 80, "{count}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[tokio::test]
async fn every_metric_that_is_named_exists() {
    let relay = Relay::start(&[]).await;
    let (_, scrape) = http_get(relay.running.operators, "/metrics", &[]).await;
    let (mut missing, mut count) = (Vec::new(), 0);
    for (page, text) in pages() {
        // A package is called vauchi-relay_0.1.0.
        let text = text.replace("vauchi-relay_", "");
        // The heading of a setting is linked to in lower case.
        let text = text.replace("#relay_", "#");
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let named = words
            .filter(|word| word.starts_with("relay_") || word.starts_with("process_"))
            // The code of a refusal, and the relay's public key.
            .filter(|word| !["relay_full", "relay_id"].contains(word));
        for word in named {
            count += 1;
            let family = word.strip_suffix("_bucket").unwrap_or(word);
            if !scrape.contains(&format!("# HELP {family} ")) {
                missing.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(count > 60, "{count}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_setting_that_is_named_exists() {
    let names: BTreeSet<_> = SETTINGS.iter().flat_map(Setting::spellings).collect();
    let mut missing = Vec::new();
    for (page, text) in pages() {
        let words =
            text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        // What ends with an underscore stands for many.
        for word in words.filter(|word| word.starts_with("RELAY_") && !word.ends_with('_')) {
            // A refusal's code, as v2 spells it.
            let is_code = word == "RELAY_FULL";
            if !is_code && !names.contains(word) && !NO_SETTINGS.contains(&word) {
                missing.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn readme_lists_every_page() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(readme.contains(&format!("(docs/{name}")), "{name}");
    }
}

/// What a heading can be reached by, as GitHub makes it.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !is_code) else {
            continue;
        };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let anchor: String = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        found.insert(anchor);
    }
    found
}

#[test]
fn anchors_are_made_as_on_github() {
    let text = "# A `code`, and: more\n```sh\n# no heading\n```\n### `send`, `receive`\n";
    let expected = ["a-code-and-more", "send-receive"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
}
