//! Integration tests: one binary, files by behaviour.

mod faulty;
mod store_contract;
mod store_model;
