//! `/metrics`: everything counted, as Prometheus reads it.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::guard::{Guard, unauthorized};
use crate::metrics::Metrics;

/// What a scrape needs.
#[derive(Clone)]
struct Scrape {
    metrics: Arc<Metrics>,
    guard: Guard,
}

pub(super) fn routes(metrics: Arc<Metrics>, guard: Guard) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .with_state(Scrape { metrics, guard })
}

/// Without a token everybody may scrape; once one is set nobody without it, this machine included.
async fn render(State(scrape): State<Scrape>, headers: HeaderMap) -> Response {
    if scrape.guard.asks_for_token() && !scrape.guard.has_token(&headers) {
        return unauthorized("metrics need the bearer token of RELAY_METRICS_TOKEN\n");
    }
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        scrape.metrics.render(),
    )
        .into_response()
}
