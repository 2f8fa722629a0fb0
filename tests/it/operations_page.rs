//! `docs/operations.md`: what it quotes is what the relay says.

use std::fs;
use std::path::{Path, PathBuf};

use vauchi_relay::cli::banner::{Facts, banner};
use vauchi_relay::cli::descriptors::Descriptors;
use vauchi_relay::config::Config;

use crate::harness::{Relay, http_get};

fn page() -> String {
    fs::read_to_string(root().join("docs/operations.md")).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn every_metric_that_the_page_names_exists() {
    let relay = Relay::start(&[]).await;
    let (_, scrape) = http_get(relay.running.operators, "/metrics", &[]).await;
    let page = page();
    let words = page.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let named: Vec<_> = words
        .filter(|word| word.starts_with("relay_") || word.starts_with("process_"))
        // Codes of refusals.
        .filter(|word| *word != "relay_full")
        .collect();
    assert!(named.len() > 20, "{named:?}");
    for word in named {
        let family = word.strip_suffix("_bucket").unwrap_or(word);
        assert!(scrape.contains(&format!("# HELP {family} ")), "{word}");
    }
}

#[test]
fn the_first_lines_are_those_of_the_page() {
    let facts = Facts {
        listen_addr: "0.0.0.0:8080".parse().unwrap(),
        http_addr: "0.0.0.0:8081".parse().unwrap(),
        stored_bytes: 0,
        disk_free_bytes: None,
        descriptors: Descriptors {
            needed: None,
            allowed: None,
        },
    };
    let lines = banner(&Config::default(), &facts).lines.join("\n");
    assert!(
        page().contains(&format!("```text\n{lines}\n```")),
        "{lines}"
    );
}

#[test]
fn every_line_that_the_page_explains_is_one_that_the_relay_says() {
    let sources = sources(&root().join("src"));
    let page = page();
    let from = page.find("## Logs").unwrap();
    let lines: Vec<_> = page[from..]
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .flat_map(|(cell, _)| cell.split("`, `"))
        .collect();
    assert!(lines.len() > 20, "{lines:?}");
    for line in lines {
        for piece in line.split('…').map(str::trim) {
            assert!(sources.contains(piece), "{piece:?} of {line:?}");
        }
    }
}

/// All sources in one text, with strings that go over several lines put together.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else {
            let text = fs::read_to_string(path).unwrap();
            let mut pieces = text.split("\\\n");
            all += pieces.next().unwrap();
            all.extend(pieces.map(str::trim_start));
        }
    }
    all
}
