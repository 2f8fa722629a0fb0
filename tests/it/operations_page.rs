//! `docs/operations.md`: what it quotes is what the relay says.

use std::fs;
use std::path::Path;

use vauchi_relay::cli::banner::{Facts, banner};
use vauchi_relay::cli::descriptors::Descriptors;
use vauchi_relay::config::Config;

use crate::harness::{Relay, http_get};

fn page() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("docs/operations.md")).unwrap()
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
