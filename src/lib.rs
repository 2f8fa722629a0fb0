//! A store-and-forward relay for end-to-end encrypted blobs.
//!
//! The modules in the order of a blob's way:

pub mod protocol;
pub mod store;

// Beside the way.
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod ids;
pub mod metrics;
pub mod secrets;
