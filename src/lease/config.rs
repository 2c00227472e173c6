//! Times of coordination.

use std::time::Duration;

/// `[worker]`: how a worker keeps its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long a silent session keeps its shards; at least three heartbeats.
    pub session: Duration,
    /// How long a leaving worker waits for calls that are under way.
    pub drain_deadline: Duration,
    /// Between two readings of all sessions. Not in the file: 200 ms on the embedded store, else a heartbeat.
    pub membership: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let heartbeat = Duration::from_secs(3);
        Self {
            heartbeat,
            session: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
            membership: heartbeat,
        }
    }
}
