//! The documents say what the code does.

mod links;
mod operations;
mod tiers;
mod troubleshooting;
mod v1;
mod v2;
