//! How fast is read, and what it costs.

use crate::cell::Consistency;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Bytes that one read unit pays for.
const UNIT: u64 = 4096;

/// Halves of read units: an eventually consistent read of 4 KiB is one, a strongly consistent one is two.
pub(super) fn halves(bytes: u64, consistency: Consistency) -> u64 {
    bytes.div_ceil(UNIT).max(1) * if consistency == Consistency::Strong { 2 } else { 1 }
}

/// Counts what reads cost, and waits after each for as long as it pays for.
pub(super) struct Pace {
    /// Units a second.
    rate: Option<u32>,
    halves: u64,
    /// When the next read may begin.
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), halves: 0, next: Instant::now() }
    }

    pub(super) fn units(&self) -> u64 {
        self.halves.div_ceil(2)
    }

    /// A read was answered.
    pub(super) async fn spend(&mut self, halves: u64) {
        self.halves += halves;
        let Some(rate) = self.rate else { return };
        let wait = Duration::from_millis(halves.saturating_mul(500) / u64::from(rate));
        self.next = self.next.max(Instant::now()) + wait;
        sleep_until(self.next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_dynamodb() {
        use Consistency::{Eventual, Strong};
        let costs = [(0, Strong), (4096, Strong), (4097, Strong), (4096, Eventual), (1 << 20, Eventual)];
        assert_eq!(costs.map(|(bytes, consistency)| halves(bytes, consistency)), [2, 2, 4, 1, 256]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_on_the_average_and_after_a_rest() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(100));
        for _ in 0..50 {
            pace.spend(20).await;
        }
        assert_eq!(pace.units(), 500);
        assert_eq!(begun.elapsed().as_millis(), 5000);
        tokio::time::advance(Duration::from_mins(1)).await;
        let rested = Instant::now();
        pace.spend(200).await;
        assert_eq!(rested.elapsed().as_millis(), 1000, "what was not used is gone");
        let mut free = Pace::new(None);
        free.spend(1 << 40).await;
        assert_eq!(rested.elapsed().as_millis(), 1000);
    }
}
