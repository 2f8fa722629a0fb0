//! The operators' port: is it alive, is it ready, what has it counted.
//!
//! `/health`, `/ready` and `/metrics` are for everybody who reaches the port, all else is behind
//! the `guard`. `health` answers on the clients' port too, so that a proxy in front can ask;
//! `detailed` and `cluster` are for people and `metrics` for Prometheus.

mod cluster;
pub mod detailed;
mod guard;
pub mod health;
mod metrics;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::config::Token;
use crate::metrics::Metrics;
use guard::Guard;

pub use detailed::Detailed;
pub use health::Health;

/// What the operators' port serves. The token is `RELAY_METRICS_TOKEN`.
pub fn operator_routes(
    health: Health,
    detailed: Detailed,
    metrics: Arc<Metrics>,
    token: Option<Token>,
) -> Router {
    let guard = Guard::new(token);
    let for_operators = Router::new()
        .route("/", get(index))
        .merge(detailed::routes(detailed))
        .merge(cluster::routes(health.clone(), Arc::clone(&metrics)))
        .fallback(not_here)
        .layer(from_fn_with_state(guard.clone(), guard::keep_strangers_out));
    let for_everybody = health::routes(health).merge(metrics::routes(metrics, guard));
    for_operators.merge(for_everybody)
}

async fn index() -> Response {
    let endpoints = serde_json::json!({
        "service": "vauchi-relay",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": ["/health", "/ready", "/metrics", "/health/detailed", "/cluster"],
    });
    axum::Json(endpoints).into_response()
}

async fn not_here() -> Response {
    (
        StatusCode::NOT_FOUND,
        "not found; this port serves /health, /ready, /metrics, /health/detailed and /cluster\n",
    )
        .into_response()
}
