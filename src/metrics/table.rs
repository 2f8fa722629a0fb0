//! Every series without labels: its name, its kind and its help text, each once.

use metrics::{Counter, Gauge, Histogram};

use super::recorder::Series as _;

/// Makes the struct of the handles and its constructor from one table. A field's series has the field's name
/// behind `relay_`; a field's documentation is the help text that operators read.
macro_rules! series {
    ($(pub $field:ident: $kind:ty = $help:literal;)*) => {
        /// The handles that move the series.
        pub struct Table {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Table {
            /// Every series of the current recorder, at zero.
            pub(super) fn new() -> Self {
                Self {
                    $($field: <$kind>::make(concat!("relay_", stringify!($field)), $help),)*
                }
            }
        }
    };
}

series! {
    pub connections_total: Counter =
        "WebSocket sessions started.";
    pub connections_active: Gauge =
        "WebSocket sessions open now.";
    pub connections_limit: Gauge =
        "RELAY_MAX_CONNECTIONS; 0 means no limit.";
    pub connection_errors_total: Counter =
        "Sessions that ended with an error instead of a close or the drain, including bad handshakes.";
    pub connections_refused_total: Counter =
        "Connections refused before a session began: RELAY_MAX_CONNECTIONS reached, or too many from one address.";
    pub accept_errors_total: Counter =
        "Times that accepting a connection failed (for example: out of file descriptors).";
    pub lobby_shown_out_total: Counter =
        "Connections without a session that were closed because too many waited: the oldest of the address with the most.";
    pub listen_overflows_total: Counter =
        "Connections that the system dropped since the relay started because a queue of connections to be accepted was full. Linux counts for the whole network namespace: on a host, other programs are in it.";
    pub listen_drops_total: Counter =
        "Connections that the system dropped since the relay started before they were accepted, for any reason, overflows included. Linux counts for the whole network namespace: on a host, other programs are in it.";

    pub messages_received_total: Counter =
        "Frames read from clients.";
    pub messages_sent_total: Counter =
        "Frames written to clients.";
    pub messages_rejected_total: Counter =
        "Requests answered with a refusal.";
    pub messages_ignored_total: Counter =
        "Frames of a type that this relay does not serve, ignored as protocol v1 demands.";
    pub message_duration_seconds: Histogram =
        "From a frame read whole to its answer queued, the commit included.";
    pub answer_lane_full_total: Counter =
        "Times a session stopped reading because its client did not take its answers.";
    pub slow_reading_total: Counter =
        "Frames before which the relay paused because the connection had sent too many that were refused or of no use.";
    pub floods_closed_total: Counter =
        "Connections closed after a minute of slow reading because their frames were refused or of no use.";
    pub instances: Gauge =
        "Relays that use this database now, this one included, as the last heartbeat found; 0 while the heartbeat fails. Without PostgreSQL 1.";
    pub deliveries_held_back_seconds: Gauge =
        "How long the oldest open transaction on the PostgreSQL server has held deliveries back, as the heartbeats of this relay have seen it; 0 while none does, while the heartbeat fails, and without PostgreSQL.";
    pub notifications_sent_total: Counter =
        "Words sent to the other relays on this database: a mailbox with something new, a fate of a blob, a live blob.";
    pub notifications_received_total: Counter =
        "Words received from the other relays on this database.";
    pub notifications_dropped_total: Counter =
        "Words to the other relays that were dropped because too many waited or the database did not take them; what was stored is found a second or two later.";
    pub notifications_repaired_total: Counter =
        "Times that a session was woken for a blob of which no word had come within a second: a notification was lost.";
    pub notification_reconnects_total: Counter =
        "Times that the connection on which the relay hears the others was lost.";
    pub notices_dropped_total: Counter =
        "Notices to senders that were dropped because too many waited.";
    pub unfinished_bytes: Gauge =
        "Memory held by incomplete messages beyond the first 64 KiB of each, in steps of 64 KiB; what has arrived counts, not what is announced.";
    pub unfinished_waits_total: Counter =
        "Times that the relay stopped reading a large message because its address or all clients held too much memory with incomplete ones.";

    pub blobs_stored: Gauge =
        "Blobs stored now.";
    pub blobs_stored_at_start: Gauge =
        "Blobs that were stored when this process started.";
    pub stored_bytes: Gauge =
        "Bytes stored now: each blob counts its size plus 256.";
    pub storage_limit_bytes: Gauge =
        "RELAY_MAX_STORAGE_BYTES; 0 means no limit.";
    pub disk_free_bytes: Gauge =
        "Bytes free on the disk of the data directory, looked at every 5 s; 0 with the memory engine.";
    pub disk_free_min_bytes: Gauge =
        "RELAY_MIN_FREE_BYTES; 0 means that the disk may fill up, or that there is none.";
    pub database_log_bytes: Gauge =
        "Size of the database's log (relay.db-wal), looked at every 5 s; 0 with the memory engine.";
    pub next_expiry_timestamp_seconds: Gauge =
        "Unix time at which the next blob expires, accurate to 10 min, as of the last cleanup; 0 if no blob was stored.";
    pub blobs_created_total: Counter =
        "Blobs stored; repeats of a stored blob are not counted.";
    pub blobs_delivered_total: Counter =
        "Deliveries written to a socket, repeats included.";
    pub blobs_handed_total: Counter =
        "Live-only blobs handed to at least one subscriber.";
    pub receipts_delivered_total: Counter =
        "Receipts written to a socket, repeats included.";
    pub device_sync_delivered_total: Counter =
        "Device-sync messages written to a socket, repeats included.";
    pub blobs_acknowledged_total: Counter =
        "Blobs deleted because their recipient acknowledged them.";
    pub blobs_cancelled_total: Counter =
        "Blobs deleted because their sender cancelled them.";
    pub blobs_replaced_total: Counter =
        "Blobs deleted because a later one of the same topic replaced them.";
    pub blobs_purged_total: Counter =
        "Blobs deleted because their mailbox was purged.";
    pub blobs_expired_total: Counter =
        "Blobs deleted because their time to live had passed.";
    pub blobs_lost_total: Counter =
        "Blobs set aside because their checksum did not match.";
    pub blobs_quarantined: Gauge =
        "Stored blobs, device sync messages and receipts that cannot be read or do not match their checksum now: kept, skipped, and looked at again every minute.";
    pub scrub_rows_total: Counter =
        "Stored rows that the scrub has compared with their checksums and indexes.";
    pub index_rebuilds_total: Counter =
        "Times that an index did not find stored rows as they are, and was rebuilt.";
    pub duplicates_total: Counter =
        "Submits that repeated a blob and were confirmed without storing it again.";

    pub device_sync_stored: Gauge =
        "Device sync messages stored now.";
    pub device_sync_stored_at_start: Gauge =
        "Device sync messages that were stored when this process started.";
    pub device_sync_created_total: Counter =
        "Device sync messages stored; repeats are not counted.";
    pub device_sync_acknowledged_total: Counter =
        "Device sync messages deleted because their device acknowledged them.";
    pub device_sync_purged_total: Counter =
        "Device sync messages deleted because their identity was purged.";
    pub device_sync_expired_total: Counter =
        "Device sync messages deleted because their time to live had passed.";
    pub device_sync_lost_total: Counter =
        "Device sync messages set aside because their checksum did not match.";

    pub receipts_stored: Gauge =
        "Receipts stored now.";
    pub receipts_stored_at_start: Gauge =
        "Receipts that were stored when this process started.";
    pub receipts_created_total: Counter =
        "Receipts stored: a sender asked what happens to its blob.";
    pub receipts_acknowledged_total: Counter =
        "Receipts deleted because they were acknowledged.";
    pub receipts_purged_total: Counter =
        "Receipts deleted because their mailbox was purged.";
    pub receipts_expired_total: Counter =
        "Receipts deleted because their time to live had passed.";
    pub receipts_lost_total: Counter =
        "Receipts set aside because their checksum did not match.";
    pub receipts_dropped_total: Counter =
        "Receipts that were not written because their mailbox or the relay was full.";

    pub commit_batch_size: Histogram =
        "Writes per transaction.";
    pub commit_duration_seconds: Histogram =
        "One transaction, its fsync included.";
    pub commit_queue_depth: Gauge =
        "Writes that wait for the next transaction.";
    pub commit_queue_bytes: Gauge =
        "Bytes of the writes that wait for the next transaction.";
    pub commit_queue_full_total: Counter =
        "Writes that found the commit queue full and had to wait.";
    pub store_errors_total: Counter =
        "Store calls that failed.";
    pub store_reopened_total: Counter =
        "Times the store was reopened after a failed write.";
    pub store_up: Gauge =
        "1 while the store takes writes, else 0.";
    pub takes_blobs: Gauge =
        "1 while a new blob would be stored, else 0: storage takes no writes, the disk has no room, or RELAY_MAX_STORAGE_BYTES is reached.";
    pub gives_blobs: Gauge =
        "1 while blobs that wait can be read, else 0: a read failed, and no probe has succeeded since.";
    pub page_duration_seconds: Histogram =
        "Reading one page of a mailbox.";
    pub dedup_remembered: Gauge =
        "Departed blobs that are remembered so that a late repeat is not stored again.";
    pub dedup_memory_seconds: Gauge =
        "Age of the oldest departed blob that is remembered.";
    pub dedup_forgotten_total: Counter =
        "Departed blobs forgotten before RELAY_DEDUP_SECS because RELAY_DEDUP_MAX was reached.";
    pub working_sets_bytes: Gauge =
        "Memory of the cached mailbox indexes, estimated.";

    pub recovery_proofs_active: Gauge =
        "Recovery proofs stored now.";
    pub recovery_vouchers_total: Counter =
        "Recovery proofs stored.";
    pub pins: Gauge =
        "Mailboxes that open only with a proof.";
    pub pins_evicted_total: Counter =
        "Pins that had been unused for their time and made room for new ones.";
    pub pins_refused_total: Counter =
        "New pins that were refused, so that their mailboxes were not opened.";

    pub rate_limited_total: Counter =
        "Requests, openings and connections refused by a rate limit.";
    pub rate_limit_clients: Gauge =
        "Clients and addresses that the rate limiters remember, over all budgets.";
    pub ready: Gauge =
        "1 while /ready answers 200, else 0; the relay checks itself if no probe came for 15 s.";
    pub log_lines_dropped_total: Counter =
        "Lines of the relay's log that were dropped because nothing was reading standard error.";
    pub draining: Gauge =
        "1 while the relay drains before it stops, else 0.";
    pub clock_steady: Gauge =
        "1 if the clock has been steady for 10 min, else 0, as after a start or a step; while it is 0, expired blobs are not deleted.";
    pub clock_steps_total: Counter =
        "Times that the wall clock moved by over 5 s at once.";
    pub clock_gap_seconds: Gauge =
        "How far the wall clock is ahead of the time that clients are told; negative when it is behind. Not 0 for 10 min after it moved by over a minute.";
    pub clock_unconfirmed_stop_seconds: Gauge =
        "A stop before this start that only the wall clock tells of: what waited through it expires by it when the clock has been steady for 24 h.";
}
