//! Any headers of a proxied request: never a panic, nobody is believed who is not trusted, the address is the peer's
//! or one that stands in a header, and nothing that a client writes makes it another client.
//!
//! An input is text: the trusted networks, the peer, and then a header in each line.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use vauchi_relay::config::Networks;
use vauchi_relay::socket::forwarded::Proxies;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A client behind the proxy, as the proxy saw it.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let networks = text().and_then(|line| Networks::parse(line).ok());
    let networks = networks.unwrap_or_else(|| Networks::parse("10.0.0.0/8,2001:db8::/32").unwrap());
    let peer = text().and_then(|line| line.parse().ok());
    let peer: IpAddr = peer.unwrap_or(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let mut headers: HeaderMap = lines.filter_map(header).collect();

    let proxies = Proxies::new(networks.clone());
    let client = proxies.client(peer, &headers);
    assert_eq!(client, client.to_canonical());
    if !networks.contains(peer) {
        assert_eq!(client, peer.to_canonical());
        return;
    }
    assert!(client == peer.to_canonical() || stands_in(&headers, client));

    if networks.contains(CLIENT) {
        return;
    }
    if headers.contains_key(FORWARDED) {
        headers.append(FORWARDED, HeaderValue::from_static("for=203.0.113.77"));
    }
    headers.append(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.77"));
    let client = proxies.client(peer, &headers);
    assert!(client == CLIENT || client == peer.to_canonical());
});

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let at = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..at]).ok()?;
    Some((name, HeaderValue::from_bytes(&line[at + 1..]).ok()?))
}

fn stands_in(headers: &HeaderMap, client: IpAddr) -> bool {
    let values = headers.values().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split([',', ';', '=', '"', '[', ']', ' ', '\t']));
    words.any(|word| {
        let before_port = word.split(':').next().unwrap_or_default();
        let is_client = |text: &str| {
            text.parse::<IpAddr>()
                .is_ok_and(|ip| ip.to_canonical() == client)
        };
        is_client(word) || is_client(before_port)
    })
}
