//! Every metric: its name, its meaning, and the handle that moves it.
//!
//! Each server has its own recorder, so that two relays in one process (tests) do not count into
//! each other. All series exist from the first scrape on, at zero. Labels carry only words from
//! this folder, `service::refusal` and `limits::table`, never anything that a client sent.

mod recorder;
mod shares;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusHandle, PrometheusRecorder};
use recorder::recorder;
use shares::share_counter;
pub use shares::{Shared, Why};
use table::Table;

/// The commit that this build was made from; `unknown` where the build was not told (`build.rs`).
pub const COMMIT: &str = env!("VAUCHI_RELAY_COMMIT");

/// All handles. Each part that counts holds an `Arc<Metrics>`.
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    /// Held while series move together, and while they are read.
    books: Mutex<()>,
    process: metrics_process::Collector,
    table: Table,
}

impl std::ops::Deref for Metrics {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A recorder of its own with every series at zero.
    pub fn new() -> Self {
        let recorder = Arc::new(recorder());
        metrics::with_local_recorder(&*recorder, || {
            let process = metrics_process::Collector::default();
            process.describe();
            gauge!(
                "relay_build_info",
                "version" => env!("CARGO_PKG_VERSION"),
                "commit" => COMMIT
            )
            .set(1.0);
            describe_gauge!(
                "relay_build_info",
                "Always 1; the labels tell which build this is."
            );
            describe_counter!(
                "relay_refusals_total",
                "Requests answered with a refusal, by its code."
            );
            describe_counter!(
                "relay_rate_limited_by_total",
                "Refusals counted in relay_rate_limited_total, by budget."
            );
            describe_counter!(
                "relay_share_refusals_total",
                "Times that somebody got no more of connections, unfinished messages or storage, and why: nothing is left (full), the share of its address or of a wider network is taken, or little is left and others hold less (scarce)."
            );
            for of in Shared::ALL {
                for why in Why::ALL {
                    share_counter(of, why).absolute(0);
                }
            }

            let table = Table::new();
            table.instances.set(1.0);
            Self {
                process,
                table,
                recorder: Arc::clone(&recorder),
                books: Mutex::default(),
            }
        })
    }

    /// The counter of refusals with this code, a word from `service::refusal`.
    pub fn refusals(&self, code: &'static str) -> Counter {
        metrics::with_local_recorder(
            &*self.recorder,
            || counter!("relay_refusals_total", "code" => code),
        )
    }

    /// The counter of refusals by the budget with this label, a word from `limits::table`.
    pub fn rate_limited_by(&self, budget: &'static str) -> Counter {
        metrics::with_local_recorder(
            &*self.recorder,
            || counter!("relay_rate_limited_by_total", "budget" => budget),
        )
    }

    /// Series that must add up in every scrape are moved while this is held, which is short: no scrape
    /// comes between them.
    pub fn books(&self) -> MutexGuard<'_, ()> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counter of those who got no more of this.
    pub fn share_refusals(&self, of: Shared, why: Why) -> Counter {
        metrics::with_local_recorder(&*self.recorder, || share_counter(of, why))
    }

    /// The text that `/metrics` serves, process metrics read just now.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&*self.recorder, || self.process.collect());
        self.snapshot()
    }

    /// All series at one moment.
    fn snapshot(&self) -> String {
        let _unmoved = self.books();
        self.handle().render()
    }

    /// The series without labels, as a scrape would show them now.
    pub fn values(&self) -> HashMap<String, f64> {
        self.snapshot()
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(series, _)| !series.starts_with('#') && !series.contains('{'))
            .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// Must be called now and then, so that histograms do not grow between scrapes.
    pub fn upkeep(&self) {
        self.handle().run_upkeep();
    }

    fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
