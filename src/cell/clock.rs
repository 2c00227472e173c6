//! The two clocks that are not tokio's, each behind one function, so that a simulation can replace them.
//!
//! Waiting is done with tokio's clock. Whether this process may still trust its session is measured on
//! `CLOCK_BOOTTIME`, which goes on while the machine is suspended. The wall clock labels things for people and decides
//! when a parked cell is due; it takes no part in any decision about ownership.

use super::Millis;
use rustix::time::{ClockId, clock_gettime};
use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<(Instant, Millis)>> = const { Cell::new(None) };
}

/// From now on, both clocks of this thread follow tokio's (paused) clock, and the wall clock starts at `start`.
pub fn simulate(start: Millis) {
    SIMULATED.set(Some((Instant::now(), start)));
}

/// Time since boot, suspended time included.
#[must_use]
pub fn boot() -> Duration {
    match SIMULATED.get() {
        Some((since, _)) => since.elapsed(),
        None => {
            let time = clock_gettime(ClockId::Boottime);
            Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
        }
    }
}

/// The wall clock, in milliseconds since the Unix epoch.
#[must_use]
pub fn wall() -> Millis {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match SIMULATED.get() {
        Some((since, start)) => Millis(start.0 + millis(since.elapsed())),
        None => Millis(millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())),
    }
}
