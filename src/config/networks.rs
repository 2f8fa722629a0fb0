//! Which networks are ours: the proxies whose word on a client's address is believed.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks, in no order; possibly none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// This machine.
    pub(super) fn loopback() -> Self {
        Self::parse("127.0.0.0/8,::1").unwrap_or_default()
    }

    /// Parses networks (`172.16.0.0/12`) and single addresses, separated by commas, or `none`.
    /// Otherwise returns the part that is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',')
            .map(|part| network(part.trim()).ok_or_else(|| part.trim().to_owned()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether one of them has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

fn network(text: &str) -> Option<IpNet> {
    // An IPv4 address in IPv6 is that IPv4 address; such a network is not taken, because whoever
    // writes it means something that does not exist on this side of the socket.
    let is_mapped =
        |network: &IpNet| matches!(network.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse().ok()?,
    };
    (!is_mapped(&network)).then_some(network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(networks: &str, address: &str) -> bool {
        Networks::parse(networks)
            .unwrap()
            .contains(address.parse().unwrap())
    }

    #[test]
    fn networks_and_addresses_of_both_families_are_read() {
        let networks = "172.16.0.0/12, 192.0.2.7 ,2001:db8::/32,::1";
        for inside in [
            "172.17.0.1",
            "192.0.2.7",
            "2001:db8:1::1",
            "::1",
            "::ffff:172.17.0.1",
        ] {
            assert!(has(networks, inside), "{inside}");
        }
        for outside in ["172.32.0.1", "192.0.2.8", "2001:db9::1", "::2", "127.0.0.1"] {
            assert!(!has(networks, outside), "{outside}");
        }
        assert!(has("10.1.2.3/8", "10.200.0.1"), "host bits do not matter");
        assert!(!has("none", "127.0.0.1"));
        assert!(Networks::loopback().contains([127, 3, 0, 1].into()));
    }

    #[test]
    fn the_part_that_is_wrong_is_named() {
        for (text, wrong) in [
            ("10.0.0.0/8,proxy", "proxy"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0.0/8,,::1", ""),
            ("::ffff:10.0.0.0/104", "::ffff:10.0.0.0/104"),
        ] {
            assert_eq!(Networks::parse(text), Err(wrong.to_owned()));
        }
    }
}
