//! Protects what is not for everybody: only this machine and requests with the token may ask for it.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, FORWARDED, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::config::Token;
use crate::socket::RemoteAddress;

/// The guard of one port.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    token: Option<Token>,
}

/// Lets a request pass that comes from this machine or carries the token, and says to all others
/// what they lack. A layer for routes that are not for everybody.
pub(super) async fn keep_strangers_out(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let is_local = request
        .extensions()
        .get()
        .is_some_and(|RemoteAddress(address)| is_local(address.ip(), request.headers()));
    if is_local || guard.has_token(request.headers()) {
        return next.run(request).await;
    }
    if guard.token.is_some() {
        return unauthorized(
            "allowed only from the relay's own machine, or with the bearer token of RELAY_METRICS_TOKEN\n",
        );
    }
    let why = "allowed only from the relay's own machine; to allow others, set RELAY_METRICS_TOKEN and send it as bearer token\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

/// The answer to a request without the right token.
pub(super) fn unauthorized(why: &'static str) -> Response {
    let challenge = [(WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, why).into_response()
}

impl Guard {
    /// A guard that knows this token.
    pub(super) fn new(token: Option<Token>) -> Self {
        Self { token }
    }

    /// Whether a token is set at all.
    pub(super) fn asks_for_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the request carries the token.
    pub(super) fn has_token(&self, headers: &HeaderMap) -> bool {
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(bearer);
        match (&self.token, given) {
            (Some(token), Some(given)) => is_same(given, token.expose()),
            _ => false,
        }
    }
}

/// The token after the scheme, whose name may be in any case (RFC 9110, 11.1).
fn bearer(credentials: &str) -> Option<&str> {
    let (scheme, token) = credentials.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim_start_matches(' '))
}

/// Whether the request was made on this machine. What a proxy on this machine passes on was not,
/// whatever the header says: to trust it, one would have to trust every proxy.
fn is_local(address: IpAddr, headers: &HeaderMap) -> bool {
    let is_passed_on = headers.contains_key(FORWARDED) || headers.contains_key("x-forwarded-for");
    address.to_canonical().is_loopback() && !is_passed_on
}

/// Compares hashes, so that the time taken tells nothing of the token.
fn is_same(given: &str, token: &str) -> bool {
    // blake3's hashes compare in constant time.
    blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn only_this_machine_itself_is_local() {
        let none = HeaderMap::new();
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(
                is_local(address.parse().unwrap(), &none),
                expected,
                "{address}"
            );
        }
        for passed_on in [
            headers("x-forwarded-for", "127.0.0.1"),
            headers("forwarded", "for=127.0.0.1"),
        ] {
            assert!(!is_local("127.0.0.1".parse().unwrap(), &passed_on));
        }
    }

    #[test]
    fn without_a_token_no_token_is_right() {
        let given = headers("authorization", "Bearer ");
        assert!(!Guard::new(None).has_token(&given));
        let guard = Guard::new(Some(Token::new("swordfish")));
        assert!(!guard.has_token(&given));
        assert!(!guard.has_token(&headers("authorization", "swordfish")));
        for right in ["Bearer swordfish", "bearer swordfish", "BEARER  swordfish"] {
            assert!(guard.has_token(&headers("authorization", right)), "{right}");
        }
        for wrong in ["Basic swordfish", "Bearerswordfish", "Bearer swordfish2"] {
            assert!(
                !guard.has_token(&headers("authorization", wrong)),
                "{wrong}"
            );
        }
    }
}
