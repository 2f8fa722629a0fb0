//! The tree keeps the arrows and the names that `docs/architecture.md` promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by name, each with the modules that it may use.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Words for a file that nobody knew a place for.
const NAMES_THAT_SAY_NOTHING: [&str; 5] = ["util", "common", "helper", "manager", "handler"];

/// Begins like one of them and names a thing: the state that sessions share beside the store.
const COMMONS: &str = "commons";

#[test]
fn every_import_follows_the_arrows() {
    let arrows = arrows();
    let mut wrong = Vec::new();
    for file in source_files() {
        let module = module_of(&file);
        if module == "lib" {
            continue;
        }
        let Some(allowed) = arrows.get(&module) else {
            wrong.push(format!("{}: {module} has no row", file.display()));
            continue;
        };
        let text = product_code(&file);
        let mut used = used_modules(&text, "crate::");
        used.extend(used_modules(&text, "vauchi_relay::"));
        for other in used {
            if other != module && !allowed.contains(&other) {
                wrong.push(format!("{}: {module} may not use {other}", file.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the table in docs/architecture.md:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_two_modules_wait_for_each_other() {
    let mut left = arrows();
    while !left.is_empty() {
        let free: Vec<_> = left
            .iter()
            .filter(|(_, uses)| uses.iter().all(|used| !left.contains_key(used)))
            .map(|(module, _)| module.clone())
            .collect();
        assert!(!free.is_empty(), "a cycle among {:?}", left.keys());
        for module in free {
            left.remove(&module);
        }
    }
}

#[test]
fn the_table_names_no_module_that_is_not_there() {
    let there: BTreeSet<_> = source_files().iter().map(|file| module_of(file)).collect();
    let gone: Vec<_> = arrows()
        .into_keys()
        .filter(|module| !there.contains(module))
        .collect();
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn files_are_named_by_what_they_hold_and_lie_on_three_floors_at_most() {
    for file in source_files() {
        let inside = file.strip_prefix(source()).unwrap();
        let floors = inside.components().count();
        assert!(floors <= 3, "{} is on a fourth floor", file.display());
        for part in inside.iter() {
            let name = Path::new(part).file_stem().unwrap().to_string_lossy();
            let says_nothing = name
                .split('_')
                .filter(|word| *word != COMMONS)
                .any(|word| NAMES_THAT_SAY_NOTHING.iter().any(|no| word.starts_with(no)));
            assert!(!says_nothing, "{}: find a better name", file.display());
        }
    }
}

/// Files that share a prefix belong into a folder of that name. A file's tests may stand beside it.
#[test]
fn no_two_files_of_a_folder_share_a_prefix() {
    let mut families: BTreeMap<(PathBuf, String), Vec<String>> = BTreeMap::new();
    for file in [rust_files(source()), rust_files(root().join("tests/it"))].concat() {
        let name = file.file_stem().unwrap().to_string_lossy();
        let name = name.strip_suffix("_tests").unwrap_or(&name);
        let prefix = name.split('_').next().unwrap();
        let family = (file.parent().unwrap().to_owned(), prefix.to_owned());
        families.entry(family).or_default().push(name.to_owned());
    }
    for names in families.values_mut() {
        names.sort();
        names.dedup();
    }
    families.retain(|_, names| names.len() > 1);
    assert!(families.is_empty(), "{families:#?}");
}

/// A `mod.rs` opens its folder and knows all that is in it; any other two files of a module import one
/// another in one direction only.
#[test]
fn the_files_of_a_module_do_not_import_each_other_in_a_circle() {
    let files: BTreeMap<String, PathBuf> = source_files()
        .into_iter()
        .map(|file| (place_of(&file), file))
        .collect();
    let mut left: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .filter(|(place, file)| !is_opening(file) && !place.ends_with("tests"))
        .map(|(place, file)| (place.as_str(), imports(place, file, &files)))
        .collect();
    loop {
        let free: Vec<_> = left
            .iter()
            .filter(|(_, uses)| uses.iter().all(|used| !left.contains_key(used)))
            .map(|(place, _)| *place)
            .collect();
        if free.is_empty() {
            break;
        }
        for place in free {
            left.remove(place);
        }
    }
    // What only uses a circle is left as well: take away what nobody uses.
    loop {
        let used: BTreeSet<_> = left.values().flatten().copied().collect();
        let before = left.len();
        left.retain(|place, _| used.contains(place));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "a circle: {left:#?}");
}

/// The files of `place`'s own module that it imports, but for those that open a folder.
fn imports<'a>(
    place: &str,
    file: &Path,
    files: &'a BTreeMap<String, PathBuf>,
) -> BTreeSet<&'a str> {
    let text = product_code(file);
    let module = place.split('/').next().unwrap();
    let (folder, _) = place.rsplit_once('/').unwrap_or_default();
    let mut found = BTreeSet::new();
    let own = format!("crate::{module}::");
    let (above, _) = folder.rsplit_once('/').unwrap_or_default();
    for (prefix, base) in [
        ("super::super::", above),
        ("super::", folder),
        (&own, module),
    ] {
        for path in paths_after(&text, prefix) {
            let mut at = base.to_owned();
            for word in path {
                at = format!("{at}/{word}");
                if let Some((other, other_file)) = files.get_key_value(&at)
                    && !is_opening(other_file)
                    && other != place
                {
                    found.insert(other.as_str());
                }
            }
        }
    }
    found
}

/// The paths that follow `prefix`, each as its words, groups written out.
fn paths_after(text: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if !before.is_some_and(|c| c == ':' || c.is_alphanumeric() || c == '_') {
            read_paths(&text[at + prefix.len()..], &mut Vec::new(), &mut paths);
        }
    }
    paths
}

/// Reads one path or group of paths; returns what is behind it.
fn read_paths<'t>(
    text: &'t str,
    so_far: &mut Vec<String>,
    paths: &mut Vec<Vec<String>>,
) -> &'t str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = read_paths(rest, &mut so_far.clone(), paths).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    so_far.push(word.to_owned());
    match rest.strip_prefix("::") {
        Some(deeper) => read_paths(deeper, so_far, paths),
        None => {
            paths.push(so_far.clone());
            rest.trim_start_matches(|c| !",};".contains(c))
        }
    }
}

/// `store/plan/append`, and `store/plan` for a file that opens its folder.
fn place_of(file: &Path) -> String {
    let inside = file.strip_prefix(source()).unwrap().with_extension("");
    let inside = inside.to_string_lossy();
    inside.strip_suffix("/mod").unwrap_or(&inside).to_owned()
}

fn is_opening(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "mod.rs")
}

#[test]
fn paths_are_read_with_their_groups() {
    let text = "use super::{a::{self, B}, c};\nlet x = super::d::e(1);\nuse not_super::f;";
    let found: Vec<_> = paths_after(text, "super::")
        .iter()
        .map(|path| path.join("/"))
        .collect();
    assert_eq!(found, ["a/self", "a/B", "c", "d/e"]);
}

#[test]
fn every_metric_is_moved_somewhere() {
    let declaration = fs::read_to_string(source().join("metrics/table.rs")).unwrap();
    let code: Vec<String> = source_files()
        .iter()
        .filter(|file| module_of(file) != "metrics")
        .map(|file| product_code(file))
        .collect();
    let metrics = metric_fields(&declaration);
    assert!(metrics.len() > 14, "only {metrics:?} found");
    let still: Vec<_> = metrics
        .into_iter()
        .filter(|field| !code.iter().any(|text| moves(text, field)))
        .collect();
    assert!(still.is_empty(), "never moved: {still:?}");
}

#[test]
fn imports_are_found_in_groups_and_paths_but_not_in_comments() {
    let text = "use crate::{a::b, c::{d, e}, f};\nuse crate::g;\nlet x = crate::h::i();\n";
    let found: Vec<_> = used_modules(text, "crate::").into_iter().collect();
    assert_eq!(found, ["a", "c", "f", "g", "h"]);
    let commented = "/// See [`crate::store`].\nfn f() {} // crate::hub\n";
    assert!(used_modules(&without_comments(commented), "crate::").is_empty());
}

#[test]
fn a_moved_metric_is_found_across_a_line_break() {
    assert!(moves("metrics.seen_total.increment(1)", "seen_total"));
    assert!(moves("self\n  .seen_total\n  .absolute(1)", "seen_total"));
    assert!(!moves("metrics.unseen_total.increment(1)", "seen_total"));
    assert!(!moves("let x = &metrics.seen_total;", "seen_total"));
}

/// The table under "Who may import whom", with `ground` written out.
fn arrows() -> Arrows {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Who may import whom"))
        .unwrap();
    let ground = section
        .lines()
        .find_map(|line| line.strip_prefix("Ground: "))
        .map(names_in_backticks)
        .unwrap();
    let arrows: Arrows = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let module = cells.next().unwrap().trim().trim_matches('`').to_owned();
            let uses = cells.next().unwrap();
            let mut allowed = names_in_backticks(uses);
            if uses.split([',', ' ']).any(|word| word == "ground") {
                allowed.extend(ground.iter().cloned());
            }
            (module, allowed)
        })
        .collect();
    assert!(arrows.len() > 5, "the table was not found");
    arrows
}

fn names_in_backticks(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The first segments after each `prefix`: `crate::a::b` and `crate::{a, c::d}`.
fn used_modules(text: &str, prefix: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(is_word) {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(first_words_of_group(group)),
            None => used.extend(first_word(rest)),
        }
    }
    used
}

/// `a::b, c::{d, e}, f}` gives a, c, f.
fn first_words_of_group(group: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut depth = 0;
    let mut item = String::new();
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => words.extend(first_word(&std::mem::take(&mut item))),
            _ if depth == 0 => item.push(letter),
            _ => {}
        }
    }
    words.extend(first_word(&item));
    words
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.trim().chars().take_while(|&c| is_word(c)).collect();
    (!word.is_empty()).then_some(word)
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The names of the handles in the table of series.
fn metric_fields(declaration: &str) -> Vec<String> {
    let kinds = [": Counter =", ": Gauge =", ": Histogram ="];
    declaration
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub "))
        .filter_map(|line| kinds.iter().find_map(|kind| line.strip_suffix(kind)))
        .map(str::to_owned)
        .collect()
}

/// Whether `text` counts, sets or records into `field`.
fn moves(text: &str, field: &str) -> bool {
    let verbs = [
        ".increment(",
        ".decrement(",
        ".set(",
        ".record(",
        ".absolute(",
    ];
    text.match_indices(field).any(|(at, _)| {
        let rest = text[at + field.len()..].trim_start();
        !text[..at].ends_with(is_word) && verbs.iter().any(|verb| rest.starts_with(verb))
    })
}

/// The file without its comments and without the tests at its bottom.
fn product_code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    without_comments(product)
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `src/store/sqlite.rs` belongs to `store`, `src/hub.rs` to `hub`.
fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix(source()).unwrap();
    let first = Path::new(inside.iter().next().unwrap());
    first.file_stem().unwrap().to_string_lossy().into_owned()
}

fn source_files() -> Vec<PathBuf> {
    rust_files(source())
}

fn rust_files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn source() -> PathBuf {
    root().join("src")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
