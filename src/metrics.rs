//! Metrics: one function per observation, so that no other room names the metrics crate.

/// This worker's session was declared dead.
pub fn session_lost() {}
/// This worker declared another's session dead.
pub fn session_declared_dead() {}
/// A shard was claimed.
pub fn shard_claimed(_reason: &'static str) {}
