//! Builds the parts, binds the sockets, starts and supervises the tasks, and ends them in order.
//!
//! The drain: readiness says no → connections are still accepted for `RELAY_DRAIN_DELAY_SECS` → the
//! clients' port closes, sessions deliver no more and end when they owe nothing → whatever is left
//! at the deadline is cut → pending commits finish, the store closes → the operators' port, which
//! has answered all the while, closes last.
//!
//! `keeping` opens what the relay keeps; `start_error` says why it did not start; `sweep` says when what
//! has expired is deleted; `disk` shows how full it is; `look_again` says when what was found damaged is
//! looked at again, `scrub` when all that is stored is compared with its checksums.

mod disk;
mod keeping;
mod look_again;
mod scrub;
mod start_error;
mod sweep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::commons::{Alone, Commons, Together};
use crate::config::Config;
use crate::http::{Detailed, Health, health, operator_routes};
use crate::hub::Hub;
use crate::limits::budgets::Budgets;
use crate::limits::connections::Connections;
use crate::limits::unfinished::Unfinished;
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::service::{self, Service};
use crate::session;
use crate::shutdown::Shutdown;
pub use crate::socket::accept_queue;
use crate::socket::forwarded::Proxies;
use crate::socket::handshake::is_upgrade;
use crate::socket::listener::Listener;
use crate::socket::watch::WatchRules;
use crate::socket::websocket::Upgrader;
use crate::store::Store;
use crate::store::engine::Opened;
use crate::store::others::{Others, Serving};
pub use keeping::{is_secret_gone, secret_file};
use keeping::{load_secret, open_database, start_store};
use look_again::look_again_for_ever;
use scrub::scrub_for_ever;
pub use start_error::{DataDirMissing, StartError};
use sweep::sweep_for_ever;

/// Connections on the clients' port that are not sessions yet: as many as may become one, but never
/// fewer than this, so that a small relay still answers probes while strangers knock.
const LOBBY_MIN: usize = 256;

/// Connections on the operators' port.
const OPERATORS_MAX: usize = 64;

/// The last file descriptors of the process, which clients do not get: for probes, and for storage that
/// is reopened or backed up.
const KEPT_FROM_CLIENTS: u64 = 32;

/// Those of them that probes do not get either: a database has three files, and a folder is read.
const KEPT_FROM_OPERATORS: u64 = 16;

/// Rest between two rounds of housekeeping.
const UPKEEP: Duration = Duration::from_secs(5);

/// Rest between two looks at whether storage is where it was. Two seconds are promised.
const WATCH: Duration = Duration::from_secs(1);

/// How long sessions that were cut off may take to be gone, and the store to close.
const AFTER_THE_END: Duration = Duration::from_secs(5);

/// How long requests on the operators' port may take to finish; a scrape that takes longer is cut.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How the relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everybody was served to the end.
    Drained,
    /// Some sessions were cut off, by the deadline or by a second signal.
    Cut,
}

/// A running relay. Dropping it without [`Running::drain`] leaves its tasks to the runtime.
pub struct Running {
    /// Where clients connect; the real port where 0 was asked for.
    pub clients: SocketAddr,
    /// Where operators ask.
    pub operators: SocketAddr,
    /// The relay's public key.
    pub relay_id: [u8; 32],
    /// Ends the relay.
    pub shutdown: Shutdown,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The store beneath.
    pub store: Arc<Store>,
    /// Whether it still moves.
    pub pulse: Pulse,
    others: Option<Arc<dyn Others>>,
    drain_delay: Duration,
    drain_timeout: Duration,
    sessions: TaskTracker,
    requests: TaskTracker,
    core: JoinSet<&'static str>,
    close_clients: CancellationToken,
    close_operators: CancellationToken,
    end_upkeep: CancellationToken,
}

/// Sockets that the settings let clients and operators open; `None` is without a limit.
pub fn sockets_max(config: &Config) -> Option<u64> {
    let sessions = u64::from(config.connections_max);
    let others = (lobby_max(config) + OPERATORS_MAX) as u64;
    (sessions > 0).then_some(sessions + others)
}

/// Opens the store, binds both ports and starts to serve.
pub async fn start(config: &Config, clock: Clock) -> Result<Running, StartError> {
    start_with(config, clock, |opened| opened).await
}

/// As [`start`], with a wrapper around the database: tests let it fail.
pub async fn start_with(
    config: &Config,
    clock: Clock,
    wrap: impl FnOnce(Opened) -> Opened,
) -> Result<Running, StartError> {
    let metrics = Arc::new(Metrics::new());
    let hub = Arc::new(Hub::default());
    let budgets = Arc::new(Budgets::new(config, clock.clone(), &metrics));
    let secret = load_secret(config)?;
    let opened = wrap(open_database(config, &clock, &secret, &metrics).await?);
    let alone = Alone::new(Arc::clone(&hub), Arc::clone(&budgets), Arc::clone(&metrics));
    let others = opened.others.clone();
    let (commons, together) = share(alone, &hub, others.clone());
    let kept = (&clock, &secret);
    let store = start_store(config, opened, kept, (&commons, &metrics));
    let store = Arc::new(store);

    let clients = bind("RELAY_LISTEN_ADDR", config.listen_addr);
    let operators = bind("RELAY_HTTP_ADDR", config.http_addr);
    let ((clients, clients_addr), (operators, operators_addr)) = match (clients, operators) {
        (Ok(clients), Ok(operators)) => (clients, operators),
        (Err(error), _) | (_, Err(error)) => {
            store.close().await;
            return Err(error);
        }
    };

    let service = Arc::new(Service::new(service::Parts {
        store: Arc::clone(&store),
        hub,
        commons,
        secret,
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        blob_ttl: config.blob_ttl,
        receipt_min_ttl: config.receipt_min_ttl,
        v1_allows_unverified: config.v1_allows_unverified,
        v1_keeps_sender_id: config.v1_keeps_sender_id,
        budgets: Arc::clone(&budgets),
    }));
    let mut running = Running {
        clients: clients_addr,
        operators: operators_addr,
        relay_id: *service.relay_id(),
        shutdown: Shutdown::default(),
        pulse: Pulse::new(Arc::clone(&service), Arc::clone(&metrics)),
        metrics,
        store,
        others,
        drain_delay: config.drain_delay,
        drain_timeout: config.drain_timeout,
        sessions: TaskTracker::new(),
        requests: TaskTracker::new(),
        core: JoinSet::new(),
        close_clients: CancellationToken::new(),
        close_operators: CancellationToken::new(),
        end_upkeep: CancellationToken::new(),
    };
    let connections = Connections::new(config, budgets, Arc::clone(&running.metrics));
    running.serve_clients(config, &service, &clock, connections, clients);
    running.serve_operators(config, &service, &clock, operators);
    running.watch_disk(config);
    running.keep_house(config, service);
    if let Some(together) = together {
        let words = async move { together.run().await };
        running.keep_up("words with the other relays", words);
    }
    Ok(running)
}

/// What sessions share: with other relays, where the database may have some.
fn share(
    alone: Alone,
    hub: &Arc<Hub>,
    others: Option<Arc<dyn Others>>,
) -> (Arc<dyn Commons>, Option<Arc<Together>>) {
    match others {
        None => (Arc::new(alone), None),
        Some(others) => {
            let together = Arc::new(Together::new(alone, Arc::clone(hub), others));
            (Arc::clone(&together) as Arc<dyn Commons>, Some(together))
        }
    }
}

impl Running {
    /// Resolves when a task that should run for ever has ended: the relay is broken and must end.
    pub async fn broken(&mut self) -> &'static str {
        match self.core.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) | None => "a task panicked",
        }
    }

    /// How long [`Running::drain`] may take.
    pub fn drain_takes_max(&self) -> Duration {
        self.drain_delay + self.drain_timeout + AFTER_THE_END + LAST_REQUESTS
    }

    /// Ends the relay in the order told above. A call of [`Shutdown::stop`] cuts it short.
    pub async fn drain(mut self) -> Ending {
        self.shutdown.announce();
        if let Some(others) = &self.others {
            others.drains();
        }
        self.metrics.draining.set(1.0);
        self.metrics.ready.set(0.0);
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => {}
            () = self.shutdown.stopped() => {}
        }
        self.close_clients.cancel();
        self.shutdown.begin_drain(self.drain_timeout);
        self.sessions.close();
        tokio::select! {
            () = self.sessions.wait() => {}
            () = tokio::time::sleep(self.drain_timeout) => self.shutdown.stop(),
            () = self.shutdown.stopped() => {}
        }
        let ending = if self.shutdown.is_stopped() {
            Ending::Cut
        } else {
            Ending::Drained
        };
        self.shutdown.stop();
        self.end_upkeep.cancel();
        let closing = async {
            self.sessions.wait().await;
            self.store.close().await;
        };
        if tokio::time::timeout(AFTER_THE_END, closing).await.is_err() {
            tracing::error!(
                "the store did not close in time; confirmed blobs are safe on the disk"
            );
        }
        self.close_operators.cancel();
        self.requests.close();
        drop(tokio::time::timeout(LAST_REQUESTS, self.requests.wait()).await);
        self.core.shutdown().await;
        ending
    }

    fn serve_clients(
        &mut self,
        config: &Config,
        service: &Arc<Service>,
        clock: &Clock,
        connections: Connections,
        socket: TcpListener,
    ) {
        let parts = Arc::new(session::Parts {
            service: Arc::clone(service),
            clock: clock.clone(),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            settings: session::Settings {
                message_bytes_max: config.message_bytes_max,
                first_frame_timeout: config.first_frame_timeout,
                slow_reading_max: config.slow_reading_max,
                write_timeout: config.write_timeout,
                keepalive: config.keepalive,
                idle_timeout: config.idle_timeout,
                v2: session::V2Settings {
                    submits_per_minute: config.rate_limit_per_min,
                    ttl_max: config.blob_ttl,
                    mailbox_blobs_max: config.mailbox_blobs_max,
                    mailbox_bytes_max: config.mailbox_bytes_max,
                    origins: config.public_origins.clone(),
                    alternates: config.alternates.clone().into(),
                },
            },
            has_told_of_origins: AtomicBool::new(false),
        });
        let unfinished = Unfinished::new(config.unfinished_bytes_max, Arc::clone(&self.metrics));
        let upgrader = Upgrader {
            message_bytes_max: config.message_bytes_max,
            watch: WatchRules {
                message_timeout: config.message_timeout,
                unfinished,
                slow_reading: self.metrics.slow_reading_total.clone(),
            },
            proxies: Arc::new(Proxies::new(config.trusted_proxies.clone())),
            connections,
            run: Arc::new(move |connection| Box::pin(session::run(connection, Arc::clone(&parts)))),
            sessions: self.sessions.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let health = Health::new(Arc::clone(service), self.shutdown.clone(), clock.clone());
        let listener = Listener {
            socket,
            routes: client_routes(upgrader, health),
            header_timeout: config.header_timeout,
            keep_alive: false,
            lobby_max: lobby_max(config),
            descriptors_kept: KEPT_FROM_CLIENTS,
            metrics: Arc::clone(&self.metrics),
        };
        let (until, requests) = (self.close_clients.clone(), self.requests.clone());
        self.core.spawn(async move {
            listener.run(until, requests).await;
            "the clients' port"
        });
    }

    fn serve_operators(
        &mut self,
        config: &Config,
        service: &Arc<Service>,
        clock: &Clock,
        socket: TcpListener,
    ) {
        let health = Health::new(Arc::clone(service), self.shutdown.clone(), clock.clone());
        let metrics = Arc::clone(&self.metrics);
        let detailed = Detailed::new(health.clone(), Arc::clone(&metrics), config);
        let token = config.metrics_token.clone();
        let listener = Listener {
            socket,
            routes: operator_routes(health, detailed, metrics, token),
            header_timeout: config.header_timeout,
            keep_alive: true,
            lobby_max: OPERATORS_MAX,
            descriptors_kept: KEPT_FROM_OPERATORS,
            metrics: Arc::clone(&self.metrics),
        };
        let (until, requests) = (self.close_operators.clone(), self.requests.clone());
        self.core.spawn(async move {
            listener.run(until, requests).await;
            "the operators' port"
        });
    }

    /// The sweep of expired blobs, and bounded memory kept small.
    fn keep_house(&mut self, config: &Config, service: Arc<Service>) {
        let sweep = sweep_for_ever(Arc::clone(&service), config.cleanup_interval);
        self.keep_up("the sweep", sweep);
        let watch = watch_for_ever(
            Arc::clone(&service),
            self.others.clone(),
            self.sessions.clone(),
        );
        self.keep_up("the watch on storage", watch);
        let look = look_again_for_ever(Arc::clone(&service), config.look_again_every);
        self.keep_up("the look at damaged blobs", look);
        let scrub = scrub_for_ever(Arc::clone(&service), config.scrub_rest);
        self.keep_up("the scrub", scrub);
        let (metrics, shutdown) = (Arc::clone(&self.metrics), self.shutdown.clone());
        self.keep_up("housekeeping", async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.upkeep();
                service.tidy();
                if !shutdown.is_announced() {
                    service.probe_if_unasked().await;
                }
            }
        });
    }

    /// Runs something until the relay ends its upkeep. That it ends earlier is a fault, told by its name.
    fn keep_up(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let until = self.end_upkeep.clone();
        self.core.spawn(async move {
            until.run_until_cancelled(work).await;
            name
        });
    }

    /// Shows how full the disk is. A task of its own: a disk that hangs holds up nothing else.
    fn watch_disk(&mut self, config: &Config) {
        if !config.storage.keeps_files() {
            return;
        }
        let min = config.free_bytes_min as f64;
        self.metrics.disk_free_min_bytes.set(min);
        let watching = disk::watch_for_ever(config.data_dir.clone(), Arc::clone(&self.metrics));
        self.keep_up("the watch on the disk", watching);
    }
}

/// Sees that storage is where it was, and has the other relays know how this one serves.
async fn watch_for_ever(
    service: Arc<Service>,
    others: Option<Arc<dyn Others>>,
    sessions: TaskTracker,
) {
    loop {
        if let Some(others) = &others {
            others.serves(Serving {
                is_ready: service.is_ready(),
                connections: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
            });
        }
        tokio::time::sleep(WATCH).await;
        service.store().watch().await;
    }
}

fn lobby_max(config: &Config) -> usize {
    LOBBY_MIN.max(config.connections_max as usize)
}

fn bind(
    variable: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let fault = |source| StartError::Bind {
        variable,
        address,
        source,
    };
    let listener = accept_queue::listen(address).map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    Ok((listener, bound))
}

/// The clients' port: probes, the paths of a federation that does not exist yet, and on every other
/// path a WebSocket or a hint.
fn client_routes(upgrader: Upgrader, health: Health) -> Router {
    let not_yet = any(|| async { (StatusCode::NOT_FOUND, "this relay does not federate\n") });
    let sockets = Router::new()
        .route("/federation", not_yet.clone())
        .route("/ws/federation", not_yet.clone())
        .route("/ws/peers", not_yet)
        .fallback(upgrade_or_hint)
        .with_state(Arc::new(upgrader));
    sockets.merge(health::routes(health))
}

async fn upgrade_or_hint(State(upgrader): State<Arc<Upgrader>>, request: Request) -> Response {
    if is_upgrade(request.headers()) {
        return upgrader.upgrade(request);
    }
    let status = if request.uri().path() == "/" {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    let hint = concat!(
        "This is a vauchi-relay ",
        env!("CARGO_PKG_VERSION"),
        ". This port speaks WebSocket: connect a client to ws:// (or wss:// through your proxy) and this address.\n",
        "Alive: GET /health. Takes blobs: GET /ready.\n"
    );
    (status, hint).into_response()
}
