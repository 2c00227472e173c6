//! A trigger over all shards that a worker speaks for.

use super::count;
use crate::{cell::Millis, dispatch::Lot, metrics::AtWork, shard::Standing};
use tokio::time::Instant;

/// What its shards add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) lag: u64,
    /// `created_at` of the oldest unfinished cell, as far as it is known.
    pub(super) oldest: Option<Millis>,
    parked: [Lot; 3],
    window_fill: f64,
    unstored_since: Option<Instant>,
    /// Shards on which it is paused, for whatever reason.
    pub(super) shards_paused: u64,
}

impl Sum {
    /// A shard at work. `oldest` is that of its unfinished cells.
    pub(super) fn add(&mut self, standing: &Standing, oldest: Option<Millis>) {
        let Standing { low: _, tip: _, lag, oldest: _, parked, window_fill, unstored_since, paused, stopped: _ } =
            standing;
        self.add_idle(*lag, oldest);
        for (sum, lot) in self.parked.iter_mut().zip(parked) {
            sum.cells += lot.cells;
            sum.since = sum.since.into_iter().chain(lot.since).min();
        }
        self.window_fill = self.window_fill.max(*window_fill);
        self.unstored_since = self.unstored_since.into_iter().chain(*unstored_since).min();
        self.shards_paused += u64::from(paused.is_some());
    }

    /// A shard on which nobody works for it.
    pub(super) fn add_idle(&mut self, lag: u64, oldest: Option<Millis>) {
        self.lag += lag;
        self.oldest = self.oldest.into_iter().chain(oldest.filter(|_| lag > 0)).min();
    }

    /// As the metrics have it, but for the paused shards.
    pub(super) fn at_work(&self, breaker: Option<&'static str>, wall: Millis, now: Instant) -> AtWork {
        AtWork {
            parked: self.parked.map(|lot| (count(lot.cells), age(lot.since, wall))),
            window_fill: self.window_fill,
            checkpoint_age: self.unstored_since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
            breaker,
            ..AtWork::default()
        }
    }
}

/// Seconds since then; 0 when there is no then.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(super) fn age(since: Option<Millis>, now: Millis) -> f64 {
    since.map_or(0, |since| now.0.saturating_sub(since.0).max(0)) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn shards_add_up_to_their_trigger() {
        let now = Instant::now();
        let lot = |cells, since| Lot { cells, since: Some(Millis(since)) };
        let standing = |lag, window_fill| Standing { lag, window_fill, ..Standing::default() };
        let mut sum = Sum::default();
        let parked = [lot(1, 5000), Lot::default(), lot(5, 3000)];
        sum.add(&Standing { parked, paused: Some("why".into()), ..standing(7, 0.25) }, Some(Millis(4000)));
        let unstored_since = Some(now - Duration::from_secs(2));
        sum.add(&Standing { parked, unstored_since, ..standing(0, 0.5) }, Some(Millis(1)));
        sum.add_idle(3, Some(Millis(9000)));
        assert_eq!((sum.lag, age(sum.oldest, Millis(5500))), (10, 1.5), "a shard without lag has no oldest cell");
        assert_eq!(sum.shards_paused, 1);
        let at_work = sum.at_work(Some("open"), Millis(5500), now);
        let expected = AtWork {
            parked: [(2.0, 0.5), (0.0, 0.0), (10.0, 2.5)],
            window_fill: 0.5,
            checkpoint_age: 2.0,
            breaker: Some("open"),
            ..AtWork::default()
        };
        assert_eq!(at_work, expected);
        assert_eq!(age(Some(Millis(10)), Millis(5)), 0.0, "by clocks that differ");
    }
}
