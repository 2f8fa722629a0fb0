//! `vauchi-relay` and `vauchi-relay serve`: runs the relay until a signal ends it.

use std::io::Stderr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use tokio_util::task::AbortOnDropHandle;

use super::banner::{Banner, Facts, banner};
use super::container;
use super::descriptors::{self, Descriptors};
use super::permissions;
use super::{exit, say};
use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::filesystem;
use crate::metrics::Metrics;
use crate::pulse::{Pulse, Vitals};
use crate::server::{self, Ending, Running};
use crate::supervisor::Supervisor;
use crate::telemetry::{self, Lines, Log};

/// Threads for what blocks: looks at the disk, reading a database through, signatures of long lists. Each
/// stays when it was needed once.
const BLOCKING_THREADS_MAX: usize = 16;

/// A year: longer than a relay runs without blocking.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// Reads the settings, serves, drains.
pub(super) fn run() -> u8 {
    let Loaded {
        config,
        warnings,
        unknown,
        ..
    } = match Config::from_env() {
        Ok(loaded) => loaded,
        Err(faults) => {
            say::note(faults);
            return exit::SETTINGS;
        }
    };
    let log = match telemetry::init(config.log_format, config.log_filter_file.clone()) {
        Ok(log) => log,
        Err(error) => {
            say::note(error);
            return exit::FAILED;
        }
    };
    for warning in unknown.iter().chain(&warnings) {
        tracing::warn!("{warning}");
    }
    descriptors::raise(&config);
    match runtime() {
        Ok(runtime) => runtime.block_on(serve_and_listen(&config, log)),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            exit::FAILED
        }
    }
}

/// The threads of a relay. Once it runs it needs no more of them: where no thread can be had any more,
/// what blocks waits for the one that is there from the start.
fn runtime() -> std::io::Result<Runtime> {
    // The runtime would panic where not one thread can be had.
    let trial = std::thread::Builder::new().spawn(|| ());
    trial?.join().ok();
    // On one processor a second thread would only take turns with the first.
    let mut builder = match std::thread::available_parallelism() {
        Ok(processors) if processors.get() == 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(FOR_EVER)
        .build()?;
    // Nobody waits for it; its thread stays.
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// The signals that a relay lives by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Serves, and does what SIGHUP asks for until the very end.
async fn serve_and_listen(config: &Config, log: Log) -> u8 {
    let Signals {
        terminate,
        interrupt,
        mut hangup,
    } = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals");
            return exit::FAILED;
        }
    };
    let Log { mut filter, lines } = log;
    let hangups = async {
        while hangup.recv().await.is_some() {
            filter.on_hangup().await;
        }
    };
    let serving = serve(config, lines, terminate, interrupt);
    tokio::pin!(serving);
    tokio::select! {
        code = &mut serving => code,
        // No more signals will come; that is no reason to end.
        () = hangups => serving.await,
    }
}

async fn serve(
    config: &Config,
    lines: Arc<Lines<Stderr>>,
    mut terminate: Signal,
    mut interrupt: Signal,
) -> u8 {
    let supervisor = Arc::new(Supervisor::from_env());
    let starting = server::start(config, Clock::system());
    let mut running = match supervisor.wait_for(starting).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!("{error}");
            supervisor.failed(&error.to_string()).await;
            return exit::FAILED;
        }
    };
    say_hello(config, &running);
    let counting = count_dropped(lines, Arc::clone(&running.metrics));
    let _counting = AbortOnDropHandle::new(tokio::spawn(counting));
    supervisor.ready("serving").await;
    let _reports = supervisor.is_there().then(|| {
        let reports = report(Arc::clone(&supervisor), running.pulse.clone());
        AbortOnDropHandle::new(tokio::spawn(reports))
    });
    tokio::select! {
        () = signalled(&mut terminate, &mut interrupt) => {}
        task = running.broken() => {
            tracing::error!(task, "internal task {task} ended unexpectedly; stopping");
            supervisor.stopping(running.drain_takes_max(), "stopping: an internal task ended unexpectedly").await;
            running.shutdown.stop();
            running.drain().await;
            return exit::FAILED;
        }
    }
    supervisor
        .stopping(running.drain_takes_max(), "draining")
        .await;
    drain(running, &mut terminate, &mut interrupt).await
}

/// Counts the lines that standard error had no room for, and says so once it has.
async fn count_dropped(lines: Arc<Lines<Stderr>>, metrics: Arc<Metrics>) {
    let mut untold = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let dropped = lines.take_dropped();
        metrics.log_lines_dropped_total.increment(dropped);
        untold += dropped;
        if untold > 0 && lines.has_room() {
            tracing::warn!(
                "{untold} lines of this log were dropped, because nothing was reading standard error"
            );
            untold = 0;
        }
    }
}

/// Tells the supervisor that the relay lives, as long as it does.
async fn report(supervisor: Arc<Supervisor>, pulse: Pulse) {
    let mut told = None;
    loop {
        if let Some(vitals) = pulse.feel().await {
            let status = status(&vitals);
            let is_news = told.as_ref() != Some(&status);
            supervisor.alive(is_news.then_some(&status)).await;
            told = Some(status);
        }
        tokio::time::sleep(supervisor.interval()).await;
    }
}

/// How the relay is, in one line.
fn status(vitals: &Vitals) -> String {
    let Vitals {
        connections,
        blobs,
        takes_writes,
        is_draining,
    } = vitals;
    let kept = format!("connections: {connections}, blobs waiting: {blobs}");
    match (is_draining, takes_writes) {
        (true, _) => format!("draining; {kept}"),
        (false, true) => format!("serving; {kept}"),
        (false, false) => format!("storage takes no writes, see the log; {kept}"),
    }
}

fn say_hello(config: &Config, running: &Running) {
    let facts = Facts {
        listen_addr: running.clients,
        http_addr: running.operators,
        relay_id: running.relay_id,
        stored_bytes: running.store.usage().bytes,
        disk_free_bytes: filesystem::free_bytes(&config.data_dir).ok(),
        descriptors: Descriptors::of(config),
    };
    let Banner { lines, warnings } = banner(config, &facts);
    lines.iter().for_each(|line| tracing::info!("{line}"));
    warnings
        .into_iter()
        .chain(container::warning(config))
        .chain(permissions::warnings(config))
        .for_each(|warning| tracing::warn!("{warning}"));
}

async fn drain(running: Running, terminate: &mut Signal, interrupt: &mut Signal) -> u8 {
    tracing::info!("draining: finishing open sessions; a second signal stops at once");
    let shutdown = running.shutdown.clone();
    let draining = running.drain();
    tokio::pin!(draining);
    let ending = tokio::select! {
        ending = &mut draining => ending,
        () = signalled(terminate, interrupt) => {
            tracing::warn!("second signal: stopping at once");
            shutdown.stop();
            draining.await
        }
    };
    match ending {
        Ending::Drained => {
            tracing::info!("stopped; all sessions were drained");
            exit::DRAINED
        }
        Ending::Cut => {
            tracing::warn!(
                "stopped; some sessions were cut off, their clients reconnect for what is stored"
            );
            exit::CUT
        }
    }
}

async fn signalled(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
