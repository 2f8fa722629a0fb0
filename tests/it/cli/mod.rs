//! The commands of the binary.

mod backup;
mod check;
mod errands;
mod neighbours;
mod outputs;
mod v2;
