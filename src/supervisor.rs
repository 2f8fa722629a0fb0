//! Tells the program that started the relay, systemd with `Type=notify`, how it is.
//!
//! The protocol is `sd_notify(3)`: lines of `NAME=value` in a datagram to the socket that
//! `NOTIFY_SOCKET` names. Nobody is told anything where that is not set. A relay is never worse off
//! for a supervisor that does not listen: what cannot be told is warned about once.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

/// How often a state is told that lasts, and how often more time is asked for.
const EVERY: Duration = Duration::from_secs(5);

/// How much more time is asked for at once. Much more than [`EVERY`], for a machine that is busy.
const MORE_TIME: Duration = Duration::from_secs(60);

/// A supervisor whose queue is full is tried again so often, after such a rest: 2 s in all.
const TRIES: u32 = 20;
const REST: Duration = Duration::from_millis(100);

/// Who started the relay and wants to know how it is.
#[derive(Debug)]
pub struct Supervisor {
    line: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    complained: Once,
}

impl Supervisor {
    /// The one that the environment names, if any. One that cannot be used is warned about.
    pub fn from_env() -> Self {
        Self::named_by(|name| env::var_os(name))
    }

    fn named_by(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let line = variable("NOTIFY_SOCKET").and_then(|name| match open(&name) {
            Ok(line) => Some(line),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET: cannot use {name:?}; the supervisor (systemd) does not learn that the relay is ready");
                None
            }
        });
        let number = |name| -> Option<u64> { variable(name)?.to_str()?.parse().ok() };
        // Another process's watchdog is inherited when that one starts us.
        let is_ours = variable("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(std::process::id().into());
        let watchdog = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0);
        Self {
            line,
            watchdog: watchdog.map(Duration::from_micros),
            complained: Once::new(),
        }
    }

    /// Whether somebody listens.
    pub fn is_there(&self) -> bool {
        self.line.is_some()
    }

    /// How often to tell that the relay lives: at half of the watchdog's time, as systemd advises,
    /// and often enough that a state is not old news.
    pub fn interval(&self) -> Duration {
        self.watchdog.map_or(EVERY, |time| EVERY.min(time / 2))
    }

    /// The relay serves.
    pub async fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}")).await;
    }

    /// The relay lives; `status` where it has changed.
    pub async fn alive(&self, status: Option<&str>) {
        let mut lines = Vec::new();
        lines.extend(self.watchdog.map(|_| "WATCHDOG=1".to_owned()));
        lines.extend(status.map(|status| format!("STATUS={status}")));
        if !lines.is_empty() {
            self.tell(&lines.join("\n")).await;
        }
    }

    /// The relay is on its way out, and needs at most so long for it: its own settings hold, whatever
    /// `TimeoutStopSec` says.
    pub async fn stopping(&self, takes_max: Duration, status: &str) {
        let more = more_time(takes_max + EVERY);
        self.tell(&format!("STOPPING=1\n{more}\nSTATUS={status}"))
            .await;
    }

    /// The relay did not start, for a reason that the log has, too.
    pub async fn failed(&self, why: &str) {
        // What follows a line end would be another message.
        let why = why.lines().next().unwrap_or_default();
        self.tell(&format!("STATUS={why}")).await;
    }

    /// Asks for more time as long as `work` goes on: a large database is not done sooner for being
    /// killed halfway. In a task of its own, so that `work` may take long between two awaits.
    pub async fn wait_for<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        let _asking = self.is_there().then(|| {
            let supervisor = Arc::clone(self);
            AbortOnDropHandle::new(tokio::spawn(async move {
                let more = more_time(MORE_TIME);
                loop {
                    let lines = format!("{more}\nSTATUS=starting: opening storage");
                    supervisor.tell(&lines).await;
                    tokio::time::sleep(EVERY).await;
                }
            }))
        });
        work.await
    }

    async fn tell(&self, lines: &str) {
        let Some((socket, address)) = &self.line else {
            return;
        };
        for _ in 0..TRIES {
            match socket.send_to_addr(lines.as_bytes(), address) {
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(REST).await;
                }
                Err(error) => {
                    self.complain(&error);
                    return;
                }
            }
        }
        self.complain(&io::ErrorKind::TimedOut.into());
    }

    fn complain(&self, error: &io::Error) {
        self.complained.call_once(|| {
            tracing::warn!(%error, "cannot reach the supervisor (systemd); it may consider the relay dead");
        });
    }
}

fn more_time(time: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", time.as_micros())
}

/// A socket of ours, and the address to write to. Not connected, so that it outlives a supervisor
/// that starts anew.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        [b'@', rest @ ..] => abstract_address(rest)?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor(variables: &[(&str, &str)]) -> Supervisor {
        Supervisor::named_by(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[tokio::test]
    async fn without_a_socket_nobody_is_told() {
        let nobody = supervisor(&[]);
        assert!(!nobody.is_there());
        nobody.ready("serving").await;
        for unusable in ["", "vsock:2:3", "relative/path"] {
            assert!(!supervisor(&[("NOTIFY_SOCKET", unusable)]).is_there());
        }
    }

    #[test]
    fn the_watchdog_is_answered_at_half_of_its_time() {
        let interval = |variables: &[_]| supervisor(variables).interval();
        assert_eq!(interval(&[("WATCHDOG_USEC", "3000000")]).as_millis(), 1_500);
        assert_eq!(interval(&[("WATCHDOG_USEC", "60000000")]), EVERY);
        for none in ["", "0", "soon"] {
            assert_eq!(supervisor(&[("WATCHDOG_USEC", none)]).watchdog, None);
        }
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let ours = std::process::id().to_string();
        let watchdog = |pid| {
            let variables = [("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", pid)];
            supervisor(&variables).watchdog
        };
        assert!(watchdog(&ours).is_some());
        assert_eq!(watchdog("1"), None);
        assert_eq!(watchdog(""), None);
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_what_is_told_is_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let there = supervisor(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
        let (socket, address) = there.line.as_ref().unwrap();
        while socket.send_to_addr(b"X=1", address).is_ok() {}
        let reading = std::thread::spawn(move || {
            // The first try finds no room.
            std::thread::sleep(REST / 2);
            let mut words = [0; 256];
            loop {
                let length = listener.recv(&mut words).unwrap();
                if &words[..length] != b"X=1" {
                    return String::from_utf8_lossy(&words[..length]).into_owned();
                }
            }
        });
        there.failed("first\nREADY=1").await;
        assert_eq!(reading.join().unwrap(), "STATUS=first");
    }
}
