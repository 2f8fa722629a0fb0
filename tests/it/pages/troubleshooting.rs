//! `docs/troubleshooting.md`: it has every message that the relay has, and no other.

use std::fs;
use std::path::{Path, PathBuf};

/// Files whose error types are what a start or a command says in the end.
const ERRORS: [&str; 6] = [
    "cli/archive.rs",
    "secrets.rs",
    "server/start_error.rs",
    "store/postgres/errors.rs",
    "store/sqlite/backup.rs",
    "store/sqlite/open.rs",
];

/// Files that have hardly any sentences but messages.
const SENTENCES: [&str; 29] = [
    "cli/backup.rs",
    "cli/container.rs",
    "cli/descriptors.rs",
    "cli/folder.rs",
    "cli/healthcheck.rs",
    "cli/keygen.rs",
    "cli/preflight/database.rs",
    "cli/preflight/disk.rs",
    "cli/preflight/mod.rs",
    "cli/preflight/secret.rs",
    "cli/preflight/syncs.rs",
    "cli/purge.rs",
    "cli/receive/mod.rs",
    "cli/receive/v2.rs",
    "cli/recovery.rs",
    "cli/connect.rs",
    "cli/restore.rs",
    "cli/scratch.rs",
    "cli/send.rs",
    "cli/unpin.rs",
    "cli/verify.rs",
    "cli/withdraw.rs",
    "config/load.rs",
    "config/read.rs",
    "http/guard.rs",
    "http/mod.rs",
    "limits/budgets.rs",
    "store/mod.rs",
    "telemetry/mod.rs",
];

/// Sentences in them, by their beginning, that say that all is well, go on from another one, or are no messages.
const FINE: &[&str] = &[
    "memory; a restart deletes everything",
    "exists and is writable",
    "does not exist; a start creates it",
    "the data is on a volume that outlives this container",
    "RELAY_MAX_STORAGE_BYTES is 0",
    "enough for RELAY_MAX_STORAGE_BYTES",
    "dropped so far by full queues",
    "the system does not report drops",
    "the relay asks for room for",
    "median of",
    "needed for RELAY_MAX_CONNECTIONS",
    "is free",
    // Parts of the warning of a container.
    "is not on a volume",
    "is on a volume without a name",
    "is on an emptyDir of the pod",
    "is in memory",
    "mount one with a name",
    "use a PersistentVolumeClaim",
    "for example with",
    // Ends of lines about a setting.
    "for all interfaces use",
    "use for example",
    "use 1 to",
    "remove it or",
    "the file's content",
    // Told by the command line itself, in its own frame.
    "not a number of seconds",
    // Tells a person that there was nothing to do.
    "no blobs are waiting",
    // Says how to go on.
    "type the blob and end it with Ctrl-D",
    // What a folder of unfinished files says of itself.
    "A vauchi-relay command keeps unfinished files",
    // Words on the way of a backup, and at its good end.
    "every checksum matches",
    "made by relay",
    "the log filter is now",
    "checking the database",
    "copying the database",
    "backed up",
    "the backup contains the relay's secret",
    "plus RELAY_MIN_FREE_BYTES",
    // Of a panic that a test rules out.
    "names are literals",
    "every name that is read is in SETTINGS",
    // Told as "cannot decrypt the sender fields stored with a blob".
    "sealed bytes cannot be decrypted",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let page = page.replace('`', "");
    page.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_message_is_explained() {
    let page = page();
    let mut missing = Vec::new();
    let mut count = 0;
    for (name, text) in sources() {
        let mut messages: Vec<String> = ["warn!(", "error!("]
            .iter()
            .flat_map(|call| literals_in_calls(&text, call))
            .collect();
        if ERRORS.contains(&&*name) {
            messages.extend(literals_in_calls(&text, "#[error("));
        }
        if SENTENCES.contains(&&*name) {
            messages.extend(literals(&text).filter(|literal| is_sentence(literal)));
        }
        for message in messages {
            let Some(words) = first_words(&message) else {
                continue;
            };
            count += 1;
            let is_fine = FINE.iter().any(|fine| words.starts_with(fine));
            if !is_fine && !page.contains(&words) {
                missing.push(format!("{name}: {words:?} of {message:?}"));
            }
        }
    }
    assert!(count > 100, "{count}");
    assert!(
        missing.is_empty(),
        "not in docs/troubleshooting.md:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_message_that_is_explained_is_one_that_the_relay_says() {
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let from = page.find("## Settings are wrong").unwrap();
    let cells: Vec<_> = page[from..]
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .flat_map(|(cell, _)| cell.split("`, `"))
        .collect();
    assert!(cells.len() > 80, "{cells:?}");
    for cell in cells {
        for piece in cell.split('…') {
            let piece = piece.trim_matches(|c: char| " ;,:".contains(c));
            assert!(all.contains(piece), "{piece:?} of {cell:?}");
        }
    }
}

#[test]
fn every_refusal_and_close_code_is_named() {
    let page = page();
    let errors = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let codes: Vec<_> = errors
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect();
    assert!(codes.len() > 12, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("(errors.md#{code})")), "{code}");
    }
}

/// The sources without comments and tests, strings over several lines put together.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let src = root().join("src");
    collect(&src, &src, &mut found);
    found
}

fn collect(folder: &Path, src: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, src, found);
            continue;
        }
        let name = path.strip_prefix(src).unwrap().display().to_string();
        if name.ends_with("_tests.rs") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<_> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let code = code.join("\n");
        let mut pieces = code.split("\\\n");
        let mut whole = pieces.next().unwrap().to_owned();
        whole.extend(pieces.map(str::trim_start));
        found.push((name, whole.replace('`', "")));
    }
}

/// The first string in each call that begins so.
fn literals_in_calls(text: &str, call: &str) -> Vec<String> {
    let starts = text.match_indices(call);
    starts
        .filter_map(|(start, _)| {
            let rest = &text[start + call.len()..];
            let call = rest.split(";\n").next().unwrap();
            literals(call).next()
        })
        .collect()
}

fn literals(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = rest.find('"')? + 1;
        let mut is_escaped = false;
        let length = rest[from..].find(|c| {
            let ends = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        })?;
        let literal = rest[from..from + length].to_owned();
        rest = &rest[from + length + 1..];
        Some(literal)
    })
}

/// Three words or more.
fn is_sentence(literal: &str) -> bool {
    let is_word = |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase());
    literal.split([' ', ';', ',', ':']).filter(is_word).count() > 2
}

/// The first words that do not depend on anything: between placeholders and punctuation.
fn first_words(message: &str) -> Option<String> {
    let mut fixed = vec![String::new()];
    let mut depth = 0;
    for c in message.replace("\\n", ";").chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                fixed.push(String::new());
            }
            ';' | ':' | ',' | '(' | '.' if depth == 0 => fixed.push(String::new()),
            c if depth == 0 => fixed.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    fixed
        .into_iter()
        .map(|piece| piece.trim().to_owned())
        .find(|piece| piece.len() >= 8 && piece.contains(' '))
}
