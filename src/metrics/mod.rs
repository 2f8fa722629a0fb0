//! Every metric: its name, its meaning, and the handle that moves it.
//!
//! Each server has its own recorder, so that two relays in one process (tests) do not count into
//! each other. All series exist from the first scrape on, at zero. Labels carry only words from
//! this folder, `service::refusal` and `limits::table`, never anything that a client sent.

mod recorder;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, Histogram};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusHandle, PrometheusRecorder};
use recorder::{batch, count, level, recorder, seconds};

/// The commit that this build was made from; `unknown` where the build was not told (`build.rs`).
pub const COMMIT: &str = env!("VAUCHI_RELAY_COMMIT");

/// All handles. Each part that counts holds an `Arc<Metrics>`.
#[expect(
    missing_docs,
    reason = "each field's meaning is the help text given to it in `new`"
)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    /// Held while series move together, and while they are read.
    books: Mutex<()>,
    process: metrics_process::Collector,

    pub connections_total: Counter,
    pub connections_active: Gauge,
    pub connections_limit: Gauge,
    pub connection_errors_total: Counter,
    pub connections_refused_total: Counter,
    pub accept_errors_total: Counter,
    pub lobby_shown_out_total: Counter,
    pub listen_overflows_total: Counter,
    pub listen_drops_total: Counter,

    pub messages_received_total: Counter,
    pub messages_sent_total: Counter,
    pub messages_rejected_total: Counter,
    pub messages_ignored_total: Counter,
    pub message_duration_seconds: Histogram,
    pub answer_lane_full_total: Counter,
    pub slow_reading_total: Counter,
    pub floods_closed_total: Counter,
    pub notices_dropped_total: Counter,
    pub unfinished_bytes: Gauge,
    pub unfinished_waits_total: Counter,

    pub blobs_stored: Gauge,
    pub blobs_stored_at_start: Gauge,
    pub stored_bytes: Gauge,
    pub storage_limit_bytes: Gauge,
    pub disk_free_bytes: Gauge,
    pub disk_free_min_bytes: Gauge,
    pub database_log_bytes: Gauge,
    pub next_expiry_timestamp_seconds: Gauge,
    pub blobs_created_total: Counter,
    pub blobs_delivered_total: Counter,
    pub blobs_handed_total: Counter,
    pub receipts_delivered_total: Counter,
    pub device_sync_delivered_total: Counter,
    pub blobs_acknowledged_total: Counter,
    pub blobs_cancelled_total: Counter,
    pub blobs_replaced_total: Counter,
    pub blobs_purged_total: Counter,
    pub blobs_expired_total: Counter,
    pub blobs_lost_total: Counter,
    pub blobs_quarantined: Gauge,
    pub scrub_rows_total: Counter,
    pub index_rebuilds_total: Counter,
    pub duplicates_total: Counter,

    pub device_sync_stored: Gauge,
    pub device_sync_stored_at_start: Gauge,
    pub device_sync_created_total: Counter,
    pub device_sync_acknowledged_total: Counter,
    pub device_sync_purged_total: Counter,
    pub device_sync_expired_total: Counter,
    pub device_sync_lost_total: Counter,

    pub receipts_stored: Gauge,
    pub receipts_stored_at_start: Gauge,
    pub receipts_created_total: Counter,
    pub receipts_acknowledged_total: Counter,
    pub receipts_purged_total: Counter,
    pub receipts_expired_total: Counter,
    pub receipts_lost_total: Counter,
    pub receipts_dropped_total: Counter,

    pub commit_batch_size: Histogram,
    pub commit_duration_seconds: Histogram,
    pub commit_queue_depth: Gauge,
    pub commit_queue_bytes: Gauge,
    pub commit_queue_full_total: Counter,
    pub store_errors_total: Counter,
    pub store_reopened_total: Counter,
    pub store_up: Gauge,
    pub takes_blobs: Gauge,
    pub gives_blobs: Gauge,
    pub page_duration_seconds: Histogram,
    pub dedup_remembered: Gauge,
    pub dedup_memory_seconds: Gauge,
    pub dedup_forgotten_total: Counter,
    pub working_sets_bytes: Gauge,

    pub recovery_proofs_active: Gauge,
    pub recovery_vouchers_total: Counter,
    pub pins: Gauge,
    pub pins_evicted_total: Counter,
    pub pins_refused_total: Counter,

    pub rate_limited_total: Counter,
    pub rate_limit_clients: Gauge,
    pub ready: Gauge,
    pub draining: Gauge,
    pub clock_steady: Gauge,
    pub clock_steps_total: Counter,
    pub clock_gap_seconds: Gauge,
    pub clock_unconfirmed_stop_seconds: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A recorder of its own with every series at zero.
    #[expect(clippy::too_many_lines, reason = "one table: a line per metric")]
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

            Self {
                process,
                connections_total: count("relay_connections_total", "WebSocket sessions started."),
                connections_active: level(
                    "relay_connections_active",
                    "WebSocket sessions open now.",
                ),
                connections_limit: level(
                    "relay_connections_limit",
                    "RELAY_MAX_CONNECTIONS; 0 means no limit.",
                ),
                connection_errors_total: count(
                    "relay_connection_errors_total",
                    "Sessions that ended with an error instead of a close or the drain, including bad handshakes.",
                ),
                connections_refused_total: count(
                    "relay_connections_refused_total",
                    "Connections refused before a session began: RELAY_MAX_CONNECTIONS reached, or too many from one address.",
                ),
                accept_errors_total: count(
                    "relay_accept_errors_total",
                    "Times that accepting a connection failed (for example: out of file descriptors).",
                ),
                lobby_shown_out_total: count(
                    "relay_lobby_shown_out_total",
                    "Connections without a session that were closed because too many waited: the oldest of the address with the most.",
                ),
                listen_overflows_total: count(
                    "relay_listen_overflows_total",
                    "Connections that the system dropped since the relay started because a queue of connections to be accepted was full. Linux counts for the whole network namespace: on a host, other programs are in it.",
                ),
                listen_drops_total: count(
                    "relay_listen_drops_total",
                    "Connections that the system dropped since the relay started before they were accepted, for any reason, overflows included. Linux counts for the whole network namespace: on a host, other programs are in it.",
                ),

                messages_received_total: count(
                    "relay_messages_received_total",
                    "Frames read from clients.",
                ),
                messages_sent_total: count(
                    "relay_messages_sent_total",
                    "Frames written to clients.",
                ),
                messages_rejected_total: count(
                    "relay_messages_rejected_total",
                    "Requests answered with a refusal.",
                ),
                messages_ignored_total: count(
                    "relay_messages_ignored_total",
                    "Frames of a type that this relay does not serve, ignored as protocol v1 demands.",
                ),
                message_duration_seconds: seconds(
                    "relay_message_duration_seconds",
                    "From a frame read whole to its answer queued, the commit included.",
                ),
                notices_dropped_total: count(
                    "relay_notices_dropped_total",
                    "Notices to senders that were dropped because too many waited.",
                ),
                answer_lane_full_total: count(
                    "relay_answer_lane_full_total",
                    "Times a session stopped reading because its client did not take its answers.",
                ),
                slow_reading_total: count(
                    "relay_slow_reading_total",
                    "Frames before which the relay paused because the connection had sent too many that were refused or of no use.",
                ),
                floods_closed_total: count(
                    "relay_floods_closed_total",
                    "Connections closed after a minute of slow reading because their frames were refused or of no use.",
                ),
                unfinished_bytes: level(
                    "relay_unfinished_bytes",
                    "Memory held by incomplete messages beyond the first 64 KiB of each, in steps of 64 KiB; what has arrived counts, not what is announced.",
                ),
                unfinished_waits_total: count(
                    "relay_unfinished_waits_total",
                    "Times that the relay stopped reading a large message because its address or all clients held too much memory with incomplete ones.",
                ),

                blobs_stored: level("relay_blobs_stored", "Blobs stored now."),
                blobs_stored_at_start: level(
                    "relay_blobs_stored_at_start",
                    "Blobs that were stored when this process started.",
                ),
                stored_bytes: level(
                    "relay_stored_bytes",
                    "Bytes stored now: each blob counts its size plus 256.",
                ),
                storage_limit_bytes: level(
                    "relay_storage_limit_bytes",
                    "RELAY_MAX_STORAGE_BYTES; 0 means no limit.",
                ),
                disk_free_bytes: level(
                    "relay_disk_free_bytes",
                    "Bytes free on the disk of the data directory, looked at every 5 s; 0 with the memory engine.",
                ),
                disk_free_min_bytes: level(
                    "relay_disk_free_min_bytes",
                    "RELAY_MIN_FREE_BYTES; 0 means that the disk may fill up, or that there is none.",
                ),
                database_log_bytes: level(
                    "relay_database_log_bytes",
                    "Size of the database's log (relay.db-wal), looked at every 5 s; 0 with the memory engine.",
                ),
                next_expiry_timestamp_seconds: level(
                    "relay_next_expiry_timestamp_seconds",
                    "Unix time at which the next blob expires, accurate to 10 min, as of the last cleanup; 0 if no blob was stored.",
                ),
                blobs_created_total: count(
                    "relay_blobs_created_total",
                    "Blobs stored; repeats of a stored blob are not counted.",
                ),
                device_sync_delivered_total: count(
                    "relay_device_sync_delivered_total",
                    "Device-sync messages written to a socket, repeats included.",
                ),
                blobs_delivered_total: count(
                    "relay_blobs_delivered_total",
                    "Deliveries written to a socket, repeats included.",
                ),
                blobs_handed_total: count(
                    "relay_blobs_handed_total",
                    "Live-only blobs handed to at least one subscriber.",
                ),
                receipts_delivered_total: count(
                    "relay_receipts_delivered_total",
                    "Receipts written to a socket, repeats included.",
                ),
                blobs_acknowledged_total: count(
                    "relay_blobs_acknowledged_total",
                    "Blobs deleted because their recipient acknowledged them.",
                ),
                blobs_cancelled_total: count(
                    "relay_blobs_cancelled_total",
                    "Blobs deleted because their sender cancelled them.",
                ),
                blobs_replaced_total: count(
                    "relay_blobs_replaced_total",
                    "Blobs deleted because a later one of the same topic replaced them.",
                ),
                blobs_purged_total: count(
                    "relay_blobs_purged_total",
                    "Blobs deleted because their mailbox was purged.",
                ),
                blobs_expired_total: count(
                    "relay_blobs_expired_total",
                    "Blobs deleted because their time to live had passed.",
                ),
                blobs_lost_total: count(
                    "relay_blobs_lost_total",
                    "Blobs set aside because their checksum did not match.",
                ),
                scrub_rows_total: count(
                    "relay_scrub_rows_total",
                    "Stored rows that the scrub has compared with their checksums and indexes.",
                ),
                index_rebuilds_total: count(
                    "relay_index_rebuilds_total",
                    "Times that an index did not find stored rows as they are, and was rebuilt.",
                ),
                blobs_quarantined: level(
                    "relay_blobs_quarantined",
                    "Stored blobs, device sync messages and receipts that cannot be read or do not match their checksum now: kept, skipped, and looked at again every minute.",
                ),
                duplicates_total: count(
                    "relay_duplicates_total",
                    "Submits that repeated a blob and were confirmed without storing it again.",
                ),

                device_sync_stored: level(
                    "relay_device_sync_stored",
                    "Device sync messages stored now.",
                ),
                device_sync_stored_at_start: level(
                    "relay_device_sync_stored_at_start",
                    "Device sync messages that were stored when this process started.",
                ),
                device_sync_created_total: count(
                    "relay_device_sync_created_total",
                    "Device sync messages stored; repeats are not counted.",
                ),
                device_sync_acknowledged_total: count(
                    "relay_device_sync_acknowledged_total",
                    "Device sync messages deleted because their device acknowledged them.",
                ),
                device_sync_purged_total: count(
                    "relay_device_sync_purged_total",
                    "Device sync messages deleted because their identity was purged.",
                ),
                device_sync_expired_total: count(
                    "relay_device_sync_expired_total",
                    "Device sync messages deleted because their time to live had passed.",
                ),
                device_sync_lost_total: count(
                    "relay_device_sync_lost_total",
                    "Device sync messages set aside because their checksum did not match.",
                ),

                receipts_stored: level("relay_receipts_stored", "Receipts stored now."),
                receipts_stored_at_start: level(
                    "relay_receipts_stored_at_start",
                    "Receipts that were stored when this process started.",
                ),
                receipts_created_total: count(
                    "relay_receipts_created_total",
                    "Receipts stored: a sender asked what happens to its blob.",
                ),
                receipts_acknowledged_total: count(
                    "relay_receipts_acknowledged_total",
                    "Receipts deleted because they were acknowledged.",
                ),
                receipts_purged_total: count(
                    "relay_receipts_purged_total",
                    "Receipts deleted because their mailbox was purged.",
                ),
                receipts_expired_total: count(
                    "relay_receipts_expired_total",
                    "Receipts deleted because their time to live had passed.",
                ),
                receipts_lost_total: count(
                    "relay_receipts_lost_total",
                    "Receipts set aside because their checksum did not match.",
                ),
                receipts_dropped_total: count(
                    "relay_receipts_dropped_total",
                    "Receipts that were not written because their mailbox or the relay was full.",
                ),

                commit_batch_size: batch("relay_commit_batch_size", "Writes per transaction."),
                commit_duration_seconds: seconds(
                    "relay_commit_duration_seconds",
                    "One transaction, its fsync included.",
                ),
                commit_queue_depth: level(
                    "relay_commit_queue_depth",
                    "Writes that wait for the next transaction.",
                ),
                commit_queue_bytes: level(
                    "relay_commit_queue_bytes",
                    "Bytes of the writes that wait for the next transaction.",
                ),
                commit_queue_full_total: count(
                    "relay_commit_queue_full_total",
                    "Writes that found the commit queue full and had to wait.",
                ),
                store_errors_total: count("relay_store_errors_total", "Store calls that failed."),
                store_reopened_total: count(
                    "relay_store_reopened_total",
                    "Times the store was reopened after a failed write.",
                ),
                takes_blobs: level(
                    "relay_takes_blobs",
                    "1 while a new blob would be stored, else 0: storage takes no writes, the disk has no room, or RELAY_MAX_STORAGE_BYTES is reached.",
                ),
                gives_blobs: level(
                    "relay_gives_blobs",
                    "1 while blobs that wait can be read, else 0: a read failed, and no probe has succeeded since.",
                ),
                store_up: level("relay_store_up", "1 while the store takes writes, else 0."),
                page_duration_seconds: seconds(
                    "relay_page_duration_seconds",
                    "Reading one page of a mailbox.",
                ),
                dedup_remembered: level(
                    "relay_dedup_remembered",
                    "Departed blobs that are remembered so that a late repeat is not stored again.",
                ),
                dedup_memory_seconds: level(
                    "relay_dedup_memory_seconds",
                    "Age of the oldest departed blob that is remembered.",
                ),
                dedup_forgotten_total: count(
                    "relay_dedup_forgotten_total",
                    "Departed blobs forgotten before RELAY_DEDUP_SECS because RELAY_DEDUP_MAX was reached.",
                ),
                working_sets_bytes: level(
                    "relay_working_sets_bytes",
                    "Memory of the cached mailbox indexes, estimated.",
                ),

                recovery_proofs_active: level(
                    "relay_recovery_proofs_active",
                    "Recovery proofs stored now.",
                ),
                recovery_vouchers_total: count(
                    "relay_recovery_vouchers_total",
                    "Recovery proofs stored.",
                ),
                pins: level("relay_pins", "Mailboxes that open only with a proof."),
                pins_evicted_total: count(
                    "relay_pins_evicted_total",
                    "Pins that had been unused for their time and made room for new ones.",
                ),
                pins_refused_total: count(
                    "relay_pins_refused_total",
                    "New pins that were refused, so that their mailboxes were not opened.",
                ),

                rate_limited_total: count(
                    "relay_rate_limited_total",
                    "Requests, openings and connections refused by a rate limit.",
                ),
                rate_limit_clients: level(
                    "relay_rate_limit_clients",
                    "Clients and addresses that the rate limiters remember, over all budgets.",
                ),
                ready: level(
                    "relay_ready",
                    "1 while /ready answers 200, else 0; the relay checks itself if no probe came for 15 s.",
                ),
                draining: level(
                    "relay_draining",
                    "1 while the relay drains before it stops, else 0.",
                ),
                clock_steady: level(
                    "relay_clock_steady",
                    "1 if the clock has been steady for 10 min, else 0, as after a start or a step; while it is 0, expired blobs are not deleted.",
                ),
                clock_steps_total: count(
                    "relay_clock_steps_total",
                    "Times that the wall clock moved by over 5 s at once.",
                ),
                clock_gap_seconds: level(
                    "relay_clock_gap_seconds",
                    "How far the wall clock is ahead of the time that clients are told; negative when it is behind. Not 0 for 10 min after it moved by over a minute.",
                ),
                clock_unconfirmed_stop_seconds: level(
                    "relay_clock_unconfirmed_stop_seconds",
                    "A stop before this start that only the wall clock tells of: what waited through it expires by it when the clock has been steady for 24 h.",
                ),
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

fn share_counter(of: Shared, why: Why) -> Counter {
    counter!("relay_share_refusals_total", "of" => of.label(), "why" => why.label())
}

/// What clients share, each address up to its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Sessions at one time.
    Connections,
    /// Memory of messages that have not come whole.
    Unfinished,
    /// Room in the store.
    Storage,
}

/// Why somebody got no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing is left.
    Full,
    /// Its address has its share.
    Address,
    /// A wider network around it has its share.
    Network,
    /// Little is left, and others hold less.
    Scarce,
}

impl Shared {
    const ALL: [Self; 3] = [Self::Connections, Self::Unfinished, Self::Storage];

    const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Unfinished => "unfinished",
            Self::Storage => "storage",
        }
    }
}

impl Why {
    const ALL: [Self; 4] = [Self::Full, Self::Address, Self::Network, Self::Scarce];

    const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
            Self::Network => "network",
            Self::Scarce => "scarce",
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
