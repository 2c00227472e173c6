//! What the file says of one trigger.

use crate::cell::{AddedId, Millis, Name, ShardId};
use std::{collections::BTreeMap, time::Duration};

/// Where a trigger begins in a shard that it has no checkpoint of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest cell that the log has.
    #[default]
    Oldest,
    /// With the cells appended after the trigger was first registered.
    Newest,
    /// With the first cell appended at or after this time.
    Time(Millis),
    /// After these places; shards that are not named begin with the oldest cell.
    Added(BTreeMap<ShardId, AddedId>),
}

/// Which cells wait for which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The cells of a row in log order; different rows at the same time.
    #[default]
    Row,
    /// Strict log order of the shard.
    Shard,
    /// None.
    None,
}

/// What happens to a cell whose attempts are used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exhausted {
    /// It is parked as dead.
    #[default]
    Park,
    /// It is tried for ever, and what its order puts behind it waits.
    Block,
    /// It is passed, and counted.
    Drop,
}

/// How many cells may be in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// Cells of a shard in flight, or finished and not yet covered by a durable checkpoint. The bound on repeats.
    pub cells: u32,
    /// Bytes of them.
    pub bytes: u64,
}

/// When a failed cell is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Bound of the first wait.
    pub min: Duration,
    /// Bound of all waits.
    pub max: Duration,
    /// Age from the first attempt at which a cell is exhausted.
    pub max_age: Duration,
    /// Attempts after which a cell is exhausted.
    pub attempts: Option<u32>,
}

/// When calls stop because everything fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures that open it, when they are also more than half of the attempts.
    pub failures: u32,
    /// Within this time.
    pub window: Duration,
    /// Until a probe is let through.
    pub cool_down: Duration,
}

/// One trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The datastore.
    pub source: Name,
    /// Columns to be called for; empty: every column.
    pub columns: Vec<String>,
    /// CEL expression.
    pub filter: Option<String>,
    /// Columns whose latest cells the event brings along.
    pub include: Vec<String>,
    /// Where to begin.
    pub start: Start,
    /// Which cells wait for which.
    pub order: Order,
    /// Calls at a time, per worker.
    pub in_flight: u32,
    /// Cells a call, at most.
    pub batch: u32,
    /// How long a batch may wait to fill.
    pub linger: Duration,
    /// Of one call.
    pub timeout: Duration,
    /// Bounds of what is in hand.
    pub window: WindowConfig,
    /// Cells a second, per worker.
    pub rate: Option<f64>,
    /// When a failed cell is tried again.
    pub retry: Retry,
    /// What follows.
    pub exhausted: Exhausted,
    /// Dead cells of a shard before the trigger pauses there.
    pub max_parked: u64,
    /// Cells of a row behind a retrying one.
    pub max_waiting: u32,
    /// Off when `None`.
    pub breaker: Option<BreakerConfig>,
}

impl Config {
    /// The defaults, for a source.
    #[must_use]
    pub fn new(source: Name) -> Self {
        let second = Duration::from_secs(1);
        Self {
            source,
            columns: Vec::new(),
            filter: None,
            include: Vec::new(),
            start: Start::Oldest,
            order: Order::Row,
            in_flight: 64,
            batch: 1,
            linger: Duration::ZERO,
            timeout: 30 * second,
            window: WindowConfig { cells: 1000, bytes: 16_000_000 },
            rate: None,
            retry: Retry { min: second, max: 900 * second, max_age: 86_400 * second, attempts: None },
            exhausted: Exhausted::Park,
            max_parked: 1000,
            max_waiting: 1000,
            breaker: Some(BreakerConfig { failures: 20, window: 10 * second, cool_down: 5 * second }),
        }
    }
}
