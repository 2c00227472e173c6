//! Times of coordination.

use crate::cell::setting::{BadSetting, duration, lasts};
use std::time::Duration;

/// `[worker]`: how a worker keeps its session. All workers of a group may differ: each session carries its own length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two heartbeats: one small write for all shards of the worker. Default 3 s; 50 ms to 60 s.
    pub heartbeat: Duration,
    /// How long a silent session keeps its shards before others take them. Default 10 s; three heartbeats to an hour.
    pub session: Duration,
    /// How long a leaving worker waits for calls that are under way. Default 30 s; 0 to a day.
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

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), BadSetting> {
        lasts("heartbeat", self.heartbeat, Duration::from_millis(50), Duration::from_mins(1))?;
        let least = 3 * self.heartbeat;
        if self.session < least {
            let (session, least) = (duration::text(self.session), duration::text(least));
            let reason = format!(
                "{session:?} is under three heartbeats ({least:?}): one lost heartbeat would cost the worker its shards"
            );
            return Err(BadSetting::new("session", reason));
        }
        lasts("session", self.session, least, Duration::from_hours(1))?;
        lasts("drain_deadline", self.drain_deadline, Duration::ZERO, Duration::from_hours(24))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_at_least_three_heartbeats() {
        let config = |heartbeat, session| Config {
            heartbeat: Duration::from_millis(heartbeat),
            session: Duration::from_millis(session),
            ..Config::default()
        };
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(config(500, 1500).check(), Ok(()));
        assert_eq!(config(500, 1499).check().unwrap_err().key, "session");
        assert_eq!(config(10, 1500).check().unwrap_err().key, "heartbeat");
    }
}
