//! Behaviour of the relay, by topic: one binary, which links once and shares its harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod harness;
mod process;

mod address_limits;
mod architecture;
mod backup;
mod check;
mod client_v2;
mod corruption;
mod crowds;
mod device_sync;
mod discretion;
mod disk_full;
mod drain;
mod expiry;
mod faulty;
mod golden_v1;
mod identity;
mod kill;
mod limits;
mod notices;
mod operations_page;
mod ops_http;
mod protocol_page;
mod recovery;
mod refusals;
mod settings;
mod slow_and_hostile;
mod sqlite_open;
mod start_and_stop;
mod store_contract;
mod store_device_sync;
mod store_faults;
mod store_model;
mod store_pins;
mod store_recovery;
mod store_v2;
mod submit_and_deliver;
mod supervisor;
