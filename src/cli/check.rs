//! `vauchi-relay check`: shows the settings as a start would have them, and tries what it needs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::preflight::{self, Finding, Level};
use super::{exit, failure, say};
use crate::config::{Config, ConfigError, InForce, Loaded, Origin};

/// Print the effective settings, and test disk, secret, ports and limits without starting the relay.
///
/// Leaves nothing behind. Exit codes: 0 no test failed; 1 a test failed, or a RELAY_* variable is not a setting; 2
/// invalid settings, reported as at startup.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

const SETTINGS: &str = "settings";

/// What is printed.
struct Report {
    settings: Vec<InForce>,
    findings: Vec<Finding>,
}

/// Checks and prints; gives the exit code.
pub(super) fn run(args: &Args) -> u8 {
    let loaded = match Config::from_env() {
        Ok(loaded) => loaded,
        Err(faults) if args.json => return printed(&faults_as_json(&faults), exit::SETTINGS),
        Err(faults) => {
            say::note(faults);
            return exit::SETTINGS;
        }
    };
    let report = Report::of(loaded);
    let text = match args.json {
        true => report.as_json(),
        false => report.as_text(),
    };
    printed(
        &text,
        match report.worst() {
            Level::Ok | Level::Warn => exit::DRAINED,
            Level::Fail => exit::FAILED,
        },
    )
}

/// The exit code, unless the report cannot be written: one that is cut off must not pass for good.
fn printed(text: &str, code: u8) -> u8 {
    match say::page(text.as_bytes()) {
        Ok(()) => code,
        Err(error) => {
            say::note(format_args!("vauchi-relay: {error:#}"));
            exit::FAILED
        }
    }
}

impl Report {
    fn of(loaded: Loaded) -> Self {
        let Loaded {
            config,
            warnings,
            unknown,
            in_force,
        } = loaded;
        let unknown = unknown
            .into_iter()
            .map(|line| Finding::fail(SETTINGS, line));
        let warnings = warnings
            .into_iter()
            .map(|line| Finding::warn(SETTINGS, line));
        let mut findings: Vec<_> = unknown.chain(warnings).collect();
        findings.extend(preflight::findings(&config));
        Self {
            settings: in_force,
            findings,
        }
    }

    fn worst(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }

    fn count(&self, level: Level) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.level == level).count()
    }

    fn as_text(&self) -> String {
        let mut text = concat!("vauchi-relay ", env!("VAUCHI_VERSION"), "\n\n").to_owned();
        let width = |cell: fn(&InForce) -> usize| self.settings.iter().map(cell).max();
        let name_width = width(|setting| setting.name.len()).unwrap_or(0);
        let value_width = width(|setting| setting.value.len()).unwrap_or(0).min(32);
        for InForce {
            name,
            value,
            origin,
        } in &self.settings
        {
            let origin = match origin {
                Origin::Default => "default".to_owned(),
                Origin::Set => "set".to_owned(),
                Origin::Alias(alias) => format!("set as {alias}"),
            };
            line(
                &mut text,
                format_args!("{name:name_width$}  {value:value_width$}  {origin}"),
            );
        }
        text.push('\n');
        for finding in &self.findings {
            let Finding {
                level,
                subject,
                text: what,
            } = finding;
            line(
                &mut text,
                format_args!("{:<4}  {subject}: {what}", word(*level)),
            );
        }
        let (failed, warned) = (self.count(Level::Fail), self.count(Level::Warn));
        line(
            &mut text,
            format_args!("\nfailed: {failed}, warnings: {warned}"),
        );
        text
    }

    fn as_json(&self) -> String {
        let settings: Vec<_> = self.settings.iter().map(setting_as_json).collect();
        let findings: Vec<_> = self.findings.iter().map(finding_as_json).collect();
        let whole = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "outcome": word(self.worst()).to_lowercase(),
            "settings": settings,
            "findings": findings,
        });
        format!("{whole:#}\n")
    }
}

fn setting_as_json(setting: &InForce) -> Value {
    let (origin, alias) = match setting.origin {
        Origin::Default => ("default", None),
        Origin::Set => ("set", None),
        Origin::Alias(alias) => ("alias", Some(alias)),
    };
    json!({ "name": setting.name, "value": setting.value, "origin": origin, "alias": alias })
}

fn finding_as_json(finding: &Finding) -> Value {
    let level = word(finding.level).to_lowercase();
    json!({ "level": level, "subject": finding.subject, "text": finding.text })
}

fn faults_as_json(faults: &ConfigError) -> String {
    let mut whole = failure::usage_as_json(&faults.to_string());
    whole["version"] = env!("CARGO_PKG_VERSION").into();
    whole["outcome"] = "fail".into();
    whole["faults"] = json!(faults.faults());
    format!("{whole:#}\n")
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Fail => "FAIL",
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    writeln!(text, "{line}").ok();
}
