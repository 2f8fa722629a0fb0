//! The origin of a subscription: the host that a client dialled, spelt in one way only.
//!
//! The client signs the origin, and the relay compares it with `RELAY_PUBLIC_ORIGINS` or, without that
//! setting, with the host that the upgrade request names. A second spelling of one host would fail the
//! comparison, so it is refused everywhere.

use std::net::Ipv6Addr;

/// Bytes of an origin: a host name has at most 253, and is never near that with a port.
const BYTES_MAX: usize = 255;

/// Ports that every client leaves out, because `wss://` and `ws://` mean them.
const UNSPELT_PORTS: [u16; 2] = [443, 80];

/// Says what is wrong with an origin that is not empty, in words that quote nothing.
pub(super) fn check(origin: &str) -> Result<(), &'static str> {
    if origin.len() > BYTES_MAX {
        return Err("an origin may have at most 255 bytes");
    }
    let (is_host, port) = match origin.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest
                .split_once(']')
                .ok_or("an IPv6 address in an origin must be in brackets")?;
            (is_ipv6(address), port)
        }
        None => {
            let end = origin.find(':').unwrap_or(origin.len());
            (is_name(&origin[..end]), &origin[end..])
        }
    };
    if !is_host {
        return Err("an origin must be a host in lower case ASCII, without scheme and path");
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(port) if is_port(port) => Ok(()),
        _ => Err("an origin must end with its host, or with a port other than 443 and 80"),
    }
}

/// The origin of a client whose upgrade request has this `Host`: in lower case, without the ports that
/// origins leave out. Whether TLS ended at a proxy, and so which of the two ports was meant, is not known
/// here and makes no difference.
pub(super) fn of_host(host: &str) -> Option<Box<str>> {
    let host = host.trim_matches([' ', '\t']).to_ascii_lowercase();
    let unspelt = UNSPELT_PORTS.map(|port| format!(":{port}"));
    let without = unspelt
        .iter()
        .find_map(|port| host.strip_suffix(port.as_str()));
    let origin = without.unwrap_or(&host);
    check(origin).is_ok().then(|| origin.into())
}

fn is_name(host: &str) -> bool {
    let is_good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    !host.is_empty() && host.bytes().all(is_good)
}

fn is_ipv6(address: &str) -> bool {
    !address.bytes().any(|byte| byte.is_ascii_uppercase()) && address.parse::<Ipv6Addr>().is_ok()
}

fn is_port(port: &str) -> bool {
    let number = port.parse::<u16>().unwrap_or(0);
    let is_plain = !port.starts_with(['0', '+']);
    is_plain && number != 0 && !UNSPELT_PORTS.contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_an_unusual_port() {
        for good in [
            "relay.example",
            "relay.example:8443",
            "my_relay:8080",
            "192.0.2.1:1",
            "[::1]",
            "[2001:db8::1]:8443",
            &"a".repeat(BYTES_MAX),
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_host_header_in_any_legal_spelling_is_one_origin() {
        for (host, origin) in [
            ("relay.example", "relay.example"),
            (" Relay.Example\t", "relay.example"),
            ("relay.example:443", "relay.example"),
            ("relay.example:80", "relay.example"),
            ("relay.example:8443", "relay.example:8443"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(of_host(host).as_deref(), Some(origin), "{host}");
        }
        for host in ["", ":80", "relay example", "a,b", "::1", "relay.example:0"] {
            assert_eq!(of_host(host), None, "{host}");
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for bad in [
            "ws://relay.example",
            "wss://relay.example:8443",
            "relay.example/",
            "relay.example:8443/path",
            "me@relay.example",
            "relay.example:",
            "relay.example:0",
            "relay.example:080",
            "relay.example:+81",
            "relay.example:65536",
            "relay.example:80",
            "relay.example:443",
            "Relay.example",
            "relay example",
            "rélay.example",
            ":8443",
            "::1",
            "2001:db8::1",
            "[::1",
            "[::1]8443",
            "[::1]:443",
            "[2001:DB8::1]",
            "[relay.example]",
            "[]",
            &"a".repeat(BYTES_MAX + 1),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
