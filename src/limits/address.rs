//! Whom a limit per address counts.
//!
//! A subscriber gets at least a /64 of IPv6 and may use each of its addresses, so a limit on single
//! ones would be none. An IPv4 address counts alone, however it is written.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 that an IPv6 address lies in. `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// Whom `ip` counts as.
    pub fn of(ip: IpAddr) -> Self {
        const NETWORK: u128 = !(u64::MAX as u128);
        Self(match ip.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & NETWORK).into(),
            v4 => v4,
        })
    }

    /// Whether it is no address of the internet: then it is rather a proxy's or a container
    /// network's than a client's.
    pub fn is_private(&self) -> bool {
        is_private(self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(…)")
    }
}

/// Loopback, private, link-local and shared (RFC 6598) addresses; unique local ones in IPv6.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared
        }
        // Unspecified: the /64 of loopback.
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    #[test]
    fn ipv6_counts_by_64_and_ipv4_alone() {
        assert_eq!(
            of("2001:db8:1:2::1"),
            of("2001:db8:1:2:ffff:ffff:ffff:ffff")
        );
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn ipv4_written_as_ipv6_is_that_ipv4_address() {
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"));
    }

    #[test]
    fn private_addresses_are_known_in_either_family() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.17.0.1",
            "192.168.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ];
        assert!(private.iter().all(|text| of(text).is_private()));
        let public = ["192.0.2.1", "100.128.0.1", "172.32.0.1", "2001:db8::1"];
        assert!(public.iter().all(|text| !of(text).is_private()));
    }

    #[test]
    fn an_address_is_not_printed() {
        assert_eq!(format!("{:?}", of("192.0.2.1")), "Address(…)");
    }
}
