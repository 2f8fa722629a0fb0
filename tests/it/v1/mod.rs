//! Protocol v1 through the real socket.

mod addresses;
mod crowds;
mod device_sync;
mod expiry;
mod golden;
pub(crate) mod hostile;
pub(crate) mod identity;
mod limits;
mod notices;
mod privacy;
mod purge;
mod recovery;
mod refusals;
mod shares;
mod submit_and_deliver;
