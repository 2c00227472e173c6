//! Stops calling while everything fails, so that an outage downstream costs a few probes and not an attempt of every cell.

use super::config::BreakerConfig;
use crate::metrics::BREAKER;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Outcomes that are remembered at most.
pub(super) const REMEMBERED: u32 = 4096;
/// While a probe is out, others ask again after so long, or after the cool-down.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A circuit breaker, shared by all shards of a trigger in this worker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Outcomes of late, oldest first, and how many of them failed.
    Closed { outcomes: VecDeque<(Instant, bool)>, failed: usize },
    /// Nothing is called until then.
    Open { until: Instant },
    /// One call is out to see.
    Probing { since: Instant },
}

/// Whether a call may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Go,
    /// It may, and decides whether others may.
    Probe,
    /// Not before then.
    Wait(Instant),
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: Mutex::new(State::closed()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one call.
    pub fn gate(&self, now: Instant) -> Gate {
        let mut state = self.state();
        match *state {
            State::Closed { .. } => Gate::Go,
            State::Open { until } if now < until => Gate::Wait(until),
            // A probe whose shard was lost never reports; another is let through after a while.
            State::Probing { since } if now < since + self.patience() => Gate::Wait(self.ask_again(now)),
            State::Open { .. } | State::Probing { .. } => {
                *state = State::Probing { since: now };
                Gate::Probe
            }
        }
    }

    fn patience(&self) -> Duration {
        (self.config.cool_down * 2).max(Duration::from_secs(60))
    }

    /// Its state as one of [`BREAKER`](crate::metrics::BREAKER).
    #[must_use]
    pub fn label(&self) -> &'static str {
        match *self.state() {
            State::Closed { .. } => BREAKER[0],
            State::Open { .. } => BREAKER[1],
            State::Probing { .. } => BREAKER[2],
        }
    }

    /// When the next call may start, without asking for one.
    #[must_use]
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        match *self.state() {
            State::Closed { .. } => None,
            State::Open { until } => (until > now).then_some(until),
            State::Probing { since } => (since + self.patience() > now).then(|| self.ask_again(now)),
        }
    }

    fn ask_again(&self, now: Instant) -> Instant {
        now + self.config.cool_down.min(ASK_AGAIN)
    }

    /// The probe ended before its handler was called: nothing was learnt, and another may go.
    pub fn probe_was_not_made(&self, now: Instant) {
        let mut state = self.state();
        if let State::Probing { .. } = *state {
            *state = State::Open { until: now };
        }
    }

    /// Tells how a call ended. `true` when this opened the breaker.
    pub fn report(&self, now: Instant, probe: bool, good: bool) -> bool {
        let mut state = self.state();
        let until = now + self.config.cool_down;
        match &mut *state {
            State::Probing { .. } if probe => {
                *state = if good { State::closed() } else { State::Open { until } };
                !good
            }
            State::Closed { outcomes, failed } => {
                outcomes.push_back((now, good));
                *failed += usize::from(!good);
                while outcomes.len() > REMEMBERED as usize
                    || outcomes.front().is_some_and(|(at, _)| now.duration_since(*at) > self.config.window)
                {
                    *failed -= usize::from(outcomes.pop_front().is_some_and(|(_, good)| !good));
                }
                let opens = *failed >= self.config.failures as usize && *failed * 2 > outcomes.len();
                if opens {
                    *state = State::Open { until };
                }
                opens
            }
            // A call that started before it opened.
            State::Open { .. } | State::Probing { .. } => false,
        }
    }
}

impl State {
    fn closed() -> Self {
        Self::Closed { outcomes: VecDeque::new(), failed: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_probes_and_closes() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(BreakerConfig { failures: 5, window: 10 * second, cool_down: 5 * second });
        let now = Instant::now();
        for _ in 0..4 {
            assert!(!breaker.report(now, false, false));
        }
        assert_eq!(breaker.gate(now), Gate::Go);
        assert!(breaker.report(now, false, false), "the fifth opens it");
        assert_eq!(breaker.gate(now), Gate::Wait(now + 5 * second));
        let later = now + 5 * second;
        assert_eq!(breaker.gate(later), Gate::Probe);
        assert!(matches!(breaker.gate(later), Gate::Wait(_)), "one probe at a time");
        assert!(breaker.report(later, true, false), "a failed probe opens it again");
        let later = later + 5 * second;
        assert_eq!(breaker.gate(later), Gate::Probe);
        breaker.report(later, true, true);
        assert_eq!(breaker.gate(later), Gate::Go);
    }

    #[tokio::test(start_paused = true)]
    async fn one_poisoned_row_among_good_ones_does_not_open_it() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(BreakerConfig { failures: 5, window: 10 * second, cool_down: 5 * second });
        let now = Instant::now();
        for _ in 0..100 {
            assert!(!breaker.report(now, false, true));
            assert!(!breaker.report(now, false, false));
        }
        for _ in 0..4 {
            assert!(!breaker.report(now + 11 * second, false, false), "old failures are forgotten");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_for_a_probe_ask_again_soon() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(BreakerConfig { failures: 1, window: 10 * second, cool_down: 5 * second });
        let now = Instant::now();
        assert!(breaker.report(now, false, false));
        let later = now + 5 * second;
        assert_eq!(breaker.gate(later), Gate::Probe);
        assert_eq!(breaker.opens_at(later), Some(later + ASK_AGAIN), "the probe may end at any moment");
        breaker.probe_was_not_made(later);
        assert_eq!(breaker.gate(later), Gate::Probe, "the other one told nothing");
        assert_eq!(breaker.gate(later + second), Gate::Wait(later + second + ASK_AGAIN));
        assert_eq!(breaker.gate(later + 60 * second), Gate::Probe, "a probe whose shard was lost never reports");
    }
}
