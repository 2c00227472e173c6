//! When a failed cell is tried again, and when no more. Pure; the shard does the waiting.

use super::config::Retry;
use crate::cell::Millis;
use std::time::Duration;

/// Waits up to this long are spent in memory; a cell that waits longer is parked.
pub(crate) const IN_MEMORY: Duration = Duration::from_secs(10);

impl Retry {
    /// The wait after so many failed attempts (1 or more): full jitter below a bound that doubles from `min` to `max`.
    #[must_use]
    pub fn wait(&self, attempts: u32) -> Duration {
        let bound = self.min.saturating_mul(1 << attempts.saturating_sub(1).min(24)).min(self.max);
        bound.mul_f64(fastrand::f64())
    }

    /// Whether a cell that has failed so often, first attempted at `since`, has used up its attempts.
    #[must_use]
    pub fn exhausted(&self, attempts: u32, since: Millis, now: Millis) -> bool {
        let age = Duration::from_millis(u64::try_from(now.0.saturating_sub(since.0)).unwrap_or(0));
        self.attempts.is_some_and(|most| attempts >= most) || age >= self.max_age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_spread() {
        let retry = Retry {
            min: Duration::from_secs(1),
            max: Duration::from_secs(900),
            max_age: Duration::from_secs(86_400),
            attempts: Some(3),
        };
        let longest = |attempts| (0..400).map(|_| retry.wait(attempts)).max().unwrap();
        assert!(longest(1) <= Duration::from_secs(1) && longest(1) > Duration::from_millis(500));
        assert!(longest(4) <= Duration::from_secs(8) && longest(4) > Duration::from_secs(4));
        assert!(longest(40) <= Duration::from_secs(900) && longest(40) > Duration::from_secs(450));
        assert!(!retry.exhausted(2, Millis(0), Millis(1)));
        assert!(retry.exhausted(3, Millis(0), Millis(1)));
        assert!(retry.exhausted(1, Millis(0), Millis(86_400_000)));
        assert!(!retry.exhausted(1, Millis(5), Millis(0)), "a wall clock that went back");
    }
}
