//! From texts to values: each fault becomes one line that says what is wrong and what to write.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::hosts;
use super::settings::{Accepts, SETTINGS, Setting, setting};
use super::{Database, InForce, Networks, Origin, Share, Token};

/// The variables that are set, and the faults found so far.
pub(super) struct Reader {
    /// By name without `RELAY_`, in lower case, as envy gives them.
    values: BTreeMap<String, String>,
    /// The settings that could not be read.
    faulty: Vec<&'static str>,
    /// What came of each setting, as one would write it.
    noted: BTreeMap<&'static str, String>,
    pub(super) faults: Vec<String>,
}

impl Reader {
    /// Takes variables whose names are all in the table.
    pub(super) fn new(variables: Vec<(String, String)>) -> Self {
        let mut reader = Self {
            values: BTreeMap::new(),
            faulty: Vec::new(),
            noted: BTreeMap::new(),
            faults: Vec::new(),
        };
        match envy::prefixed("RELAY_").from_iter(variables) {
            Ok(values) => reader.values = values,
            Err(error) => reader.faults.push(format!("RELAY_*: {error}")),
        }
        reader
    }

    /// Whether the variable or its older spelling is set, be it well or badly.
    pub(super) fn is_set(&self, name: &str) -> bool {
        row(name).spellings().any(|name| self.text(name).is_some())
    }

    /// Whether the setting was read and was not right.
    pub(super) fn is_faulty(&self, name: &str) -> bool {
        self.faulty.contains(&name)
    }

    /// Remembers what is in force, where that is neither the text that was read nor the default in
    /// the table.
    pub(super) fn note(&mut self, name: &str, value: impl Display) {
        self.noted.insert(row(name).name, value.to_string());
    }

    /// Every setting as it is in force.
    pub(super) fn in_force(&self) -> Vec<InForce> {
        SETTINGS.iter().map(|row| self.one_in_force(row)).collect()
    }

    fn one_in_force(&self, row: &'static Setting) -> InForce {
        let spelling = row.spellings().find(|name| self.text(name).is_some());
        let value = match (spelling, row.accepts) {
            (Some(_), Accepts::Secret) => InForce::MASK,
            (Some(spelling), _) => self.text(spelling).unwrap_or_default().trim(),
            (None, _) => row.default,
        };
        let noted = self.noted.get(row.name).cloned();
        InForce {
            name: row.name,
            value: noted.unwrap_or_else(|| value.to_owned()),
            origin: match spelling {
                None => Origin::Default,
                Some(name) if name == row.name => Origin::Set,
                Some(alias) => Origin::Alias(alias),
            },
        }
    }

    /// Reads a whole number into `target`, which keeps its value when the variable is not set.
    pub(super) fn number<T: TryFrom<u64> + Display>(&mut self, name: &str, target: &mut T) {
        let row = row(name);
        let value = self.value(row, |_, text| parse_number(row.accepts, text));
        // The bounds in the table fit the field; a test sets each to its largest value.
        if let Some(value) = value.and_then(|value| T::try_from(value).ok()) {
            *target = value;
        }
        self.note(name, target);
    }

    /// Reads a whole number of seconds.
    pub(super) fn seconds(&mut self, name: &str, target: &mut Duration) {
        let mut secs = target.as_secs();
        self.number(name, &mut secs);
        *target = Duration::from_secs(secs);
    }

    /// Reads a whole number of days or, by the older spelling, of seconds.
    pub(super) fn days_or_seconds(&mut self, name: &str, target: &mut Duration) {
        const DAY_SECS: u64 = 86_400;
        let row = row(name);
        let secs = self.value(row, |spelling, text| {
            if spelling == row.name {
                return parse_number(row.accepts, text).map(|days| days * DAY_SECS);
            }
            let max = super::settings::BLOB_TTL_DAYS_MAX * DAY_SECS;
            parse_number(Accepts::Number { min: 1, max }, text).map_err(|wrong| Wrong {
                // The row's example and default are in days.
                hint: Some(format!("use 1 to {max} seconds, for example 2592000")),
                default_unit: " days",
                ..wrong
            })
        });
        *target = secs.map_or(*target, Duration::from_secs);
        match target.as_secs() {
            secs if secs.is_multiple_of(DAY_SECS) => self.note(name, secs / DAY_SECS),
            secs => self.note(name, format_args!("{secs} seconds")),
        }
    }

    /// Reads an IP address with a port.
    pub(super) fn address(&mut self, name: &str, target: &mut SocketAddr) {
        if let Some(value) = self.value(row(name), |_, text| parse_address(text)) {
            *target = value;
        }
        self.note(name, target);
    }

    /// Reads a decimal number from 0 to 1.
    pub(super) fn share(&mut self, name: &str, target: &mut Share) {
        let wrong = || Wrong::new("is not a decimal number from 0 to 1");
        if let Some(value) = self.value(row(name), |_, text| Share::parse(text).ok_or_else(wrong)) {
            *target = value;
        }
    }

    /// Reads a list of networks.
    pub(super) fn networks(&mut self, name: &str, target: &mut Networks) {
        let wrong = |part: String| {
            Wrong::new(format!(
                "contains {}, which is not an IP address or a network",
                quoted(&part)
            ))
        };
        if let Some(value) = self.value(row(name), |_, text| Networks::parse(text).map_err(wrong)) {
            *target = value;
        }
    }

    /// Reads a list of hosts that clients dial.
    pub(super) fn origins(&mut self, name: &str, target: &mut Vec<String>) {
        let wrong = |part: &str| format!("contains {part}, which is not a host name in lower case");
        self.list(name, target, wrong, hosts::origins);
    }

    /// Reads a list of relays.
    pub(super) fn alternates(&mut self, name: &str, target: &mut Vec<String>) {
        let wrong = |part: &str| format!("contains {part}, which is not a WebSocket URL");
        self.list(name, target, wrong, hosts::alternates);
    }

    fn list(
        &mut self,
        name: &str,
        target: &mut Vec<String>,
        wrong: fn(&str) -> String,
        parse: fn(&str) -> Result<Vec<String>, String>,
    ) {
        let wrong = |part: String| Wrong::new(wrong(&quoted(&part)));
        if let Some(value) = self.value(row(name), |_, text| parse(text).map_err(wrong)) {
            *target = value;
        }
    }

    /// Reads one of the words that `meanings` gives a value.
    pub(super) fn word<T: Copy + PartialEq>(
        &mut self,
        name: &str,
        meanings: &[(&str, T)],
        target: &mut T,
    ) {
        let value = self.value(row(name), |_, text| {
            let found = meanings.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = meanings.iter().map(|(word, _)| *word).collect();
                Wrong::with_hint(
                    "is not a valid value",
                    format!("use {}", words.join(" or ")),
                )
            })
        });
        if let Some(value) = value {
            *target = value;
        }
        // Of several words for the same the first is shown.
        if let Some((word, _)) = meanings.iter().find(|(_, value)| value == target) {
            self.note(name, word);
        }
    }

    /// Reads `true` or `1`, `false` or `0`.
    pub(super) fn flag(&mut self, name: &str, target: &mut bool) {
        let meanings = [("true", true), ("false", false), ("1", true), ("0", false)];
        self.word(name, &meanings, target);
    }

    /// Reads a path.
    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.value(row(name), |_, text| Ok(PathBuf::from(text)))
    }

    /// Reads a token from the variable, or from the file that `file_name` names; not from both.
    pub(super) fn token(&mut self, name: &str, file_name: &str) -> Option<Token> {
        let path = self.path(file_name);
        if path.is_some() && self.is_set(name) {
            let both = format!("{name} and {file_name} are both set; keep one of them");
            self.faults.push(both);
            return None;
        }
        let Some(path) = path else {
            let text = self.text(name)?.to_owned();
            return self.checked_token(name, &text);
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => self.checked_token(&format!("{file_name}: the file's content"), &text),
            Err(error) => {
                let path = path.display();
                self.faults
                    .push(format!("{file_name}: cannot read {path}: {error}"));
                None
            }
        }
    }

    /// Reads where the PostgreSQL database is; `None` where none is wanted.
    pub(super) fn database(&mut self, is_wanted: bool) -> Option<Database> {
        let url = self.token("RELAY_DATABASE_URL", "RELAY_DATABASE_URL_FILE");
        let password_file = self.path("RELAY_DATABASE_PASSWORD_FILE");
        if !is_wanted {
            return None;
        }
        let example = row("RELAY_DATABASE_URL").example;
        let Some(url) = url else {
            // A file that cannot be read has said so already.
            if !self.is_set("RELAY_DATABASE_URL") && !self.is_set("RELAY_DATABASE_URL_FILE") {
                self.faults.push(format!(
                    "RELAY_DATABASE_URL is not set, and RELAY_STORAGE_BACKEND=postgres needs it; use for example {example}"
                ));
            }
            return None;
        };
        if let Some(path) = &password_file
            && let Err(error) = std::fs::read_to_string(path)
        {
            let path = path.display();
            self.faults.push(format!(
                "RELAY_DATABASE_PASSWORD_FILE: cannot read {path}: {error}"
            ));
        }
        match Database::parse(url.expose()) {
            Ok(mut database) => {
                database.password_file = password_file;
                Some(database)
            }
            Err(what) => {
                // It may hold a password, so it is not quoted.
                let line = format!("RELAY_DATABASE_URL {what}; use for example {example}");
                self.faults.push(line);
                None
            }
        }
    }

    fn checked_token(&mut self, place: &str, text: &str) -> Option<Token> {
        let text = text.trim();
        let sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || !sendable {
            // A secret is never quoted.
            self.faults.push(format!(
                "{place} is empty, or contains a space or something else than visible ASCII"
            ));
            return None;
        }
        Some(Token::new(text))
    }

    /// Parses the variable and its older spelling; both may be set when they mean the same.
    fn value<T: PartialEq>(
        &mut self,
        row: &'static Setting,
        parse: impl Fn(&str, &str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let mut found: Option<(&str, T)> = None;
        for spelling in row.spellings() {
            let Some(text) = self.text(spelling) else {
                continue;
            };
            let text = text.trim();
            let parsed = if text.is_empty() {
                Err(Wrong::new("is empty"))
            } else {
                parse(spelling, text)
            };
            match (parsed, &found) {
                (Err(wrong), _) => {
                    let line = wrong.line(spelling, text, row);
                    self.faults.push(line);
                    self.faulty.push(row.name);
                }
                (Ok(value), Some((other, first))) if *first != value => {
                    self.faults.push(format!(
                        "{spelling} is an older spelling of {other} and has another value; keep {other}"
                    ));
                }
                (Ok(value), _) => found = Some((spelling, value)),
            }
        }
        found.map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Option<&str> {
        let key = name.strip_prefix("RELAY_")?.to_ascii_lowercase();
        self.values.get(&key).map(String::as_str)
    }
}

#[expect(clippy::expect_used, reason = "names are literals; a test reads all")]
fn row(name: &str) -> &'static Setting {
    setting(name).expect("every name that is read is in SETTINGS")
}

/// What is wrong with a value; the hint replaces the one made from the table.
struct Wrong {
    what: String,
    hint: Option<String>,
    /// Said after the default, where the value's unit is another.
    default_unit: &'static str,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
            default_unit: "",
        }
    }

    fn with_hint(what: &str, hint: String) -> Self {
        Self {
            what: what.to_owned(),
            hint: Some(hint),
            default_unit: "",
        }
    }

    /// `RELAY_MAX_CONNECTIONS: "10k" is not a whole number; use for example 10000 (default 1000)`
    fn line(self, spelling: &str, text: &str, row: &Setting) -> String {
        let what = self.what;
        let hint = self
            .hint
            .unwrap_or_else(|| format!("use for example {}", row.example));
        let default = format!("{}{}", row.default, self.default_unit);
        if text.is_empty() {
            return format!("{spelling}: {what}; remove it or {hint} (default {default})");
        }
        let shown = quoted(text);
        format!("{spelling}: {shown} {what}; {hint} (default {default})")
    }
}

/// The value in quotes, control characters escaped, long ones cut.
fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 60;
    if text.chars().count() <= SHOWN_CHARS {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(SHOWN_CHARS).collect();
    format!("{head:?}…")
}

fn parse_number(accepts: Accepts, text: &str) -> Result<u64, Wrong> {
    let Accepts::Number { min, max } = accepts else {
        return Err(Wrong::new("is not a number"));
    };
    // `u64::from_str` would also take a leading plus.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Wrong::new("is not a whole number"));
    }
    // All digits and yet no u64: larger than any bound.
    match text.parse().unwrap_or(u64::MAX) {
        value if (min..=max).contains(&value) => Ok(value),
        value => {
            let what = if value < min {
                "is too small"
            } else {
                "is too large"
            };
            Err(Wrong::with_hint(what, format!("use {min} to {max}")))
        }
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        let hint = format!("for all interfaces use 0.0.0.0:{port}");
        return Err(Wrong::with_hint("has no IP address", hint));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let hint = format!("use for example {}", SocketAddr::new(ip, 8080));
        return Err(Wrong::with_hint("has no port", hint));
    }
    Err(Wrong::new("is not an IP address with a port"))
}
