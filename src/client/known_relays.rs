//! Which relay was met under which host: what ssh keeps in `known_hosts`.
//!
//! The first relay that proves its id under a host is remembered there, and no other is accepted under that
//! host from then on. Nor is one and the same relay accepted under a second host, unless the URL names its
//! id: somebody who passes a client's frames on to a relay would be such a second host.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use data_encoding::HEXLOWER;

use super::ClientError;
use crate::ids::parse_hex;

/// Keeps which relay was met under which host. A client asks it after a relay has proved its id, and before
/// anything else is sent; not for relays whose URL names the id.
pub trait KnownRelays: Send + Sync + std::fmt::Debug {
    /// A relay with this id was met under this host (with its port unless that is 443 or 80). Remembers
    /// it if nothing speaks against it, or says what does. May block for as long as a file takes.
    fn meet(&self, origin: &str, relay_id: &[u8; 32]) -> Result<(), ClientError>;
}

/// Remembers as long as the client lives: what an application gets that does not choose.
#[derive(Debug, Default)]
pub struct RelaysInMemory(Mutex<Known>);

impl KnownRelays for RelaysInMemory {
    fn meet(&self, origin: &str, relay_id: &[u8; 32]) -> Result<(), ClientError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.check(origin, relay_id, "this client")?;
        known.0.insert(origin.to_owned(), *relay_id);
        Ok(())
    }
}

/// Remembers in a file: one line for each host, with the relay's id behind it.
///
/// ```text
/// relay.example 5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c
/// ```
#[derive(Debug)]
pub struct KnownRelaysFile {
    path: PathBuf,
    /// One client at a time reads and writes it here; a line is written in one piece.
    turn: Mutex<()>,
}

impl KnownRelaysFile {
    /// The file at this path, which is made, with its folder, when the first relay is met.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let turn = Mutex::new(());
        Self { path, turn }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::KnownRelays(format!("{}: {error}", self.path.display()))
    }

    fn read(&self) -> Result<String, ClientError> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|error| self.failed(&error)),
        }
    }

    fn parse(&self, text: &str) -> Result<Known, ClientError> {
        Known::parse(text).map_err(|line| {
            let what = "must have a host and an id of 64 hexadecimal digits";
            self.failed(&format_args!("line {line} {what}"))
        })
    }
}

impl KnownRelays for KnownRelaysFile {
    fn meet(&self, origin: &str, relay_id: &[u8; 32]) -> Result<(), ClientError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.read()?;
        let known = self.parse(&text)?;
        known.check(origin, relay_id, &self.path.display().to_string())?;
        if known.0.contains_key(origin) {
            return Ok(());
        }
        // An editor may have left the last line without its end.
        let end = match text.is_empty() || text.ends_with('\n') {
            true => "",
            false => "\n",
        };
        let line = format!("{end}{origin} {}\n", HEXLOWER.encode(relay_id));
        append(&self.path, &line).map_err(|error| self.failed(&error))
    }
}

/// Adds a line in one write, so that two clients at once do not mix theirs.
fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// Hosts with their relays.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, [u8; 32]>);

impl Known {
    /// Reads the lines of a file; the number of one that cannot be read. Of two clients that met a relay at
    /// the same time, the first one counts.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut known = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = line.split_once(char::is_whitespace);
            let entry = entry.and_then(|(origin, id)| Some((origin, parse_hex(id.trim()).ok()?)));
            let (origin, id) = entry.ok_or(at + 1)?;
            known.0.entry(origin.to_owned()).or_insert(id);
        }
        Ok(known)
    }

    /// Whether nothing that is known speaks against this relay under this host.
    fn check(&self, origin: &str, relay_id: &[u8; 32], keeper: &str) -> Result<(), ClientError> {
        match self.0.get(origin) {
            Some(id) if id == relay_id => return Ok(()),
            Some(id) => {
                return Err(ClientError::WrongRelay {
                    origin: origin.to_owned(),
                    expected: *id,
                    found: *relay_id,
                    says: keeper.to_owned(),
                });
            }
            None => {}
        }
        match self.0.iter().find(|(_, id)| *id == relay_id) {
            Some((known_as, _)) => Err(ClientError::KnownElsewhere {
                origin: origin.to_owned(),
                known_as: known_as.clone(),
                relay_id: *relay_id,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembers_and_refuses(known: &dyn KnownRelays) {
        known.meet("a.example", &[1; 32]).unwrap();
        known.meet("a.example", &[1; 32]).unwrap();
        known.meet("b.example:8443", &[2; 32]).unwrap();
        let changed = known.meet("a.example", &[3; 32]).unwrap_err();
        assert!(matches!(changed, ClientError::WrongRelay { expected, .. } if expected == [1; 32]));
        let passed_on = known.meet("evil.example", &[1; 32]).unwrap_err();
        let ClientError::KnownElsewhere { known_as, .. } = passed_on else {
            panic!("{passed_on:?}")
        };
        assert_eq!(known_as, "a.example");
        // Nothing of what was refused is remembered.
        known.meet("evil.example", &[3; 32]).unwrap();
    }

    #[test]
    fn a_host_keeps_its_relay_and_a_relay_its_host() {
        remembers_and_refuses(&RelaysInMemory::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/known-relays");
        remembers_and_refuses(&KnownRelaysFile::new(&path));
        // Another process knows the same.
        let again = KnownRelaysFile::new(&path);
        again.meet("a.example", &[4; 32]).unwrap_err();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with(&format!("a.example {}\n", "01".repeat(32))));
    }

    /// The next host stood behind the id of the last line, and then nobody was let in.
    #[test]
    fn a_last_line_without_its_end_stays_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known");
        for last in [
            format!("a.example {}", "01".repeat(32)),
            "# mine".to_owned(),
        ] {
            fs::write(&path, last).unwrap();
            let known = KnownRelaysFile::new(&path);
            known.meet("b.example", &[2; 32]).unwrap();
            known.meet("b.example", &[2; 32]).unwrap();
            known.meet("b.example", &[3; 32]).unwrap_err();
            known.meet("c.example", &[3; 32]).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_or_understood_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known");
        fs::write(&path, "# a comment\n\na.example 1234\n").unwrap();
        let error = KnownRelaysFile::new(&path).meet("b.example", &[1; 32]);
        let told = error.unwrap_err().to_string();
        assert!(told.contains("line 3"), "{told}");
        let error = KnownRelaysFile::new(folder.path()).meet("b.example", &[1; 32]);
        assert!(matches!(error, Err(ClientError::KnownRelays(_))));
    }
}
