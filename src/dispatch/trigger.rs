//! A trigger at work in this process: shared by all its shards.

use super::{Breaker, Config, Rate, Share};
use crate::{
    cell::{Handler, Name, TriggerRecord},
    filter::Filter,
    metrics::Calls,
    store::Cells,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

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
        }
    }
}
