//! Behaviour of the relay, by topic: one binary, which links once and shares its harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod harness;
mod process;

mod architecture;
mod drain;
mod expiry;
mod faulty;
mod golden_v1;
mod kill;
mod limits;
mod ops_http;
mod refusals;
mod settings;
mod slow_and_hostile;
mod sqlite_open;
mod start_and_stop;
mod store_contract;
mod store_device_sync;
mod store_model;
mod store_pins;
mod store_recovery;
mod submit_and_deliver;
