//! A store-and-forward relay for end-to-end encrypted blobs.
//!
//! The modules in the order of a blob's way: a client's bytes come in at `socket`, `protocol` turns
//! them into messages, a `session` decides what to do with each, `service` holds the rules, `store`
//! keeps the blob, `hub` wakes the recipient's session, and that sends it out again.

pub mod socket;

pub mod protocol;

pub mod session;

pub mod service;

pub mod store;

pub mod hub;

// Beside the way.

pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod filesystem;
pub mod http;
pub mod ids;
pub mod limits;
pub mod metrics;
pub mod pulse;
pub mod secrets;
pub mod server;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
