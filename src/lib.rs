//! A store-and-forward relay for end-to-end encrypted blobs.
//!
//! The modules in the order of a blob's way:

pub mod hub;
pub mod protocol;
pub mod socket;

pub mod service;
pub mod store;

// Beside the way.
pub mod cli;
pub mod clock;
pub mod config;
pub mod ids;
pub mod limits;
pub mod metrics;
pub mod secrets;
pub mod shutdown;
