//! Integration tests: one binary, files by behaviour.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy's own allowance ends at helper functions"
)]

mod faulty;
mod store_contract;
mod store_model;
