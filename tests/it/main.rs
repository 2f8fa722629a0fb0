//! Behaviour of the relay, by topic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic; clippy.toml covers only functions marked as tests"
)]

mod architecture;
mod settings;
mod harness;
mod submit_and_deliver;
