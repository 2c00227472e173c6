//! Metrics: one function per observation, so that no other room names the metrics crate.

/// This worker's session was declared dead.
pub fn session_lost() {}
/// This worker declared another's session dead.
pub fn session_declared_dead() {}
/// A shard was claimed.
pub fn shard_claimed(_reason: &'static str) {}
/// An attempt ended.
pub fn attempt(_trigger: &str, _verdict: &'static str) {}
/// A cell was dropped by policy.
pub fn dropped(_trigger: &str) {}
/// Cells that a trim took away before a trigger came to them.
pub fn trim_met(_trigger: &str, _cells: u64) {}
/// A hole in the log that no trim explains.
pub fn hole_met(_datastore: &str) {}
/// Shards held by this worker.
pub fn shards_held(_n: usize) {}
