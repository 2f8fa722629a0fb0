//! `/health` and `/ready`: alive is not ready.
//!
//! `/health` is 200 as long as the process answers. `/ready` is 200 when storage answers and the
//! relay is not on its way out, else 503 with the reason; it asks the store for real.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::service::Service;
use crate::shutdown::Shutdown;

/// Probes answered at the same time on one port; each costs at most one look at the store.
const PROBES_MAX: usize = 16;

/// What the probes ask.
#[derive(Clone)]
pub struct Health {
    service: Arc<Service>,
    shutdown: Shutdown,
    clock: Clock,
    started: Duration,
    permits: Arc<Semaphore>,
}

impl Health {
    /// Probes for one port.
    pub fn new(service: Arc<Service>, shutdown: Shutdown, clock: Clock) -> Self {
        let started = clock.monotonic();
        Self {
            service,
            shutdown,
            clock,
            started,
            permits: Arc::new(Semaphore::new(PROBES_MAX)),
        }
    }

    fn body(&self, status: &str, reason: Option<&str>) -> Json<serde_json::Value> {
        let mut body = json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.clock.monotonic().saturating_sub(self.started).as_secs(),
            "blob_count": self.service.store().usage().stored,
        });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        Json(body)
    }

    fn not_ready(&self, reason: &str) -> Response {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            self.body("not ready", Some(reason)),
        )
            .into_response()
    }
}

/// `/health` (also as `/up`) and `/ready`.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/health", get(alive))
        .route("/up", get(alive))
        .route("/ready", get(ready))
        .with_state(health)
}

async fn alive(State(health): State<Health>) -> Response {
    health.body("healthy", None).into_response()
}

async fn ready(State(health): State<Health>) -> Response {
    if health.shutdown.is_announced() {
        return health.not_ready("draining: the relay is about to stop");
    }
    let Ok(_permit) = health.permits.try_acquire() else {
        return health.not_ready("too many probes at once");
    };
    match health.service.store().probe(health.clock.now()).await {
        Ok(()) => health.body("ready", None).into_response(),
        Err(error) => health.not_ready(&error.to_string()),
    }
}
