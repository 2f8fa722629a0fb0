//! Any text for any setting: never a panic, each fault names a variable that was set, in one line, and no text shows
//! a secret.
//!
//! An input is an environment, one variable in a line, or with NUL between them as in `/proc/PID/environ`.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use libfuzzer_sys::fuzz_target;
use vauchi_relay::config::{Config, SETTINGS};

/// Stands in each secret.
const MARK: &[u8] = b"hush-hush";

const NAME_BYTES_MAX: usize = 60;
const UNKNOWN_MAX: usize = 2;

fuzz_target!(|input: &[u8]| {
    let separator = if input.contains(&0) { 0 } else { b'\n' };
    let mut variables: Vec<_> = input
        .split(|byte| *byte == separator)
        .filter_map(variable)
        .collect();
    // For each unknown name the relay looks for the likeliest spelling, which takes long here.
    let mut unknown = 0;
    variables.retain(|(name, _)| {
        unknown += usize::from(!is_setting(name));
        is_setting(name) || unknown <= UNKNOWN_MAX
    });
    let has_mark = contains(input, MARK);
    for (name, value) in &mut variables {
        if name == "RELAY_METRICS_TOKEN" {
            let marked = [MARK, value.as_bytes()].concat();
            *value = OsString::from_vec(marked);
        }
    }
    let is_fit_to_show = |text: &str| has_mark || !contains(text.as_bytes(), MARK);
    let is_one_line = |text: &str| !text.chars().any(char::is_control);
    match Config::from_vars(variables) {
        Ok(loaded) => {
            for said in loaded.warnings.iter().chain(&loaded.unknown) {
                assert!(is_fit_to_show(said) && is_one_line(said), "{said:?}");
            }
            let mut in_force = loaded.in_force.iter();
            assert!(in_force.all(|setting| is_fit_to_show(&setting.value)));
        }
        Err(error) => {
            assert!(!error.faults().is_empty());
            for fault in error.faults() {
                assert!(is_fit_to_show(fault) && is_one_line(fault), "{fault:?}");
                assert!(names_a_variable(fault), "{fault:?}");
            }
        }
    }
});

fn names_a_variable(fault: &str) -> bool {
    let spellings = SETTINGS.iter().flat_map(|row| [Some(row.name), row.alias]);
    let mut names = spellings
        .flatten()
        .chain(["RELAY_REQUIRE_NOISE_ENCRYPTION"]);
    names.any(|name| fault.contains(name))
}

fn variable(text: &[u8]) -> Option<(OsString, OsString)> {
    let at = text.iter().position(|byte| *byte == b'=')?;
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
    let name = owned(&text[..at]);
    // The one that is read from a file: what that says is another's. And a long name only takes time.
    let is_wanted = name != "RELAY_METRICS_TOKEN_FILE" && name.len() <= NAME_BYTES_MAX;
    is_wanted.then(|| (name, owned(&text[at + 1..])))
}

fn is_setting(name: &OsStr) -> bool {
    SETTINGS
        .iter()
        .any(|row| name == row.name || row.alias.is_some_and(|alias| name == alias))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
