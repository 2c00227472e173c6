//! How often the tips are read.

use crate::cell::setting::{BadSetting, duration, lasts};
use std::time::Duration;

/// `[poll]`: the bounds between which the interval of reading tips adapts. An append through the same process wakes the
/// tail at once, whatever they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shortest interval, while cells keep coming. Default 10 ms on the embedded store, else 200 ms; 1 ms to a minute.
    pub floor: Duration,
    /// Longest interval, after a while without cells. Default 200 ms on the embedded store, else 2 s; the floor to a minute.
    pub ceiling: Duration,
}

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), BadSetting> {
        let most = Duration::from_mins(1);
        lasts("floor", self.floor, Duration::from_millis(1), most)?;
        if self.ceiling < self.floor {
            let (floor, ceiling) = (duration::text(self.floor), duration::text(self.ceiling));
            return Err(BadSetting::new("ceiling", format!("{ceiling:?} is under the floor ({floor:?})")));
        }
        lasts("ceiling", self.ceiling, self.floor, most)
    }
}
