//! `docs/operations.md`: what it quotes is what the relay says.

use std::fs;
use std::path::Path;

use vauchi_relay::cli::banner::{Facts, banner};
use vauchi_relay::cli::descriptors::Descriptors;
use vauchi_relay::config::Config;

fn page() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("docs/operations.md")).unwrap()
}

#[test]
fn the_first_lines_are_those_of_the_page() {
    let facts = Facts {
        listen_addr: "0.0.0.0:8080".parse().unwrap(),
        http_addr: "0.0.0.0:8081".parse().unwrap(),
        relay_id: std::array::from_fn(|at| at as u8 * 7),
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
