//! Behaviour of the relay, by topic: one binary, which links once and shares its harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod architecture;
mod cli;
mod client;
mod database;
mod harness;
mod operations;
mod pages;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod power;
mod process;
mod store;
mod v1;
mod v2;

#[path = "../../examples/receipts.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod example;
