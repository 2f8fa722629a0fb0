//! How many and how fast. How much (quotas) lives in the store, because only the append itself can
//! check it without letting two senders slip in together.
//!
//! `address` says whom an address counts as, `connections` bounds sessions, `rate` bounds requests over time.

pub mod address;
pub mod connections;
pub mod rate;
