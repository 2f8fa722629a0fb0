//! Behaviour of the relay, by topic.

mod settings;
