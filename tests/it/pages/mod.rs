//! The documents say what the code does.

mod links;
mod operations;
mod protocol_v1;
mod protocol_v2;
mod tiers;
mod troubleshooting;
