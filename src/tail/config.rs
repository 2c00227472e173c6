//! How often the tips are read.

use std::time::Duration;

/// `[poll]`: the bounds between which the interval of reading tips adapts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shortest interval, while cells keep coming.
    pub floor: Duration,
    /// Longest interval, after a while without cells.
    pub ceiling: Duration,
}
