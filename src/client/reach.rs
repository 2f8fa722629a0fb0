//! From a host's name to a TCP connection (RFC 8305, "Happy Eyeballs").
//!
//! A name often has several addresses, and one that leads nowhere gives no answer at all. So the next
//! address is tried when the one before has failed or has taken a quarter of a second, families in
//! turn, and the first connection is used. An IPv6 network without a way out costs 250 ms.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

/// How much earlier an address begins than the next ("Connection Attempt Delay", RFC 8305, 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried. The last of 16 begins 3.75 s after the first, which leaves most
/// of the default 10 s for TLS and the upgrade.
const ADDRESSES_MAX: usize = 16;

/// Connects to the first address of `host` that answers. One that is `avoided` is tried last.
pub(super) async fn connect(
    host: &str,
    port: u16,
    avoided: Option<IpAddr>,
) -> io::Result<TcpStream> {
    // In a URL, IPv6 stands in brackets.
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    let found = tokio::net::lookup_host((host, port)).await?;
    let stream = race(in_order(found, avoided), TcpStream::connect).await?;
    // Frames are gathered before they are flushed, so nothing is won by waiting for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The system's order, but with the families in turn, so that a broken one delays the other once only.
fn in_order(
    found: impl IntoIterator<Item = SocketAddr>,
    avoided: Option<IpAddr>,
) -> Vec<SocketAddr> {
    let (avoided, found): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| Some(address.ip()) == avoided);
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (VecDeque<_>, VecDeque<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::new();
    while !one.is_empty() || !other.is_empty() {
        ordered.extend(one.pop_front());
        ordered.extend(other.pop_front());
    }
    ordered.extend(avoided);
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

/// The first that succeeds; all others are given up then. The last fault when none does.
async fn race<T, Trying: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> Trying,
) -> io::Result<T> {
    let mut left = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut fault = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match left.next() {
            Some(address) => trying.push(connect(address)),
            None if trying.is_empty() => return Err(fault),
            None => {}
        }
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(connected) => return Ok(connected),
                Err(error) => fault = error,
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_beginning_with_the_systems_first() {
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let ordered = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(in_order(found.clone(), None), ordered);
        let later = addresses(&["1.1.1.1:1", "[::1]:1", "[::2]:1"]);
        assert_eq!(in_order(later.clone(), None), later);
        let avoided = in_order(found, Some("::1".parse().unwrap()));
        assert_eq!(avoided.first(), Some(&"[::2]:1".parse().unwrap()));
        assert_eq!(avoided.last(), Some(&"[::1]:1".parse().unwrap()));
    }

    #[test]
    fn a_name_with_very_many_addresses_is_tried_at_some() {
        let many = (0..200).map(|n| SocketAddr::from(([127, 0, 0, n], 1)));
        assert_eq!(in_order(many, None).len(), ADDRESSES_MAX);
    }

    /// Races over addresses that answer nothing, refuse (port 2) or connect (port 3); how long it took,
    /// and in which order they were tried.
    async fn raced(texts: &[&str]) -> (io::Result<SocketAddr>, Duration, Vec<SocketAddr>) {
        let (began, tried) = (Instant::now(), Mutex::new(Vec::new()));
        let connect = |address: SocketAddr| {
            tried.lock().unwrap().push(address);
            async move {
                match address.port() {
                    2 => Err(io::ErrorKind::ConnectionRefused.into()),
                    3 => Ok(address),
                    _ => pending().await,
                }
            }
        };
        let outcome = race(addresses(texts), connect).await;
        (outcome, began.elapsed(), tried.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_an_answer_cost_a_quarter_of_a_second_each() {
        let (connected, took, _) = raced(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:3"]).await;
        assert_eq!(connected.unwrap(), "2.2.2.2:3".parse().unwrap());
        assert_eq!(took, HEAD_START * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_costs_nothing_and_the_rest_is_not_tried() {
        let (connected, took, tried) =
            raced(&["[::1]:2", "1.1.1.1:2", "[::2]:3", "2.2.2.2:3"]).await;
        assert_eq!(connected.unwrap(), "[::2]:3".parse().unwrap());
        assert_eq!((took, tried.len()), (Duration::ZERO, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_last_fault_is_told() {
        let (connected, _, tried) = raced(&["[::1]:2", "1.1.1.1:2"]).await;
        let kind = connected.unwrap_err().kind();
        assert_eq!((kind, tried.len()), (io::ErrorKind::ConnectionRefused, 2));
        let (none, ..) = raced(&[]).await;
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
