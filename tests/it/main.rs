//! Behaviour tests, one file per behaviour; a single binary links once and shares the harness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test says by panicking that something is wrong"
)]

mod golden_v1;
