//! A trigger at work in this process: shared by all its shards.

use super::{Breaker, Config, Rate, Share};
use crate::{
    cell::{Handler, Name, TriggerRecord, clock},
    filter::Filter,
    metrics::Calls,
    store::Cells,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::{sync::Semaphore, time::Instant};

/// Wait before an attempt that could not be prepared or finished because the store did not answer: the first one, and the
/// longest. In between it is half of the time that the store has failed for.
const STORE_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What all shards of a trigger share.
pub struct Trigger {
    /// Its label here: what the config calls it.
    pub name: Name,
    /// As registered when this process began to work for it; pauses come from fresher readings.
    pub record: TriggerRecord,
    /// What the file says.
    pub config: Config,
    /// Which cells it is called for.
    pub filter: Filter,
    /// The code.
    pub handler: Arc<dyn Handler>,
    /// The datastore that it tails, and to which answers are appended.
    pub cells: Cells,
    /// Calls at a time.
    pub slots: Arc<Semaphore>,
    /// Memory of its windows.
    pub share: Share,
    /// Stops calling while everything fails.
    pub breaker: Option<Breaker>,
    /// Cells a second.
    pub rate: Option<Rate>,
    /// Counts its calls.
    pub calls: Calls,
    /// Whether the store gives its attempts what they need.
    pub(super) reads: Outage,
    /// Whether it takes their answers.
    pub(super) appends: Outage,
}

/// Since when the store has not done once what attempts ask of it.
#[derive(Default)]
pub(super) struct Outage(Mutex<Option<Instant>>);

impl Outage {
    /// It did.
    pub(super) fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It did not: how long that attempt waits. By the time that it lasts and not by a count, since many fail together.
    pub(super) fn wait(&self) -> Duration {
        let now = clock::now();
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        (now.duration_since(since) / 2).clamp(STORE_WAITS.0, STORE_WAITS.1).mul_f64(0.5 + fastrand::f64())
    }
}

impl Trigger {
    /// Ready to be called.
    #[must_use]
    pub fn new(
        name: Name,
        record: TriggerRecord,
        config: Config,
        filter: Filter,
        handler: Arc<dyn Handler>,
        cells: Cells,
        share: Share,
    ) -> Self {
        Self {
            filter,
            handler,
            cells,
            slots: Arc::new(Semaphore::new(config.in_flight as usize)),
            breaker: config.breaker.clone().map(Breaker::new),
            share,
            rate: config.rate.map(Rate::new),
            calls: Calls::of(name.as_str()),
            name,
            config,
            record,
            reads: Outage::default(),
            appends: Outage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_store_waits_longer_the_longer_it_fails() {
        let (outage, second) = (Outage::default(), Duration::from_secs(1));
        let waits = |about: f64| {
            let wait = outage.wait().as_secs_f64();
            assert!((about * 0.5..=about * 1.5).contains(&wait), "{wait}");
        };
        for _ in 0..100 {
            waits(1.0);
        }
        tokio::time::sleep(40 * second).await;
        waits(20.0);
        tokio::time::sleep(3600 * second).await;
        waits(30.0);
        outage.over();
        waits(1.0);
    }
}
