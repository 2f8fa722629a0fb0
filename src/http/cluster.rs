//! `/cluster`: the relays that share this one's database, as one JSON object.
//!
//! What each relay told with its last heartbeat, read from the database. No mailbox, client or address is in it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::health::Health;
use crate::metrics::Metrics;
use crate::service::Member;

/// What the page is made from.
#[derive(Clone)]
struct Cluster {
    health: Health,
    metrics: Arc<Metrics>,
}

pub(super) fn routes(health: Health, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/cluster", get(tell))
        .with_state(Cluster { health, metrics })
}

async fn tell(State(cluster): State<Cluster>) -> Response {
    match cluster.health.relays().await {
        Ok(Some(members)) => Json(shared(&members)).into_response(),
        Ok(None) => Json(cluster.alone()).into_response(),
        // The reason names hosts, so it stays in the log.
        Err(_) => {
            let why = "the database does not answer; GET /ready and the log say why";
            let body = Json(json!({ "store": "shared", "error": why }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

fn shared(members: &[Member]) -> Value {
    let chores = members.iter().find_map(|member| {
        let epoch = member.chores_epoch?;
        Some(json!({ "relay": member.number, "epoch": epoch }))
    });
    let relay = |member: &Member| {
        json!({
            "number": member.number,
            "this_one": member.is_this,
            "version": member.version,
            "state": member.state,
            "connections": member.connections,
            "heartbeat_seconds_ago": tenths(member.silent.as_secs_f64()),
        })
    };
    let relays: Vec<_> = members.iter().map(relay).collect();
    json!({ "store": "shared", "chores": chores, "relays": relays })
}

impl Cluster {
    /// A relay that shares its store with nobody has no number and needs no lease.
    fn alone(&self) -> Value {
        let state = match self.health.is_draining() {
            true => "draining",
            false if self.health.was_ready() => "ready",
            false => "not ready",
        };
        let values = self.metrics.values();
        let connections = values.get("relay_connections_active").copied();
        let relay = json!({
            "number": null,
            "this_one": true,
            "version": env!("CARGO_PKG_VERSION"),
            "state": state,
            "connections": connections.unwrap_or(0.0) as u64,
            "heartbeat_seconds_ago": null,
        });
        json!({ "store": "alone", "chores": null, "relays": [relay] })
    }
}

fn tenths(secs: f64) -> f64 {
    (secs * 10.0).round() / 10.0
}
