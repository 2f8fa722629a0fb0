//! How many and how fast. How much (quotas) lives in the store, because only the append itself can
//! check it without letting two senders slip in together.
//!
//! `address` says whom an address counts as, and which networks around it count too.
//! `table` has the budgets, one row each: what is charged, whose bucket, how much in which time.
//! `budgets` charges them, `rate` is one budget's buckets and `memory` what they remember, within a
//! fixed amount of it. `holdings` shares out what there is only so much of: `connections` bounds
//! sessions with it, `unfinished` the memory of messages that have not come whole.
//! `docs/limits.md` is the same for operators, and a test compares it with the table.

pub mod address;
pub mod budgets;
pub mod connections;
pub mod holdings;
pub mod memory;
mod rate;
pub mod table;
pub mod unfinished;
