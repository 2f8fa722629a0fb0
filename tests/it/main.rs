//! Behaviour of the relay, by topic: one binary, which links once and shares its harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod harness;

mod architecture;
mod faulty;
mod limits;
mod refusals;
mod settings;
mod slow_and_hostile;
mod store_contract;
mod store_model;
mod submit_and_deliver;
