//! The client's address: the peer's, or the one that a trusted proxy tells.
//!
//! A header is believed only when the peer is in `RELAY_TRUSTED_PROXIES`. Then its hops are read
//! from the right, where the nearest proxy wrote, and the first one that is not a trusted proxy is
//! the client; what stands left of it came from the client and is not looked at. When every hop is
//! trusted, the left-most is taken.
//!
//! `Forwarded` (RFC 7239) and `X-Forwarded-For` are read. With both there, they must lead to the same
//! address: a proxy that writes one of them usually passes the other on as the client sent it, and
//! nobody here can know which. Whenever the headers lead nowhere (they differ, a hop on the way is
//! `unknown`, hidden or malformed), the peer's own address counts, which all such clients share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;
use axum::http::header::{FORWARDED, HeaderName};

use crate::config::Networks;
use crate::limits::address::is_private;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who is believed, and whether the operator has been told of one who is not.
#[derive(Debug)]
pub struct Proxies {
    trusted: Networks,
    has_warned: AtomicBool,
}

impl Proxies {
    /// Believes these (`RELAY_TRUSTED_PROXIES`).
    pub fn new(trusted: Networks) -> Self {
        Self {
            trusted,
            has_warned: AtomicBool::new(false),
        }
    }

    /// The address of the client whose request with these `headers` came from `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if self.trusted.contains(peer) {
            return self.told(headers).unwrap_or(peer);
        }
        if self.is_first_unheard(peer, headers) {
            tracing::warn!(
                "ignored a Forwarded or X-Forwarded-For header from a private address that is not in RELAY_TRUSTED_PROXIES: all clients behind it count as one. If it is your proxy, add its address or network there. This is logged once."
            );
        }
        peer
    }

    /// Whether this is the first header from a private address that is not believed: a proxy that
    /// the operator forgot, most likely. On the internet anybody may send such headers.
    fn is_first_unheard(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let is_there = headers.contains_key(FORWARDED) || headers.contains_key(X_FORWARDED_FOR);
        is_there && is_private(peer) && !self.has_warned.swap(true, Ordering::Relaxed)
    }

    fn told(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let by = |name: &HeaderName, hops: fn(&str) -> Option<Vec<Hop>>| {
            let mut lines = headers.get_all(name).iter().peekable();
            lines.peek()?;
            let hops: Option<Vec<Vec<Hop>>> = lines
                .map(|line| line.to_str().ok().and_then(hops))
                .collect();
            Some(hops.and_then(|hops| self.nearest_stranger(hops.concat())))
        };
        let forwarded = by(&FORWARDED, forwarded_hops);
        let x_forwarded_for = by(&X_FORWARDED_FOR, x_forwarded_for_hops);
        match (forwarded, x_forwarded_for) {
            (Some(told), Some(also)) if told != also => None,
            (Some(told), _) | (None, Some(told)) => told,
            (None, None) => None,
        }
    }

    fn nearest_stranger(&self, hops: Vec<Hop>) -> Option<IpAddr> {
        let mut furthest = None;
        for hop in hops.into_iter().rev() {
            let address = hop?;
            furthest = Some(address);
            if !self.trusted.contains(address) {
                break;
            }
        }
        furthest
    }
}

/// A proxy or client on the way; `None` when its address is not told.
type Hop = Option<IpAddr>;

/// `192.0.2.1, [2001:db8::1]:4711`.
fn x_forwarded_for_hops(line: &str) -> Option<Vec<Hop>> {
    Some(line.split(',').map(|hop| node(hop.trim())).collect())
}

/// `for=192.0.2.1;proto=https, for="[2001:db8::1]:4711"`. `None` when a quote is not closed, because
/// then nobody can say where an element begins.
fn forwarded_hops(line: &str) -> Option<Vec<Hop>> {
    let elements = split_outside_quotes(line, ',')?;
    Some(elements.into_iter().map(forwarded_for).collect())
}

/// The node of the one `for` in an element.
fn forwarded_for(element: &str) -> Hop {
    let mut nodes = split_outside_quotes(element, ';')?
        .into_iter()
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"))
        .map(|(_, value)| value.trim());
    let (value, None) = (nodes.next()?, nodes.next()) else {
        return None;
    };
    match value.strip_prefix('"') {
        // No address needs an escape, so one that has it is malformed.
        Some(rest) => node(rest.strip_suffix('"')?),
        None => node(value),
    }
}

fn split_outside_quotes(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ if letter == separator && !is_quoted => {
                parts.push(text[begin..at].trim());
                begin = at + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    (!is_quoted).then_some(parts)
}

/// An address, with or without a port; IPv6 in brackets, or bare when there is no port.
fn node(text: &str) -> Hop {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':')?);
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(address.to_canonical())
}

/// Up to five digits, or a hidden one that begins with an underscore.
fn is_port(text: &str) -> bool {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_number || (text.len() > 1 && text.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn proxies() -> Proxies {
        Proxies::new(Networks::parse("10.0.0.0/8,2001:db8:aaaa::/48").unwrap())
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().unwrap();
                (name, value.parse().unwrap())
            })
            .collect()
    }

    fn client_of(peer: &str, lines: &[(&str, &str)]) -> String {
        proxies()
            .client(peer.parse().unwrap(), &headers(lines))
            .to_string()
    }

    fn by_x(value: &str) -> String {
        client_of(PROXY, &[("x-forwarded-for", value)])
    }

    fn by_forwarded(value: &str) -> String {
        client_of(PROXY, &[("forwarded", value)])
    }

    #[test]
    fn without_headers_or_without_trust_the_peer_is_the_client() {
        assert_eq!(client_of("192.0.2.9", &[]), "192.0.2.9");
        assert_eq!(client_of(PROXY, &[]), PROXY);
        let spoofed = [
            ("x-forwarded-for", "198.51.100.1"),
            ("forwarded", "for=198.51.100.1"),
        ];
        assert_eq!(client_of("192.0.2.9", &spoofed), "192.0.2.9");
        assert_eq!(client_of("192.168.0.1", &spoofed), "192.168.0.1");
        let nobody = Proxies::new(Networks::parse("none").unwrap());
        let peer = [127, 0, 0, 1].into();
        assert_eq!(nobody.client(peer, &headers(&spoofed)), peer);
    }

    #[test]
    fn what_a_client_put_on_the_left_does_not_count() {
        assert_eq!(by_x("198.51.100.1, 203.0.113.5"), "203.0.113.5");
        assert_eq!(by_x("10.9.9.9, 203.0.113.5, 10.0.0.7"), "203.0.113.5");
        assert_eq!(by_x("garbage,,, 203.0.113.5, 10.0.0.7"), "203.0.113.5");
        let line = "for=198.51.100.1;by=_x, for=203.0.113.5;proto=https, for=10.0.0.7";
        assert_eq!(by_forwarded(line), "203.0.113.5");
        let two_lines = [
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-for", "203.0.113.5"),
        ];
        assert_eq!(client_of(PROXY, &two_lines), "203.0.113.5");
    }

    #[test]
    fn a_way_of_trusted_proxies_only_ends_at_the_furthest() {
        assert_eq!(by_x("10.0.0.9, 10.0.0.8"), "10.0.0.9");
    }

    #[test]
    fn addresses_come_in_every_shape() {
        for (value, client) in [
            ("203.0.113.5:4711", "203.0.113.5"),
            ("2001:db8::5", "2001:db8::5"),
            ("[2001:db8::5]", "2001:db8::5"),
            ("[2001:db8::5]:4711", "2001:db8::5"),
            ("::ffff:203.0.113.5", "203.0.113.5"),
            ("[::ffff:203.0.113.5]:1", "203.0.113.5"),
            (" 203.0.113.5 ", "203.0.113.5"),
        ] {
            assert_eq!(by_x(value), client, "{value}");
            assert_eq!(by_forwarded(&format!("For=\"{}\"", value.trim())), client);
        }
        assert_eq!(by_forwarded("proto=http;FOR=203.0.113.5:_p"), "203.0.113.5");
        assert_eq!(
            by_forwarded("for=203.0.113.5;by=\"a,b;for=c\""),
            "203.0.113.5"
        );
        let mapped_proxy = [("x-forwarded-for", "203.0.113.5, 2001:db8:aaaa::1")];
        assert_eq!(client_of("::ffff:10.0.0.1", &mapped_proxy), "203.0.113.5");
    }

    #[test]
    fn what_leads_nowhere_leaves_the_peer() {
        for value in [
            "for=unknown",
            "for=_hidden",
            "for=\"_gazonk\", for=10.0.0.2",
            "for=198.51.100.1, for=unknown",
            "proto=https",
            "for=203.0.113.5;for=203.0.113.6",
            "for=\"203.0.113.5",
            "for=\", for=203.0.113.5",
            "for=\"203.0.113\\.5\"",
            "for=203.0.113.5:",
            "for=203.0.113.5:123456",
            "for=\"[2001:db8::5]x\"",
            "for=\"[203.0.113.5]\"",
            "for=\"[fe80::1%eth0]\"",
            "for=203.0.113.5,",
            "",
        ] {
            assert_eq!(by_forwarded(value), PROXY, "{value}");
        }
        for value in [
            "unknown",
            "",
            "203.0.113.5,",
            "203.0.113.256",
            "\"203.0.113.5\"",
        ] {
            assert_eq!(by_x(value), PROXY, "{value}");
        }
    }

    #[test]
    fn both_headers_must_lead_to_the_same_client() {
        let both =
            |forwarded, x| client_of(PROXY, &[("forwarded", forwarded), ("x-forwarded-for", x)]);
        assert_eq!(
            both("for=203.0.113.5", "8.8.8.8, 203.0.113.5"),
            "203.0.113.5"
        );
        assert_eq!(both("for=198.51.100.1", "203.0.113.5"), PROXY);
        assert_eq!(both("for=unknown", "203.0.113.5"), PROXY);
    }

    #[test]
    fn an_unheard_private_proxy_is_noted_once_and_a_stranger_never() {
        let proxies = proxies();
        let headers = headers(&[("x-forwarded-for", "198.51.100.1")]);
        let is_first = |peer: &str| proxies.is_first_unheard(peer.parse().unwrap(), &headers);
        assert!(!is_first("192.0.2.9"));
        assert!(is_first("172.17.0.1"));
        assert!(!is_first("172.17.0.1"));
    }

    proptest! {
        /// Whatever a client writes, the proxy adds the true address behind it: that one counts, or,
        /// when the client has made the header unreadable, the proxy's.
        #[test]
        fn no_text_on_the_left_makes_a_client_another(spoofed in "[ -~]{0,60}", own in any::<u32>()) {
            let own = Ipv4Addr::from_bits(own | 0xC000_0000);
            prop_assert_eq!(by_x(&format!("{spoofed},{own}")), own.to_string());
            let client = by_forwarded(&format!("{spoofed},for={own}"));
            prop_assert!(client == own.to_string() || client == PROXY, "{}", client);
        }

        #[test]
        fn no_header_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(FORWARDED, value.clone());
                headers.insert(X_FORWARDED_FOR, value);
                proxies().client(PROXY.parse().unwrap(), &headers);
            }
        }
    }
}
