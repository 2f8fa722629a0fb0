//! Behaviour of the relay, by topic: one binary, which links once and shares its harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod accept_queue;
mod address_limits;
mod architecture;
mod backup;
mod check;
mod cli_v2;
mod cli_v2_errands;
mod client_tls;
mod client_v2;
mod client_v2_errands;
mod client_v2_played;
mod client_v2_trouble;
mod clock;
mod corruption;
mod crowds;
mod database_of_the_first_release;
mod device_sync;
mod discretion;
mod disk_full;
mod drain;
mod expiry;
mod faulty;
mod golden_v1;
mod golden_v2;
mod golden_v2_frames;
mod guest;
mod harness;
mod identity;
mod kill;
mod limits;
mod neighbours;
mod notices;
mod operations_page;
mod ops_http;
mod pages;
mod process;
mod protocol_page;
mod purge_v1;
mod recovery;
mod refusals;
mod settings;
mod slow_and_hostile;
mod sqlite_open;
mod start_and_stop;
mod store_clock;
mod store_contract;
mod store_device_sync;
mod store_faults;
mod store_model;
mod store_pins;
mod store_recovery;
mod store_v2;
mod submit_and_deliver;
mod supervisor;
mod tiers_page;
mod troubleshooting_page;
mod v2_delivery;
mod v2_faults;
mod v2_frames;
mod v2_idle;
mod v2_lists;
mod v2_mailboxes;
mod v2_model;
mod v2_page;
mod v2_private;
mod v2_refusals;
mod v2_session;
mod v2_slow;
mod v2_strangers;
mod v2_submit;

#[path = "../../examples/receipts.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod example;
