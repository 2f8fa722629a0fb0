//! `/health/detailed`: what an operator wants to know at a glance, as one JSON object.
//!
//! Numbers come from where `/metrics` has them, so that the two never differ. No mailbox, client or
//! address is in it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::health::Health;
use crate::config::{Config, StorageBackend};
use crate::filesystem;
use crate::metrics::{COMMIT, Metrics};

/// What the page is made from.
#[derive(Clone)]
pub struct Detailed {
    health: Health,
    metrics: Arc<Metrics>,
    storage: StorageBackend,
    data_dir: PathBuf,
    connections_max: u64,
    storage_bytes_max: u64,
    free_bytes_min: u64,
}

impl Detailed {
    /// The page of a relay with this configuration.
    pub fn new(health: Health, metrics: Arc<Metrics>, config: &Config) -> Self {
        Self {
            health,
            metrics,
            storage: config.storage,
            data_dir: config.data_dir.clone(),
            connections_max: config.connections_max.into(),
            storage_bytes_max: config.storage_bytes_max,
            free_bytes_min: config.free_bytes_min,
        }
    }

    async fn body(&self, why_not_ready: Option<String>) -> Value {
        let values = self.metrics.values();
        let value = |series: &str| whole(&values, series);
        let usage = self.health.usage();
        let (gap_seconds, unconfirmed_stop_seconds) = self.health.clock_doubts();
        json!({
            "status": if why_not_ready.is_none() { "ready" } else { "not ready" },
            "reason": why_not_ready,
            "draining": self.health.is_draining(),
            "version": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "uptime_seconds": self.health.uptime().as_secs(),
            "storage": {
                "engine": match self.storage {
                    StorageBackend::Sqlite => "sqlite",
                    StorageBackend::Memory => "memory: a restart deletes everything",
                    StorageBackend::Postgres => "postgres",
                },
                "takes_writes": value("relay_store_up") == 1,
                "takes_blobs": value("relay_takes_blobs") == 1,
                "gives_blobs": value("relay_gives_blobs") == 1,
                "log_bytes": value("relay_database_log_bytes"),
                "bytes": usage.bytes,
                "bytes_max": limit(self.storage_bytes_max),
                "disk_free_bytes": self.disk_free_bytes().await,
                "disk_free_bytes_min": limit(self.free_bytes_min),
            },
            "blobs": {
                "stored": usage.stored,
                "stored_at_start": usage.stored_at_start,
                "created": usage.created,
                "acknowledged": usage.acknowledged,
                "cancelled": usage.cancelled,
                "replaced": usage.replaced,
                "purged": usage.purged,
                "expired": usage.expired,
                "lost": usage.lost,
                "add_up": usage.is_conserved(),
            },
            "receipts": {
                "stored": usage.receipts.stored,
                "stored_at_start": usage.receipts.stored_at_start,
                "created": usage.receipts.created,
                "acknowledged": usage.receipts.acknowledged,
                "purged": usage.receipts.purged,
                "expired": usage.receipts.expired,
                "lost": usage.receipts.lost,
                "dropped": usage.receipts_dropped,
            },
            "sessions": {
                "active": value("relay_connections_active"),
                "max": limit(self.connections_max),
            },
            "commits": {
                "waiting_writes": value("relay_commit_queue_depth"),
                "waiting_bytes": value("relay_commit_queue_bytes"),
            },
            "departed": {
                "remembered": value("relay_dedup_remembered"),
                "oldest_seconds": value("relay_dedup_memory_seconds"),
            },
            "clock": {
                "steady": self.health.is_clock_steady(),
                "steps": value("relay_clock_steps_total"),
                "gap_seconds": gap_seconds,
                "unconfirmed_stop_seconds": unconfirmed_stop_seconds,
            },
            "rate_limited_clients_remembered": value("relay_rate_limit_clients"),
            "recovery_proofs": value("relay_recovery_proofs_active"),
        })
    }

    /// `None` when blobs are not on a disk, or it does not answer.
    async fn disk_free_bytes(&self) -> Option<u64> {
        if !self.storage.keeps_files() {
            return None;
        }
        let folder = self.data_dir.clone();
        let asked = tokio::task::spawn_blocking(move || filesystem::free_bytes(&folder));
        asked.await.ok()?.ok()
    }
}

pub(super) fn routes(detailed: Detailed) -> Router {
    Router::new()
        .route("/health/detailed", get(tell))
        .with_state(detailed)
}

/// 200 or, when the relay is not ready, 503; the body is the same.
async fn tell(State(detailed): State<Detailed>) -> Response {
    let why_not_ready = detailed.health.readiness().await.err();
    let status = if why_not_ready.is_none() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(detailed.body(why_not_ready).await)).into_response()
}

/// No limit is `null`.
fn limit(max: u64) -> Option<u64> {
    (max > 0).then_some(max)
}

/// A series without labels, rounded down; zero when there is none.
fn whole(values: &HashMap<String, f64>, series: &str) -> u64 {
    // A cast from a float keeps within the bounds of the number.
    values.get(series).map_or(0, |value| *value as u64)
}
