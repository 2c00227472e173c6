//! Metrics: one function per observation, so that no other room names the metrics crate.
