//! The client library against the real relay and against played ones.

mod errands;
mod played;
mod tls;
mod trouble;
mod v2;
