//! Behaviour tests, one file per behaviour; a single binary links once and shares the harness.

mod golden_v1;
