//! Whether a request may become a WebSocket (RFC 6455, 4.2.1), judged by its headers.
//!
//! Clients and proxies may write one header in many shapes (RFC 9110, 5.6.1): a list may stand on
//! several lines, with spaces and tabs around its commas, with empty elements, and in any case. All of
//! them mean the same here.

use axum::http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue, Method, Version, request};
use data_encoding::BASE64;

/// The only version of the WebSocket protocol that there is.
pub(super) const VERSION: &str = "13";

/// Bytes that a client's key stands for.
const KEY_BYTES: usize = 16;

/// What is wrong with an upgrade request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the method must be GET")]
    Method,
    #[error("the request must be HTTP/1.1")]
    HttpVersion,
    #[error("the header Connection must name Upgrade")]
    Connection,
    #[error("the header Upgrade must name websocket")]
    Upgrade,
    #[error("the header Sec-WebSocket-Version must be there once and be 13")]
    Version,
    #[error("the header Sec-WebSocket-Key must be there once and be 16 bytes in base64")]
    Key,
}

/// Whether a client asks for a WebSocket, be it in the right way or not.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    names(headers, UPGRADE, "websocket")
}

/// The client's key, when all of the request is as it must be.
pub(super) fn key(request: &request::Parts) -> Result<&HeaderValue, Fault> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(Fault::Method);
    }
    if request.version < Version::HTTP_11 {
        return Err(Fault::HttpVersion);
    }
    if !names(headers, CONNECTION, "upgrade") {
        return Err(Fault::Connection);
    }
    if !is_upgrade(headers) {
        return Err(Fault::Upgrade);
    }
    if only(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(Fault::Version);
    }
    only(headers, SEC_WEBSOCKET_KEY)
        .filter(|key| is_key(key))
        .ok_or(Fault::Key)
}

/// The elements of a list, from all lines of it. An empty element is none.
pub(super) fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

fn names(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    elements(headers, name).any(|element| element.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// A header that may be there once only.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name).into_iter();
    let first = lines.next();
    first.filter(|_| lines.next().is_none())
}

fn is_key(key: &HeaderValue) -> bool {
    BASE64
        .decode(key.as_bytes())
        .is_ok_and(|bytes| bytes.len() == KEY_BYTES)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn parts(lines: &[(&str, &str)]) -> request::Parts {
        let request = Request::get("/");
        let request = lines.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).unwrap().into_parts().0
    }

    fn judged(connection: &[&str], upgrade: &[&str], more: &[(&str, &str)]) -> Result<(), Fault> {
        let connection = connection.iter().map(|value| ("connection", *value));
        let upgrade = upgrade.iter().map(|value| ("upgrade", *value));
        let lines: Vec<_> = connection
            .chain(upgrade)
            .chain(more.iter().copied())
            .collect();
        key(&parts(&lines)).map(|key| assert_eq!(key, KEY))
    }

    #[test]
    fn an_upgrade_is_one_in_every_shape_of_its_lists() {
        let usual = [("sec-websocket-version", "13"), ("sec-websocket-key", KEY)];
        for connection in [
            &["Upgrade"][..],
            &["keep-alive, Upgrade"],
            &["keep-alive,\tupgrade"],
            &["keep-alive\t,UPGRADE ,"],
            &["keep-alive", "Upgrade"],
            &["Upgrade", "keep-alive"],
            &[", ,upgrade"],
        ] {
            for upgrade in [
                &["websocket"][..],
                &["WebSocket"],
                &["websocket, h2c"],
                &["h2c,\twebsocket"],
                &["h2c", "websocket"],
            ] {
                let judged = judged(connection, upgrade, &usual);
                assert_eq!(judged, Ok(()), "{connection:?} {upgrade:?}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let usual = [("sec-websocket-version", "13"), ("sec-websocket-key", KEY)];
        let [version, right_key] = usual;
        let no = |connection, upgrade, more: &[_], fault| {
            assert_eq!(judged(connection, upgrade, more), Err(fault), "{fault}");
        };
        no(&[], &["websocket"], &usual, Fault::Connection);
        no(&["upgrades"], &["websocket"], &usual, Fault::Connection);
        no(&["upgrade"], &[], &usual, Fault::Upgrade);
        no(&["upgrade"], &["web socket"], &usual, Fault::Upgrade);
        for bad in [
            &[right_key][..],
            &[right_key, version, version],
            &[right_key, ("sec-websocket-version", "8")],
        ] {
            no(&["upgrade"], &["websocket"], bad, Fault::Version);
        }
        for bad in [
            &[version][..],
            &[version, right_key, right_key],
            &[version, ("sec-websocket-key", "AAAA")],
        ] {
            no(&["upgrade"], &["websocket"], bad, Fault::Key);
        }
        let mut old = parts(&usual);
        old.version = Version::HTTP_10;
        assert_eq!(key(&old), Err(Fault::HttpVersion));
        old.method = Method::POST;
        assert_eq!(key(&old), Err(Fault::Method));
    }
}
