//! `vauchi-relay man` and `vauchi-relay completions`: the manual page and what shells complete.
//!
//! Both come from the definitions of the arguments and the table of settings, so that they cannot
//! drift; and from the binary itself, so that its owner can make them without the source. The
//! commands are hidden: packages call them once, people hardly ever.

use std::io::{self, Write};

use clap::Command;
use clap_complete::{Generator, Shell};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::{exit, say};
use crate::config::{SETTINGS, Setting};

/// Print the manual page, in the format of man(7).
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {}

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the manual page.
pub(super) fn man(command: Command) -> u8 {
    printed(page(command))
}

/// Prints the completions.
pub(super) fn completions(args: &CompletionsArgs, command: Command) -> u8 {
    printed(completing(args.shell, command))
}

fn printed(made: io::Result<Vec<u8>>) -> u8 {
    let made = made.map_err(anyhow::Error::from);
    match made.and_then(|text| say::page(&text)) {
        Ok(()) => exit::DRAINED,
        Err(error) => {
            say::note(format_args!("vauchi-relay: {error:#}"));
            exit::FAILED
        }
    }
}

fn completing(shell: Shell, mut command: Command) -> io::Result<Vec<u8>> {
    let name = command.get_name().to_owned();
    command.set_bin_name(name);
    command.build();
    let mut script = Vec::new();
    shell.try_generate(&command, &mut script)?;
    // clap_complete spells a hyphen in two ways for bash, and then completes nothing after a command:
    // https://github.com/clap-rs/clap/issues/6421
    let script = String::from_utf8_lossy(&script);
    Ok(script
        .replace("vauchi__subcmd__relay", "vauchi__relay")
        .into_bytes())
}

/// One page for all commands: it is what people search in.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut command = without_help(command).disable_help_flag(false);
    command.build();
    let commands = shown(&command);

    let mut page = Vec::new();
    let whole = Man::new(with_values_in_usage(command));
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    page.extend(b".SH COMMANDS\n");
    for command in commands {
        let (name, parts) = (command.get_name().to_owned(), shown(&command));
        write_command(&mut page, &name, command)?;
        for part in parts {
            let name = format!("{name} {}", part.get_name());
            write_command(&mut page, &name, part)?;
        }
    }
    let mut rest = Roff::new();
    environment(&mut rest);
    exit_status(&mut rest);
    signals(&mut rest);
    files(&mut rest);
    examples(&mut rest);
    rest.control("SH", ["SEE ALSO"]);
    rest.text(marked("`systemd.service`(5), `journalctl`(1)"));
    page.extend(rest.to_roff().into_bytes());
    Ok(page)
}

/// Each command of a page has the same `--help`, so that it is told once.
fn without_help(command: Command) -> Command {
    command
        .disable_help_subcommand(true)
        .disable_help_flag(true)
        .mut_subcommands(without_help)
}

fn shown(command: &Command) -> Vec<Command> {
    let commands = command.get_subcommands();
    let shown = commands.filter(|command| !command.is_hide_set());
    shown.cloned().collect()
}

/// The usage that `--help` shows; the manual's own leaves out what options take.
fn with_values_in_usage(mut command: Command) -> Command {
    let usage = command.render_usage().to_string();
    command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
}

/// The sections of a command's own page, without their headings.
fn write_command(page: &mut Vec<u8>, name: &str, command: Command) -> io::Result<()> {
    writeln!(page, ".SS {name}")?;
    let has_options = command.get_arguments().next().is_some();
    let man = Man::new(with_values_in_usage(command));
    let mut sections = Vec::new();
    man.render_synopsis_section(&mut sections)?;
    man.render_description_section(&mut sections)?;
    if has_options {
        man.render_options_section(&mut sections)?;
    }
    for line in String::from_utf8_lossy(&sections).lines() {
        // Each section also defines the apostrophe again, with .ie and .el.
        let line = match line.get(..4) {
            Some(".SH ") => ".PP",
            Some(".ie " | ".el ") => continue,
            _ => line,
        };
        writeln!(page, "{line}")?;
    }
    Ok(())
}

fn environment(page: &mut Roff) {
    page.control("SH", ["ENVIRONMENT"]);
    page.text([roman(
        "All settings are environment variables, read at startup. Invalid settings are reported all at once.",
    )]);
    for setting in SETTINGS {
        entry(page, setting.name, &meaning(setting));
    }
    entry(
        page,
        "RUST_LOG",
        "Log filter. Default: `vauchi_relay=info`.",
    );
}

fn meaning(setting: &Setting) -> String {
    let Setting {
        what,
        accepts,
        default,
        ..
    } = setting;
    let older = setting
        .alias
        .map(|name| format!(" Older spelling: `{name}`."));
    format!(
        "{what}. Default: `{default}`. Accepts: {accepts}.{}",
        older.unwrap_or_default()
    )
}

fn exit_status(page: &mut Roff) {
    page.control("SH", ["EXIT STATUS"]);
    for (code, means) in [
        (exit::DRAINED, "Success; for a relay: drained and stopped."),
        (
            exit::FAILED,
            "The relay could not start, or the command failed; for `check`: a start would fail.",
        ),
        (exit::SETTINGS, "Invalid settings or arguments."),
        (
            exit::CUT,
            "The relay stopped before its drain was complete (second signal or deadline).",
        ),
    ] {
        entry(page, &code.to_string(), means);
    }
}

fn signals(page: &mut Roff) {
    page.control("SH", ["SIGNALS"]);
    for (signal, does) in [
        (
            "SIGTERM, SIGINT",
            "The first signal drains the relay: it finishes the work it has accepted, tells clients to \
             disconnect, and exits. A second signal stops it at once.",
        ),
        (
            "SIGHUP",
            "Turns debug lines in the log on or off, or reads `RELAY_LOG_FILTER_FILE` again.",
        ),
    ] {
        entry(page, signal, does);
    }
}

fn files(page: &mut Roff) {
    page.control("SH", ["FILES"]);
    for (file, holds) in [
        (
            "/etc/vauchi-relay/relay.env",
            "Settings of the systemd service, one NAME=value per line.",
        ),
        (
            "/var/lib/vauchi-relay",
            "Data directory of the systemd service (`RELAY_DATA_DIR`).",
        ),
        (
            "relay.db",
            "In the data directory: the SQLite database with the stored blobs.",
        ),
        (
            "relay.secret",
            "In the data directory, unless `RELAY_SECRET_FILE` names another file: the relay's secret. \
             The database is useless without it, so back up both together.",
        ),
    ] {
        entry(page, file, holds);
    }
}

fn examples(page: &mut Roff) {
    const MAILBOX: &str = "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c";
    page.control("SH", ["EXAMPLES"]);
    page.text([roman("Send a blob and receive it:")]);
    page.control("PP", []);
    page.control("EX", []);
    page.text([roman(format!(
        "vauchi-relay send --to {MAILBOX} --text hello"
    ))]);
    page.text([roman(format!("vauchi-relay receive --mailbox {MAILBOX}"))]);
    page.control("EE", []);
    page.text([roman("A mailbox that only its key opens:")]);
    page.control("PP", []);
    page.control("EX", []);
    page.text([roman("vauchi-relay keygen mine.key")]);
    page.text([roman("vauchi-relay receive --key mine.key")]);
    page.control("EE", []);
    page.text([roman("A blob that can be cancelled:")]);
    page.control("PP", []);
    page.control("EX", []);
    page.text([roman(format!(
        "vauchi-relay send --to {MAILBOX} --text hello --json >sent.json"
    ))]);
    page.text([roman("vauchi-relay cancel sent.json")]);
    page.control("EE", []);
}

/// A word and what it means.
fn entry(page: &mut Roff, word: &str, meaning: &str) {
    page.control("TP", []);
    page.text([bold(word)]);
    page.text(marked(meaning));
}

/// What stands in backticks, in bold.
fn marked(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .map(|(number, part)| match number % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, ValueEnum};

    use super::super::Arguments;
    use super::*;

    fn plain_page() -> String {
        let page = String::from_utf8(page(Arguments::command()).unwrap()).unwrap();
        page.replace('\\', "")
    }

    #[test]
    fn the_page_has_every_command_option_and_setting() {
        let page = plain_page();
        let command = Arguments::command();
        for command in command.get_subcommands() {
            let name = command.get_name();
            let heading = format!(".SS {name}\n");
            let is_shown = !command.is_hide_set();
            assert_eq!(page.contains(&heading), is_shown, "{heading}{page}");
            if is_shown {
                has_options(&page, command);
            }
            for part in command.get_subcommands() {
                let heading = format!(".SS {name} {}\n", part.get_name());
                assert!(page.contains(&heading), "{heading}{page}");
                has_options(&page, part);
            }
        }
        for name in SETTINGS.iter().flat_map(Setting::spellings) {
            assert!(page.contains(name), "{name}\n{page}");
        }
    }

    fn has_options(page: &str, command: &Command) {
        for option in command.get_arguments().filter_map(|arg| arg.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{option}\n{page}");
        }
    }

    #[test]
    fn the_page_has_each_section_once_and_in_the_usual_order() {
        let page = plain_page();
        let sections: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .map(|title| title.trim_matches('"'))
            .collect();
        let usual = [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "COMMANDS",
            "ENVIRONMENT",
            "EXIT STATUS",
            "SIGNALS",
            "FILES",
            "EXAMPLES",
            "SEE ALSO",
        ];
        assert_eq!(sections, usual);
    }

    #[test]
    fn bash_knows_each_state_that_a_command_leads_to() {
        let script = completing(Shell::Bash, Arguments::command()).unwrap();
        let script = String::from_utf8(script).unwrap();
        let states: Vec<_> = script
            .lines()
            .filter_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix('"'))
            .filter(|state| !state.is_empty())
            .collect();
        assert!(states.len() > 5, "{script}");
        for state in states {
            assert!(script.contains(&format!(" {state})\n")), "{state}");
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = completing(*shell, Arguments::command()).unwrap();
            let script = String::from_utf8(script).unwrap();
            for command in Arguments::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {script}");
            }
        }
    }
}
