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
use crate::service::{Member, Service, Unheard, Usage};
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

    /// Whether blobs are taken and given out, or why not.
    pub(super) async fn readiness(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("draining: the relay is shutting down".to_owned());
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            return Err("too many probes at once".to_owned());
        };
        let probed = self.service.probe().await;
        probed.map_err(|error| error.to_string())
    }

    /// Whether the relay is on its way out.
    pub(super) fn is_draining(&self) -> bool {
        self.shutdown.is_announced()
    }

    /// Since the relay was started.
    pub(super) fn uptime(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.started)
    }

    /// Whether the clock has been steady for long enough that what has expired is deleted.
    pub(super) fn is_clock_steady(&self) -> bool {
        self.service.is_clock_steady()
    }

    /// How far the clock is from what clients are told, in seconds, and how many seconds of a stop
    /// are not confirmed.
    pub(super) fn clock_doubts(&self) -> (i64, u64) {
        let (gap, unconfirmed) = self.service.clock_doubts();
        (gap, unconfirmed.as_secs())
    }

    /// The relays that share the database, this one included; `None` for a relay that shares it with nobody.
    pub(super) async fn relays(&self) -> Result<Option<Vec<Member>>, Unheard> {
        self.service.relays().await
    }

    /// What storage answered when it was last asked.
    pub(super) fn was_ready(&self) -> bool {
        self.service.is_ready()
    }

    /// What is kept now.
    pub(super) fn usage(&self) -> Usage {
        self.service.store().usage()
    }

    fn body(&self, status: &str, reason: Option<&str>) -> Json<serde_json::Value> {
        let mut body = json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.uptime().as_secs(),
            "blob_count": self.usage().stored,
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
    match health.readiness().await {
        Ok(()) => health.body("ready", None).into_response(),
        Err(reason) => health.not_ready(&reason),
    }
}
