//! Whom a limit per address counts, and in which wider networks that address lies.
//!
//! A subscriber gets at least a /64 of IPv6 and may use each of its addresses, so a limit on single
//! ones would be none. An IPv4 address counts alone, however it is written. Many subscribers get a /56
//! or a /48, which are 256 and 65,536 of these addresses, and anybody can rent some neighbours in one
//! IPv4 /24: so an address shares a wider bound with the networks around it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address, or the /64 that an IPv6 address lies in. `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    /// Itself and the wider networks in which it lies, the narrowest first: of IPv6 its /56 and its /48,
    /// of IPv4 its /24.
    pub fn networks(self) -> impl Iterator<Item = Network> {
        Width::ALL
            .into_iter()
            .filter_map(move |width| self.within(width))
    }

    /// The network of this width around it; `None` where its family has none.
    pub fn within(self, width: Width) -> Option<Network> {
        let base = match (self.0, width) {
            (ip, Width::Address) => ip,
            (IpAddr::V4(_), Width::Site) => return None,
            (IpAddr::V4(v4), Width::Neighbours) => {
                Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into()
            }
            (IpAddr::V6(v6), Width::Site) => {
                Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 72)).into()
            }
            (IpAddr::V6(v6), Width::Neighbours) => {
                Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 80)).into()
            }
        };
        Some(Network { base, width })
    }

    /// Whether it is an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }

    /// Whether it is no address of the internet: then it is rather a proxy's or a container
    /// network's than a client's.
    pub fn is_private(&self) -> bool {
        is_private(self.0)
    }
}

/// How wide a network is that addresses are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// One address: an IPv4 address, a /64 of IPv6.
    Address,
    /// A /56 of IPv6, as a household or a small office gets it.
    Site,
    /// A /48 of IPv6, a /24 of IPv4.
    Neighbours,
}

impl Width {
    /// Every width, the narrowest first.
    pub const ALL: [Self; 3] = [Self::Address, Self::Site, Self::Neighbours];

    /// How much more such a network may have than one address. A carrier's neighbours are strangers to
    /// each other, so this is more than one; it is far less than the number of addresses in it.
    pub const fn factor(self) -> u64 {
        match self {
            Self::Address => 1,
            Self::Site => 2,
            Self::Neighbours => 4,
        }
    }
}

/// One address, or a wider network around some. `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    base: IpAddr,
    width: Width,
}

impl Network {
    /// How wide it is.
    pub fn width(&self) -> Width {
        self.width
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network(…, {:?})", self.width)
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
    fn an_address_lies_in_its_56_and_48_or_in_its_24() {
        let networks = |text| of(text).networks().collect::<Vec<_>>();
        let home = networks("2001:db8:1:2::1");
        assert_eq!(home.len(), 3);
        let shared = |text| {
            let other = networks(text);
            home.iter().filter(|one| other.contains(one)).count()
        };
        assert_eq!(shared("2001:db8:1:2::ffff"), 3, "the same /64");
        assert_eq!(shared("2001:db8:1:ff::1"), 2, "the same /56");
        assert_eq!(shared("2001:db8:1:100::1"), 1, "the same /48");
        assert_eq!(shared("2001:db8:2:2::1"), 0);

        let home = networks("192.0.2.1");
        assert_eq!(home.len(), 2);
        assert_eq!(networks("192.0.2.200")[1], home[1], "the same /24");
        assert_ne!(networks("192.0.3.1")[1], home[1]);
        let zero = networks("192.0.2.0");
        assert_ne!(zero[0], zero[1], "an address is not its network");
    }

    #[test]
    fn an_address_is_not_printed() {
        let network = of("192.0.2.1").within(Width::Neighbours);
        assert_eq!(format!("{network:?}"), "Some(Network(…, Neighbours))");
        assert_eq!(format!("{:?}", of("192.0.2.1")), "Address(…)");
    }
}
