//! What operators see and do: starting, stopping, settings, the operators' port.

mod accept_queue;
mod clock;
mod drain;
mod files;
mod http;
mod readiness;
mod settings;
mod start_and_stop;
mod supervisor;
mod together;
