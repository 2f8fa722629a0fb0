//! Which relays the commands have met: a file like ssh's `known_hosts`, beside the user's other state.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::client::{ClientError, KnownRelays, KnownRelaysFile};

/// Where the file lies within the folder for state.
const FILE: &str = "vauchi-relay/known-relays";

/// The file that is named or, without one, the user's. `None` where no user is known, as in some services
/// and containers.
pub(super) fn known_relays(named: Option<&Path>) -> Option<Arc<dyn KnownRelays>> {
    if let Some(path) = named {
        return Some(Arc::new(KnownRelaysFile::new(path)));
    }
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let path = users_file(variable("XDG_STATE_HOME"), variable("HOME"))?;
    Some(Arc::new(UsersFile(KnownRelaysFile::new(path))))
}

/// As the XDG Base Directory Specification has it; a path that is not absolute is ignored.
fn users_file(state: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
    let state = absolute(state);
    let folder = state.or_else(|| absolute(home).map(|home| home.join(".local/state")));
    folder.map(|folder| folder.join(FILE))
}

/// The user's file, without the relays of this very machine: nobody stands between, and those that are
/// tried out have another identity each time.
#[derive(Debug)]
struct UsersFile(KnownRelaysFile);

impl KnownRelays for UsersFile {
    fn meet(&self, origin: &str, relay_id: &[u8; 32]) -> Result<(), ClientError> {
        match is_this_machine(origin) {
            true => Ok(()),
            false => self.0.meet(origin, relay_id),
        }
    }
}

fn is_this_machine(origin: &str) -> bool {
    let host = match origin.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => origin.split(':').next(),
    };
    host.is_some_and(|host| {
        let address = host.parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lies_in_the_state_folder_or_in_the_home() {
        let path = |text: &str| Some(PathBuf::from(text));
        let file = users_file(path("/state"), path("/home/me"));
        assert_eq!(file, path("/state/vauchi-relay/known-relays"));
        let file = users_file(path("relative"), path("/home/me"));
        assert_eq!(
            file,
            path("/home/me/.local/state/vauchi-relay/known-relays")
        );
        assert_eq!(users_file(None, path("")), None);
    }

    #[test]
    fn relays_of_this_machine_are_met_anew_each_time() {
        for origin in [
            "127.0.0.1:8080",
            "localhost",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_this_machine(origin), "{origin}");
        }
        for origin in [
            "relay.example",
            "192.0.2.1:8080",
            "[2001:db8::1]",
            "localhost.example",
        ] {
            assert!(!is_this_machine(origin), "{origin}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile(KnownRelaysFile::new(folder.path().join("known")));
        file.meet("127.0.0.1:8080", &[1; 32]).unwrap();
        file.meet("127.0.0.1:8080", &[2; 32]).unwrap();
        file.meet("relay.example", &[1; 32]).unwrap();
        file.meet("relay.example", &[2; 32]).unwrap_err();
    }
}
