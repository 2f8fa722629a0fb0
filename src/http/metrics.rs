//! `/metrics`: everything counted, as Prometheus reads it.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::config::Token;
use crate::metrics::Metrics;

/// What a scrape needs.
#[derive(Clone)]
pub struct Scrape {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Without a token everybody may scrape.
    pub token: Option<Token>,
}

pub(super) fn routes(scrape: Scrape) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .with_state(scrape)
}

async fn render(State(scrape): State<Scrape>, headers: HeaderMap) -> Response {
    if !scrape.admits(&headers) {
        let body = "metrics need the bearer token of RELAY_METRICS_TOKEN\n";
        return (
            StatusCode::UNAUTHORIZED,
            [(WWW_AUTHENTICATE, "Bearer")],
            body,
        )
            .into_response();
    }
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        scrape.metrics.render(),
    )
        .into_response()
}

impl Scrape {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        given
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| is_same(given, token.expose()))
    }
}

/// Compares hashes, so that the time taken tells nothing of the token.
fn is_same(given: &str, token: &str) -> bool {
    // blake3's hashes compare in constant time.
    blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}
