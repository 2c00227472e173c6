//! Order, attempts and parking of the cells in hand.
//!
//! A [`Cursor`] is one trigger's work on one shard: plain state, told what happens, asked what to do next. It does no I/O and
//! reads no clock, so that its decisions can be tested without either; the shard room reads, calls and writes.

mod attempt;
mod breaker;
mod budget;
mod config;
mod cursor;
mod lane;
mod rate;
mod retry;
#[cfg(test)]
mod tests;
mod trigger;

pub use attempt::{Attempted, Ended, May, attempt};
pub use breaker::{Breaker, Gate};
pub use budget::{Ballast, Budget, Pages, Share};
pub use config::{BreakerConfig, Config, Exhausted, MEMORY, Order, Retry, Start, WindowConfig};
pub use cursor::{Cursor, GRAVES_MAX, Item, Lot, Next, Now};
pub use rate::Rate;
pub use trigger::Trigger;
