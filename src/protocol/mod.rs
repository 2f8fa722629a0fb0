//! What travels: values and bytes. No socket, no clock, no rule.

pub mod message;
