//! Times of coordination.

use crate::cell::setting::{BadSetting, duration, lasts, within};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a worker does while its heartbeats are not answered for so long that others may take its shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnControlOutage {
    /// Starts no call.
    #[default]
    Stop,
    /// Goes on calling as far as the windows have room, until it learns that it has lost its shards. Others may call for the
    /// same cells meanwhile.
    Continue,
}

/// `[worker]`: how a worker keeps its session. All workers of a group may differ: each session carries its own length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two heartbeats: one small write for all shards of the worker. Default 3 s; 50 ms to 60 s.
    pub heartbeat: Duration,
    /// How long a silent session keeps its shards before others take them. Default 10 s; three heartbeats to an hour.
    pub session: Duration,
    /// How long a leaving worker waits for calls that are under way. Default 30 s; 0 to a day.
    pub drain_deadline: Duration,
    /// Its share of the shards, in proportion to the other workers'. Default 1; 1 to 100.
    pub weight: u32,
    /// Default: stop.
    pub on_control_outage: OnControlOutage,
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
            weight: 1,
            on_control_outage: OnControlOutage::Stop,
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
        if self.weight == 0 {
            let reason = "0 gives it no shard, ever; 1 to 100, or stop the worker";
            return Err(BadSetting::new("weight", reason));
        }
        within("weight", self.weight, 1, 100)?;
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

    #[test]
    fn a_worker_has_some_weight() {
        let config = |weight| Config { weight, ..Config::default() }.check();
        assert_eq!((config(1), config(100)), (Ok(()), Ok(())));
        assert!(config(0).unwrap_err().reason.contains("no shard"));
        assert_eq!(config(101).unwrap_err().key, "weight");
    }
}
