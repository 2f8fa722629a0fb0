//! The operators' port: is it alive, is it ready, what has it counted.
//!
//! `health` answers on the clients' port too, so that a proxy in front can ask.

pub mod health;
pub mod metrics;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

pub use health::Health;
pub use metrics::Scrape;

/// What the operators' port serves.
pub fn operator_routes(health: Health, scrape: Scrape) -> Router {
    Router::new()
        .route("/", get(index))
        .merge(metrics::routes(scrape))
        .merge(health::routes(health))
        .fallback(not_here)
}

async fn index() -> Response {
    let endpoints = serde_json::json!({
        "service": "vauchi-relay",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": ["/health", "/ready", "/metrics"],
    });
    axum::Json(endpoints).into_response()
}

async fn not_here() -> Response {
    (
        StatusCode::NOT_FOUND,
        "nothing here; see /health, /ready and /metrics\n",
    )
        .into_response()
}
