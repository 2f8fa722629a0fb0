//! Protocol v2 through the real socket; `client` is what the tests speak it with.

pub(crate) mod client;
mod cost;
mod delivery;
mod faults;
mod frames;
mod golden;
mod idle;
mod lists;
mod mailboxes;
mod model;
mod private;
mod refusals;
mod session;
mod slow;
mod strangers;
mod submit;
pub(crate) mod vectors;
