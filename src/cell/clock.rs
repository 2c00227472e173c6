//! The clocks, each behind one function, so that a simulation can replace them and give every worker its own.
//!
//! Waiting is done with tokio's clock. Whether this process may still trust its session is measured on
//! `CLOCK_BOOTTIME`, which goes on while the machine is suspended. The wall clock labels things for people and decides
//! when a parked cell is due; it takes no part in any decision about ownership.
//!
//! The rooms that decide and wait ask here for tokio's clock too ([`now`], [`since`], [`sleep`], [`sleep_until`],
//! [`timeout`]): in a simulation all clocks of a worker go at that worker's pace.

use super::Millis;
use rustix::time::{ClockId, clock_gettime};
use std::{
    cell::Cell,
    future::Future,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, Sleep, Timeout};

/// How fast a simulated clock goes, in thousandths of the true one.
pub const TRUE_PACE: u64 = 1000;

#[derive(Clone, Copy)]
struct Simulated {
    start: Instant,
    wall: Millis,
    /// Thousandths.
    pace: u64,
    /// How far the wall clock is off, in milliseconds.
    off: i64,
}

impl Simulated {
    /// What a clock of this pace shows `true_time` after the start.
    fn shown(self, true_time: Duration) -> Duration {
        Duration::from_nanos(nanos(true_time) * self.pace / TRUE_PACE)
    }

    /// The earliest true time at which it shows that much.
    fn reached(self, shown: Duration) -> Duration {
        Duration::from_nanos((nanos(shown) * TRUE_PACE).div_ceil(self.pace))
    }

    fn true_instant(self, local: Instant) -> Instant {
        match local.checked_duration_since(self.start) {
            Some(shown) if self.pace != TRUE_PACE => self.start + self.reached(shown),
            _ => local,
        }
    }
}

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
    /// How often a simulated clock was read. Each reading shows a nanosecond more than the one before, as on a true clock: two
    /// readings are never the same.
    static READINGS: Cell<u64> = const { Cell::new(0) };
}

fn reading() -> Duration {
    READINGS.set(READINGS.get() + 1);
    Duration::from_nanos(READINGS.get())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / TRUE_PACE / TRUE_PACE)
}

/// From now on, all clocks of this thread follow tokio's (paused) clock, and the wall clock starts at `start`.
pub fn simulate(start: Millis) {
    SIMULATED.set(Some(Simulated { start: Instant::now(), wall: start, pace: TRUE_PACE, off: 0 }));
    READINGS.set(0);
}

/// For what is polled on this thread until the next call, the clocks go at `pace` thousandths of the true one, counted from
/// the start of the simulation, and the wall clock is `off` milliseconds ahead.
pub fn set_pace(pace: u64, off: i64) {
    if let Some(simulated) = SIMULATED.get() {
        SIMULATED.set(Some(Simulated { pace: pace.max(1), off, ..simulated }));
    }
}

/// Tokio's clock, for waiting and for measuring.
#[must_use]
pub fn now() -> Instant {
    let now = Instant::now();
    match SIMULATED.get() {
        Some(simulated) => simulated.start + simulated.shown(now - simulated.start) + reading(),
        None => now,
    }
}

/// How long ago that was, by [`now`].
#[must_use]
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// Waits, by the clock of [`now`].
pub fn sleep(time: Duration) -> Sleep {
    sleep_until(now().checked_add(time).unwrap_or_else(|| now() + Duration::from_secs(86_400 * 365)))
}

/// Waits until [`now`] shows that.
pub fn sleep_until(at: Instant) -> Sleep {
    let at = SIMULATED.get().map_or(at, |simulated| simulated.true_instant(at));
    tokio::time::sleep_until(at)
}

/// Gives a future that much time, by the clock of [`now`].
pub fn timeout<F: Future>(time: Duration, future: F) -> Timeout<F> {
    let time = SIMULATED.get().map_or(time, |simulated| match simulated.pace {
        TRUE_PACE => time,
        _ => simulated.reached(time),
    });
    tokio::time::timeout(time, future)
}

/// Time since boot, suspended time included.
#[must_use]
pub fn boot() -> Duration {
    match SIMULATED.get() {
        Some(simulated) => simulated.shown(simulated.start.elapsed()),
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
        Some(simulated) => {
            let shown = simulated.shown(simulated.start.elapsed());
            Millis(simulated.wall.0 + millis(shown) + simulated.off)
        }
        None => Millis(millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_of_another_pace_is_never_woken_early() {
        simulate(Millis(0));
        for pace in [500, 900, 999, 1000, 1001, 1333, 2000] {
            set_pace(pace, 0);
            for millis in [0, 1, 7, 999, 12_345] {
                let (before, true_before) = (now(), Instant::now());
                let at = before + Duration::from_millis(millis);
                sleep_until(at).await;
                assert!(now() >= at, "pace {pace}: {:?} too early", at - now());
                let true_time = true_before.elapsed().as_millis();
                let expected = u128::from(millis * TRUE_PACE / pace);
                assert!(true_time.abs_diff(expected) <= 2, "pace {pace}: {true_time} ms instead of {expected}");
            }
            assert!(timeout(Duration::from_secs(1), std::future::pending::<()>()).await.is_err());
        }
        set_pace(2000, 5000);
        let (shown, wall_shown) = (boot(), wall());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((boot() - shown, wall().0 - wall_shown.0), (Duration::from_secs(2), 2000));
        set_pace(2000, 0);
        assert_eq!(wall().0, wall_shown.0 + 2000 - 5000);
    }
}
