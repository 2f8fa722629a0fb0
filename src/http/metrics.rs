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
use crate::socket::accept_queue;

/// What a scrape needs.
#[derive(Clone)]
struct Scrape {
    metrics: Arc<Metrics>,
    accept_queue: accept_queue::Watch,
    guard: Guard,
}

pub(super) fn routes(metrics: Arc<Metrics>, guard: Guard) -> Router {
    let scrape = Scrape {
        accept_queue: accept_queue::Watch::new(Arc::clone(&metrics)),
        metrics,
        guard,
    };
    Router::new()
        .route("/metrics", get(render))
        .with_state(scrape)
}

/// Without a token everybody may scrape; once one is set nobody without it, this machine included.
async fn render(State(scrape): State<Scrape>, headers: HeaderMap) -> Response {
    if scrape.guard.asks_for_token() && !scrape.guard.has_token(&headers) {
        return unauthorized("metrics require the bearer token of RELAY_METRICS_TOKEN\n");
    }
    scrape.accept_queue.look();
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        scrape.metrics.render(),
    )
        .into_response()
}
