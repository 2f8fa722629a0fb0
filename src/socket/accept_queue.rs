//! Connections that the system has completed and the relay has not accepted yet.
//!
//! A connection that finds the queue full is dropped by the system without a word: its client may take
//! itself for connected, and the relay never sees it. So the queue is long, and what the system drops
//! is shown.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};

use crate::metrics::Metrics;

/// Room in the queue of each port. The standard library's 128 overflows when a few hundred clients
/// reconnect at once. This is the most that Linux allows by default (`net.core.somaxconn`), and room
/// for four times the default of `RELAY_MAX_CONNECTIONS`.
pub const ROOM: u32 = 4_096;

/// Listens on a port.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the standard library does it: connections of an earlier process that are still ending do not
    // keep a restart from its port.
    socket.set_reuseaddr(true)?;
    // Small frames must not wait for the peer's acknowledgement. Connections have it from their listener.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(ROOM)
}

/// What the system allows a queue at the most; `None` where it does not say, as outside Linux.
pub fn room_max() -> Option<u32> {
    let told = fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?;
    told.trim().parse().ok()
}

/// Connections that the system has dropped before they were accepted, over all listeners of this
/// process's network namespace, since that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Because the queue of their listener was full.
    pub overflows: u64,
    /// For whatever reason, overflows included.
    pub all: u64,
}

impl Dropped {
    /// As of now; `None` where the system does not say, as outside Linux.
    pub fn read() -> Option<Self> {
        // Not /proc/net, which is hidden where a sandbox shows only processes in /proc.
        Self::parse(&fs::read_to_string("/proc/self/net/netstat").ok()?)
    }

    /// A line with names and below it one with numbers, for each group.
    fn parse(netstat: &str) -> Option<Self> {
        let mut lines = netstat
            .lines()
            .filter(|line| line.starts_with("TcpExt:"))
            .map(str::split_ascii_whitespace);
        let (names, numbers) = (lines.next()?, lines.next()?);
        let (mut overflows, mut all) = (None, None);
        for (name, number) in names.zip(numbers) {
            match name {
                "ListenOverflows" => overflows = number.parse().ok(),
                "ListenDrops" => all = number.parse().ok(),
                _ => {}
            }
        }
        let (overflows, all) = (overflows?, all?);
        Some(Self { overflows, all })
    }
}

/// Shows in the metrics what has been dropped since the relay started.
#[derive(Debug, Clone)]
pub struct Watch {
    at_start: Dropped,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// From now on.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let at_start = Dropped::read().unwrap_or_default();
        Self { at_start, metrics }
    }

    /// Looks, so that a scrape that follows is up to date.
    pub fn look(&self) {
        let Some(now) = Dropped::read() else {
            return;
        };
        let since_start = |now: u64, at_start: u64| now.saturating_sub(at_start);
        let overflows = since_start(now.overflows, self.at_start.overflows);
        self.metrics.listen_overflows_total.absolute(overflows);
        let all = since_start(now.all, self.at_start.all);
        self.metrics.listen_drops_total.absolute(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_numbers_are_found_by_their_names() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPHPHits\n\
                       TcpExt: 1 2 3 4\n\
                       IpExt: InNoRoutes ListenDrops\n\
                       IpExt: 5 6\n";
        let (overflows, all) = (2, 3);
        assert_eq!(Dropped::parse(netstat), Some(Dropped { overflows, all }));
        for other in ["", "TcpExt: ListenDrops\n", "TcpExt: A B\nTcpExt: 1 2\n"] {
            assert_eq!(Dropped::parse(other), None, "{other:?}");
        }
        assert_eq!(Dropped::read().is_some(), cfg!(target_os = "linux"));
    }

    #[tokio::test]
    async fn a_port_of_either_kind_is_listened_on_and_again_after_a_restart() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(first) = listen(address.parse().unwrap()) else {
                // A machine without IPv6.
                assert!(address.starts_with('['));
                continue;
            };
            let address = first.local_addr().unwrap();
            let (client, accepted) =
                tokio::join!(tokio::net::TcpStream::connect(address), first.accept());
            // Closed by this side first, so that it is here where the port is remembered for a while.
            drop((accepted.unwrap(), first));
            listen(address).unwrap();
            drop(client.unwrap());
        }
    }
}
