//! A store-and-forward relay for end-to-end encrypted blobs.
//!
//! The modules in the order of a blob's way: a client's bytes come in at `socket`, `protocol` turns
//! them into messages, a `session` decides what to do with each, `service` holds the rules, `store`
//! keeps the blob, `hub` wakes the recipient's session, and that sends it out again.
//!
//! Without the feature `server`, which is on by default, only what a client needs is here: `client`,
//! `protocol`, `ids` and `clock`.

#[cfg(feature = "server")]
pub mod socket;

pub mod protocol;

#[cfg(feature = "server")]
pub mod session;

#[cfg(feature = "server")]
pub mod service;

#[cfg(feature = "server")]
pub mod commons;

#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "server")]
pub mod hub;

// Beside the way.

#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod filesystem;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod identity;
pub mod ids;
#[cfg(feature = "server")]
pub mod limits;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod pulse;
#[cfg(feature = "server")]
pub mod secrets;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shutdown;
#[cfg(feature = "server")]
pub mod supervisor;
#[cfg(feature = "server")]
pub mod telemetry;
