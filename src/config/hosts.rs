//! Where relays are reached: the hosts that clients dial, and relays that serve in our place.

/// Parses hosts as clients dial them, in lower case and with the port unless it is 443 or 80,
/// separated by commas, or `none`. Otherwise returns the part that is no such host.
pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    list(text, |part| {
        let (host, port) = match part.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => (host, Some(port)),
            _ => (part, None),
        };
        let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-[]:".contains(c);
        let has_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
        !host.is_empty() && host.chars().all(is_host) && has_port && part.len() <= ORIGIN_BYTES_MAX
    })
}

/// Parses relay URLs (`wss://` or `ws://`), separated by commas, or `none`. Otherwise returns the
/// part that is none.
pub(super) fn alternates(text: &str) -> Result<Vec<String>, String> {
    list(text, |part| {
        let host = part
            .strip_prefix("wss://")
            .or_else(|| part.strip_prefix("ws://"));
        let is_plain = part.chars().all(|c| c.is_ascii_graphic());
        host.is_some_and(|host| !host.is_empty()) && is_plain && part.len() <= URL_BYTES_MAX
    })
}

/// The longest origin that a client can send.
const ORIGIN_BYTES_MAX: usize = 255;
const URL_BYTES_MAX: usize = 255;
/// More alternates or origins than this are a mistake; every goodbye carries them.
const LIST_MAX: usize = 16;

fn list(text: &str, is_good: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    if let Some(bad) = parts.iter().find(|part| !is_good(part)) {
        return Err((*bad).to_owned());
    }
    if let Some(beyond) = parts.get(LIST_MAX) {
        return Err(format!("{beyond} as number {}", LIST_MAX + 1));
    }
    Ok(parts.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_hosts_in_lower_case_with_unusual_ports() {
        let good = "relay.example.com, relay.example.com:8443,[2001:db8::1]:8443,192.0.2.1";
        assert_eq!(origins(good).unwrap().len(), 4);
        assert_eq!(origins("none"), Ok(Vec::new()));
        for bad in [
            "",
            "https://x",
            "Relay.example.com",
            "x:99999",
            "a b",
            "x/y",
        ] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn alternates_are_websocket_urls() {
        assert_eq!(alternates("wss://a, ws://b:8080/x").unwrap().len(), 2);
        for bad in ["", "https://a", "wss://", "a"] {
            assert_eq!(alternates(bad), Err(bad.to_owned()));
        }
        assert!(alternates(&vec!["wss://a"; LIST_MAX + 1].join(",")).is_err());
    }
}
