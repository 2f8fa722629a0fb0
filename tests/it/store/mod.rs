//! What every engine promises, on every engine, and what happens to files and disks. `rig` has the engines, `faulty` lets one fail.

mod clock;
pub(crate) mod contract;
mod corruption;
mod device_sync;
pub(crate) mod disks;
mod faults;
pub(crate) mod faulty;
mod first_release;
mod kill;
mod model;
mod pins;
mod postgres;
mod proxy;
mod recovery;
mod scratch;
pub(crate) mod sqlite;
mod v2;
mod wide_batches;
