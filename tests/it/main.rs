//! Behaviour, through the outside of the library; a file each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, its helpers included"
)]

mod sqlite_open;
