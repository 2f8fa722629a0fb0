//! `vauchi-relay keygen`: a mailbox of one's own; and how its key lies in a file.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use data_encoding::HEXLOWER;
use serde_json::json;

use super::scratch::{Placed, Scratch, name_what_was_left};
use super::{Usage, say};
use crate::client::{MailboxId, MailboxKey};
use crate::filesystem::place::{folder_of, put_in_place};
use crate::ids::parse_hex;

/// The first word in a key file.
const WORD: &str = "vauchi-relay-mailbox";
const ED25519: &str = "ed25519";
const ED25519_V2_ONLY: &str = "ed25519-v2-only";

/// Create a mailbox that only its key opens. Writes the key to a file and prints the mailbox's address,
/// which you give to your senders.
///
/// The mailbox needs no registration and works at any relay. If you lose the file, you lose the
/// mailbox.
///
/// Exit codes: 0 created, or shown; 1 failed, with the reason on stderr; 2 invalid arguments, or not a
/// key file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File to write the key to; an existing file is never overwritten
    file: PathBuf,

    /// For a mailbox to which nobody sends through protocol v1: the relay does not pin it. Use it for
    /// mailboxes that change often, because relays limit the number of pins
    #[arg(long)]
    v2_only: bool,

    /// Create nothing; print the address of the key in this file
    #[arg(long, conflicts_with = "v2_only")]
    show: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Makes a key, unless there is one, and prints its mailbox. A key whose address cannot be told is removed
/// again, so that the same command works the next time.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut made = Placed::default();
    let key = match args.show {
        true => read(&args.file)?,
        false => {
            let key = make(args)?;
            made.add(args.file.clone());
            key
        }
    };
    let address = address(&key.mailbox());
    match args.json {
        true => say::line(json!({ "mailbox": address }))?,
        false => say::line(address)?,
    }
    made.keep();
    Ok(())
}

/// Makes a key and writes it down.
fn make(args: &Args) -> anyhow::Result<MailboxKey> {
    let bytes: [u8; 32] = rand::random();
    let (kind, key) = match args.v2_only {
        true => (ED25519_V2_ONLY, MailboxKey::ed25519(bytes).not_pinned()),
        false => (ED25519, MailboxKey::ed25519(bytes)),
    };
    let line = format!("{WORD} {kind} {}\n", HEXLOWER.encode(&bytes));
    let name = args.file.display();
    match write(&args.file, &line) {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{name} already exists; keygen never overwrites a key. Choose another name.")
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {name}")),
    }
}

/// How the command line spells a mailbox whose owner proves that it is theirs.
pub(super) fn address(mailbox: &MailboxId) -> String {
    format!("v2:{}", mailbox.to_hex())
}

/// Writes a file that is whole and on the disk when this returns, name and all: senders who are told the
/// address send to it. One that cannot be written leaves nothing that the next would not overwrite.
fn write(path: &Path, line: &str) -> std::io::Result<()> {
    name_what_was_left(folder_of(path));
    let mut scratch = Scratch::new(folder_of(path))?;
    let draft = scratch.file("key");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    put_in_place(&draft, path)
}

/// Reads a key file.
pub(super) fn read(path: &Path) -> anyhow::Result<MailboxKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let parsed = match words.as_slice() {
        [WORD, kind, hex] => parse_hex::<32>(hex).ok().map(|bytes| (*kind, bytes)),
        _ => None,
    };
    match parsed {
        Some((ED25519, bytes)) => Ok(MailboxKey::ed25519(bytes)),
        Some((ED25519_V2_ONLY, bytes)) => Ok(MailboxKey::ed25519(bytes).not_pinned()),
        // Never shows what is in it.
        _ => bail!(Usage(format!(
            "{}: not a key file of `vauchi-relay keygen`",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_private_comes_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for v2_only in [false, true] {
            let file = folder.path().join(format!("{v2_only}"));
            let args = Args {
                file: file.clone(),
                v2_only,
                show: false,
                json: true,
            };
            run(&args).unwrap();
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let before = read(&file).unwrap().mailbox();
            let error = run(&args).unwrap_err().to_string();
            let told = "already exists; keygen never overwrites a key. Choose another name.";
            assert_eq!(error, format!("{} {told}", file.display()));
            assert!(read(&file).unwrap().mailbox() == before);
        }
    }

    #[test]
    fn what_is_no_key_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "HUSH", "vauchi-relay-mailbox ed25519 HUSH", "a b HUSH"] {
            std::fs::write(file.path(), text).unwrap();
            let error = format!("{:#}", read(file.path()).unwrap_err());
            assert!(
                error.contains("not a key file of") && !error.contains("HUSH"),
                "{error}"
            );
        }
    }
}
